"""Memory over one step as a picture of characters: what is resident, saved and temporary, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final, NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from memplan.memory import Timeline
from memplan.units import format_bytes

#: Below this many columns there is no room for a picture.
_LEAST_WIDTH: Final = 52

_WIDEST: Final = 120


class _Glyphs(NamedTuple):
    resident: str
    saved: str
    temp: str
    budget: str
    axis: str
    tick: str


_ASCII: Final = _Glyphs("#", "+", ".", "-", "|", "|")
_UNICODE: Final = _Glyphs("█", "▓", "░", "╌", "│", "╵")
_STYLES: Final = {"resident": "blue", "saved": "green", "temp": "yellow", "budget": "bold red"}


@dataclass(frozen=True, slots=True)
class Picture:
    """The memory over one step. Every column shows the largest moment of those it stands for, so that no peak is lost.

    Each phase has room for its name, so that the time axis is even within a phase and not between them. On a terminal
    that shows Unicode the kinds are shaded, elsewhere they are ASCII.
    """

    timeline: Timeline
    unit: str
    budget_bytes: int | None = None
    height: int = 7

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the picture's lines under an empty one, nothing where the console is too narrow."""
        plain = options.ascii_only or not options.is_terminal
        for place, line in enumerate(self.lines(options.max_width, _ASCII if plain else _UNICODE)):
            if place == 0:
                yield Text()
            yield line

    def lines(self, width: int, glyphs: _Glyphs = _ASCII) -> Iterator[Text]:
        """Yield the picture's lines for a screen of ``width`` columns."""
        totals = self.timeline.totals
        peak = max(totals, default=0)
        if width < _LEAST_WIDTH or not peak:
            return
        budget = self.budget_bytes if self.budget_bytes is not None and self.budget_bytes <= 2 * peak else None
        top = max(peak, budget or 0)
        labels = {self.height - 1: format_bytes(top, unit=self.unit), 0: format_bytes(0, unit=self.unit)}
        budget_row = None
        if budget is not None:
            budget_row = min(self.height - 1, budget * self.height // top)
            labels[budget_row] = format_bytes(budget, unit=self.unit)
        margin = 2 + max(map(len, labels.values()))
        segments = _segments(self.timeline, min(width, _WIDEST) - margin - 2)
        moments = [moment for segment in segments for moment in segment.moments]
        for row in reversed(range(self.height)):
            yield self._row(row, top, moments, labels.get(row, "").rjust(margin), row == budget_row, glyphs)
        phases = "".join(f"{glyphs.tick}{segment.phase}".ljust(len(segment.moments)) for segment in segments)
        yield _line(" " * (margin + 2), phases.rstrip())
        yield self._legend(margin + 2, budget is not None, glyphs)

    def _row(self, row: int, top: int, moments: list[int], label: str, is_budget: bool, glyphs: _Glyphs) -> Text:
        line = _line(label, f" {glyphs.axis}")
        kinds = [self._kind(moment, (2 * row + 1) * top, 2 * self.height) for moment in moments]
        if is_budget:
            kinds = [kind if kind and place % 2 else "budget" for place, kind in enumerate(kinds)]
        for kind, run in groupby(kinds):
            line.append((getattr(glyphs, kind) if kind else " ") * len(list(run)), style=_STYLES.get(kind or "", ""))
        line.rstrip()
        return line

    def _kind(self, moment: int, level: int, scale: int) -> str | None:
        """Return what fills the height ``level / scale`` bytes at ``moment``."""
        height = 0
        for kind in ("resident", "saved", "temp"):
            height += getattr(self.timeline, kind)[moment] * scale
            if level < height:
                return kind
        return None

    def _legend(self, margin: int, has_budget: bool, glyphs: _Glyphs) -> Text:
        line = _line(" " * margin)
        for place, kind in enumerate(("resident", "saved", "temp", "budget")[: 4 if has_budget else 3]):
            line.append("  " if place else "")
            line.append(getattr(glyphs, kind), style=_STYLES[kind])
            line.append(f" {kind}")
        return line


class _Segment(NamedTuple):
    """One phase, and the moment that each of its columns shows."""

    phase: str
    moments: list[int]


def _segments(timeline: Timeline, width: int) -> list[_Segment]:
    """Share ``width`` columns among the phases: room for each name, the rest in proportion to their moments."""
    totals = timeline.totals
    spans = []
    start = 0
    for phase, run in groupby(timeline.phases):
        count = len(list(run))
        spans.append((phase, start, count))
        start += count
    least = [len(phase) + 2 for phase, _, _ in spans]
    spare = max(width - sum(least), 0)
    segments = []
    for (phase, first, count), room in zip(spans, least, strict=True):
        columns = room + spare * count // start
        edges = [first + column * count // columns for column in range(columns + 1)]
        ranges = (range(low, max(high, low + 1)) for low, high in pairwise(edges))
        segments.append(_Segment(phase, [max(moments, key=totals.__getitem__) for moments in ranges]))
    return segments


def _line(*parts: str) -> Text:
    return Text("".join(parts), no_wrap=True, overflow="crop")
