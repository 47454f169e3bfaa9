"""frozen-int8: convolutions and linear layers whose frozen weight is stored in 8 bits and dequantized at use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from memplan.layers.lean_convolution import (
    LeanConvolution,
    autocast_dtype,
    call_of,
    cast,
    dense_weight,
    spread,
)

#: Whole layers change their storage through :func:`quantize_`; no function of torch is replaced.
REPLACEMENTS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {}

#: The largest step number: symmetric, so that a weight and its negative are rounded alike.
STEPS: Final = 127


class Int8Weight(nn.Module):
    """A layer whose weight is ``weight_int8 * weight_scale``: a step number per element, a step per output channel.

    The scale stays in float32 when the layer's data type changes; ``weight_dtype`` is what the weight is asked in. Made
    by :func:`quantize_`, never by its constructor.
    """

    weight_int8: torch.Tensor
    weight_scale: torch.Tensor
    weight_dtype: torch.dtype

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError(f"{type(self).__name__} is made from a layer with weights: quantize_(layer)")

    def _in_full(self) -> torch.Tensor:
        """The weight in full, a fresh tensor at each reading."""
        with torch.no_grad():
            return dense_weight(
                self.weight_int8, self.weight_scale, self.weight_dtype, _transposed(self), _groups(self)
            )

    weight: Any = property(_in_full)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Int8Weight:
        step = self.weight_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.weight_dtype = fn(torch.empty(0, dtype=self.weight_dtype, device=step.device)).dtype
        if self.weight_scale.dtype is not step.dtype:
            self.weight_scale = step.to(self.weight_scale.device)
        return self


class _Int8Convolution(Int8Weight):
    def _run(self, function: Callable[..., torch.Tensor], input: torch.Tensor, *arguments: Any) -> torch.Tensor:
        """Run ``function(input, weight, bias, *arguments)``."""
        bias: torch.Tensor | None = self.bias  # type: ignore[assignment]
        call = call_of(function, input, self.weight_int8, bias, *arguments)
        if call is None:
            return function(input, self.weight, bias, *arguments)
        dtype = self.weight_dtype if call.dtype is torch.int8 else call.dtype
        output: torch.Tensor = LeanConvolution.apply(  # type: ignore[no-untyped-call]
            call.input, call.weight, self.weight_scale, call.bias, call.geometry, dtype
        )
        return call.result(output)


class _Int8Forward(_Int8Convolution):
    def _convolve(self, function: Callable[..., torch.Tensor], input: torch.Tensor) -> torch.Tensor:
        conv: Any = self
        padding = conv.padding
        if conv.padding_mode != "zeros":
            input = F.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
            padding = 0
        return self._run(function, input, conv.stride, padding, conv.dilation, conv.groups)


class _Int8Transposed(_Int8Convolution):
    def _convolve(
        self, function: Callable[..., torch.Tensor], input: torch.Tensor, output_size: list[int] | None
    ) -> torch.Tensor:
        conv: Any = self
        axes = len(conv.kernel_size)
        output_padding = conv._output_padding(
            input, output_size, conv.stride, conv.padding, conv.kernel_size, axes, conv.dilation
        )
        return self._run(function, input, conv.stride, conv.padding, output_padding, conv.groups, conv.dilation)


class Int8Conv1d(_Int8Forward, nn.Conv1d):
    """``nn.Conv1d`` with an 8-bit weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution with the dequantized weight."""
        return self._convolve(torch.conv1d, input)


class Int8Conv2d(_Int8Forward, nn.Conv2d):
    """``nn.Conv2d`` with an 8-bit weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution with the dequantized weight."""
        return self._convolve(torch.conv2d, input)


class Int8Conv3d(_Int8Forward, nn.Conv3d):
    """``nn.Conv3d`` with an 8-bit weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution with the dequantized weight."""
        return self._convolve(torch.conv3d, input)


class Int8ConvTranspose1d(_Int8Transposed, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with an 8-bit weight."""

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Return the transposed convolution with the dequantized weight."""
        return self._convolve(torch.conv_transpose1d, input, output_size)


class Int8ConvTranspose2d(_Int8Transposed, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with an 8-bit weight."""

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Return the transposed convolution with the dequantized weight."""
        return self._convolve(torch.conv_transpose2d, input, output_size)


class Int8ConvTranspose3d(_Int8Transposed, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` with an 8-bit weight."""

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Return the transposed convolution with the dequantized weight."""
        return self._convolve(torch.conv_transpose3d, input, output_size)


class Int8Linear(Int8Weight, nn.Linear):
    """``nn.Linear`` with an 8-bit weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the product with the dequantized weight."""
        lower = autocast_dtype(input)
        bias = None if self.bias is None else cast(self.bias, lower)
        output: torch.Tensor = _LeanLinear.apply(  # type: ignore[no-untyped-call]
            cast(input, lower), self.weight_int8, self.weight_scale, bias, lower or self.weight_dtype
        )
        return output


class _LeanLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.dtype = dtype
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(weight, scale)
        return F.linear(input, dense_weight(weight, scale, dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_input = of_bias = None
        if ctx.needs_input_grad[0]:
            weight, scale = ctx.saved_tensors
            weight = dense_weight(weight, scale, ctx.dtype)
            inside_autocast = autocast_dtype(grad) is not None
            with torch.autocast(grad.device.type, enabled=False) if inside_autocast else nullcontext():
                of_input = torch.matmul(grad, weight)
        if ctx.needs_input_grad[3]:
            of_bias = grad.sum(list(range(grad.ndim - 1)), dtype=grad.dtype) if grad.ndim > 1 else grad
        return of_input, None, None, of_bias, None


#: The layers that can be stored in 8 bits, by exact type.
INT8_TYPES: Final[Mapping[type[nn.Module], type[Int8Weight]]] = {
    nn.Conv1d: Int8Conv1d,
    nn.Conv2d: Int8Conv2d,
    nn.Conv3d: Int8Conv3d,
    nn.ConvTranspose1d: Int8ConvTranspose1d,
    nn.ConvTranspose2d: Int8ConvTranspose2d,
    nn.ConvTranspose3d: Int8ConvTranspose3d,
    nn.Linear: Int8Linear,
}

_FULL_TYPES: Final[Mapping[type[nn.Module], type[nn.Module]]] = {int8: full for full, int8 in INT8_TYPES.items()}


def quantize_(module: nn.Module) -> None:
    """Store the weight of ``module`` in 8 bits and freeze it, in place: |W| + 4 * output channels bytes.

    Each output channel is rounded to multiples of its step, its largest magnitude over 127, so that no weight is off by
    more than half a step; a channel of zeros has the step 0.

    Raises:
        TypeError: ``module`` is not exactly one of the types of ``INT8_TYPES``, or its weight is made by a
            parametrization.
    """
    int8 = INT8_TYPES.get(type(module))
    weight = module._parameters.get("weight")
    if int8 is None or weight is None:
        known = ", ".join(full.__name__ for full in INT8_TYPES)
        raise TypeError(f"no 8-bit form of {type(module).__name__}; there is one of {known}, with a plain weight")
    groups = _groups(module)
    with torch.no_grad():
        value = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        step = _largest(value, _transposed(module), groups).div_(STEPS).to(torch.float32)
        steps = spread(step, value, _transposed(module), groups).to(value.dtype)
        # In place on a fresh tensor, and 1 in place of a step of 0.
        rounded = (value / steps.masked_fill(steps == 0, 1)).round_().clamp_(-STEPS, STEPS).to(torch.int8)
    del module._parameters["weight"]
    module.__class__ = int8
    module.register_buffer("weight_int8", rounded)
    module.register_buffer("weight_scale", step)
    module.weight_dtype = weight.dtype  # type: ignore[assignment]


def dequantize_(module: nn.Module) -> None:
    """Give ``module`` a frozen weight in full again, in place: the values that its 8-bit form stood for.

    Raises:
        TypeError: ``module`` is not one that :func:`quantize_` made.
    """
    full = _FULL_TYPES.get(type(module))
    if full is None:
        raise TypeError(f"{type(module).__name__} has no 8-bit weight")
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    del module.weight_int8, module.weight_scale, module.weight_dtype
    module.__class__ = full
    others = dict(module._parameters)
    module._parameters.clear()
    # The weight comes first, as in torch's own layers: optimizers know parameters by their place.
    module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    module._parameters.update(others)


def _transposed(module: nn.Module) -> bool:
    return bool(getattr(module, "transposed", False))


def _groups(module: nn.Module) -> int:
    return int(getattr(module, "groups", 1))


def _largest(weight: torch.Tensor, transposed: bool, groups: int) -> torch.Tensor:
    """The largest magnitude of each output channel."""
    if not weight.numel():
        return weight.new_zeros(weight.shape[1] * groups if transposed else weight.shape[0])
    if not transposed:
        return weight.abs().flatten(1).amax(1)
    by_group = weight.abs().flatten(2).view(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return by_group.amax((1, 3)).flatten()
