"""Every allocation of one training step and how long it lives: the timeline, taken apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, Literal, TypeAlias, cast

from memplan.graph.records import Parameter, Phase, Storage
from memplan.graph.step_graph import StepGraph
from memplan.memory.arrivals import Arrival, arrivals, released
from memplan.memory.optimizers import Implementation, OptimizerRule, optimizer_rule
from memplan.memory.timeline import Timeline, gone_before_update, kind_of, maker, timeline, updated_parameters

#: The three that add up to what is alive.
Kind: TypeAlias = Literal["resident", "saved", "temp"]

#: The op of the moments in which an optimizer updates, and of what it allocates for that.
UPDATE: Final = "optimizer.step"


@dataclass(frozen=True, slots=True)
class Moment:
    """One entry of a :class:`Timeline`: the op that runs, or an update after the backward, which is of no layer."""

    phase: Phase
    layer: str
    op: str


@dataclass(frozen=True, slots=True)
class Allocation:
    """Bytes that are alive from the moment ``first`` to the moment ``last``, both included.

    ``what`` is a storage's role (parameter, buffer, gradient, input, activation), the optimizer's ``state``, the
    ``scratch`` inside a kernel, or the temporaries of an ``update``. ``layer`` and ``op`` are those that make it; what
    exists before the step has no op, and the layer that it belongs to, if any.
    """

    bytes: int
    kind: Kind
    what: str
    layer: str
    op: str
    first: int
    last: int


def moments(graph: StepGraph, optimizer: str = "sgd", implementation: Implementation = "loop") -> tuple[Moment, ...]:
    """Return the moments of one step, one for each entry of its :class:`Timeline`.

    Raises:
        UsageError: there is no such optimizer.
    """
    steps = timeline(graph, optimizer_rule(optimizer), implementation)
    ran = (Moment(op.phase, graph.layers[op.layer].path, op.name) for op in graph.ops)
    return (*ran, *[Moment("optimizer", "", UPDATE)] * (len(steps.phases) - len(graph.ops)))


def allocations(
    graph: StepGraph, optimizer: str = "sgd", implementation: Implementation = "loop"
) -> tuple[Allocation, ...]:
    """Return what is allocated over one step in steady state (second step on), the earliest first.

    At each moment the bytes alive of each kind add up to those of the :class:`Timeline`. Where an update inside the
    backward is larger than its op, the moment is the update's: what its op was the last to read has ended the moment
    before, and the scratch of the op is not there. The optimizer's state is there all along.

    Raises:
        UsageError: there is no such optimizer.
    """
    rule = optimizer_rule(optimizer)
    steps = timeline(graph, rule, implementation)
    end = len(steps.phases) - 1
    if implementation == "in-backward":
        found = _updated_in_backward(graph, steps, rule)
    else:
        found = [*_of_storages(graph, graph.storages, end), *_updates(graph, rule, implementation)]
    for parameter in updated_parameters(graph):
        state = rule.state(graph.storages[parameter.storage].bytes)
        found.append(Allocation(state, "resident", "state", _layer(graph, parameter), "", 0, end))
    for op, size in zip(graph.ops, steps.scratch, strict=False):
        path = graph.layers[op.layer].path
        found.append(Allocation(size, "temp", "scratch", path, op.name, op.index, op.index))
    alive = (allocation for allocation in found if allocation.bytes and allocation.first <= allocation.last)
    return tuple(sorted(alive, key=lambda allocation: (allocation.first, allocation.op != "")))


def _of_storages(graph: StepGraph, storages: Sequence[Storage], end: int) -> Iterator[Allocation]:
    """Yield an allocation for each storage; what outlives the backward ends with the moment ``end``."""
    saved = frozenset(graph.saved)
    owners = {buffer.storage: buffer.layer for buffer in graph.buffers}
    owners |= {parameter.storage: parameter.layer for parameter in reversed(graph.parameters)}
    for storage in storages:
        op = maker(graph, storage) if storage.born < len(graph.ops) else None
        yield Allocation(
            storage.bytes,
            cast(Kind, kind_of(storage, saved)),
            storage.role,
            graph.layers[owners.get(storage.index, 0) if op is None else op.layer].path,
            "" if op is None else op.name,
            max(storage.born, 0),
            end if storage.last == len(graph.ops) else storage.last,
        )


def _updates(graph: StepGraph, rule: OptimizerRule, implementation: Implementation) -> Iterator[Allocation]:
    """Yield what is alive in each moment after the backward for the update itself, of all parameters or of one."""
    updated = updated_parameters(graph)
    sizes = rule.transients[implementation]([graph.storages[parameter.storage].bytes for parameter in updated])
    for moment, size in enumerate(sizes):
        path = _layer(graph, updated[moment]) if len(sizes) == len(updated) else ""
        yield Allocation(size, "temp", "update", path, UPDATE, len(graph.ops) + moment, len(graph.ops) + moment)


def _updated_in_backward(graph: StepGraph, steps: Timeline, rule: OptimizerRule) -> list[Allocation]:
    """Return the storages as the timeline shows them, and the temporaries of the updates that it shows.

    A moment that is not its op's is that of an update.
    """
    arriving = arrivals(graph)
    graph = released(graph, arriving)
    end = len(graph.ops) - 1
    storages = list(graph.storages)
    ending: dict[int, list[Storage]] = defaultdict(list)
    for storage in storages:
        if storage.role == "activation":
            ending[storage.last].append(storage)
    without_scratch = [size - scratch for size, scratch in zip(steps.temp, steps.scratch, strict=True)]
    shown = list(zip(steps.saved, without_scratch, strict=True))
    alive = list(
        zip(*(_sums(_of_storages(graph, storages, end), end, kind) for kind in ("saved", "temp")), strict=True)
    )
    updates = [op for op in graph.ops if shown[op.index] != alive[op.index]]
    for op in updates:
        for storage in gone_before_update(graph, op, ending[op.index]):
            storages[storage.index] = replace(storage, last=op.index - 1)
    found = list(_of_storages(graph, storages, end))
    temp = _sums(found, end, "temp")

    def transient(arrival: Arrival) -> int:
        sizes = [graph.storages[parameter.storage].bytes for parameter in arrival.parameters]
        return max(rule.transients["in-backward"](sizes))

    for op in updates:
        here = [arrival for arrival in arriving if arrival.first <= op.index <= arrival.last]
        path = _layer(graph, max(here, key=transient).parameters[0])
        size = steps.temp[op.index] - temp[op.index]
        found.append(Allocation(size, "temp", "update", path, UPDATE, op.index, op.index))
    return found


def _sums(found: Iterable[Allocation], end: int, kind: Kind) -> list[int]:
    """Return the bytes of one kind that are alive at each moment."""
    changes = [0] * (end + 2)
    for allocation in found:
        if allocation.kind == kind:
            changes[allocation.first] += allocation.bytes
            changes[allocation.last + 1] -= allocation.bytes
    return list(accumulate(changes))[:-1]


def _layer(graph: StepGraph, parameter: Parameter) -> str:
    return graph.layers[parameter.layer].path
