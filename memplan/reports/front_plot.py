"""A Pareto front as a picture of characters: memory against how many blocks train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from memplan.reports.sizes import unit_for
from memplan.results import Front
from memplan.units import format_bytes

#: Below this many columns there is no room for a plot.
_LEAST_WIDTH: Final = 52

_WIDEST: Final = 100

_HEIGHT: Final = 12


class _Glyphs(NamedTuple):
    exact: str
    approximate: str
    axis: str
    corner: str
    floor: str


_ASCII: Final = _Glyphs("o", "~", "|", "+", "-")
_UNICODE: Final = _Glyphs("●", "○", "│", "└", "─")
_STYLES: Final = {"exact": "green", "approximate": "yellow"}


@dataclass(frozen=True, slots=True)
class Plot:
    """Memory on the horizontal axis, trained blocks on the vertical one, one sign for each point.

    Signs say whether gradients are exact. Where points share a place the one with exact gradients is shown. On a
    terminal that shows Unicode the signs are dots and the axes lines, elsewhere all is ASCII.
    """

    front: Front

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the plot's lines under an empty one, nothing where the console is too narrow."""
        plain = options.ascii_only or not options.is_terminal
        for place, line in enumerate(self._drawn(options.max_width, _ASCII if plain else _UNICODE)):
            if place == 0:
                yield Text()
            yield line

    def lines(self, width: int) -> Iterator[str]:
        """Yield the plot's lines for a screen of ``width`` columns, in ASCII."""
        return (line.plain for line in self._drawn(width, _ASCII))

    def _drawn(self, width: int, glyphs: _Glyphs) -> Iterator[Text]:
        points = self.front.points
        if width < _LEAST_WIDTH or not points:
            return
        unit = unit_for(max(point.bytes for point in points))
        low, high = (each(point.bytes for point in points) for each in (min, max))
        least, most = (each(point.k for point in points) for each in (min, max))
        margin = 2 + max(len(str(most)), len("k"))
        columns = min(width, _WIDEST) - margin - 3
        rows = min(_HEIGHT, most - least + 1)
        places: dict[tuple[int, int], str] = {}
        for point in sorted(points, key=lambda point: -point.approximations):
            kind = "approximate" if point.approximations else "exact"
            places[_placed(point.k, least, most, rows), _placed(point.bytes, low, high, columns)] = kind
        yield _line("k".rjust(margin))
        labels = {_placed(k, least, most, rows): str(k) for k in _ticks(least, most, rows)}
        for row in reversed(range(rows)):
            line = _line(f"{labels.get(row, '').rjust(margin)} {glyphs.axis}")
            for column in range(columns):
                kind = places.get((row, column), "")
                line.append(getattr(glyphs, kind) if kind else " ", style=_STYLES.get(kind, ""))
            line.rstrip()
            yield line
        yield _line(f"{' ' * margin} {glyphs.corner}{glyphs.floor * columns}")
        first, last = (format_bytes(value, unit=unit) for value in (low, high))
        yield _line(f"{' ' * (margin + 2)}{first}{last.rjust(columns - len(first)) if low != high else ''}".rstrip())
        legend = _line(" " * (margin + 2))
        legend.append(glyphs.exact, style=_STYLES["exact"]).append(" exact gradients  ")
        legend.append(glyphs.approximate, style=_STYLES["approximate"]).append(" approximate in some blocks")
        yield legend


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="crop")


def _placed(value: int, low: int, high: int, places: int) -> int:
    """Return which of ``places`` between ``low`` and ``high`` is nearest to ``value``."""
    return 0 if high == low else (2 * (value - low) * (places - 1) + (high - low)) // (2 * (high - low))


def _ticks(least: int, most: int, rows: int) -> Sequence[int]:
    """Return the values of the vertical axis that are written: all where each has a row, else the ends and a middle."""
    return range(least, most + 1) if rows == most - least + 1 else (least, (least + most) // 2, most)
