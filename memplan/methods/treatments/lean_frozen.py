"""lean-frozen: a convolution or norm whose weight is frozen keeps no input."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Op, TensorView
from memplan.methods.treatments.record import SavedRule, Treatment

#: Position of ``training`` among the arguments of a batch norm.
_TRAINING: Final = 5


def dense_bytes(view: object) -> int:
    """Bytes of a floating-point tensor stored densely, 0 for no tensor."""
    return prod(view.shape) * item_bytes(view.dtype) if isinstance(view, TensorView) else 0


def nothing(op: Op) -> int:
    """0 bytes: parameters and buffers are all that is kept."""
    del op
    return 0


def norm_bytes(op: Op) -> int:
    """0 bytes with running statistics; with those of the batch the treatment does not apply, and stock keeps the input
    and what the op returns beside its result.
    """
    if not op.args[_TRAINING]:
        return 0
    return dense_bytes(op.args[0]) + sum(dense_bytes(view) for view in op.outputs[1:])


SAVED: Final[Mapping[str, SavedRule]] = {
    "aten.convolution.default": nothing,
    "aten.native_batch_norm.default": norm_bytes,
    "aten.cudnn_batch_norm.default": norm_bytes,
}

TREATMENT: Final = Treatment(
    name="lean-frozen",
    lossless=True,
    summary="a convolution, or a norm with running statistics, whose weight is frozen keeps no input",
    gradients="stock's: bit for bit for norms, to rounding for convolutions",
    formula="0 for every convolution and for norms with running statistics. A linear layer with a frozen weight keeps "
    "no input in stock PyTorch either. Norms with statistics of the batch, and layer, group and RMS norms, need their "
    "input for its own gradient, whatever is frozen, and stay stock's",
    source="PyTorch derivatives.yaml: convolution_backward, native_batch_norm_backward; pytorch issue 133566",
    twin="memplan.layers.lean_frozen",
    saved=SAVED,
)
