"""tune: everything trains with running statistics; each convolution runs with its norm folded in (You et al., 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from memplan.methods.lean import with_lean_layers
from memplan.methods.method import Method
from memplan.methods.plan import Plan
from memplan.methods.stock import everything
from memplan.methods.structure import Structure


def _treat(plan: Plan, structure: Structure) -> Plan:
    layers = structure.graph.layers
    running = tuple(layers[layer].path for layer in sorted(structure.norms))
    pairs = tuple(structure.tuned_pairs())
    notes = plan.notes
    if not pairs:
        notes = (*notes, "tune does not apply: no convolution is followed by a batch norm alone")
    return with_lean_layers(replace(plan, running=running, tuned=pairs, notes=notes), structure)


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
