"""How much a quantity may grow: a share of what it was, or bytes."""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from memplan.errors import UsageError
from memplan.units import parse_bytes

_SHARE: Final = re.compile(r"\s*(?P<number>[0-9]{1,9}(?:\.[0-9]{1,9})?)\s*%\s*")
_UNITLESS: Final = re.compile(r"\s*[0-9][0-9_,]*(?:\.[0-9]+)?\s*")
_NOTHING: Final = re.compile(r"\s*0+(?:\.0+)?\s*(?:[kmgt]?i?b)?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Growth:
    """A limit on growth, as it was written: ``percent`` of what it was, or ``bytes``."""

    text: str
    percent: Decimal | None = None
    bytes: int | None = None

    def of(self, size_bytes: int) -> int:
        """Return the bytes by which ``size_bytes`` may grow; a fraction of a byte is dropped.

        >>> parse_growth("2%").of(1_000_049), parse_growth("1MB").of(5)
        (20000, 1000000)
        """
        if self.percent is None:
            return self.bytes or 0
        return int(size_bytes * self.percent / 100)


def parse_growth(text: str) -> Growth:
    """Return the growth that ``text`` allows: ``2%`` or ``1MB``; ``0`` allows none.

    Raises:
        UsageError: it is neither a percentage nor a size with a unit.
    """
    share = _SHARE.fullmatch(text)
    if share is not None:
        return Growth(text.strip(), percent=Decimal(share["number"]))
    # Elsewhere such a number is bytes; here it is as often a percentage.
    if _UNITLESS.fullmatch(text) and not _NOTHING.fullmatch(text):
        number = text.strip()
        raise UsageError(f"{number!r} has no unit; write {number}% or {number}B")
    return Growth(text.strip(), bytes=growth_bytes(text))


def growth_bytes(text: str) -> int:
    """Return the bytes that ``text`` names; zero is one.

    Raises:
        UsageError: it names none.
    """
    if _NOTHING.fullmatch(text):
        return 0
    try:
        return parse_bytes(text)
    except UsageError:
        raise UsageError(
            f"cannot read {reprlib.repr(text)} as a growth; write a percentage or a size, such as 2% or 1MB"
        ) from None
