"""Convolutions with a frozen weight: autograd keeps the weight and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

#: What a convolution takes for a stride, a padding or a dilation: one number, or one per axis.
Sizes = int | Sequence[int]

#: Data types for which oneDNN has convolutions.
_ONEDNN_DTYPES: Final = frozenset({torch.float32, torch.bfloat16, torch.float16})


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a convolution slides over its input, one number per axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of ``torch.convolution`` after the tensors."""
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups


@dataclass(frozen=True, slots=True)
class Call:
    """A convolution as it was called, with its tensors as the kernel sees them: a batch, padded where that is uneven.

    ``weight`` is as the caller has it; the kernel wants it in ``dtype``.
    """

    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    geometry: Geometry
    dtype: torch.dtype
    batched: bool

    def result(self, output: torch.Tensor) -> torch.Tensor:
        """Return the output in the shape that the caller expects."""
        return output if self.batched else output.squeeze(0)


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype | None:
    """The data type to which autocast takes a convolution's or linear layer's ``tensor`` now, or None where it is off.

    Source: aten/src/ATen/autocast_mode.h, ``is_eligible`` and ``cached_cast``.
    """
    if not torch._C._is_any_autocast_enabled():
        return None
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device) if tensor.dtype is not torch.float64 else None


def cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Return ``tensor`` as autocast would pass it on, in the sight of autograd."""
    return tensor if dtype is None or tensor.dtype is torch.float64 else tensor.to(dtype)


def channels_last(input: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a convolution of these runs, forward and backward, with the channel axis innermost."""
    return input.ndim > 3 and (_suggests_channels_last(input) or _suggests_channels_last(weight))


