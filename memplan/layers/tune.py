"""tune: a convolution and the eval-mode norm behind it as one convolution, of which only the input is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch.autograd.function import once_differentiable

from memplan.layers.lean_convolution import (
    Geometry,
    bias_gradient,
    call_of,
    channels_last,
    input_gradient,
    output_gradient,
    spread,
)

#: A pair of layers is not one function of torch: who knows the pair calls :func:`tuned_convolution`.
REPLACEMENTS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {}


def tuned_convolution(
    conv_function: Callable[..., torch.Tensor],
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *conv_args: Any,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    eps: float = 1e-5,
    **conv_kwargs: Any,
) -> Any:
    """Return ``batch_norm(conv_function(input, weight, bias, ...))`` by running statistics, as one convolution.

    All of weight, bias, gamma and beta can train, with the gradients of the pair. Autograd keeps the input, where
    weight or gamma trains, and beside it parameters and statistics only; the folded weight is computed again in
    backward. Where a tensor is not real and dense, or stock refuses the shapes, ``NotImplemented``.

    Args:
        conv_function: one of torch's convolutions, ``torch.conv1d`` to ``torch.conv_transpose3d`` or
            ``torch.convolution``; ``conv_args`` and ``conv_kwargs`` are its further arguments.
        gamma: the norm's scale, one number per output channel, or None for 1.
        beta: the norm's shift, or None for 0.

    Source: Efficient ConvBN Blocks (ICLR 2024), section 3.
    """
    call = call_of(conv_function, input, weight, None, *conv_args, **conv_kwargs)
    if call is None:
        return NotImplemented
    output = _TunedConvolution.apply(  # type: ignore[no-untyped-call]
        call.input, weight, bias, gamma, beta, running_mean, running_var, eps, call.geometry, call.dtype
    )
    return call.result(output)


class _TunedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        gamma: torch.Tensor | None,
        beta: torch.Tensor | None,
        mean: torch.Tensor,
        variance: torch.Tensor,
        eps: float,
        geometry: Geometry,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.eps, ctx.geometry, ctx.dtype, ctx.shape = eps, geometry, dtype, input.shape
        ctx.channels_last = channels_last(input, weight)
        ctx.has_beta = beta is not None
        scale = _scale(gamma, variance, eps)
        shift = -mean * scale if bias is None else (bias - mean) * scale
        if beta is not None:
            shift = shift + beta
        folded = _per_weight(weight, scale, geometry).to(dtype)
        needed = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
        ctx.save_for_backward(input if needed else None, weight, bias, gamma, mean, variance)
        return torch.convolution(input, folded, shift.to(dtype), *geometry.arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight, bias, gamma, mean, variance = ctx.saved_tensors
        for_input, for_weight, for_bias, for_gamma, for_beta = ctx.needs_input_grad[:5]
        geometry = ctx.geometry
        scale = _scale(gamma, variance, ctx.eps)
        of_input: Any = None
        of_folded: Any = None
        of_shift: Any = None
        of_weight = of_bias = of_gamma = of_beta = None
        if for_weight or for_gamma:
            folded = _per_weight(weight, scale, geometry).to(ctx.dtype)
            wanted = (for_input, True, for_bias or for_beta or for_gamma)
            of_input, of_folded, of_shift = torch.ops.aten.convolution_backward(
                grad, input, folded, [scale.numel()], *geometry.arguments, wanted
            )
            del input, folded
            of_folded = of_folded.to(weight.dtype)
        else:
            if for_bias or for_beta:
                of_shift = bias_gradient(grad)
            if for_input:
                folded = _per_weight(weight, scale, geometry).to(ctx.dtype)
                dense = output_gradient(grad, ctx.channels_last)
                of_input = input_gradient(dense, folded, ctx.shape, geometry, ctx.channels_last)
        if of_shift is not None:
            of_shift = of_shift.to(scale.dtype)
        if for_gamma:
            of_scale = _per_channel(of_folded, weight, geometry)
            of_scale = of_scale + of_shift * (-mean if bias is None else bias - mean)
            of_gamma = of_scale * torch.rsqrt(variance + ctx.eps)
        if for_weight:
            of_weight = _per_weight(of_folded, scale, geometry)
        if for_bias:
            of_bias = of_shift * scale
        if for_beta:
            of_beta = of_shift
        return of_input, of_weight, of_bias, of_gamma, of_beta, None, None, None, None, None


def _scale(gamma: torch.Tensor | None, variance: torch.Tensor, eps: float) -> torch.Tensor:
    inverse = torch.rsqrt(variance + eps)
    return inverse if gamma is None else gamma * inverse


def _per_weight(weight: torch.Tensor, scale: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """The weight times its output channel's scale."""
    return weight * spread(scale, weight, geometry.transposed, geometry.groups)


def _per_channel(of_folded: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """The sum over each output channel of the folded weight's gradient times the weight."""
    product: torch.Tensor = (of_folded * weight).flatten(2)
    if not geometry.transposed:
        return product.sum((1, 2))
    by_group = product.view(geometry.groups, weight.shape[0] // geometry.groups, weight.shape[1], -1)
    return by_group.sum((1, 3)).flatten()
