"""Price a recorded step: bytes by kind and by layer, the peak, where it is and what is alive there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from memplan.graph.records import Phase, Storage
from memplan.graph.step_graph import StepGraph
from memplan.memory.arrivals import arrivals, released
from memplan.memory.optimizers import Implementation, OptimizerRule, optimizer_rule
from memplan.memory.timeline import Timeline, alive_at, maker, timeline, updated_parameters
from memplan.tables import Record, Shown, Table

#: Layers that a notebook names.
_SHOWN_LAYERS: Final = 10


@dataclass(frozen=True, slots=True)
class LayerFootprint:
    """Bytes of one layer. ``saved_bytes`` add up over layers; ``temp_bytes`` is the most that is alive while it runs.

    A storage is charged to the first layer that keeps it. Parameters, gradients and optimizer state are the layer's
    own, a tied parameter's are its first owner's.
    """

    path: str
    type: str
    saved_bytes: int
    temp_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class AliveStorage:
    """One storage that is alive at the peak, and who made it."""

    bytes: int
    kind: str
    layer: str
    op: str


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest moment of a step."""

    bytes: int
    moment: int
    phase: Phase
    layer: str
    op: str
    resident_bytes: int
    saved_bytes: int
    temp_bytes: int
    scratch_bytes: int
    alive: tuple[AliveStorage, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Composition:
    """What stays from step to step, and the batch. Gradients that are released in the backward do not stay."""

    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    state_bytes: int
    input_bytes: int


@dataclass(frozen=True, slots=True)
class Footprint(Shown):
    """The memory of one training step in steady state (second step on), in bytes.

    ``peak_bytes`` is the allocator's peak: live storages and the scratch inside kernels. ``first_step_peak_bytes`` is
    the same before the optimizer has state. ``temp_bytes`` and ``resident_bytes`` are the largest over the step, so
    that the three kinds do not add up to the peak.

    ``unhooked_bytes`` live from forward to backward without being saved tensors, as those that a custom function keeps
    on its context; they are counted as temp, and the layers that make them are named.
    """

    saved_bytes: int
    temp_bytes: int
    resident_bytes: int
    peak_bytes: int
    first_step_peak_bytes: int
    peak: Peak
    composition: Composition
    parameters: int
    trained_parameters: int
    flops_forward: int
    flops_backward: int
    layers: tuple[LayerFootprint, ...] = field(repr=False)
    timeline: Timeline = field(repr=False)
    unpriced: tuple[str, ...] = ()
    unhooked_bytes: int = 0
    unhooked_layers: tuple[str, ...] = ()

    def to_records(self) -> list[Record]:
        """Return one record for each layer, in the model's order: path and type, and bytes as integers."""
        return [asdict(layer) for layer in self.layers]

    def _table(self) -> Table:
        rows = sorted(self.layers, key=lambda layer: -layer.saved_bytes)
        named = rows if len(rows) <= _SHOWN_LAYERS + 1 else rows[:_SHOWN_LAYERS]
        hidden = rows[len(named) :]
        more = [_together(f"...and {len(hidden):,} more", hidden)] if hidden else []
        where = "the optimizer's update" if self.peak.phase == "optimizer" else f"the {self.peak.phase} of {_of(self)}"
        heading = (
            f"peak {self.peak_bytes:,} bytes in {where}; saved {self.saved_bytes:,}, at most {self.temp_bytes:,} temp, "
            f"at most {self.resident_bytes:,} resident"
        )
        records = [{**asdict(layer), "path": layer.path or "(model)"} for layer in named]
        return Table(heading, [*records, *map(asdict, (*more, _together("all, or the largest temp", rows)))])


def _of(footprint: Footprint) -> str:
    return footprint.peak.layer or "(model)"


def _together(name: str, layers: Sequence[LayerFootprint]) -> LayerFootprint:
    """Return layers as one: sums, and of temp the largest."""
    return LayerFootprint(
        path=name,
        type="",
        saved_bytes=sum(layer.saved_bytes for layer in layers),
        temp_bytes=max((layer.temp_bytes for layer in layers), default=0),
        parameter_bytes=sum(layer.parameter_bytes for layer in layers),
        gradient_bytes=sum(layer.gradient_bytes for layer in layers),
        state_bytes=sum(layer.state_bytes for layer in layers),
    )


def price(
    graph: StepGraph, optimizer: str = "sgd", implementation: Implementation = "loop", *, alive: int = 10
) -> Footprint:
    """Return the footprint of a recorded step with an optimizer; ``alive`` storages are listed at the peak.

    Raises:
        UsageError: there is no such optimizer.
    """
    rule = optimizer_rule(optimizer)
    if implementation == "in-backward":
        graph = released(graph, arrivals(graph))
    steady = timeline(graph, rule, implementation)
    first = timeline(graph, rule, implementation, first_step=True)
    totals = steady.totals
    roles: dict[str, int] = defaultdict(int)
    for storage in graph.storages:
        if storage.role != "gradient" or storage.last == len(graph.ops):
            roles[storage.role] += storage.bytes
    state_bytes = sum(rule.state(graph.storages[p.storage].bytes) for p in updated_parameters(graph))
    return Footprint(
        saved_bytes=graph.saved_bytes,
        temp_bytes=max(steady.temp, default=0),
        resident_bytes=max(steady.resident, default=0),
        peak_bytes=max(totals, default=0),
        first_step_peak_bytes=max(first.totals, default=0),
        peak=_peak(graph, steady, alive),
        composition=Composition(roles["parameter"], roles["buffer"], roles["gradient"], state_bytes, roles["input"]),
        parameters=sum(parameter.elements for parameter in graph.parameters),
        trained_parameters=sum(parameter.elements for parameter in graph.parameters if parameter.trains),
        flops_forward=graph.flops("forward"),
        flops_backward=graph.flops("backward"),
        layers=_layers(graph, steady, rule),
        timeline=steady,
        unpriced=graph.unpriced,
        unhooked_bytes=sum(graph.storages[index].bytes for index in graph.unhooked),
        unhooked_layers=tuple(
            dict.fromkeys(
                graph.layers[op.layer].path or "(model)"
                for index in graph.unhooked
                if (op := maker(graph, graph.storages[index])) is not None
            )
        ),
    )


def _peak(graph: StepGraph, steps: Timeline, alive: int) -> Peak:
    totals = steps.totals
    moment = max(range(len(totals)), key=totals.__getitem__, default=0)
    in_graph = moment < len(graph.ops)
    op = graph.ops[moment] if in_graph else None

    def at(series: tuple[int, ...]) -> int:
        return series[moment] if series else 0

    return Peak(
        bytes=at(totals),
        moment=moment,
        phase=steps.phases[moment] if totals else "forward",
        layer=graph.layers[op.layer].path if op else "",
        op=op.name if op else "optimizer.step",
        resident_bytes=at(steps.resident),
        saved_bytes=at(steps.saved),
        temp_bytes=at(steps.temp),
        scratch_bytes=at(steps.scratch),
        alive=tuple(_alive(graph, storage) for storage in alive_at(graph, moment)[:alive]),
    )


def _alive(graph: StepGraph, storage: Storage) -> AliveStorage:
    op = maker(graph, storage)
    kind = "saved" if storage.index in graph.saved else "temp" if storage.role == "activation" else storage.role
    if op is not None:
        return AliveStorage(storage.bytes, kind, graph.layers[op.layer].path, op.name)
    owner = next((parameter.name for parameter in graph.parameters if parameter.storage == storage.index), "")
    return AliveStorage(storage.bytes, kind, owner, "")


def _layers(graph: StepGraph, steps: Timeline, rule: OptimizerRule) -> tuple[LayerFootprint, ...]:
    saved: dict[int, int] = defaultdict(int)
    for storage, layer in graph.charged_layers.items():
        saved[layer] += graph.storages[storage].bytes
    temp: dict[int, int] = defaultdict(int)
    for op in graph.ops:
        temp[op.layer] = max(temp[op.layer], steps.temp[op.index])
    parameters, gradients, states = (defaultdict[int, int](int) for _ in range(3))
    for parameter in graph.parameters:
        size = graph.storages[parameter.storage].bytes
        parameters[parameter.layer] += size
        if parameter.gradient is not None:
            gradients[parameter.layer] += graph.storages[parameter.gradient].bytes
            states[parameter.layer] += rule.state(size)
    used = sorted({*saved, *temp, *parameters})
    return tuple(
        LayerFootprint(
            path=graph.layers[index].path,
            type=graph.layers[index].type,
            saved_bytes=saved[index],
            temp_bytes=temp[index],
            parameter_bytes=parameters[index],
            gradient_bytes=gradients[index],
            state_bytes=states[index],
        )
        for index in used
    )
