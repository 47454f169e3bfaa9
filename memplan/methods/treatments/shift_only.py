"""shift-only: a batch norm trains its shift alone (MobileTL)."""

from __future__ import annotations

from typing import Final

from memplan.graph.records import Op
from memplan.methods.treatments.lean_frozen import norm_bytes, nothing
from memplan.methods.treatments.record import Treatment

#: Position of ``running_mean`` among the arguments of a batch norm.
_RUNNING_MEAN: Final = 3


def _norm_bytes(op: Op) -> int:
    """0 bytes; without running statistics the treatment does not apply."""
    return nothing(op) if op.args[_RUNNING_MEAN] is not None else norm_bytes(op)


TREATMENT: Final = Treatment(
    name="shift-only",
    lossless=False,
    summary="a batch norm trains its shift; scale, mean and variance are frozen, also in training mode",
    gradients="exact, of the norm by its running statistics with a frozen scale: grad * weight / sqrt(var + eps), and "
    "the sum of grad for the shift",
    formula="0 for every batch norm that has running statistics",
    source="MobileTL (AAAI 2023), section 3.1",
    twin="memplan.layers.shift_only",
    saved={"aten.native_batch_norm.default": _norm_bytes, "aten.cudnn_batch_norm.default": _norm_bytes},
)
