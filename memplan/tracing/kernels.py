"""Fake kernels for the commonest ops: their results by shape alone, where PyTorch's own would decompose the op.

A fake tensor mode derives a norm's result through dozens of smaller ops the first time it sees a shape, and hashes
every argument each time after. These few ops are most of what a network runs, and what they give is plain. A kernel
here answers for dense tensors in one memory order and returns ``None`` for all else, which PyTorch then answers;
``tests/tracing/test_kernels.py`` holds each to the real kernel. For norms the real one differs from PyTorch's fake: it
keeps the statistics of a low-precision input in its parameters' float32, and makes no gradient that is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from operator import mul
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

#: Gives an empty fake tensor: shape, strides, and a tensor to take dtype and device from.
Empty: TypeAlias = Callable[[tuple[int, ...], tuple[int, ...], Tensor], Tensor]
Kernel: TypeAlias = Callable[..., Any]

aten: Final = torch.ops.aten


def _is_plain(*tensors: Tensor) -> bool:
    """Whether all tensors are contiguous float32, of one shape."""
    first = tensors[0]
    return all(
        tensor.dtype is torch.float32 and tensor.shape == first.shape and tensor.is_contiguous() for tensor in tensors
    )


def _like(empty: Empty, tensor: Tensor) -> Tensor:
    return empty(tuple(tensor.shape), tensor.stride(), tensor)


def _pointwise(empty: Empty, *args: Any) -> Tensor | None:
    return _like(empty, args[0]) if _is_plain(args[0]) else None


def _pointwise_backward(empty: Empty, gradient: Tensor, value: Tensor, *rest: Any) -> Tensor | None:
    return _like(empty, value) if _is_plain(gradient, value) else None


def _in_place(empty: Empty, *args: Any) -> Tensor | None:
    return args[0] if _is_plain(args[0]) else None


def _convolution(empty: Empty, value: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor | None:
    strides, paddings, dilations, transposed, _, _ = rest
    axes = value.dim() - 2
    if transposed or weight.dim() != axes + 2 or not (_is_plain(value) and _is_plain(weight)):
        return None
    if not len(strides) == len(paddings) == len(dilations) == axes or value.shape[1] != weight.shape[1] * rest[-1]:
        return None
    sizes = [
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(
            value.shape[2:], weight.shape[2:], strides, paddings, dilations, strict=True
        )
    ]
    return _contiguous(empty, (value.shape[0], weight.shape[0], *sizes), value) if min(sizes) > 0 else None


def _convolution_backward(empty: Empty, gradient: Tensor, value: Tensor, weight: Tensor, *rest: Any) -> Any:
    bias_sizes, (input_too, weight_too, bias_too) = rest[0], rest[-1]
    if not (_is_plain(gradient) and _is_plain(value) and _is_plain(weight)):
        return None
    return (
        _like(empty, value) if input_too else None,
        _like(empty, weight) if weight_too else None,
        _contiguous(empty, tuple(bias_sizes), weight) if bias_too else None,
    )


def _layer_norm(empty: Empty, value: Tensor, shape: tuple[int, ...], *rest: Any) -> Any:
    if not _is_plain(value) or tuple(value.shape[value.dim() - len(shape) :]) != tuple(shape):
        return None
    reduced = (*value.shape[: value.dim() - len(shape)], *(1 for _ in shape))
    return _like(empty, value), _contiguous(empty, reduced, value), _contiguous(empty, reduced, value)


def _layer_norm_backward(empty: Empty, gradient: Tensor, value: Tensor, *rest: Any) -> Any:
    weight, bias, masks = rest[3:]
    if not _is_plain(gradient, value) or any(one is None for one in (weight, bias)):
        return None
    return tuple(_like(empty, one) if asked else None for one, asked in zip((value, weight, bias), masks, strict=True))


def _contiguous(empty: Empty, shape: tuple[int, ...], like: Tensor) -> Tensor:
    strides = accumulate((max(size, 1) for size in shape[:0:-1]), mul, initial=1)
    return empty(shape, tuple(strides)[::-1] if shape else (), like)


def _batch_norm(empty: Empty, value: Tensor, *rest: Any) -> Any:
    training = rest[4]
    if not _is_normed(value):
        return None
    statistics = _statistics(value, rest[:4])
    channels = (value.shape[1] if training else 0,)
    return _like(empty, value), empty(channels, (1,), statistics), empty(channels, (1,), statistics)


def _batch_norm_backward(empty: Empty, gradient: Tensor, value: Tensor, weight: Tensor | None, *rest: Any) -> Any:
    input_too, weight_too, bias_too = rest[-1]
    if not _is_normed(value) or gradient.stride() != value.stride() or gradient.dtype is not value.dtype:
        return None
    channels, like = (value.shape[1],), _statistics(value, rest[:4]) if weight is None else weight
    return (
        _like(empty, value) if input_too else None,
        empty(channels, (1,), like) if weight_too else None,
        empty(channels, (1,), like) if bias_too else None,
    )


def _is_normed(value: Tensor) -> bool:
    """Whether a batch norm's result has its input's strides: contiguous, or four axes with the channels last."""
    if value.dtype not in (torch.float32, torch.bfloat16):
        return False
    return value.is_contiguous() or (value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last))


def _statistics(value: Tensor, parameters: tuple[Tensor | None, ...]) -> Tensor:
    """Return a tensor with the dtype of the statistics: float32 if a parameter has it, else the input's."""
    return next((one for one in parameters if one is not None and one.dtype is torch.float32), value)


KERNELS: Final[dict[Any, Kernel]] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    **dict.fromkeys(
        (
            aten.relu.default,
            aten.hardswish.default,
            aten.hardsigmoid.default,
            aten.hardtanh.default,
            aten.sigmoid.default,
            aten.silu.default,
            aten.gelu.default,
        ),
        _pointwise,
    ),
    **dict.fromkeys(
        (
            aten.relu_.default,
            aten.hardswish_.default,
            aten.hardsigmoid_.default,
            aten.hardtanh_.default,
            aten.silu_.default,
        ),
        _in_place,
    ),
    **dict.fromkeys(
        (
            aten.threshold_backward.default,
            aten.hardswish_backward.default,
            aten.hardsigmoid_backward.default,
            aten.hardtanh_backward.default,
            aten.sigmoid_backward.default,
            aten.silu_backward.default,
            aten.gelu_backward.default,
        ),
        _pointwise_backward,
    ),
}

#: Ops whose results PyTorch's own C++ derives from shapes at once: views, products, and sums of like with like. They
#: are called on the storages of the meta device that stand under fake tensors.
META_KERNELS: Final[frozenset[Any]] = frozenset(
    {
        aten.detach.default,
        aten.view.default,
        aten._unsafe_view.default,
        aten.t.default,
        aten.transpose.int,
        aten.permute.default,
        aten.expand.default,
        aten.select.int,
        aten.squeeze.dim,
        aten.unsqueeze.default,
        aten.slice.Tensor,
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten.add.Tensor,
        aten.add_.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.sum.dim_IntList,
        aten.mean.dim,
        aten.clone.default,
    }
)
