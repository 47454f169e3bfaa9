"""Paragraphs that wrap, and aligned columns that give up the least important ones, when a screen is narrow.

Texts may hold names of layers and files, whatever those are: nothing in them moves a cursor or breaks a line.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from memplan.tables import UNSEEN, plain, seen

#: A text beside columns has at least this room.
_HANGING_WIDTH: Final = 24

#: An elastic column is elided down to this width before other columns are left out.
_ELASTIC_WIDTH: Final = 22


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``leaves`` is its turn to be left out on a narrow screen, 0 for never; ``elastic`` shortens cells."""

    heading: str
    cells: tuple[str, ...]
    right: bool = True
    leaves: int = 0
    elastic: bool = False

    def __post_init__(self) -> None:
        """Make every cell plain."""
        object.__setattr__(self, "cells", tuple(map(plain, self.cells)))

    @property
    def width(self) -> int:
        """Cells of the screen that the widest entry takes."""
        return max(map(cell_len, (self.heading, *self.cells)))


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns side by side, as wide as the console allows; ``styles`` maps the text of a cell to its style."""

    columns: tuple[Column, ...]
    indent: int = 2
    styles: tuple[tuple[str, str], ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one line for the headings, where there are any, and one for each row."""
        yield from self.lines(options.max_width)

    def lines(self, width: int) -> Iterator[Text]:
        """Yield the lines for a screen of ``width`` cells."""
        columns, gap = self._fitting(width)
        spare = width - self.indent - gap * (len(columns) - 1)
        widths = [column.width for column in columns]
        for place, column in enumerate(columns):
            if column.elastic:
                widths[place] = max(min(widths[place], spare - sum(widths) + widths[place]), 8)
        styles = dict(self.styles)
        if any(column.heading for column in columns):
            yield self._line([column.heading for column in columns], columns, widths, gap, {}, "bold")
        for cells in zip(*(column.cells for column in columns), strict=True):
            yield self._line(list(cells), columns, widths, gap, styles)

    def _fitting(self, width: int) -> tuple[list[Column], int]:
        """Return the columns that fit and the gap between them: columns leave in turn, then the gap closes."""
        columns = list(self.columns)
        for turn in sorted({column.leaves for column in columns} - {0}):
            if self._least(columns, 2) <= width:
                break
            columns = [column for column in columns if column.leaves != turn]
        return columns, 2 if self._least(columns, 2) <= width else 1

    def _least(self, columns: list[Column], gap: int) -> int:
        widths = (min(column.width, _ELASTIC_WIDTH) if column.elastic else column.width for column in columns)
        return self.indent + sum(widths) + gap * (len(columns) - 1)

    def _line(
        self,
        cells: list[str],
        columns: list[Column],
        widths: list[int],
        gap: int,
        styles: dict[str, str],
        style: str = "",
    ) -> Text:
        line = Text(" " * self.indent, style=style, no_wrap=True, overflow="crop")
        for place, (cell, column, size) in enumerate(zip(cells, columns, widths, strict=True)):
            shown = elide(cell, size)
            padding = " " * (size - cell_len(shown))
            line.append(" " * gap if place else "")
            line.append(padding if column.right else "")
            line.append(shown, style=styles.get(cell, ""))
            line.append("" if column.right else padding)
        line.rstrip()
        return line


@dataclass(frozen=True, slots=True)
class Hanging:
    """Columns, and behind each row a text that wraps under itself, or under the row where there is little room."""

    columns: Columns
    heading: str
    texts: tuple[str, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        rows = list(self.columns.lines(options.max_width))
        margin = max(row.cell_len for row in rows) + 2
        room = options.max_width - margin
        beside = room >= min(_HANGING_WIDTH, max(map(len, self.texts), default=0))
        if not beside:
            margin = self.columns.indent + 2
            room = options.max_width - margin
        yield Text.assemble(rows[0].plain.ljust(margin) + self.heading if beside else rows[0], style="bold")
        for row, text in zip(rows[1:], self.texts, strict=True):
            lines = textwrap.wrap(plain(text), max(room, 1), break_on_hyphens=False)
            if lines and beside:
                row.pad_right(margin - row.cell_len)
                row.append(lines.pop(0))
            yield row
            yield from (Text(" " * margin + line) for line in lines)


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Text that wraps between words, every line indented and none with blanks at its end."""

    text: Text
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        for line in _visible(self.text).wrap(console, max(options.max_width - self.indent, 1)):
            line.rstrip()
            line.pad_left(self.indent)
            yield line


def _visible(text: Text) -> Text:
    shown, start = text.blank_copy(), 0
    for found in UNSEEN.finditer(text.plain):
        shown.append_text(text[start : found.start()]).append(seen(found))
        start = found.end()
    return shown.append_text(text[start:]) if start else text


def elide(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` cells, its middle replaced by dots: both ends of a layer's path tell most.

    >>> elide("features.13.block.2.fc1", 15)
    'featur...2.fc1'
    """
    if cell_len(text) <= width:
        return text
    tail = (width - 3) // 2
    head = width - 3 - tail
    return f"{set_cell_size(text, head)}...{set_cell_size(text[::-1], tail)[::-1]}"
