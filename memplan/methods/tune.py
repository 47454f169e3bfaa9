"""tune: everything trains with running statistics; each convolution runs with its norm folded in (You et al., 2024)."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Final

from memplan.graph.step_graph import StepGraph
from memplan.methods.lean import with_lean_layers
from memplan.methods.method import Method
from memplan.methods.plan import Plan
from memplan.methods.stock import everything
from memplan.methods.structure import BATCH_NORMS, Structure


def _treat(plan: Plan, structure: Structure) -> Plan:
    layers = structure.graph.layers
    running = tuple(layers[layer].path for layer in sorted(structure.norms))
    pairs = tuple(structure.tuned_pairs())
    notes = plan.notes
    if not pairs:
        notes = (*notes, "tune does not apply: no convolution is followed by a batch norm alone")
    return with_lean_layers(replace(plan, running=running, tuned=pairs, notes=notes), structure)


def with_confirmed_pairs(plan: Plan, step: StepGraph, stock: StepGraph) -> Plan:
    """Return ``plan`` without the pairs that do not run as one convolution in ``step``, recorded with the plan applied.

    A class may run its norm, or its convolution, by other functions than torch's own, which nobody replaces: the norm
    would then run twice, or not at all.
    """
    planned, plain = _names(step), _names(stock)
    doubtful = {
        pair
        for pair in plan.tuned
        if planned[pair.convolution][_FOLDING] <= plain[pair.convolution][_FOLDING]
        or planned[pair.norm] - (plain[pair.norm] - Counter(dict.fromkeys(BATCH_NORMS, plain[pair.norm].total())))
    }
    if not doubtful:
        return plan
    note = f"tune leaves out {', '.join(sorted(pair.norm for pair in doubtful))}: not run by torch's own batch norm"
    kept = tuple(pair for pair in plan.tuned if pair not in doubtful)
    return replace(plan, tuned=kept, notes=(*plan.notes, note))


#: What a convolution does for its norm and never for itself.
_FOLDING: Final = "aten.rsqrt.default"


def _names(graph: StepGraph) -> dict[str, Counter[str]]:
    """Return how often each module's forward runs each op, by the module's path."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for op in graph.ops:
        if op.phase == "forward":
            found[graph.layers[op.layer].path][op.name] += 1
    return found


TUNE: Final = Method(
    "tune",
    everything,
    "everything trains by running statistics; a convolution and its norm keep one input",
    "Efficient ConvBN Blocks (ICLR 2024), Tune mode",
    treat=_treat,
    changes="norms use running statistics and do not update them",
    needs="convolutions followed by batch norms",
    flags=False,
)
