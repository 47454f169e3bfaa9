"""Saved and temporary bytes of each block as bars of characters, of one run or of two side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from memplan.graph.records import Block
from memplan.graph.step_graph import StepGraph
from memplan.memory import Footprint
from memplan.reports.layout import Column, Columns, Paragraph
from memplan.reports.sizes import unit_for
from memplan.tables import plain
from memplan.units import format_bytes

#: Below this many columns there is no room for bars.
_LEAST_WIDTH: Final = 52

_WIDEST: Final = 120

#: Rows that are shown: as many from the network's start as from its end.
_SHOWN: Final = 20

#: Names keep this many columns, as far as they need them, before bars grow.
_NAME_WIDTH: Final = 24

_LEAST_BAR: Final = 6

#: What lies below the blocks, above them, and in no module but those around them.
STEM: Final = "stem"
HEAD: Final = "head"
AROUND: Final = "(model)"

_ASCII: Final = ("#", "=")
_UNICODE: Final = ("█", "▒")
_STYLES: Final = ("blue", "green")


@dataclass(frozen=True, slots=True)
class BlockRun:
    """One run of the model: how it is called, what it needs, and its recorded step, where that is known."""

    label: str
    footprint: Footprint
    step: StepGraph | None = None


@dataclass(frozen=True, slots=True)
class BlockBytes:
    """Bytes of one block in each run: ``saved_bytes`` add up over the rows, ``temp_bytes`` is the largest layer's."""

    name: str
    saved_bytes: tuple[int, ...]
    temp_bytes: tuple[int, ...]


def block_bytes(runs: Sequence[BlockRun], blocks: Sequence[Block]) -> tuple[BlockBytes, ...]:
    """Return the bytes of each block in network order, of what lies below, between and above them.

    A block has the layers at its path or below it. Of other modules the outermost that holds no block is a row of its
    own between two blocks, or part of ``stem`` or ``head``; what modules around the blocks keep is ``(model)``. Without
    blocks each outermost module is a row. Saved bytes add up to the footprint's.

    Args:
        runs: of one model, one or more. The first with a recorded step says what runs before what; without one it is
            the order in which the model defines its layers.
        blocks: the model's blocks.
    """
    places = _Places(runs, blocks)
    saved: dict[tuple[int, int, str], list[int]] = {places.row(block.path): [0] * len(runs) for block in blocks}
    temp = {row: [0] * len(runs) for row in saved}
    for number, run in enumerate(runs):
        for layer in run.footprint.layers:
            if layer.saved_bytes or layer.temp_bytes:
                row = places.row(layer.path)
                kept = saved.setdefault(row, [0] * len(runs))
                kept[number] += layer.saved_bytes
                most = temp.setdefault(row, [0] * len(runs))
                most[number] = max(most[number], layer.temp_bytes)
    return tuple(BlockBytes(row[-1], tuple(saved[row]), tuple(temp[row])) for row in sorted(saved))


class _Places:
    """Where layers are: the row of each, as a key by which rows are in network order."""

    def __init__(self, runs: Sequence[BlockRun], blocks: Sequence[Block]) -> None:
        self._blocks = {block.path for block in blocks}
        self._around = {"", *(path for block in blocks for path in _modules(block.path)[:-1])}
        self._firsts: dict[str, int] = {}
        for path in _in_order(runs):
            self._firsts.setdefault(self._unit(path), len(self._firsts))
        found = [self._firsts[path] for path in self._blocks if path in self._firsts]
        self._lowest, self._highest = min(found, default=0), max(found, default=0)

    def row(self, path: str) -> tuple[int, int, str]:
        """Return the row of a layer: which part of the network, the place in it, the name."""
        unit = self._unit(path)
        first = self._firsts.get(unit, len(self._firsts))
        if unit in self._around:
            return 3, 0, AROUND
        if not self._blocks or unit in self._blocks or self._lowest < first < self._highest:
            return 1, first, unit
        return (0, 0, STEM) if first < self._lowest else (2, 0, HEAD)

    def _unit(self, path: str) -> str:
        """Return the block around a layer, or the outermost module around it that holds no block, or else itself."""
        modules = _modules(path)
        block = next((module for module in modules if module in self._blocks), None)
        return block or next((module for module in modules if module not in self._around), path)


def _modules(path: str) -> list[str]:
    """Return the paths of the modules around a layer, the outermost first, and its own.

    >>> _modules("features.1.conv")
    ['features', 'features.1', 'features.1.conv']
    """
    names = path.split(".")
    return [".".join(names[: count + 1]) for count in range(len(names))]


def _in_order(runs: Sequence[BlockRun]) -> Iterator[str]:
    """Yield the paths of layers as they run, as far as that is recorded, then as the model defines them."""
    step = next((run.step for run in runs if run.step is not None), None)
    if step is not None:
        yield from (step.layers[op.layer].path for op in step.ops if op.phase == "forward")
    for run in runs:
        yield from (layer.path for layer in run.footprint.layers)


