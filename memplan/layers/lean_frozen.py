"""lean-frozen: a convolution or norm whose weight is frozen keeps nothing but parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from memplan.layers.lean_convolution import CONVOLUTIONS
from memplan.layers.lean_norm import NORMS

REPLACEMENTS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {**CONVOLUTIONS, **NORMS}
