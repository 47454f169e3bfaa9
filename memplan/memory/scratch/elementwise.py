# ruff: noqa: ARG001 - all formulas share one signature
"""Scratch of pointwise, softmax and rearranging ops: mostly dense copies of arguments that are not.

Source: PyTorch aten/src/ATen/native: SoftMax.cpp, Activation.cpp, TransformProperties (roll), Im2Col.cpp, Col2Im.cpp,
Embedding.cpp, ReduceOps.cpp; checked against measurements.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Argument, Machine, TensorView
from memplan.memory.scratch.geometry import (
    copy_bytes,
    integers,
    is_contiguous,
    tensor,
    tensor_bytes,
)

Outputs = tuple[TensorView | None, ...]


def dense_first(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """A dense copy of the first argument."""
    source = tensor(args, 0)
    return 0 if source is None else copy_bytes(source)


def dense_first_two(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """Dense copies of the first two arguments."""
    return sum(copy_bytes(view) for view in (tensor(args, 0), tensor(args, 1)) if view is not None)


def dense_second(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """A dense copy of the second argument."""
    source = tensor(args, 1)
    return 0 if source is None else copy_bytes(source)


def safe_softmax(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """self, dim: a mask of the elements that are minus infinity, and of the rows that are so throughout."""
    source = tensor(args, 0)
    if source is None or not source.shape:
        return 0
    axis = integers(args[1])[0] if integers(args[1]) else -1
    elements = prod(source.shape)
    return elements + elements // max(1, source.shape[axis]) + item_bytes(source.dtype)


def gelu_backward(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """grad_output, self, approximate: oneDNN runs the exact form of a dense self, and reorders another gradient."""
    gradient, source = tensor(args, 0), tensor(args, 1)
    if gradient is None or source is None or args[2] != "none" or source.dtype == "float64":
        return 0
    return 2 * tensor_bytes(gradient) if is_contiguous(source) and not is_contiguous(gradient) else 0


def roll(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """self, shifts, dims: one axis after the other, each into a new tensor."""
    source = tensor(args, 0)
    return 0 if source is None else tensor_bytes(source) * max(0, len(integers(args[2])) - 1)


def unfold_windows(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """aten.im2col: the input is copied once more, also when it is dense."""
    source = tensor(args, 0)
    return 0 if source is None else tensor_bytes(source) + copy_bytes(source)


def whole_gradient(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """One more array of the first argument's size."""
    source = tensor(args, 0)
    return 0 if source is None else tensor_bytes(source)


def reduced_loss(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """input, target, reduction: the loss of every element, beside the result that it is reduced into."""
    source = tensor(args, 0)
    return tensor_bytes(source) if source is not None and args[2] != 0 else 0


def logit_loss(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """input: the loss of every element and one of its terms, at once."""
    return 2 * tensor_bytes(tensor(args, 0))


def summed(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """sum: the input in the result's dtype; halves in float32 where kept axes lie between summed ones in memory.

    Source: PyTorch aten/src/ATen/native/ReduceOps.cpp, ``should_use_acc_buffer``.
    """
    source, result = tensor(args, 0), outputs[0] if outputs else None
    if source is None or result is None:
        return 0
    if source.dtype != result.dtype:
        return prod(source.shape) * item_bytes(result.dtype)
    if item_bytes(source.dtype) != 2 or len(args) < 2:
        return 0
    rank = len(source.shape)
    axes = {axis % rank for axis in integers(args[1])} if rank else set()
    inner_first = sorted(
        (axis for axis in range(rank) if source.shape[axis] > 1), key=lambda axis: source.strides[axis]
    )
    turns = [axis in axes for axis in inner_first]
    changes = sum(one != other for one, other in pairwise(turns))
    enclosed = changes >= 2 if turns and turns[0] else changes >= 3
    return 4 * (prod(source.shape) + prod(result.shape)) if enclosed else 0


def averaged(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """mean: the input in the result's dtype; halves, input and result, in float32."""
    source, result = tensor(args, 0), outputs[0] if outputs else None
    if source is None or result is None:
        return 0
    if item_bytes(source.dtype) == item_bytes(result.dtype) == 2:
        return 4 * (prod(source.shape) + prod(result.shape))
    return 0 if source.dtype == result.dtype else prod(source.shape) * item_bytes(result.dtype)


def promoted(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """A binary op on two dtypes: the narrower operand is converted first."""
    views = [view for view in args[:2] if isinstance(view, TensorView) and view.shape]
    widest = max((item_bytes(view.dtype) for view in views), default=0)
    return sum(prod(view.shape) * widest for view in views if item_bytes(view.dtype) != widest)


def converted(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """The input in the dtype of the result, where they differ."""
    source = tensor(args, 0)
    if source is None or not outputs or outputs[0] is None or source.dtype == outputs[0].dtype:
        return 0
    return prod(source.shape) * item_bytes(outputs[0].dtype)
