"""What every format tells of a verdict: the same words and the same rows, before they are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from memplan.gate.records import Failure, GateResult, Reading, Verdict
from memplan.gate.records import layer_name as called
from memplan.reports.sizes import count, size
from memplan.tables import plain

#: Layers, changes and notes that are named; the JSON has them all.
SHOWN: Final = 10

#: What stands where there is no number.
NOTHING: Final = "-"

_Item = TypeVar("_Item")

_NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, slots=True)
class PartRow:
    """One row of what a quantity is made of: ``share`` is its fraction of what was predicted.

    ``named`` tells a layer's name from words for what is no single layer.
    """

    name: str
    type: str
    bytes: int
    share: float
    named: bool = False


def layer_name(path: str) -> str:
    """Return how a layer is called; the outermost has no path."""
    return called(plain(path))


def word_of(verdict: Verdict, result: GateResult) -> str:
    """Return the verdict as tables show it: ``ok``, ``fails``, ``warns`` or ``error``."""
    return "warns" if result.warn_only and verdict.word == "fails" else verdict.word


def closing(result: GateResult) -> str:
    """Return the one sentence that says what all verdicts come to.

    An unanalysed model is no warning: it is counted apart, since nothing is known of it.
    """
    total = len(result.verdicts)
    if not total:
        return f"Nothing was checked: {plain(result.config)} has no checks."
    broken = sum(not verdict.analysed for verdict in result.verdicts)
    failed = sum(not verdict.holds for verdict in result.verdicts) - broken
    if not failed and not broken:
        return "The one check holds." if total == 1 else f"All {total:,} checks hold."
    counted = []
    if failed:
        verb = "warn" if result.warn_only else "fail"
        counted.append(f"{failed:,} of {count(total, 'check')} {verb}{'s' if failed == 1 else ''}")
    if broken:
        whole = "" if failed else f" of {count(total, 'check')}"
        counted.append(f"{broken:,}{whole} could not be analysed")
    return f"{', '.join(counted)}{'; the exit code is 0 all the same' if result.exit_zero else ''}."


def named(items: Sequence[_Item], shown: int = SHOWN) -> tuple[Sequence[_Item], Sequence[_Item]]:
    """Return the items that are named, and those that are only counted: never a single one."""
    return (items, ()) if len(items) <= shown + 1 else (items[:shown], items[shown:])


def layer_rows(reading: Reading) -> tuple[PartRow, ...]:
    """Return what a quantity is made of, the largest layers first; the last row is the sum of those above."""
    total = reading.predicted_bytes

    def row(name: str, kind: str, part_bytes: int, named: bool = False) -> PartRow:
        return PartRow(name, kind, part_bytes, part_bytes / total if total else 0.0, named)

    parts = sorted((part for part in reading.layers if part.bytes), key=lambda part: -part.bytes)
    first, rest = named(parts)
    rows = [row(layer_name(part.layer), plain(part.type), part.bytes, True) for part in first]
    if rest:
        rows.append(row(f"...and {len(rest):,} more", "", sum(part.bytes for part in rest)))
    if reading.rest_bytes:
        rows.append(row("(batch and optimizer)", "", reading.rest_bytes))
    return (*rows, row("all, as predicted", "", total))


def shown_share(share: float) -> str:
    """Return a fraction in percent.

    >>> shown_share(0.375)
    '37.5 %'
    """
    return f"{share:.1%}".replace("%", " %")


def shown_bytes(size_bytes: int | None) -> str:
    """Return bytes, below zero too, or a dash where there are none.

    >>> shown_bytes(-1_500_000), shown_bytes(None)
    ('-1.5 MB', '-')
    """
    if size_bytes is None:
        return NOTHING
    return f"{'-' if size_bytes < 0 else ''}{size(abs(size_bytes))}"


def signed(growth_bytes: int) -> str:
    """Return a change in bytes with its sign.

    >>> signed(1_500_000), signed(-200), signed(0)
    ('+1.5 MB', '-200 B', '0 B')
    """
    return f"{'+' if growth_bytes > 0 else ''}{shown_bytes(growth_bytes)}"


def ways_back(verdict: Verdict) -> str:
    """Return the heading of the remedies, ``Three ways back under 64.0 MB``, or that none was found."""
    ways = len(verdict.remedies)
    number = _NUMBERS[ways] if ways < len(_NUMBERS) else str(ways)
    under = "the limit" if verdict.limit_bytes is None else size(verdict.limit_bytes)
    if not ways:
        return f"No way back under {under} was found"
    return f"{number.capitalize()} way{'' if ways == 1 else 's'} back under {under}"


def blamed(verdict: Verdict, failure: Failure) -> str | None:
    """Return the path of the layer that a failure's sentence blames; ``None`` where it blames none."""
    reading = verdict.reading
    if reading is None or not reading.layers:
        return None
    if failure.kind == "growth":
        grown = next((change.layer for change in verdict.changes if change.growth_bytes > 0), None)
        return grown if grown in {part.layer for part in reading.layers} else None
    return max(reading.layers, key=lambda part: part.bytes).layer if failure.kind == "budget" else None


def without_baseline(result: GateResult) -> tuple[str, ...]:
    """Return the names of the checks whose growth is limited and has nothing to be compared with."""
    return tuple(
        verdict.check.name
        for verdict in result.verdicts
        if verdict.analysed and verdict.baseline is None and verdict.check.limits.max_growth is not None
    )


def listed(names: Sequence[str]) -> str:
    """Return names in a row, the first ten of them."""
    first, rest = named(names)
    return ", ".join([*map(plain, first), *([f"...and {len(rest):,} more"] if rest else [])])
