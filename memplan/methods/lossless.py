"""lossless: full fine-tuning with every saving that leaves the gradients as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from memplan.methods.lean import unrepeatable, with_lean_layers
from memplan.methods.method import Method
from memplan.methods.plan import Plan
from memplan.methods.stock import everything
from memplan.methods.structure import Structure


def _treat(plan: Plan, structure: Structure) -> Plan:
    return replace(with_lean_layers(plan, structure, unrepeatable(structure)), fused_update=True)


LOSSLESS: Final = Method(
    "lossless",
    everything,
    "everything trains; recomputation, masks of dropout and pooling, updates during the backward",
    "memplan; selective recomputation after Chen et al. (2016) and PyTorch's minimum-cut partitioner",
    treat=_treat,
    flags=False,
    any_recording=True,
    recomputes=True,
)
