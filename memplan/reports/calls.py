"""Calls: the forward's ops in the order of their data, by layer or by block, and what one call hands to the next."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Op, TensorView
from memplan.graph.step_graph import StepGraph


@dataclass(slots=True)
class Call:
    """The ops of one node: those of a unit, and how many calls of it the data has been through, itself included."""

    unit: int
    number: int
    ops: list[int] = field(default_factory=list)


def calls_of(graph: StepGraph, units: Sequence[int], *, merged: bool) -> list[Call]:
    """Return the calls of all units in execution order; ``units`` gives the unit of each layer.

    A call is a stretch of ops that nothing else interrupts. With ``merged`` the stretches of a unit are one call unless
    the data of one has been through another, so that the parts of a batch are not told apart.
    """
    runs = groupby((op for op in graph.ops if _carries(graph, op)), lambda op: units[op.layer])
    stretches = [Call(unit, 1, [op.index for op in run]) for unit, run in runs]
    counts = Counter(stretch.unit for stretch in stretches)
    if not merged:
        seen: Counter[int] = Counter()
        for stretch in stretches:
            seen[stretch.unit] += 1
            stretch.number = seen[stretch.unit]
        return stretches
    sources: dict[int, list[int]] = defaultdict(list)
    for source, target in handed_on(graph, stretches):
        sources[target].append(source)
    passed: list[dict[int, int]] = []  # by stretch: how many calls of each repeated unit its data has been through
    for place, stretch in enumerate(stretches):
        before: dict[int, int] = {}
        for source in sources[place]:
            for unit, number in passed[source].items():
                before[unit] = max(before.get(unit, 0), number)
        if counts[stretch.unit] > 1:
            stretch.number = before.get(stretch.unit, 0) + 1
            before[stretch.unit] = stretch.number
        passed.append(before)
    calls: dict[tuple[int, int], Call] = {}
    for stretch in stretches:
        call = calls.setdefault((stretch.unit, stretch.number), Call(stretch.unit, stretch.number))
        call.ops += stretch.ops
    return list(calls.values())


def _carries(graph: StepGraph, op: Op) -> bool:
    """Whether an op of the forward makes or changes something, or is another look at the whole of a storage."""
    given = {view.storage for view in op.inputs}
    looks = not _in_place(op) and any(op.outputs) and all(view.storage in given for view in op.outputs if view)
    return op.phase == "forward" and not (looks and not all(_is_whole(graph, view) for view in op.outputs if view))


def _in_place(op: Op) -> bool:
    return op.name.split(".")[1].endswith("_")


def _is_whole(graph: StepGraph, view: TensorView) -> bool:
    return prod(view.shape) * item_bytes(view.dtype) >= graph.storages[view.storage].bytes


def handed_on(graph: StepGraph, calls: Sequence[Call]) -> dict[tuple[int, int], set[int]]:
    """Return the storages that one call writes, whole or in part, and another one reads next.

    What a model holds is not handed on. What is copied into a part leaves the other parts their writers.
    """
    held = {storage.index for storage in graph.storages if storage.role in ("parameter", "buffer")}
    call_of = {op: place for place, call in enumerate(calls) for op in call.ops}
    handed: dict[tuple[int, int], set[int]] = defaultdict(set)
    writers: dict[int, set[int]] = defaultdict(set)
    for index in sorted(call_of):
        op, here = graph.ops[index], call_of[index]
        for view in list(op.inputs)[op.name.split(".")[1] == "copy_" :]:
            for before in writers[view.storage] - {here}:
                handed[before, here].add(view.storage)
        for result in op.outputs:
            if result is not None and result.storage not in held:
                if _is_whole(graph, result) or graph.storages[result.storage].born == index:
                    writers[result.storage].clear()
                writers[result.storage].add(here)
    return handed
