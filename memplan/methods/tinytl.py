"""tinytl-bias, tinytl-lite, tinytl-lite-bias: weights frozen; biases, residual branches, or both train (TinyTL)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from memplan.methods.lean import maskable, with_lean_layers
from memplan.methods.method import Method, in_head
from memplan.methods.plan import Plan
from memplan.methods.stock import bias_last
from memplan.methods.structure import Structure

_SOURCE: Final = "TinyTL (NeurIPS 2020)"
_RUNNING: Final = "norms use running statistics, so that a frozen one keeps nothing"


def _frozen_statistics(plan: Plan, structure: Structure) -> Plan:
    layers = structure.graph.layers
    running = tuple(layers[layer].path for layer in sorted(structure.norms))
    notes = plan.notes
    kept = {op.name.split(".")[1] for op in structure.forward if op.name in _NEED_INPUT}
    if kept:
        what = ", ".join(sorted(name.removeprefix("native_") for name in kept))
        notes = (*notes, f"bias-only saves nothing in {what}: their backward needs the input, whatever is frozen")
    return with_lean_layers(replace(plan, running=running, notes=notes), structure, maskable(structure))


def _with_branches(plan: Plan, structure: Structure) -> Plan:
    branches = tuple(structure.lite_branches())
    notes = plan.notes
    if not branches:
        notes = (*notes, "lite-residual does not apply: no block maps images to images")
    return _frozen_statistics(replace(plan, lite=branches, notes=notes), structure)


_NEED_INPUT: Final = frozenset(
    {"aten.native_layer_norm.default", "aten.native_group_norm.default", "aten._fused_rms_norm.default"}
)

TINYTL_METHODS: Final = (
    Method(
        "tinytl-bias",
        bias_last,
        "biases, norms' shifts and the head train",
        f"{_SOURCE}, TinyTL-B",
        treat=_frozen_statistics,
        changes=_RUNNING,
        needs="biases",
        flags=False,
        any_recording=True,
    ),
    Method(
        "tinytl-lite",
        in_head,
        "lite residual branches and the head train",
        f"{_SOURCE}, TinyTL-L",
        treat=_with_branches,
        changes=f"{_RUNNING}; the network has branches",
        needs="blocks from images to images",
        flags=False,
        any_recording=True,
    ),
    Method(
        "tinytl-lite-bias",
        bias_last,
        "lite residual branches, biases and the head train",
        f"{_SOURCE}, TinyTL-L+B",
        treat=_with_branches,
        changes=f"{_RUNNING}; the network has branches",
        needs="blocks from images to images",
        flags=False,
        any_recording=True,
    ),
)
