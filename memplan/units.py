"""Byte sizes in and out of text. Bytes are ints everywhere else; what is printed here parses back."""

from __future__ import annotations

import re
import reprlib
from decimal import Decimal
from typing import Final

from memplan.errors import UsageError

BYTES_PER_UNIT: Final[dict[str, int]] = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}

#: More bytes than this are no size: no machine counts them.
MOST_BYTES: Final = 2**63 - 1

_UNIT_BY_LOWERCASE: Final = {unit.lower(): unit for unit in BYTES_PER_UNIT}
_SIZE: Final = re.compile(r"\s*(?P<number>[0-9][0-9_,]*(?:\.[0-9]+)?|\.[0-9]+)\s*(?P<unit>[A-Za-z]+)?\s*")


def parse_bytes(text: str) -> int:
    """Return the number of bytes that ``text`` names; ``MB`` is 1,000,000 bytes and ``MiB`` is 1,048,576.

    A number without a unit is bytes. A fraction of a byte is dropped, so that a budget never grows by being parsed.

    Raises:
        UsageError: ``text`` is not a positive number with a known unit.

    >>> parse_bytes("64MB"), parse_bytes("64 MiB"), parse_bytes("1.5kB")
    (64000000, 67108864, 1500)
    """
    match = _SIZE.fullmatch(text)
    unit = _UNIT_BY_LOWERCASE.get((match["unit"] or "B").lower()) if match else None
    if match is None or unit is None:
        raise UsageError(f"cannot read {text!r} as a size; write a positive number and a unit, such as 64MB or 64MiB")
    size = Decimal(re.sub("[_,]", "", match["number"])) * BYTES_PER_UNIT[unit]
    if size > MOST_BYTES:
        raise UsageError(
            f"a size must be at most {MOST_BYTES:,} bytes, not {reprlib.repr(text)}; write for example 64MB"
        )
    size_bytes = int(size)
    if size_bytes <= 0:
        raise UsageError(f"a size must be more than zero bytes, not {text!r}; write for example 64MB")
    return size_bytes


def format_bytes(size_bytes: int, *, unit: str = "MB", digits: int = 1) -> str:
    """Return ``size_bytes`` in ``unit`` with ``digits`` decimals.

    >>> format_bytes(64_000_000), format_bytes(67_108_864, unit="MiB")
    ('64.0 MB', '64.0 MiB')
    """
    return f"{size_bytes / BYTES_PER_UNIT[unit]:,.{0 if unit == 'B' else digits}f} {unit}"


def format_bytes_up(size_bytes: int, *, unit: str = "MB", digits: int = 1) -> str:
    """Return ``size_bytes`` as :func:`format_bytes` does, but rounded up: what is printed is enough.

    >>> format_bytes_up(64_000_001), format_bytes_up(64_000_000)
    ('64.1 MB', '64.0 MB')
    """
    shown = 10**digits
    whole = -(-size_bytes * shown // BYTES_PER_UNIT[unit])
    return f"{whole / shown:,.{0 if unit == 'B' else digits}f} {unit}"