@dataclass(frozen=True, slots=True)
class Bars:
    """One row for each block and run: saved bytes and the largest temp, each a number and a bar.

    All bars have one scale, and what is not zero has a bar. Rows in the middle of a long network are one, without bars;
    so is the last, for all of them.
    """

    runs: tuple[BlockRun, ...]
    blocks: tuple[Block, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the rows under an empty line and a heading, nothing where the console is too narrow."""
        is_plain = options.ascii_only or not options.is_terminal
        for place, line in enumerate(self.lines(options.max_width, _ASCII if is_plain else _UNICODE)):
            if place == 0:
                names = ", ".join(plain(run.label) for run in self.runs)
                yield Text()
                yield Paragraph(Text(f"Saved and temp of each block: {names}", style="bold"))
            yield line

    def lines(self, width: int, glyphs: tuple[str, str] = _ASCII) -> Iterator[Text]:
        """Yield the rows for a screen of ``width`` columns, and under those of two runs what tells them apart."""
        rows = block_bytes(self.runs, self.blocks)
        if width < _LEAST_WIDTH or not rows:
            return
        hidden = rows[_SHOWN // 2 : -_SHOWN // 2] if len(rows) > _SHOWN + 1 else ()
        above, below = (rows[: _SHOWN // 2], rows[-_SHOWN // 2 :]) if hidden else (rows, ())
        found = [line for row in above for line in _lines(row)]
        found += _lines(_together(f"...and {len(hidden):,} more", hidden), is_sum=True) if hidden else []
        found += [line for row in below for line in _lines(row)]
        found += _lines(_together("all", rows), is_sum=True)
        yield from _columns(found, width, glyphs).lines(width)
        if len(self.runs) > 1:
            legend = Text("  ", no_wrap=True, overflow="crop")
            for place, (run, glyph, style) in enumerate(zip(self.runs, glyphs, _STYLES, strict=True)):
                legend.append("  " if place else "").append(glyph, style=style).append(f" {plain(run.label)}")
            legend.truncate(width, overflow="crop")
            yield legend


class _Line(NamedTuple):
    """One line: a row's bytes in one run. Only the row's first line has its name."""

    name: str
    run: int
    saved_bytes: int
    temp_bytes: int
    is_sum: bool


def _lines(row: BlockBytes, *, is_sum: bool = False) -> list[_Line]:
    sizes = enumerate(zip(row.saved_bytes, row.temp_bytes, strict=True))
    return [_Line("" if run else plain(row.name), run, saved, temp, is_sum) for run, (saved, temp) in sizes]


def _columns(lines: Sequence[_Line], width: int, glyphs: tuple[str, str]) -> Columns:
    """Return lines as columns: a name, and for saved and temp each a number and, but for sums, a bar."""
    unit = unit_for(max(max(line.saved_bytes, line.temp_bytes) for line in lines))
    largest = max(max(line.saved_bytes, line.temp_bytes) for line in lines if not line.is_sum)
    name = Column("block", tuple(line.name for line in lines), right=False, elastic=True)
    saved = Column("saved", tuple(format_bytes(line.saved_bytes, unit=unit) for line in lines))
    most = (f"{'max ' if line.is_sum else ''}{format_bytes(line.temp_bytes, unit=unit)}" for line in lines)
    temp = Column("temp", tuple(most))
    # Two columns before the first, and between each two of five.
    spare = min(width, _WIDEST) - 2 - 4 * 2 - saved.width - temp.width
    room = max((spare - min(name.width, _NAME_WIDTH)) // 2, _LEAST_BAR)

    def bars(sizes: Iterable[int]) -> Column:
        lengths = (bar_length(size, largest, room) for size in sizes)
        cells = ("" if line.is_sum else glyphs[line.run] * length for line, length in zip(lines, lengths, strict=True))
        return Column("", tuple(cells), right=False)

    styles = [
        (glyph * length, style) for glyph, style in zip(glyphs, _STYLES, strict=True) for length in range(1, room + 1)
    ]
    saved_bars, temp_bars = bars(line.saved_bytes for line in lines), bars(line.temp_bytes for line in lines)
    return Columns((name, saved, saved_bars, temp, temp_bars), styles=tuple(styles))


def bar_length(size_bytes: int, largest_bytes: int, room: int) -> int:
    """Return how many of ``room`` signs stand for a number of bytes, the nearest; one at least where it is not zero.

    >>> bar_length(5, 10, 7), bar_length(1, 1_000, 7), bar_length(0, 10, 7)
    (4, 1, 0)
    """
    if not size_bytes:
        return 0
    return max((2 * size_bytes * room + largest_bytes) // (2 * largest_bytes), 1)


def _together(name: str, rows: Sequence[BlockBytes]) -> BlockBytes:
    """Return rows as one: the sum of what is saved, and the largest temp."""

    def over(
        quantity: Callable[[BlockBytes], tuple[int, ...]], join: Callable[[Iterable[int]], int]
    ) -> tuple[int, ...]:
        return tuple(join(sizes) for sizes in zip(*map(quantity, rows), strict=True))

    return BlockBytes(name, over(lambda row: row.saved_bytes, sum), over(lambda row: row.temp_bytes, max))