def _suggests_channels_last(tensor: torch.Tensor) -> bool:
    """Whether PyTorch takes the strides of a 4-d or 5-d tensor as channels-last; ambiguous ones count as contiguous.

    Source: c10/core/MemoryFormat.h, ``is_channels_last_strides_2d_s4``.
    """
    sizes, strides = tensor.shape, tensor.stride()
    if strides[1] == 0 or strides[1] > strides[-1]:
        return False
    least = 0
    for axis in (1, *range(tensor.ndim - 1, 1, -1), 0):
        if sizes[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * max(sizes[axis], 1)
    return True


def output_gradient(grad: torch.Tensor, in_channels_last: bool) -> torch.Tensor:
    """Return the gradient of the output in the layout in which stock PyTorch runs this convolution's backward."""
    if not in_channels_last:
        return grad.contiguous()
    return grad.contiguous(memory_format=torch.channels_last if grad.ndim == 4 else torch.channels_last_3d)


def input_gradient(
    grad: torch.Tensor, weight: torch.Tensor, shape: torch.Size, geometry: Geometry, in_channels_last: bool
) -> torch.Tensor:
    """Return the gradient of a convolution's input of ``shape``, from that of its output.

    The input itself is not needed, but ``aten.convolution_backward`` wants one, and on a CPU copies any stand-in that
    is not dense. With oneDNN the convolution that runs the other way is the same kernel, and takes none. One thread
    alone runs pointwise convolutions without oneDNN: there the same convolution by the turned weight is quicker.

    Args: ``grad`` as :func:`output_gradient` gives it.
    """
    if 0 in shape or not grad.numel():
        return grad.new_zeros(shape)
    if in_channels_last and grad.is_contiguous():
        # The layout of the gradient is ambiguous, so that the weight's has to say it.
        weight = weight.contiguous(memory_format=torch.channels_last if grad.ndim == 4 else torch.channels_last_3d)
    if _pointwise(weight, geometry) and grad.device.type == "cpu" and torch.get_num_threads() == 1:
        return torch.convolution(grad, weight.transpose(0, 1), None, *geometry.arguments)
    other_way = _other_way(grad, weight, shape, geometry)
    if other_way is not None:
        return torch.convolution(grad, weight, None, *other_way.arguments)
    if in_channels_last:
        weight = weight.contiguous(memory_format=torch.channels_last if grad.ndim == 4 else torch.channels_last_3d)
    stand_in = grad.new_empty(1).expand(shape)
    found: torch.Tensor = torch.ops.aten.convolution_backward(
        grad, stand_in, weight, None, *geometry.arguments, (True, False, False)
    )[0]
    return found


def bias_gradient(grad: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a convolution's bias from that of its output."""
    return grad.sum([0, *range(2, grad.ndim)], dtype=grad.dtype)


def _other_way(grad: torch.Tensor, weight: torch.Tensor, shape: torch.Size, geometry: Geometry) -> Geometry | None:
    """The convolution from output gradient to input gradient, where oneDNN runs it and it can give that shape."""
    if grad.device.type != "cpu" or not torch._C._has_mkldnn or grad.dtype not in _ONEDNN_DTYPES:
        return None
    kernel = weight.shape[2:]
    axes = range(len(kernel))
    covered = [geometry.dilation[axis] * (kernel[axis] - 1) + 1 - 2 * geometry.padding[axis] for axis in axes]
    if geometry.transposed:
        if any((grad.shape[a + 2] - covered[a]) // geometry.stride[a] + 1 != shape[a + 2] for a in axes):
            return None
        rest = (0,) * len(kernel)
    else:
        rest = tuple((shape[a + 2] - covered[a]) % geometry.stride[a] for a in axes)
    return Geometry(
        geometry.stride, geometry.padding, geometry.dilation, not geometry.transposed, rest, geometry.groups
    )


def _pointwise(weight: torch.Tensor, geometry: Geometry) -> bool:
    """Whether each position of the output depends on that position of the input alone, and on all its channels."""
    if geometry.groups != 1 or geometry.transposed or any(geometry.padding):
        return False
    return all(size == 1 for size in (*weight.shape[2:], *geometry.stride))


def per_axis(value: Sizes, axes: int) -> tuple[int, ...]:
    """Return one number per axis.

    >>> per_axis(2, 3), per_axis([1], 2), per_axis((1, 2), 2)
    ((2, 2, 2), (1, 1), (1, 2))
    """
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) * axes if len(value) == 1 else tuple(value)


def _forward_spelling(axes: int) -> Callable[..., tuple[Any, ...]]:
    def spelled(
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> tuple[Any, ...]:
        return input, weight, bias, stride, padding, dilation, False, 0, groups, axes

    return spelled


def _transposed_spelling(axes: int) -> Callable[..., tuple[Any, ...]]:
    def spelled(
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        dilation: Sizes = 1,
    ) -> tuple[Any, ...]:
        return input, weight, bias, stride, padding, dilation, True, output_padding, groups, axes

    return spelled


def _full_spelling(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> tuple[Any, ...]:
    return input, weight, bias, stride, padding, dilation, transposed, output_padding, groups, None


#: How each of torch's convolutions spells its arguments: to those of ``torch.convolution``, then the number of axes.
SPELLINGS: Final[Mapping[Callable[..., Any], Callable[..., tuple[Any, ...]]]] = {
    torch.conv1d: _forward_spelling(1),
    torch.conv2d: _forward_spelling(2),
    torch.conv3d: _forward_spelling(3),
    torch.conv_transpose1d: _transposed_spelling(1),
    torch.conv_transpose2d: _transposed_spelling(2),
    torch.conv_transpose3d: _transposed_spelling(3),
    torch.convolution: _full_spelling,
}


def call_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call | None:
    """Return the call ``function(*args, **kwargs)`` as the kernel sees it, or None where only stock can run it.

    That is so for tensors that are not dense or not real, for shapes that stock refuses, and for ``torch.convolution``
    under autocast.
    """
    return _seen_by_kernel(SPELLINGS[function](*args, **kwargs))


def _seen_by_kernel(spelled: tuple[Any, ...]) -> Call | None:
    input, weight, bias, stride, padding, dilation, transposed, output_padding, groups, expected = spelled
    axes = weight.ndim - 2
    if input.layout is not torch.strided or weight.layout is not torch.strided or not input.is_floating_point():
        return None
    batched = input.ndim == axes + 2
    if axes < 1 or expected not in (axes, None):
        return None
    if not batched and (input.ndim != axes + 1 or expected is None):
        return None
    lower = autocast_dtype(input)
    if lower is not None and expected is None:
        return None  # Autocast knows this spelling on some devices only.
    input = cast(input, lower)
    if not batched:
        input = input.unsqueeze(0)
    stride, dilation = per_axis(stride, axes), per_axis(dilation, axes)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        if any(step != 1 for step in stride):
            return None
        input, padding = _padded_alike(input, weight.shape[2:], dilation)
    elif isinstance(padding, str):
        return None
    geometry = Geometry(stride, per_axis(padding, axes), dilation, transposed, per_axis(output_padding, axes), groups)
    return Call(input, weight, None if bias is None else cast(bias, lower), geometry, lower or weight.dtype, batched)


def _padded_alike(
    input: torch.Tensor, kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return the input, with a zero more at the end of each axis that needs it, and the padding that is left.

    Source: aten/src/ATen/native/Convolution.cpp, ``_convolution_same``.
    """
    totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    if any(total % 2 for total in totals):
        input = F.pad(input, [amount for total in reversed(totals) for amount in (0, total % 2)])
    return input, tuple(total // 2 for total in totals)


def spread(scale: torch.Tensor, weight: torch.Tensor, transposed: bool, groups: int) -> torch.Tensor:
    """Return one number per output channel in a shape that broadcasts against the weight."""
    ones = (1,) * (weight.ndim - 2)
    if not transposed:
        return scale.view(-1, 1, *ones)
    # A row per input channel: the numbers of its group's output channels.
    rows = scale.view(groups, 1, weight.shape[1]).expand(groups, weight.shape[0] // groups, weight.shape[1])
    return rows.reshape(weight.shape[0], weight.shape[1], *ones)


def dense_weight(
    weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype, transposed: bool = False, groups: int = 1
) -> torch.Tensor:
    """Return a weight in ``dtype``: itself, or a fresh one where each output channel is to be scaled."""
    if scale is None:
        return weight.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return weight.to(wide).mul_(spread(scale, weight, transposed, groups)).to(dtype)


class LeanConvolution(torch.autograd.Function):
    """Convolution with a frozen weight, which is all that is kept; input and bias get gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        geometry: Geometry,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Return the output. Each output channel's weight is scaled where there is a ``scale``."""
        ctx.geometry, ctx.dtype, ctx.shape = geometry, dtype, input.shape
        dense = dense_weight(weight, scale, dtype, geometry.transposed, geometry.groups)
        ctx.channels_last = channels_last(input, dense)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(weight, scale)
        return torch.convolution(input, dense, bias, *geometry.arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of input and bias."""
        of_input = of_bias = None
        if ctx.needs_input_grad[3]:
            of_bias = bias_gradient(grad)
        if ctx.needs_input_grad[0]:
            grad = output_gradient(grad, ctx.channels_last)
            geometry = ctx.geometry
            weight, scale = ctx.saved_tensors
            weight = dense_weight(weight, scale, ctx.dtype, geometry.transposed, geometry.groups)
            of_input = input_gradient(grad, weight, ctx.shape, geometry, ctx.channels_last)
        return of_input, None, None, of_bias, None, None


def _lean(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    spelled = SPELLINGS[function](*args, **kwargs)
    input, weight, bias = spelled[:3]
    if weight.requires_grad or not (input.requires_grad or (bias is not None and bias.requires_grad)):
        return NotImplemented
    call = _seen_by_kernel(spelled)
    if call is None:
        return NotImplemented
    output = LeanConvolution.apply(  # type: ignore[no-untyped-call]
        call.input, call.weight, None, call.bias, call.geometry, call.dtype
    )
    return call.result(output)


#: Each of torch's convolutions, and its lean form.
CONVOLUTIONS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    function: partial(_lean, function) for function in SPELLINGS
}
