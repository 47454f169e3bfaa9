"""Max-pooling that keeps each maximum's place in its window, one byte, and not its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd.function import Function, once_differentiable

from memplan.layers.masks import pack_window, unpack_window

#: A result, with its indices where they are asked for, or ``NotImplemented`` where the treatment does not apply.
Answer: TypeAlias = Any
Sizes: TypeAlias = "int | Sequence[int]"

#: Places that one byte can tell apart; larger windows keep stock's int64 indices, and still not the input.
BYTE_PLACES: Final = 256

_LOW: Final = (torch.bfloat16, torch.float16)
_aten: Final = torch.ops.aten
_FORWARD: Final = {2: _aten.max_pool2d_with_indices.default, 3: _aten.max_pool3d_with_indices.default}
_BACKWARD: Final = {
    2: _aten.max_pool2d_with_indices_backward.grad_input,
    3: _aten.max_pool3d_with_indices_backward.grad_input,
}
_ADAPTIVE_FORWARD: Final = {2: _aten.adaptive_max_pool2d.default, 3: _aten.adaptive_max_pool3d.default}
_ADAPTIVE_BACKWARD: Final = {
    2: _aten.adaptive_max_pool2d_backward.grad_input,
    3: _aten.adaptive_max_pool3d_backward.grad_input,
}


def _apply(x: Tensor, window: tuple[Any, ...], ceil_mode: bool, adaptive: bool) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = PooledGradient.apply(x, window, ceil_mode, adaptive)  # type: ignore[no-untyped-call]
    return result


class PooledGradient(Function):
    """Max-pooling by stock's kernels; keeps one byte per result where a window has at most 256 elements."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[Any, ...], ceil_mode: bool, adaptive: bool) -> tuple[Tensor, Tensor]:
        """Pool ``x``. ``window`` is kernel, stride, padding, dilation; for adaptive pooling the output's size alone."""
        axes = len(window[0])
        size = tuple(x.shape[-axes:])
        if adaptive:
            out, indices = _ADAPTIVE_FORWARD[axes](x, window[0])
            kernel = tuple(adaptive_taps(*extents) for extents in zip(size, window[0], strict=True))
            ctx.geometry = (size, kernel, (), (0,) * axes, (1,) * axes)
        else:
            out, indices = _FORWARD[axes](x, *window, ceil_mode)
            ctx.geometry = (size, *window)
        # The gradient of adaptive pooling along three axes is row-major, whatever the input.
        row_major = adaptive and axes == 3
        ctx.shape, ctx.memory_format = x.shape, torch.contiguous_format if row_major else suggest_memory_format(x)
        ctx.window, ctx.ceil_mode, ctx.adaptive = window, ceil_mode, adaptive
        ctx.coded = prod(ctx.geometry[1]) <= BYTE_PLACES
        ctx.save_for_backward(pack_window(indices, *ctx.geometry) if ctx.coded else indices)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        return out, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Return the gradient of the input."""
        if grad is None:
            return None, None, None, None
        (kept,) = ctx.saved_tensors
        indices = unpack_window(kept, *ctx.geometry) if ctx.coded else kept
        axes = len(ctx.window[0])
        # The kernels read the shape of the input and nothing else, so that the result can stand in for it.
        result = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.memory_format)
        if ctx.adaptive:
            _ADAPTIVE_BACKWARD[axes](grad, result, indices, grad_input=result)
        else:
            _BACKWARD[axes](grad, result, *ctx.window, ctx.ceil_mode, indices, grad_input=result)
        return result, None, None, None


def adaptive_taps(extent: int, count: int) -> int:
    """Elements of the widest window when ``extent`` elements are pooled to ``count``."""
    return max((-((-(i + 1) * extent) // count) - i * extent // count for i in range(count)), default=1)


def _is_treated(x: object) -> bool:
    return isinstance(x, Tensor) and x.requires_grad and x.layout is torch.strided


def _spread(value: Sizes, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _with_rows(x: Tensor, pool: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pool along one axis as along the second of two, which is what stock does."""
    out, indices = pool(x.unsqueeze(-2))
    return out.squeeze(-2), indices.squeeze(-2)


