"""The lossless layer treatments, given where they save something."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from memplan.graph.records import Op
from memplan.methods.plan import Microbatch, Plan, TreatedLayer
from memplan.methods.structure import CONVOLUTION, Structure
from memplan.methods.treatments.bitmask import TREATMENT as BITMASK

LEAN: Final = "lean-frozen"
MASK: Final = BITMASK.name


def with_lean_layers(plan: Plan, structure: Structure, *, everywhere: bool = False) -> Plan:
    """Return ``plan`` with frozen weights that keep no input, and bit masks where nobody else keeps the tensor.

    With ``everywhere`` each maskable activation is masked, as when what others keep will be recomputed, or a gradient
    will flow where in stock's recording none does.
    """
    frozen = len(plan.trained) < len(structure.graph.parameters)
    masked = _maskable(structure) if everywhere else _worth_masking(structure)
    root = (TreatedLayer("", (LEAN,)),) if frozen else ()
    paths = [structure.graph.layers[layer].path for layer in sorted(masked)]
    names = (LEAN, MASK) if frozen else (MASK,)
    treated = merged((*root, *(TreatedLayer(path, names) for path in paths)), plan.layers)
    return replace(plan, layers=treated)


def merged(first: Iterable[TreatedLayer], second: Iterable[TreatedLayer]) -> tuple[TreatedLayer, ...]:
    """Return the entries of both, ordered by path; where both treat a module, ``second`` does."""
    by_path = {entry.path: entry for entry in (*first, *second)}
    return tuple(by_path[path] for path in sorted(by_path))


def with_microbatch(plan: Plan, structure: Structure) -> Plan:
    """Return ``plan`` with its frozen prefix run one sample at a time, or with a note that says why it is not."""
    if not any(op.index < structure.start for op in structure.forward):
        return plan
    boundary = structure.boundary()
    if boundary is None:
        reason = "no module ends where a single tensor leaves it"
    else:
        mixed = structure.prefix_mixes_samples(boundary, evaluated=bool(plan.evaluated))
        if mixed is None:
            return replace(plan, microbatch=Microbatch(boundary, 1))
        reason = mixed
    return replace(plan, notes=(*plan.notes, f"the frozen prefix runs as one batch: {reason}"))


def _worth_masking(structure: Structure) -> set[int]:
    """Return the layers with an activation whose kept tensor no other op keeps too."""
    keepers: dict[int, list[Op]] = defaultdict(list)
    graph = structure.graph
    frozen = {parameter.storage for parameter in graph.parameters if not parameter.trains}
    for op in structure.forward:
        if op.name == CONVOLUTION and any(view.storage in frozen for view in op.inputs):
            continue  # lean-frozen: it keeps nothing
        for storage in op.saves:
            keepers[storage].append(op)
    kept = frozenset(graph.saved)
    return {
        op.layer
        for op, saves in _masks(structure)
        if any(storage in kept and len(keepers[storage]) == 1 for storage in saves)
    }


def _maskable(structure: Structure) -> set[int]:
    return {op.layer for op in structure.forward if op.name in BITMASK.saved}


def _masks(structure: Structure) -> Iterator[tuple[Op, tuple[int, ...]]]:
    """Yield each op that a bit mask can serve, with the storages that stock keeps for it.

    Before an activation in place stock keeps a copy of what is overwritten; of dropout the product keeps the noise.
    """
    noise: set[int] = set()
    before: Op | None = None
    for op in structure.forward:
        if "bernoulli" in op.name:
            noise.update(view.storage for view in op.inputs)
        elif op.name in BITMASK.saved:
            copied = before is not None and before.name == "aten.clone.default" and before.args[0] == op.args[0]
            saves = (*op.saves, *(before.saves if before is not None and copied else ()))
            if saves:
                yield op, saves
        elif op.name in ("aten.mul.Tensor", "aten.mul_.Tensor") and noise.intersection(op.saves):
            yield op, op.saves
        before = op
