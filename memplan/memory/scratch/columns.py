"""Convolutions that PyTorch runs itself, by unrolling windows into columns, and when it does.

Source: PyTorch aten/src/ATen/native/Convolution.cpp (``use_mkldnn``), ConvolutionMM2d.cpp, ConvolutionMM3d.cpp,
NaiveConvolutionTranspose2d.cpp, NaiveDilatedConvolution.cpp.
"""

from __future__ import annotations

from math import prod

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Argument, Machine, TensorView
from memplan.memory.scratch.geometry import (
    copy_bytes,
    fresh_bytes,
    integers,
    suggests_channels_last,
    tensor_bytes,
)

SMALL_INPUT_ELEMENTS = 20480


def uses_onednn(
    source: TensorView, weight: TensorView, stride: Argument, dilation: Argument, groups: int, machine: Machine
) -> bool:
    """Whether a float32 convolution goes to oneDNN: not one image that is small, ungrouped and with a small window."""
    if source.dtype in ("bfloat16", "float16"):
        return machine.instruction_set.startswith("AVX512") or machine.instruction_set == "AMX"
    if source.dtype != "float32":
        return False
    pointwise = prod(weight.shape[2:]) == 1
    stepped = any(step != 1 for step in (*integers(stride), *integers(dilation)))
    worthwhile = stepped or source.shape[0] >= 16 or not pointwise or machine.threads > 1
    large_window = len(weight.shape) > 3 and weight.shape[-1] > 3 and weight.shape[-2] > 3
    many = source.shape[0] > 1 or prod(source.shape[:4]) > SMALL_INPUT_ELEMENTS
    return worthwhile and (groups > 1 or large_window or many)


def _columns(source: TensorView, weight: TensorView, result: TensorView) -> int:
    return prod(weight.shape[1:]) * prod(result.shape[2:]) * source.shape[0] * item_bytes(source.dtype)


def _is_its_own_columns(source: TensorView, weight: TensorView, result: TensorView, steps: Argument) -> bool:
    """Whether a 1x1 window at unit steps lets the input stand for its columns."""
    unit = all(step == 1 for step in integers(steps))
    return prod(weight.shape[2:]) == 1 and source.shape[2:] == result.shape[2:] and unit


def forward(source: TensorView, weight: TensorView, result: TensorView, args: tuple[Argument, ...]) -> int:
    """Columns of the batch and dense copies; groups run one by one, their results are then joined."""
    groups = integers(args[8])[0]
    channels_last = suggests_channels_last(source) or suggests_channels_last(weight)
    copies = copy_bytes(source, channels_last) + copy_bytes(weight, channels_last)
    if args[6]:
        return copies + prod(weight.shape[1:]) * prod(source.shape[2:]) * item_bytes(source.dtype)
    steps = (*integers(args[3]), *integers(args[5]))
    columns = 0 if _is_its_own_columns(source, weight, result, steps) else _columns(source, weight, result)
    if groups > 1:
        return copies + max(tensor_bytes(result), tensor_bytes(source) // groups + columns)
    return copies + columns


def backward(
    gradient: TensorView,
    source: TensorView,
    weight: TensorView,
    args: tuple[Argument, ...],
    outputs: tuple[TensorView | None, ...],
) -> int:
    """Columns, once for each gradient in turn, and dense copies; in 3-d, 1x1x1 windows unroll too."""
    groups = integers(args[9])[0]
    channels_last = suggests_channels_last(source) or suggests_channels_last(weight)
    copies = sum(copy_bytes(view, channels_last) for view in (gradient, source, weight))
    if args[7]:
        return copies + prod(weight.shape[1:]) * prod(source.shape[2:]) * item_bytes(source.dtype)
    steps = (*integers(args[4]), *integers(args[6]))
    free = len(source.shape) < 5 and _is_its_own_columns(source, weight, gradient, steps)
    columns = 0 if free else _columns(source, weight, gradient)
    if groups > 1:
        slices = (tensor_bytes(source) + tensor_bytes(gradient)) // groups
        return copies + max(fresh_bytes(args, outputs), slices + columns)
    return copies + columns
