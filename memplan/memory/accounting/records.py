"""What a published way of counting gives for a recorded step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

AccountingName: TypeAlias = Literal["tinytl", "mobiletl"]


@dataclass(frozen=True, slots=True)
class LayerAccount:
    """Bytes of one layer as the accounting counts them, for the whole batch.

    ``kept_bytes`` and ``parameter_bytes`` add up over layers. ``temp_bytes`` is what one run of the layer needs while
    it computes, ``held_bytes`` the inputs of the blocks with a shortcut around it; both have a maximum and no sum.
    """

    path: str
    type: str
    kept_bytes: int
    temp_bytes: int
    held_bytes: int
    parameter_bytes: int


@dataclass(frozen=True, slots=True)
class Accounted:
    """A step's memory by a published accounting, in bytes: not what PyTorch needs to run it.

    ``kept_bytes`` wait for the backward. ``temp_bytes`` is the largest need of one layer while it computes, and
    ``peak_bytes`` the largest sum of that, what was kept before it, and the block inputs held meanwhile; ``peak_layer``
    is where. ``total_bytes`` is the paper's own sum: parameters and peak for ``tinytl``, parameters and what is kept
    for ``mobiletl``.

    ``notes`` say where the accounting and its publication differ from what a backward needs; ``uncounted`` names the
    ops from which stock PyTorch keeps something and for which the accounting has no rule.
    """

    accounting: AccountingName
    kept_bytes: int
    temp_bytes: int
    peak_bytes: int
    peak_layer: str
    parameter_bytes: int
    total_bytes: int
    layers: tuple[LayerAccount, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
