"""bitmask: activations and dropout keep one bit per element; max-pooling keeps one byte per window."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from memplan.layers import bitmask_pool
from memplan.layers.masks import apply_mask, dense_stride, pack_mask

#: A tensor, or ``NotImplemented`` where the treatment does not apply.
Answer: TypeAlias = Any

#: Where a gradient passes, as arguments of ``pack_mask``: low, high, closed, nan_passes.
Bounds: TypeAlias = "tuple[float | None, float | None, bool, bool]"

_nn: Final = torch._C._nn

#: Significant bits of the dtypes, for the scale of dropout.
_PRECISION: Final = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
#: The slope of hard-sigmoid, in float32 whatever the dtype. Source: aten/src/ATen/native/cpu/Activation.cpp.
_SIXTH: Final = 11184811 / 2**26
#: Devices whose dropout is one kernel with a mask of bools. Source: aten/src/ATen/native/Dropout.cpp.
_FUSED: Final = ("cuda", "xpu")


class MaskedGradient(Function):
    """An activation whose gradient passes or not, element by element; keeps a bit for each."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernel: Callable[[Tensor], Tensor],
        in_place: bool,
        bounds: Bounds,
        on: float,
        off: float | None,
    ) -> Tensor:
        """Run ``kernel``; the gradient is later multiplied by ``on`` within the bounds and by ``off`` beyond them."""
        bits = pack_mask(x, *bounds)
        ctx.save_for_backward(bits)
        ctx.stride, ctx.on, ctx.off = dense_stride(x), on, off
        if in_place:
            ctx.mark_dirty(x)
        return kernel(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the input, in the memory order of the input."""
        (bits,) = ctx.saved_tensors
        return apply_mask(grad, bits, ctx.stride, ctx.on, ctx.off), None, None, None, None, None


class DroppedGradient(Function):
    """Dropout by the kernels and draws of stock PyTorch; keeps a bit for each draw."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, in_place: bool, whole_channels: bool) -> Tensor:
        """Drop elements, or channels, with probability ``p``."""
        ctx.off = 0.0
        if x.device.type in _FUSED and not in_place and not whole_channels:
            out, mask = torch.native_dropout(x, p, True)
            noise = mask.view(torch.uint8)
            ctx.on = 1 / (1 - p)
        else:
            out = x
            noise = x.new_empty((*x.shape[:2], *[1] * (x.dim() - 2))) if whole_channels else torch.empty_like(x)
            noise.bernoulli_(1 - p).div_(1 - p)
            ctx.on = dropout_scale(p, x.dtype)
        bits = pack_mask(noise, 0.0, None, False, False)
        ctx.save_for_backward(bits)
        ctx.noise_shape, ctx.stride, ctx.whole_channels = noise.shape, dense_stride(noise), whole_channels
        if in_place:
            ctx.mark_dirty(x)
            return x.mul_(noise)
        return x * noise if out is x else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the input."""
        (bits,) = ctx.saved_tensors
        if not ctx.whole_channels:
            return apply_mask(grad, bits, ctx.stride, ctx.on, ctx.off), None, None, None
        noise = apply_mask(grad.new_ones(ctx.noise_shape), bits, ctx.stride, ctx.on, None)
        return grad * noise, None, None, None


def dropout_scale(p: float, dtype: torch.dtype) -> float:
    """What an element that is not dropped is multiplied by: 1 / (1 - p), rounded as the kernels round it."""
    if dtype == torch.float64:
        return 1 / (1 - p)
    return _rounded(_rounded(1 / _rounded(1 - p, 24), 24), _PRECISION[dtype])


def _rounded(value: float, bits: int) -> float:
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(fraction, bits)), exponent - bits)


def can_mask(x: object, in_place: bool = False) -> bool:
    """Whether autograd would keep something for an activation of ``x``; a leaf in place is left for stock to refuse."""
    return (
        isinstance(x, Tensor)
        and x.requires_grad
        and x.layout is torch.strided
        and x.dtype in _PRECISION
        and not (in_place and x.is_leaf)
    )


def masked(
    x: Tensor,
    kernels: tuple[Callable[..., Tensor], Callable[..., Tensor]],
    inplace: bool,
    bounds: Bounds,
    *arguments: Any,
    on: float = 1.0,
    off: float | None = None,
) -> Answer:
    """Run one of ``kernels``, out of place and in place, on ``x`` and ``arguments`` with a mask for its gradient."""
    if not can_mask(x, inplace):
        return NotImplemented
    kernel = kernels[bool(inplace)]
    bound = partial(_call, kernel, arguments) if arguments else kernel
    return MaskedGradient.apply(x, bound, bool(inplace), bounds, on, off)  # type: ignore[no-untyped-call]


def _call(kernel: Callable[..., Tensor], arguments: tuple[Any, ...], x: Tensor) -> Tensor:
    return kernel(x, *arguments)


# -- the functions of torch, in its own words --------------------------------------------------------------------------


def relu(input: Tensor, inplace: bool = False) -> Answer:
    """As ``torch.nn.functional.relu``."""
    return masked(input, (torch.relu, torch.relu_), inplace, (0.0, None, False, True))


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Answer:
    """As ``torch.nn.functional.hardtanh``."""
    if not min_val <= max_val:
        return NotImplemented
    kernels = (_nn.hardtanh, _nn.hardtanh_)
    return masked(input, kernels, inplace, (min_val, max_val, False, True), min_val, max_val)


def relu6(input: Tensor, inplace: bool = False) -> Answer:
    """As ``torch.nn.functional.relu6``."""
    return hardtanh(input, 0, 6, inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Answer:
    """As ``torch.nn.functional.leaky_relu``; stock refuses the gradient of a negative slope in place."""
    if inplace and negative_slope < 0:
        return NotImplemented
    kernels = (_nn.leaky_relu, _nn.leaky_relu_)
    return masked(input, kernels, inplace, (0.0, None, False, False), negative_slope, off=negative_slope)


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Answer:
    """As ``torch.nn.functional.threshold``."""
    kernels = (torch.threshold, torch.threshold_)
    return masked(input, kernels, inplace, (threshold, None, False, True), threshold, value)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Answer:
    """As ``torch.nn.functional.hardsigmoid``, whose slope is 1/6 between -3 and 3."""
    return masked(input, (_nn.hardsigmoid, _nn.hardsigmoid_), inplace, (-3.0, 3.0, False, False), on=_SIXTH)


def _clamp(inplace: bool, input: Tensor, min: Any = None, max: Any = None, *, out: Any = None) -> Answer:
    limits = [limit for limit in (min, max) if limit is not None]
    if out is not None or not limits:
        return NotImplemented
    if any(type(limit) not in (int, float) or limit != limit for limit in limits):
        return NotImplemented
    return masked(input, (torch.clamp, torch.clamp_), inplace, (min, max, True, False), min, max)


def _clamp_min(inplace: bool, input: Tensor, min: Any, *, out: Any = None) -> Answer:
    return _clamp(inplace, input, min, None, out=out)


def _clamp_max(inplace: bool, input: Tensor, max: Any, *, out: Any = None) -> Answer:
    return _clamp(inplace, input, None, max, out=out)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Answer:
    """As ``torch.nn.functional.dropout``; without randomness stock keeps nothing."""
    return _drop(input, p, training, inplace, False)


def _drop(x: Tensor, p: float, training: bool, inplace: bool, whole_channels: bool) -> Answer:
    if not training or not 0 < p < 1 or not can_mask(x, inplace) or not x.numel() or (whole_channels and x.dim() < 2):
        return NotImplemented
    if dropout_scale(p, x.dtype) > torch.finfo(x.dtype).max:
        return NotImplemented
    return DroppedGradient.apply(x, p, bool(inplace), whole_channels)  # type: ignore[no-untyped-call]


def _drop_channels(axes: int, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Answer:
    """Stock warns about, or reshapes, any input that is not a batch of ``axes`` spatial axes."""
    return _drop(input, p, training, inplace, True) if input.dim() == axes + 2 else NotImplemented


def _dropout(inplace: bool, whole_channels: bool, input: Tensor, p: float, train: bool) -> Answer:
    return _drop(input, p, train, inplace, whole_channels)


#: All ways to call ReLU.
RELU: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    F.relu: relu,
    torch.relu: relu,
    torch.Tensor.relu: relu,
    torch.relu_: partial(relu, inplace=True),
    torch.Tensor.relu_: partial(relu, inplace=True),
}

REPLACEMENTS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    **RELU,
    F.relu6: relu6,
    _nn.relu6: relu6,
    _nn.relu6_: partial(relu6, inplace=True),
    F.hardtanh: hardtanh,
    _nn.hardtanh: hardtanh,
    _nn.hardtanh_: partial(hardtanh, inplace=True),
    F.leaky_relu: leaky_relu,
    _nn.leaky_relu: leaky_relu,
    _nn.leaky_relu_: partial(leaky_relu, inplace=True),
    F.threshold: threshold,
    torch.threshold: threshold,
    torch.threshold_: partial(threshold, inplace=True),
    F.hardsigmoid: hardsigmoid,
    _nn.hardsigmoid: hardsigmoid,
    _nn.hardsigmoid_: partial(hardsigmoid, inplace=True),
    torch.clamp: partial(_clamp, False),
    torch.clip: partial(_clamp, False),
    torch.Tensor.clamp: partial(_clamp, False),
    torch.Tensor.clip: partial(_clamp, False),
    torch.clamp_: partial(_clamp, True),
    torch.clip_: partial(_clamp, True),
    torch.Tensor.clamp_: partial(_clamp, True),
    torch.Tensor.clip_: partial(_clamp, True),
    torch.clamp_min: partial(_clamp_min, False),
    torch.Tensor.clamp_min: partial(_clamp_min, False),
    torch.clamp_min_: partial(_clamp_min, True),
    torch.Tensor.clamp_min_: partial(_clamp_min, True),
    torch.clamp_max: partial(_clamp_max, False),
    torch.Tensor.clamp_max: partial(_clamp_max, False),
    torch.clamp_max_: partial(_clamp_max, True),
    torch.Tensor.clamp_max_: partial(_clamp_max, True),
    F.dropout: dropout,
    torch.dropout: partial(_dropout, False, False),
    torch.dropout_: partial(_dropout, True, False),
    F.dropout1d: partial(_drop_channels, 1),
    F.dropout2d: partial(_drop_channels, 2),
    F.dropout3d: partial(_drop_channels, 3),
    torch.feature_dropout: partial(_dropout, False, True),
    torch.feature_dropout_: partial(_dropout, True, True),
    **bitmask_pool.REPLACEMENTS,
}
