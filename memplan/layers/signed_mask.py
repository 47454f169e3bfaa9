"""signed-mask: the gradient of an activation passes where its input is not negative; one bit per element is kept.

ReLU needs no approximation: its bit is that of stock's gradient, which stops at exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from memplan.layers.bitmask import RELU, Answer, Bounds, masked

_nn: Final[Any] = torch._C._nn

#: Where the gradient passes: x >= 0, closed; NaN is not, and stops it.
_NOT_NEGATIVE: Final[Bounds] = (0.0, None, True, False)


def relu6(input: Tensor, inplace: bool = False) -> Answer:
    """As ``torch.nn.functional.relu6``; the gradient passes above 6 too."""
    return masked(input, (_nn.hardtanh, _nn.hardtanh_), inplace, _NOT_NEGATIVE, 0, 6)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Answer:
    """As ``torch.nn.functional.hardtanh``, which is how ``torch.nn.ReLU6`` runs: treated between 0 and 6 only."""
    return relu6(input, inplace) if (min_val, max_val) == (0, 6) else NotImplemented


def hardswish(input: Tensor, inplace: bool = False) -> Answer:
    """As ``torch.nn.functional.hardswish``."""
    return masked(input, (_nn.hardswish, _nn.hardswish_), inplace, _NOT_NEGATIVE)


def silu(input: Tensor, inplace: bool = False) -> Answer:
    """As ``torch.nn.functional.silu``."""
    return masked(input, (_nn.silu, _nn.silu_), inplace, _NOT_NEGATIVE)


def _gelu(inplace: bool, input: Tensor, *, approximate: str = "none") -> Answer:
    kernels = (partial(_nn.gelu, approximate=approximate), partial(_nn.gelu_, approximate=approximate))
    return masked(input, kernels, inplace, _NOT_NEGATIVE)


REPLACEMENTS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    **RELU,
    F.relu6: relu6,
    _nn.relu6: relu6,
    _nn.relu6_: partial(relu6, inplace=True),
    F.hardtanh: hardtanh,
    _nn.hardtanh: hardtanh,
    _nn.hardtanh_: partial(hardtanh, inplace=True),
    F.hardswish: hardswish,
    _nn.hardswish: hardswish,
    _nn.hardswish_: partial(hardswish, inplace=True),
    F.silu: silu,
    _nn.silu: silu,
    _nn.silu_: partial(silu, inplace=True),
    F.gelu: partial(_gelu, False),
    _nn.gelu_: partial(_gelu, True),
}
