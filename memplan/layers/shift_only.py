"""shift-only: a batch norm trains its shift; its scale and running statistics are constants (MobileTL).

It computes the same whether or not anything needs a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from memplan.layers.lean_norm import batch_norms, lean_norm


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


REPLACEMENTS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = batch_norms(_batch_norm)
