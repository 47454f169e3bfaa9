"""What a user may ask of a plan, checked: which treatments, how much pruning, how many FLOPs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from memplan.errors import UsageError, did_you_mean
from memplan.planner.options import APPROXIMATE_PRICES, PRICES, Option

#: The treatments of which a plan is made, and whether it uses them without being told to.
CHOSEN: Final[dict[str, bool]] = {
    "bitmask": True,
    "recompute": True,
    "prefix-microbatch": True,
    "fused-update": True,
    "signed-mask": True,
    "shift-only": True,
    "prune": False,
    "frozen-int8": False,
}

#: Those that change the gradients, or the network.
_LOSSY: Final = ("signed-mask", "shift-only", "prune", "frozen-int8")

#: The most that is pruned of a group when pruning is allowed and nothing is said.
DEFAULT_PRUNE: Final = 0.3


@dataclass(frozen=True, slots=True)
class Terms:
    """What a plan may be made of: treatments, and the share of a group's channels that may go."""

    treatments: frozenset[str]
    max_prune: float = 0.0

    def allows(self, treatment: str) -> bool:
        """Whether a plan may use a treatment."""
        return treatment in self.treatments

    @property
    def approximate(self) -> tuple[str, ...]:
        """The treatments of a block that change its gradients."""
        return tuple(name for name in ("signed-mask", "shift-only") if self.allows(name))

    def exact_options(self, prices: Sequence[float] = PRICES) -> tuple[Option, ...]:
        """Return the options that leave the gradients as they are; the plain one is not among them."""
        masks = (Option(masked=True),) if self.allows("bitmask") and not self.allows("recompute") else ()
        return masks + (tuple(map(Option, prices)) if self.allows("recompute") else ())

    def approximate_options(self) -> tuple[Option, ...]:
        """Return the options that change gradients."""
        if not self.approximate:
            return ()
        masked = self.allows("bitmask")
        prices = APPROXIMATE_PRICES if self.allows("recompute") else ()
        return tuple(Option(price, masked, self.approximate) for price in (None, *prices))


def terms_of(
    *, lossless: bool = False, allow: Sequence[str] = (), forbid: Sequence[str] = (), max_prune: float | None = None
) -> Terms:
    """Return the terms that a request names.

    Raises:
        UsageError: a name is not known or a request contradicts itself.
    """
    for name in (*allow, *forbid):
        if name not in CHOSEN:
            hint = did_you_mean(name, CHOSEN) or f"; choose from {', '.join(CHOSEN)}"
            raise UsageError(f"the planner has no treatment {name!r}{hint}")
    both = sorted(set(allow) & set(forbid))
    if both:
        raise UsageError(f"{both[0]} is both allowed and forbidden; say one of them")
    lossy = [name for name in allow if name in _LOSSY]
    if lossless and lossy:
        raise UsageError(f"lossless leaves out {lossy[0]}, which is allowed too; say one of them")
    if max_prune is not None and (isinstance(max_prune, bool) or not 0 <= max_prune < 1):
        raise UsageError(f"max-prune is a share of a group's channels from 0 to less than 1, not {max_prune}")
    if lossless and max_prune:
        raise UsageError(f"lossless leaves out pruning, and max-prune is {max_prune:g}; say one of them")
    if "prune" in forbid and max_prune:
        raise UsageError(f"prune is forbidden, and max-prune is {max_prune:g}; say one of them")
    names = {name for name, usual in CHOSEN.items() if usual} | set(allow)
    if max_prune:
        names.add("prune")
    names -= set(forbid)
    if lossless:
        names -= set(_LOSSY)
    most = max_prune if max_prune is not None else DEFAULT_PRUNE if "prune" in names else 0.0
    return Terms(frozenset(names if most else names - {"prune"}), most)


_FACTOR: Final = re.compile(r"([0-9]*\.?[0-9]+)\s*x")
_COUNT: Final = re.compile(r"([0-9]*\.?[0-9]+)\s*([KMGT]?)")
_SCALES: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def flops_limit(text: str | float | None, stock_flops: int) -> int | None:
    """Return the FLOPs that a step may have: a number such as ``30G``, or of stock full fine-tuning ``1.1x``.

    Raises:
        UsageError: the text is neither.
    """
    if text is None:
        return None
    written = f"{text:f}" if isinstance(text, float) else str(text).strip()
    factor = _FACTOR.fullmatch(written)
    if factor is not None and float(factor[1]):
        return int(float(factor[1]) * stock_flops)
    count = _COUNT.fullmatch(written.upper())
    if count is None or not float(count[1]):
        raise UsageError(f"cannot read {text!r} as FLOPs; write a number such as 30G, or 1.1x of full fine-tuning")
    return int(float(count[1]) * _SCALES[count[2]])
