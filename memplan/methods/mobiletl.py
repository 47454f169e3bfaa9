"""mobiletl: the last k blocks train with shift-only norms inside and signed masks (Chiang et al., AAAI 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from memplan.graph.head import layers_in_block
from memplan.graph.records import Parameter
from memplan.methods.lean import LEAN, MASK, merged, with_lean_layers, with_microbatch
from memplan.methods.method import Method, Scope, is_bias
from memplan.methods.plan import Plan, TreatedLayer
from memplan.methods.stock import top_k
from memplan.methods.structure import Structure

_SIGNED: Final = "signed-mask"
_SHIFT: Final = "shift-only"


def _trains(parameter: Parameter, scope: Scope) -> bool:
    return top_k(parameter, scope) and (parameter.layer not in scope.internal_norms or is_bias(parameter))


def _treat(plan: Plan, structure: Structure) -> Plan:
    layers = structure.graph.layers
    prefix = tuple(layer.path for layer in structure.prefix)
    internal = tuple(layers[layer].path for layer in sorted(structure.internal_norms))
    notes = tuple(_notes(structure))
    plan = replace(plan, evaluated=prefix, running=internal, notes=(*plan.notes, *notes))
    plan = with_lean_layers(plan, structure)
    blocks = tuple(TreatedLayer(block.path, (_SIGNED, MASK, LEAN)) for block in structure.top)
    inside = {block.path for block in structure.top}
    # In a trained block the signed mask is for every activation, whatever else keeps the tensor.
    outside = tuple(entry for entry in plan.layers if not any(entry.path.startswith(f"{path}.") for path in inside))
    norms = tuple(TreatedLayer(path, (_SHIFT, _SIGNED, MASK, LEAN)) for path in internal)
    return with_microbatch(replace(plan, layers=merged(outside, (*blocks, *norms))), structure)


def _notes(structure: Structure) -> Iterator[str]:
    if structure.top and not structure.internal_norms:
        inside = {layer for block in structure.top for layer in layers_in_block(block, structure.graph.layers)}
        found = sorted({structure.graph.layers[layer].type for layer in inside if layer in structure.norms})
        seen = f"only {', '.join(found)} at the end of a block" if found else "no batch norm"
        yield f"shift-only does not apply: the trained blocks have {seen}"


MOBILETL: Final = Method(
    "mobiletl",
    _trains,
    "the last k blocks and the head train, with shift-only norms and signed masks; below them nothing is kept",
    "MobileTL (AAAI 2023)",
    needs_k=True,
    treat=_treat,
    gradients="approximate",
    changes="through activations g * 1[x >= 0]; norms inside blocks use running statistics, their scale is frozen",
    needs="blocks; batch norms for shift-only",
    flags=False,
)
