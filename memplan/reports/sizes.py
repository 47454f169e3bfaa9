"""How numbers are written in reports: one unit for a whole report, and words for what is counted."""

from __future__ import annotations

from typing import Final

from memplan.units import BYTES_PER_UNIT, format_bytes

_UNITS: Final = ("MB", "KB", "B")


def unit_for(size_bytes: int) -> str:
    """Return the unit that shows ``size_bytes`` in at least one whole: MB for models, KB and B for toys.

    >>> unit_for(353_000_000), unit_for(64_000), unit_for(0)
    ('MB', 'KB', 'B')
    """
    return next((unit for unit in _UNITS if size_bytes >= BYTES_PER_UNIT[unit]), "B")


def size(size_bytes: int) -> str:
    """Return ``size_bytes`` in its own unit, so that nothing but zero reads as zero.

    >>> size(15_300_000), size(48_200), size(12)
    ('15.3 MB', '48.2 KB', '12 B')
    """
    return format_bytes(size_bytes, unit=unit_for(size_bytes))


def count(number: int, singular: str) -> str:
    """Return a number with its noun.

    >>> count(1, "block"), count(15, "block")
    ('1 block', '15 blocks')
    """
    return f"{number:,} {singular}{'' if number == 1 else 's'}"


def elements(number: int) -> str:
    """Return a number of parameters as people say it.

    >>> elements(5_483_032), elements(12_345), elements(10)
    ('5.48 M', '12.3 k', '10')
    """
    if number >= 10**6:
        return f"{number / 10**6:,.2f} M"
    return f"{number / 10**3:.1f} k" if number >= 10**4 else f"{number:,}"


def flops(number: int) -> str:
    """Return floating-point operations with a unit: ``1.2 G``."""
    for divisor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= divisor:
            return f"{number / divisor:.1f} {unit}"
    return str(number)
