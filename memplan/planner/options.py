"""The ways in which a trained segment may run, and what is chosen for a whole step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run a trained segment.

    ``price`` is how many FLOPs are repeated at most so that one byte need not be kept, ``None`` to recompute nothing.
    ``masked`` gives bit masks to activations; ``approximate`` names the treatments that change the gradients.
    """

    price: float | None = None
    masked: bool = False
    approximate: tuple[str, ...] = ()

    @property
    def treatments(self) -> tuple[str, ...]:
        """The names of the treatments that it stands for."""
        return (
            *self.approximate,
            *(("bitmask",) if self.masked else ()),
            *(("recompute",) if self.price is not None else ()),
        )


#: As stock PyTorch runs it.
PLAIN: Final = Option()

#: Prices to choose from. Norms and activations are free of FLOPs; a 3x3 depthwise convolution repeats 4.5 FLOPs for
#: each byte of its result, a linear layer or 1x1 convolution half the number of its input channels; the last price is
#: beyond any layer's, so that all but a segment's input is recomputed.
PRICES: Final = (0.0, 15.0, 60.0, 160.0, 400.0, 1e6)

#: The ends of these and what lies between, for a search that is to be brief.
FEW_PRICES: Final = (0.0, 60.0, 1e6)

#: Prices of segments with signed masks and shift-only norms.
APPROXIMATE_PRICES: Final = (60.0, 1e6)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the search decides for one step.

    ``options`` are those of the trained segments, the lowest first; the segments below are frozen. ``samples`` is how
    many samples the frozen part takes at a time, ``None`` for the whole batch. ``pruned`` is the step of pruning of
    each segment, frozen ones too; nothing is pruned when it is empty.
    """

    options: tuple[Option, ...]
    fused_update: bool = False
    samples: int | None = None
    pruned: tuple[int, ...] = ()
