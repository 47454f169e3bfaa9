"""What each segment of a recorded step costs: bytes it keeps, the most it needs while it runs, and its work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

from memplan.graph.step_graph import StepGraph
from memplan.memory import Footprint
from memplan.memory.arrivals import arrivals, released
from memplan.memory.optimizers import Implementation, OptimizerRule
from memplan.memory.timeline import timeline
from memplan.planner.segments import Segments

#: What a budget is on: the step's peak, the same without what stays from step to step, or what is kept for backward.
Quantity: TypeAlias = Literal["peak", "activations", "kept"]


@dataclass(frozen=True, slots=True)
class SegmentCost:
    """One segment under one option, in bytes, FLOPs and work (FLOPs, with ten for each byte read or written).

    ``constant`` is there throughout the step: parameters, buffers, the optimizer's state. ``kept`` stays from the
    segment's forward to its backward, ``gradients`` from its backward to the update. ``forward`` and ``backward`` are
    the most that is alive meanwhile beside all these and what lower segments keep and higher ones have left; ``lowest``
    is ``backward`` where nothing below trains, so that no gradient is handed down.
    """

    constant: int
    kept: int
    gradients: int
    forward: int
    backward: int
    flops: int
    work: int
    lowest: int = 0


@dataclass(frozen=True, slots=True)
class StepCosts:
    """A recorded step by segments. ``inputs`` are there throughout, ``after`` beside the gradients while the optimizer
    updates; ``updated`` are the bytes of the updated parameters of each segment, in update order.
    """

    segments: tuple[SegmentCost, ...]
    inputs: int
    after: int
    updated: tuple[tuple[int, ...], ...]


def step_costs(
    graph: StepGraph,
    rule: OptimizerRule,
    implementation: Implementation,
    quantity: Quantity = "peak",
    segments: Segments | None = None,
) -> StepCosts:
    """Return what the segments of a recorded step cost under an optimizer.

    Args:
        graph: a recording with its blocks.
        rule: the optimizer.
        implementation: how it updates.
        quantity: what the bytes count; what does not count is 0.
        segments: those of ``graph``, where they are known.
    """
    segments = segments or Segments(graph)
    early = implementation == "in-backward"
    lived = released(graph, arrivals(graph)) if early else graph
    steady = timeline(graph, rule, implementation)
    count, end = segments.count, len(graph.ops)
    constant, kept, gradients = [0] * count, [0] * count, [0] * count
    updated: dict[int, list[int]] = defaultdict(list)
    if quantity == "peak":
        for storage in graph.storages:
            if storage.role in ("parameter", "buffer"):
                constant[segments.of_reader.get(storage.index, 0)] += storage.bytes
            elif storage.role == "gradient" and not early:
                gradients[segments.of_op[min(storage.born, end - 1)]] += storage.bytes
        for parameter in graph.parameters:
            if parameter.gradient is not None:
                size = graph.storages[parameter.storage].bytes
                here = segments.of_op[min(graph.storages[parameter.gradient].born, end - 1)]
                constant[here] += rule.state(size)
                updated[here].append(size)
    saved = frozenset(graph.saved)
    backward = graph.phase_ops("backward").start if graph.phase_ops("backward") else end
    for storage in lived.storages:
        if storage.role == "activation" and storage.born < backward <= storage.last:
            if quantity == "kept" and storage.index not in saved:
                continue
            kept[segments.of_storage.get(storage.index, count - 1)] += storage.bytes
    inputs = sum(
        storage.bytes
        for storage in graph.storages
        if storage.role == "input" and (quantity != "kept" or storage.index in saved)
    )
    if quantity == "kept":
        forward_most = backward_most = lowest_most = [0] * count
        after = 0
    else:
        resident = steady.resident if quantity == "peak" else [0] * len(steady.resident)
        totals = [sum(kinds) for kinds in zip(resident, steady.saved, steady.temp, strict=True)]
        fixed = sum(constant) + inputs
        alive = [total - fixed for total in totals[:end]]
        forward_most, backward_most = _most(graph, segments, alive, kept, gradients)
        _, lowest_most = _most(graph, segments, _without_what_is_handed_down(graph, segments, alive), kept, gradients)
        after = max((total - fixed - sum(gradients) for total in totals[end:]), default=0) if not early else 0
        after -= _largest_transient(rule, implementation, graph) if not early and quantity == "peak" else 0
    each = (constant, kept, gradients, forward_most, backward_most, segments.flops, segments.work, lowest_most)
    rows = zip(*each, strict=True)
    return StepCosts(
        tuple(SegmentCost(*row) for row in rows),
        inputs,
        max(after, 0),
        tuple(tuple(updated[index]) for index in range(count)),
    )


def _most(
    graph: StepGraph, segments: Segments, alive: Sequence[int], kept: Sequence[int], gradients: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the most that is alive in each segment's forward, and in its backward, beside what others hold."""
    count = segments.count
    below = [sum(kept[:index]) for index in range(count)]
    above = [sum(gradients[index + 1 :]) for index in range(count)]
    forward, backward = [0] * count, [0] * count
    for op, total in zip(graph.ops, alive, strict=True):
        here = segments.of_op[op.index]
        if op.phase == "forward":
            forward[here] = max(forward[here], total - below[here])
        else:
            backward[here] = max(backward[here], total - below[here] - above[here])
    return forward, backward


def _without_what_is_handed_down(graph: StepGraph, segments: Segments, alive: Sequence[int]) -> list[int]:
    """Return what is alive at each op without what is made and held in its segment's backward for lower segments alone.

    A gradient that only these need is not made, and one that came from above is held no longer than the rest needs it.
    """
    storages = graph.storages
    last: dict[tuple[int, int], int] = {}  # for a storage and a segment, the last op there that needs it
    ranges: dict[int, range] = {}
    for op in reversed(graph.ops):
        if op.phase != "backward":
            break
        here = segments.of_op[op.index]
        ranges[here] = range(op.index, ranges[here].stop if here in ranges else op.index + 1)
        made = [view.storage for view in op.outputs if view is not None]
        if not made or any(storages[each].role != "activation" or (each, here) in last for each in made):
            for view in op.inputs:
                last.setdefault((view.storage, here), op.index)
    backward = graph.phase_ops("backward").start
    change = [0] * (len(graph.ops) + 1)
    for storage in storages:
        if storage.role != "activation" or storage.born < backward:
            continue
        highest, lowest = (segments.of_op[min(index, len(graph.ops) - 1)] for index in (storage.born, storage.last))
        for here in range(highest, lowest - 1, -1):
            ops = ranges.get(here, range(0))
            start = max(last.get((storage.index, here), -1) + 1, storage.born, ops.start)
            stop = min(storage.last + 1, ops.stop)
            if start < stop:
                change[start] += storage.bytes
                change[stop] -= storage.bytes
    return [total - gone for total, gone in zip(alive, accumulate(change), strict=False)]


def _largest_transient(rule: OptimizerRule, implementation: Implementation, graph: StepGraph) -> int:
    sizes = [graph.storages[p.storage].bytes for p in graph.parameters if p.gradient is not None]
    return max(rule.transients[implementation](sizes), default=0)


def quantity_of(footprint: Footprint, quantity: Quantity) -> int:
    """Return the bytes of a footprint that a budget is on."""
    if quantity == "kept":
        return footprint.saved_bytes
    if quantity == "activations":
        steady = footprint.timeline
        return max(map(sum, zip(steady.saved, steady.temp, strict=True)), default=0)
    return footprint.peak_bytes
