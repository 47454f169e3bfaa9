"""How far the truth may be from a prediction: what a gate compares is the upper end."""

from __future__ import annotations

from typing import Final

from memplan.memory.parts import Measurand

#: A measured peak was at most this fraction above its prediction in 275 real training steps (docs/accuracy.md), ...
UPPER_SHARE: Final = 0.0005

#: ... and at most this fraction below it.
LOWER_SHARE: Final = 0.0015


def upper_estimate(size_bytes: int, of: Measurand) -> int:
    """Return the most that a predicted quantity was ever seen to be, in bytes; saved bytes are exact.

    >>> upper_estimate(100_000_000, "peak"), upper_estimate(100_000_000, "saved")
    (100050000, 100000000)
    """
    return size_bytes if of == "saved" else size_bytes + -(-size_bytes * round(UPPER_SHARE * 10_000) // 10_000)


def lower_estimate(size_bytes: int, of: Measurand) -> int:
    """Return the least that a predicted quantity was ever seen to be, in bytes; saved bytes are exact.

    >>> lower_estimate(100_000_000, "peak")
    99850000
    """
    return size_bytes if of == "saved" else size_bytes - -(-size_bytes * round(LOWER_SHARE * 10_000) // 10_000)
