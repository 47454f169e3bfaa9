"""tune: a convolution and the norm after it, with running statistics, run as one convolution."""

from __future__ import annotations

from typing import Final

from memplan.graph.records import Op
from memplan.methods.treatments.lean_frozen import dense_bytes, norm_bytes
from memplan.methods.treatments.record import Treatment


def _input_bytes(op: Op) -> int:
    """The convolution's input, as the kernel reads it: cast by autocast, padded by uneven "same" padding."""
    return dense_bytes(op.args[0])


TREATMENT: Final = Treatment(
    name="tune",
    lossless=True,
    summary="a convolution takes the eval-mode norm behind it into its weight and bias, all of which still train",
    gradients="stock's, to rounding",
    formula="4 * |x| for the pair where a weight or the norm's scale trains, x the convolution's input; 0 for the "
    "norm. The folded weight is computed again in backward and not kept",
    source="Efficient ConvBN Blocks (ICLR 2024), Tune mode",
    twin="memplan.layers.tune",
    saved={
        "aten.convolution.default": _input_bytes,
        "aten.native_batch_norm.default": norm_bytes,
        "aten.cudnn_batch_norm.default": norm_bytes,
    },
)
