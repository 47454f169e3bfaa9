# ruff: noqa: ARG001 - all formulas share one signature
"""Scratch of pooling, padding and interpolation: copies into the memory format that the kernel runs in.

Source: PyTorch aten/src/ATen/native/cpu: MaxPoolKernel.cpp, AvgPoolKernel.cpp, AdaptiveAvgPoolKernel.cpp,
PaddingKernel.cpp, UpSampleKernel.cpp, UpSampleMoreKernel.cpp; checked against measurements.
"""

from __future__ import annotations

from math import prod

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Argument, Machine, TensorView
from memplan.memory.scratch.geometry import copy_bytes, suggests_channels_last, tensor, tensor_bytes

Outputs = tuple[TensorView | None, ...]

#: Bytes of one output position's entry in an interpolation table: an int64 index and a float32 weight.
TABLE_ENTRY = 12
#: Interpolation runs channels-last up to this many output positions, in the kernels for three channels and more.
VECTORIZED_POSITIONS = 64 * 64


def pool(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """input, ...: the input made dense in its own memory format."""
    source = tensor(args, 0)
    return 0 if source is None else copy_bytes(source, suggests_channels_last(source))


def pool_backward(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """grad_output, input, ...: the gradients and indices made dense in the memory format of grad_output."""
    gradient = tensor(args, 0)
    if gradient is None:
        return 0
    channels_last = suggests_channels_last(gradient)
    results = [view for view in outputs if view is not None]
    indices = [view for view in args[2:] if isinstance(view, TensorView)]
    return sum(copy_bytes(view, channels_last) for view in (gradient, *results, *indices))


def _tables(result: TensorView, points: int) -> int:
    return points * TABLE_ENTRY * sum(result.shape[2:])


def _interpolate(args: tuple[Argument, ...], outputs: Outputs, points: int) -> int:
    source, result = tensor(args, 0), outputs[0] if outputs else None
    if source is None or result is None or suggests_channels_last(source):
        return 0
    vectorized = len(source.shape) == 4 and source.shape[1] >= 3 and prod(result.shape[2:]) <= VECTORIZED_POSITIONS
    if vectorized:
        return tensor_bytes(source) + tensor_bytes(result)
    return copy_bytes(source) + _tables(result, points)


def nearest(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """input, ...: a channels-last copy in and out for a small result, else one table entry per position."""
    return _interpolate(args, outputs, points=1)


def linear(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """input, ...: a channels-last copy in and out for a small result, else two table entries per position."""
    return _interpolate(args, outputs, points=2)


def cubic(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """input, ...: four table entries per position."""
    return 0 if not outputs or outputs[0] is None else _tables(outputs[0], points=4)


def antialiased(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """input, ...: the image after the horizontal pass, and tables whose width follows the scale."""
    source, result = tensor(args, 0), outputs[0] if outputs else None
    if source is None or result is None:
        return 0
    between = prod(source.shape[:3]) * result.shape[3] * item_bytes(source.dtype)
    support = 2 + 2 * max(1, *(-(-big // small) for big, small in zip(source.shape[2:], result.shape[2:], strict=True)))
    return between + 8 * (support + 4) * max(result.shape[2:])


def dense_gradient(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """grad_output, ...: the gradient, and the result where it is not row-major, made dense."""
    gradient = tensor(args, 0)
    views = [gradient, *outputs]
    return sum(copy_bytes(view) for view in views if view is not None)
