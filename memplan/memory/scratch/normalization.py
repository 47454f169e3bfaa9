# ruff: noqa: ARG001 - all formulas share one signature
"""Scratch of norms: copies of what is not dense, per-channel sums, and one whole copy in batch norm's backward.

Source: PyTorch aten/src/ATen/native/Normalization.cpp, cpu/batch_norm_kernel.cpp, cpu/layer_norm_kernel.cpp,
layer_norm.cpp, group_norm.cpp, cpu/group_norm_kernel.cpp; checked against measurements.
"""

from __future__ import annotations

from math import prod

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Argument, Machine, TensorView
from memplan.memory.scratch.geometry import (
    copy_bytes,
    is_channels_last,
    is_contiguous,
    suggests_channels_last,
    tensor,
    tensor_bytes,
)


def _opmath_bytes(dtype: str) -> int:
    return 8 if dtype == "float64" else 4


def batch_norm(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """input, ...: two vectors of channels, and sums for every thread when channels are innermost."""
    source = tensor(args, 0)
    if source is None or len(source.shape) < 2:
        return 0
    vector = source.shape[1] * _opmath_bytes(source.dtype)
    innermost = not is_contiguous(source) or prod(source.shape[2:]) == 1
    return vector * (2 + machine.threads) if innermost else 2 * vector


def batch_norm_backward(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """grad_out, input, ..., output_mask: the dense kernel works on a second array of the input's size."""
    gradient, source = tensor(args, 0), tensor(args, 1)
    mask = args[9] if len(args) > 9 else None
    if gradient is None or source is None or len(source.shape) < 2:
        return 0
    wanted = bool(mask[0]) if isinstance(mask, tuple) and mask else True
    rows_dense = is_contiguous(gradient) and is_contiguous(source)
    channels_dense = is_channels_last(gradient) and is_channels_last(source)
    vector = source.shape[1] * _opmath_bytes(source.dtype)
    small = vector * (2 * machine.threads + 1)
    if rows_dense or channels_dense:
        innermost = not rows_dense or prod(source.shape[2:]) == 1
        return max(tensor_bytes(source) if wanted else 0, small if innermost else 0)
    return vector


def layer_norm(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """input, ...: a dense copy of the input, weight and bias where they are not."""
    return sum(copy_bytes(view) for view in (tensor(args, 0), tensor(args, 2), tensor(args, 3)) if view is not None)


def layer_norm_backward(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """grad_out, input, normalized_shape, ..., output_mask: dense copies, and two sums per feature and thread."""
    gradient, source, shape, mask = tensor(args, 0), tensor(args, 1), args[2], args[7]
    if gradient is None or source is None or not isinstance(shape, tuple) or not isinstance(mask, tuple):
        return 0
    features = prod(size for size in shape if isinstance(size, int))
    sums = 2 * machine.threads * features * item_bytes(source.dtype) if mask[1] or mask[2] else 0
    return copy_bytes(gradient) + copy_bytes(source) + sums


def group_norm(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """input, ...: in channels-last order, scale and shift per image and channel and sums for every thread."""
    source = tensor(args, 0)
    if source is None or is_contiguous(source) or not suggests_channels_last(source):
        return 0
    images, channels = source.shape[0], source.shape[1]
    return 2 * images * channels * _opmath_bytes(source.dtype) * (1 + machine.threads)


def group_norm_backward(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """grad_out, input, ...: two sums per image and channel, and the gradient brought to the input's order."""
    gradient, source = tensor(args, 0), tensor(args, 1)
    if gradient is None or source is None or len(source.shape) < 2:
        return 0
    channels_last = suggests_channels_last(source)
    sums = 2 * source.shape[0] * source.shape[1] * _opmath_bytes(source.dtype)
    return sums + copy_bytes(gradient, channels_last) + copy_bytes(source, channels_last)
