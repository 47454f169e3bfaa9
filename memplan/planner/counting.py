"""What each layer, or each moment, of a step needs: by TinyTL's count, or as the allocator has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from memplan.graph.records import Op
from memplan.graph.step_graph import StepGraph
from memplan.memory import Implementation, price
from memplan.memory.accounting import Accounted, account

if TYPE_CHECKING:
    from memplan.graph.channels.records import ChannelGroup

CountingName: TypeAlias = Literal["tinytl", "real"]

COUNTINGS: Final[tuple[CountingName, ...]] = ("tinytl", "real")


@dataclass(frozen=True, slots=True)
class Counted:
    """What a step needs, in bytes, by one counting.

    ``peak_bytes`` is the largest need: by ``tinytl`` of one layer for one sample, by ``real`` the allocator's peak of
    the whole step. ``total_bytes`` is, by ``tinytl``, one byte for each frozen parameter, four for each that trains,
    and the peak times the batch; by ``real`` the peak, in which parameters are included.
    """

    peak_bytes: int
    peak_layer: str
    parameters: int
    total_bytes: int


class Counting(Protocol):
    """One way to count a step. Places are the same in a step and in the same step with fewer channels."""

    def needs(self, step: StepGraph) -> Sequence[int]:
        """Return the bytes needed at each place."""

    def layer(self, place: int) -> str:
        """Return the path of the layer that a place is in."""

    def entering(self, place: int) -> frozenset[int]:
        """Return the storages whose sizes decide what is needed at a place."""

    def counted(self, step: StepGraph) -> Counted:
        """Return the largest need, and the total."""


class LayerTemps:
    """TinyTL's rule of what one layer needs while it computes, for one of ``samples``."""

    def __init__(self, step: StepGraph, samples: int) -> None:
        self._step = step
        self._samples = samples
        self._paths = tuple(layer.path for layer in account(step, "tinytl").layers)

    def needs(self, step: StepGraph) -> Sequence[int]:
        """Return the temporary bytes of each layer."""
        return self._needs(account(step, "tinytl"))

    def _needs(self, accounted: Accounted) -> list[int]:
        return [-(-layer.temp_bytes // self._samples) for layer in accounted.layers]

    def layer(self, place: int) -> str:
        """Return the path of a layer."""
        return self._paths[place]

    def entering(self, place: int) -> frozenset[int]:
        """Return the storages that the layer's own ops read and write in the forward."""
        path = self._paths[place]
        ops = (op for op in self._step.ops if op.phase == "forward" and self._step.layers[op.layer].path == path)
        return frozenset(storage for op in ops for storage in _storages(op))

    def counted(self, step: StepGraph) -> Counted:
        """Return the largest need of a layer, and TinyTL's sum."""
        accounted = account(step, "tinytl")
        peak, place = max(((need, -place) for place, need in enumerate(self._needs(accounted))), default=(0, 0))
        return Counted(
            peak_bytes=peak,
            peak_layer=self._paths[-place] if peak else "",
            parameters=_parameters(step),
            total_bytes=accounted.parameter_bytes + self._samples * peak,
        )


class Moments:
    """The allocator's bytes at each moment of the step, with plain SGD."""

    def __init__(self, step: StepGraph, implementation: Implementation) -> None:
        self._step = step
        self._implementation: Implementation = implementation

    def needs(self, step: StepGraph) -> Sequence[int]:
        """Return the bytes alive at each moment, kernels' scratch included."""
        return price(step, implementation=self._implementation, alive=0).timeline.totals

    def layer(self, place: int) -> str:
        """Return the path of the layer that runs."""
        ops = self._step.ops
        return self._step.layers[ops[place].layer].path if place < len(ops) else "the optimizer's update"

    def entering(self, place: int) -> frozenset[int]:
        """Return what the op reads and writes, and the activations that are alive meanwhile."""
        alive = {
            storage.index
            for storage in self._step.storages
            if storage.role == "activation" and storage.born <= place <= storage.last
        }
        return frozenset(alive.union(*map(_storages, self._step.ops[place : place + 1])))

    def counted(self, step: StepGraph) -> Counted:
        """Return the peak, which is the total too."""
        footprint = price(step, implementation=self._implementation, alive=0)
        return Counted(footprint.peak_bytes, footprint.peak.layer, _parameters(step), footprint.peak_bytes)


def counting_of(name: CountingName, step: StepGraph, samples: int, implementation: Implementation) -> Counting:
    """Return the counting of this name for ``step`` and the same step with fewer channels."""
    return Moments(step, implementation) if name == "real" else LayerTemps(step, samples)


def needs_of(counting: Counting, step: StepGraph, groups: Sequence[ChannelGroup]) -> _Resizing:
    """Return the needs of ``step`` as a function of what its groups keep."""
    return _Resizing(counting, step, groups)


class _Resizing:
    """Needs by what groups keep, each asked for once."""

    def __init__(self, counting: Counting, step: StepGraph, groups: Sequence[ChannelGroup]) -> None:
        self._counting = counting
        self._step = step
        self._groups = groups
        self._known: dict[tuple[tuple[str, int], ...], Sequence[int]] = {}

    def __call__(self, kept: Mapping[str, int]) -> Sequence[int]:
        from memplan.graph.channels.resize import resized

        key = tuple(sorted(kept.items()))
        if key not in self._known:
            self._known[key] = self._counting.needs(resized(self._step, self._groups, kept))
        return self._known[key]


def _parameters(step: StepGraph) -> int:
    return sum(parameter.elements for parameter in step.parameters)


def _storages(op: Op) -> set[int]:
    views = (*op.inputs, *(view for view in op.outputs if view is not None))
    return {view.storage for view in views}
