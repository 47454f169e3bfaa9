"""Block inputs that wait for the end of a shortcut."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from typing import Final

from memplan.graph.records import Op
from memplan.graph.step_graph import StepGraph
from memplan.memory.accounting.calls import KINDS, packet

#: Types of blocks that add what their input becomes, not the input itself, where the shape changes.
#: Source: TinyTL's profiler, which holds the input of torchvision's residual blocks of these names in any case.
_PROJECTING_BLOCKS: Final = frozenset({"BasicBlock", "Bottleneck"})

_WEIGHTED: Final = frozenset({"convolution", "linear", "norm"})


@dataclass(frozen=True, slots=True)
class Held:
    """A value that one path of the network adds while another one computes from it: elements, and the ops meanwhile.

    Both ends are included: its first reader, and the sum or an activation that ends the same module.
    """

    elements: int
    first_op: int
    last_op: int


def held_inputs(graph: StepGraph) -> tuple[Held, ...]:
    """Return the inputs that a shortcut goes around, in the order of their sums."""
    fixed = {storage.index for storage in graph.storages if storage.role in ("parameter", "buffer")}
    first_reader: dict[int, int] = {}
    found: list[Held] = []
    for op in graph.ops:
        if op.phase != "forward":
            break
        operands = [view for view in op.inputs if view.storage not in fixed]
        if packet(op) == "add" and len(operands) == 2:
            waiting = [view for view in operands if view.storage in first_reader]
            if waiting:
                end = _end(graph, op)
                found.extend(Held(prod(view.shape), first_reader[view.storage], end) for view in waiting)
            elif graph.layers[op.layer].type in _PROJECTING_BLOCKS:
                found.extend(_block_input(graph, op, fixed))
        given = {view.storage for view in operands}
        made = {view.storage for view in op.outputs if view is not None}
        for storage in given - made:  # what an op makes of its own input is a view, or written in place
            first_reader.setdefault(storage, op.index)
        for storage in made if _is_in_place(op) else made - given:
            first_reader.pop(storage, None)
    return tuple(found)


def _block_input(graph: StepGraph, total: Op, fixed: Collection[int]) -> Iterator[Held]:
    """Yield the first value that the module which runs the sum ``total`` reads."""
    start = total.index
    while start and _is_inside(graph, start - 1, total):
        start -= 1
    for view in graph.ops[start].inputs:
        if view.storage not in fixed:
            yield Held(prod(view.shape), start, _end(graph, total))
            return


def _end(graph: StepGraph, total: Op) -> int:
    """Return the last op of the module that runs ``total``, if it has nothing after the sum that bears a weight."""
    last = total.index
    for op in graph.ops[total.index + 1 :]:
        if op.phase != "forward" or not graph.layers[total.layer].path or not _is_inside(graph, op.index, total):
            return last
        if KINDS.get(packet(op)) in _WEIGHTED:
            return total.index
        last = op.index
    return last


def _is_inside(graph: StepGraph, op: int, total: Op) -> bool:
    """Whether ``op`` runs in the module that runs ``total``, or in one inside."""
    path, module = graph.layers[graph.ops[op].layer].path, graph.layers[total.layer].path
    return path == module or path.startswith(f"{module}.")


def _is_in_place(op: Op) -> bool:
    return op.name.split(".")[1].endswith("_") if op.name.count(".") else False
