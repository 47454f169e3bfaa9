"""bitmask: one bit per element for activations and dropout, one byte per window for max-pooling."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Final

from memplan.graph.records import Argument, Op, TensorView
from memplan.methods.treatments.record import SavedRule, Treatment

#: Windows of up to so many elements keep one byte; larger ones keep stock's int64 index.
BYTE_PLACES: Final = 256
INDEX_BYTES: Final = 8


def mask_bytes(op: Op) -> int:
    """Bytes of one bit for each element of the first argument, rounded up to a whole byte."""
    source = op.args[0]
    return -(-prod(source.shape) // 8) if isinstance(source, TensorView) else 0


def window_bytes(op: Op) -> int:
    """Bytes of max-pooling's places in the window: one per result, eight where a window has more than 256 elements."""
    return _place_bytes(op, prod(_integers(op.args[1])))


def adaptive_window_bytes(op: Op) -> int:
    """Bytes of adaptive max-pooling's places in the window, whose largest is that of the widest along each axis."""
    source, out_size = op.args[0], _integers(op.args[1])
    if not isinstance(source, TensorView):
        return 0
    extents = source.shape[-len(out_size) :]
    return _place_bytes(op, prod(_widest(*axis) for axis in zip(extents, out_size, strict=True)))


def _place_bytes(op: Op, places: int) -> int:
    result = op.outputs[0]
    elements = 0 if result is None else prod(result.shape)
    return elements * (1 if places <= BYTE_PLACES else INDEX_BYTES)


def _widest(extent: int, count: int) -> int:
    return max((-(-(i + 1) * extent // count) - i * extent // count for i in range(count)), default=1)


def _integers(value: Argument) -> tuple[int, ...]:
    return tuple(item for item in value if isinstance(item, int)) if isinstance(value, tuple) else ()


_SAVED: Final[Mapping[str, SavedRule]] = MappingProxyType(
    {
        "aten.relu.default": mask_bytes,
        "aten.relu_.default": mask_bytes,
        "aten.hardtanh.default": mask_bytes,
        "aten.hardtanh_.default": mask_bytes,
        "aten.leaky_relu.default": mask_bytes,
        "aten.leaky_relu_.default": mask_bytes,
        "aten.threshold.default": mask_bytes,
        "aten.threshold_.default": mask_bytes,
        "aten.hardsigmoid.default": mask_bytes,
        "aten.hardsigmoid_.default": mask_bytes,
        "aten.clamp.default": mask_bytes,
        "aten.clamp_.default": mask_bytes,
        "aten.clamp_min.default": mask_bytes,
        "aten.clamp_min_.default": mask_bytes,
        "aten.clamp_max.default": mask_bytes,
        "aten.clamp_max_.default": mask_bytes,
        # dropout: the draws, which the product that follows keeps; on CUDA one fused op makes and keeps them
        "aten.bernoulli_.float": mask_bytes,
        "aten.native_dropout.default": mask_bytes,
        "aten.max_pool2d_with_indices.default": window_bytes,
        "aten.max_pool3d_with_indices.default": window_bytes,
        "aten.adaptive_max_pool2d.default": adaptive_window_bytes,
        "aten.adaptive_max_pool3d.default": adaptive_window_bytes,
    }
)

TREATMENT: Final = Treatment(
    name="bitmask",
    lossless=True,
    summary="activations with two slopes and dropout keep 1 bit per element, max-pooling 1 byte per result",
    gradients="as stock's, bit for bit",
    formula="ceil(elements / 8); max-pooling: results * 1, or * 8 where a window has more than 256 elements",
    source="PyTorch tools/autograd/derivatives.yaml: relu, hardtanh, leaky_relu, threshold, clamp, hardsigmoid, "
    "dropout, max_pool2d_with_indices; TinyTL section 3.2",
    twin="memplan.layers.bitmask",
    saved=_SAVED,
)
