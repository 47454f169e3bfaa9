"""shift-only: a batch norm trains its shift; its scale and running statistics are constants (MobileTL).

It computes the same whether or not anything needs a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F

from memplan.layers.lean_norm import lean_norm


def _functional_batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    del training, momentum
    return lean_norm(input, weight, bias, running_mean, running_var, eps, torch.backends.cudnn.enabled)


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
    del training, momentum
    return lean_norm(input, weight, bias, running_mean, running_var, eps, cudnn_enabled)


REPLACEMENTS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    F.batch_norm: _functional_batch_norm,
    torch.batch_norm: _batch_norm,
}
