"""signed-mask: the gradient of an activation passes where its input is not negative; one bit per element."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Final

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Op, TensorView
from memplan.methods.treatments.bitmask import mask_bytes
from memplan.methods.treatments.record import SavedRule, Treatment


def hardtanh_bytes(op: Op) -> int:
    """Bytes of the mask of ReLU6, which runs as hardtanh between 0 and 6; between other bounds, of stock's input."""
    source = op.args[0]
    if tuple(op.args[1:3]) == (0, 6) or not isinstance(source, TensorView):
        return mask_bytes(op)
    return prod(source.shape) * item_bytes(source.dtype)


_SAVED: Final[Mapping[str, SavedRule]] = MappingProxyType(
    {
        "aten.relu.default": mask_bytes,
        "aten.relu_.default": mask_bytes,
        "aten.hardtanh.default": hardtanh_bytes,
        "aten.hardtanh_.default": hardtanh_bytes,
        "aten.hardswish.default": mask_bytes,
        "aten.hardswish_.default": mask_bytes,
        "aten.silu.default": mask_bytes,
        "aten.silu_.default": mask_bytes,
        "aten.gelu.default": mask_bytes,
        "aten.gelu_.default": mask_bytes,
    }
)

TREATMENT: Final = Treatment(
    name="signed-mask",
    lossless=False,
    summary="ReLU6, hard-swish, SiLU and GELU keep the sign of their input, 1 bit per element",
    gradients="g * 1[x >= 0] in place of the derivative; ReLU's stay exact",
    formula="ceil(elements / 8)",
    source="MobileTL section 3.3 (arXiv 2212.03246) for ReLU6 and hard-swish; SiLU and GELU by analogy",
    twin="memplan.layers.signed_mask",
    saved=_SAVED,
)
