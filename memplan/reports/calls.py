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
    views = (view for view in op.outputs if view)
    return op.phase == "forward" and (not _only_looks(op) or all(_is_whole(graph, view) for view in views))


def _only_looks(op: Op) -> bool:
    given = {view.storage for view in op.inputs}
    return not _in_place(op) and any(op.outputs) and all(view.storage in given for view in op.outputs if view)


def _in_place(op: Op) -> bool:
    return op.name.split(".")[1].endswith("_")


def _is_whole(graph: StepGraph, view: TensorView) -> bool:
    return prod(view.shape) * item_bytes(view.dtype) >= graph.storages[view.storage].bytes


@dataclass(slots=True)
class _Origin:
    """The calls that a storage is from: for some views of it those that looked at it so, for all others its writers."""

    writers: frozenset[int] = frozenset()
    of_view: dict[TensorView, frozenset[int]] = field(default_factory=dict)

    def of(self, view: TensorView) -> frozenset[int]:
        return self.of_view.get(view, self.writers)

    def written(self, view: TensorView, call: int, *, whole: bool) -> None:
        if whole:
            self.writers, self.of_view = frozenset(), {view: frozenset()}
        self.writers |= {call}
        self.of_view = {each: calls | {call} for each, calls in self.of_view.items()}

    def looked_at(self, given: TensorView, view: TensorView, call: int | None, *, only: bool) -> None:
        """Note that ``view`` was made of ``given``, by a call that does nothing else (``only``), or by none."""
        if call is None:
            self.of_view[view] = self.of(given)
        # A call that computes looks for itself as a rule: the view that it was given or that was written stays whose
        # it was.
        elif only or (view != given and self.of_view.get(view) != self.writers):
            self.of_view[view] = frozenset({call})


def handed_on(graph: StepGraph, calls: Sequence[Call]) -> dict[tuple[int, int], set[int]]:
    """Return the storages that one call writes, whole or in part, or looks at anew, and another one reads next.

    What a model holds is not handed on. What is copied into a part leaves the other parts their writers. A look is
    handed on to those who read this very view: all others have the storage from its writers.
    """
    held = {storage.index for storage in graph.storages if storage.role in ("parameter", "buffer")}
    call_of = {op: place for place, call in enumerate(calls) for op in call.ops}
    lookers = {place for place, call in enumerate(calls) if all(_only_looks(graph.ops[op]) for op in call.ops)}
    handed: dict[tuple[int, int], set[int]] = defaultdict(set)
    origins: dict[int, _Origin] = defaultdict(_Origin)
    for index in graph.phase_ops("forward"):
        op, here = graph.ops[index], call_of.get(index)
        given = list(op.inputs)
        if here is not None:
            for view in given[op.name.split(".")[1] == "copy_" :]:
                for before in origins[view.storage].of(view) - {here}:
                    handed[before, here].add(view.storage)
        for result in op.outputs:
            if result is None or result.storage in held:
                continue
            origin = origins[result.storage]
            same = next((view for view in given if view.storage == result.storage), None)
            if same is not None and not _in_place(op):
                origin.looked_at(same, result, here, only=here in lookers)
            elif here is not None:
                whole = _is_whole(graph, result) or graph.storages[result.storage].born == index
                origin.written(result, here, whole=whole)
    return handed
