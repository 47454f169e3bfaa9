"""Paragraphs that wrap, and aligned columns that give up the least important ones, when a screen is narrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

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
class Paragraph:
    """Text that wraps between words, every line indented and none with blanks at its end."""

    text: Text
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        for line in self.text.wrap(console, max(options.max_width - self.indent, 1)):
            line.rstrip()
            line.pad_left(self.indent)
            yield line


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
