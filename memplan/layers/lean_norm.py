"""Norms with running statistics and a frozen scale: autograd keeps the scale, the statistics and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

#: A norm with the arguments of ``torch.batch_norm``; ``NotImplemented`` where it does not apply.
Norm: TypeAlias = Callable[..., Any]


class LeanNorm(torch.autograd.Function):
    """Batch norm with running statistics and a frozen scale; input and shift get gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor,
        running_var: torch.Tensor,
        eps: float,
        cudnn_enabled: bool,
    ) -> torch.Tensor:
        """Return the output of stock's kernel. The running statistics are read only."""
        ctx.eps = eps
        ctx.save_for_backward(weight, running_mean, running_var)
        return torch.batch_norm(input, weight, bias, running_mean, running_var, False, 0.0, eps, cudnn_enabled)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of input, ``grad * weight / sqrt(var + eps)``, and shift, the sum of ``grad``.

        Stock's kernel reads the input only for the scale's gradient, which is not asked for: ``grad`` stands in for it.
        """
        weight, running_mean, running_var = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], False, ctx.needs_input_grad[2])
        if not grad.numel():
            return torch.zeros_like(grad), None, torch.zeros_like(running_mean), None, None, None, None
        of_input, _, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, grad, weight, running_mean, running_var, None, None, False, ctx.eps, wanted
        )
        return of_input, None, of_bias, None, None, None, None


def lean_norm(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    """Return the norm by running statistics with its scale taken for frozen; ``NotImplemented`` if there are none."""
    if running_mean is None or running_var is None or not input.is_floating_point():
        return NotImplemented
    if input.ndim < 2 or input.layout is not torch.strided:
        return NotImplemented
    return LeanNorm.apply(  # type: ignore[no-untyped-call]
        input, weight, bias, running_mean, running_var, eps, cudnn_enabled
    )


def _applies(input: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> bool:
    """Whether the scale is frozen and something else needs a gradient."""
    if weight is not None and weight.requires_grad:
        return False
    return input.requires_grad or (bias is not None and bias.requires_grad)


def batch_norms(norm: Norm) -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Return the replacements of torch's batch norms by ``norm``, each with the arguments of what it replaces."""
    return {F.batch_norm: partial(_functional_batch_norm, norm), torch.batch_norm: norm}


def _functional_batch_norm(
    norm: Norm,
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    return norm(input, weight, bias, running_mean, running_var, training, momentum, eps, torch.backends.cudnn.enabled)


def _batch_norm(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    del momentum
    if training or not _applies(input, weight, bias):
        return NotImplemented
    return lean_norm(input, weight, bias, running_mean, running_var, eps, cudnn_enabled)


def _functional_instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    return _functional_batch_norm(
        _instance_norm, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def _instance_norm(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    # By running statistics an instance is normed as the batch is; stock's kernel reads and gives the plain layout.
    del momentum
    if use_input_stats or not _applies(input, weight, bias):
        return NotImplemented
    return lean_norm(input.contiguous(), weight, bias, running_mean, running_var, eps, cudnn_enabled)


#: Each of torch's norms that can use running statistics, and its lean form.
NORMS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    **batch_norms(_batch_norm),
    F.instance_norm: _functional_instance_norm,
    torch.instance_norm: _instance_norm,
}