def _pool(
    axes: int,
    both: bool,
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Answer:
    """As ``torch.nn.functional.max_poolNd``; ``both`` for the variants that always return the indices too."""
    if not _is_treated(input) or input.dim() not in (axes + 1, axes + 2):
        return NotImplemented
    kernel = _spread(kernel_size, axes)
    steps = kernel if stride is None or stride == () or stride == [] else _spread(stride, axes)
    window = (kernel, steps, _spread(padding, axes), _spread(dilation, axes))
    if any(len(values) != axes for values in window):
        return NotImplemented
    if axes == 3 and not both and not return_indices and input.dtype in _LOW and input.device.type == "cpu":
        # Autocast on CPU runs this pooling, of all, in float32; the variants with indices it leaves alone.
        input = input.float() if torch.is_autocast_enabled("cpu") else input
    if axes == 1:
        rows = tuple((one, *values) for one, values in zip((1, 1, 0, 1), window, strict=True))
        out, indices = _with_rows(input, lambda x: _apply(x, rows, ceil_mode, False))
    else:
        out, indices = _apply(input, window, ceil_mode, False)
    return (out, indices) if both or return_indices else out


def _pool_adaptively(
    axes: int, both: bool, input: Tensor, output_size: Sizes | Sequence[int | None], return_indices: bool = False
) -> Answer:
    """As ``torch.nn.functional.adaptive_max_poolNd``; ``both`` for the variants that always return the indices too."""
    if not _is_treated(input) or input.dim() not in (axes + 1, axes + 2) or output_size is None:
        return NotImplemented
    given = output_size if isinstance(output_size, int) else tuple(output_size)
    sizes = (given,) * axes if isinstance(given, int) else given * axes if len(given) == 1 else given
    if len(sizes) != axes:
        return NotImplemented
    target = tuple(extent if size is None else size for size, extent in zip(sizes, input.shape[-axes:], strict=True))
    if axes == 1:
        out, indices = _with_rows(input, lambda x: _apply(x, ((1, *target),), False, True))
    else:
        out, indices = _apply(input, (target,), False, True)
    return (out, indices) if both or return_indices else out


REPLACEMENTS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    F.max_pool1d: partial(_pool, 1, False),
    F.max_pool2d: partial(_pool, 2, False),
    F.max_pool3d: partial(_pool, 3, False),
    F.max_pool1d_with_indices: partial(_pool, 1, True),
    F.max_pool2d_with_indices: partial(_pool, 2, True),
    F.max_pool3d_with_indices: partial(_pool, 3, True),
    torch.max_pool1d: partial(_pool, 1, False),
    torch.max_pool2d: partial(_pool, 2, False),
    torch.max_pool3d: partial(_pool, 3, False),
    torch.max_pool1d_with_indices: partial(_pool, 1, True),
    torch._C._nn.max_pool2d_with_indices: partial(_pool, 2, True),
    torch._C._nn.max_pool3d_with_indices: partial(_pool, 3, True),
    F.adaptive_max_pool1d: partial(_pool_adaptively, 1, False),
    F.adaptive_max_pool2d: partial(_pool_adaptively, 2, False),
    F.adaptive_max_pool3d: partial(_pool_adaptively, 3, False),
    F.adaptive_max_pool1d_with_indices: partial(_pool_adaptively, 1, True),
    F.adaptive_max_pool2d_with_indices: partial(_pool_adaptively, 2, True),
    F.adaptive_max_pool3d_with_indices: partial(_pool_adaptively, 3, True),
    torch.adaptive_max_pool1d: partial(_pool_adaptively, 1, True),
    torch._C._nn.adaptive_max_pool2d: partial(_pool_adaptively, 2, True),
    torch._C._nn.adaptive_max_pool3d: partial(_pool_adaptively, 3, True),
}
