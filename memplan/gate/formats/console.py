"""A gate's result on a terminal: one table, what is to know of each check that fails, and the verdict last."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from memplan.gate.formats.contents import (
    NOTHING,
    closing,
    layer_name,
    layer_rows,
    listed,
    named,
    shown_bytes,
    shown_share,
    signed,
    ways_back,
    word_of,
)
from memplan.gate.judge import QUANTITIES, growth_text
from memplan.gate.records import Change, GateResult, Reading, Remedy, Verdict
from memplan.reports.layout import Column, Columns, Hanging
from memplan.reports.sentences import paragraph, title
from memplan.reports.sizes import count
from memplan.tables import plain

#: The width of what is no terminal's: a file, a section of a test report.
WIDTH: Final = 100

_STYLES: Final = {"ok": "green", "fails": "red", "warns": "yellow", "error": "red"}

#: What GitHub's runner would take for a command when a line begins with it, or has it anywhere.
_COMMAND: Final = re.compile(r"(?<!\S):(?=:)|##(?=\[)")


def gate_report(result: GateResult) -> RenderableType:
    """Return what a terminal shows of a gate's result."""
    parts: list[RenderableType] = [*_heading(result)]
    if result.verdicts:
        parts += [Text(), _table(result)]
    for verdict in result.failing():
        word = word_of(verdict, result)
        parts += [Text(), title(f"{_text(verdict.check.name)}: {word}", f"bold {_STYLES[word]}")]
        parts += _details(verdict)
    notes = [note for verdict in result.verdicts for note in verdict.notes]
    first, rest = named(notes)
    if first:
        parts += [Text(), *(paragraph(f"note: {_text(note)}") for note in first)]
    if rest:
        parts.append(paragraph(f"...and {count(len(rest), 'note')} more"))
    if result.stale:
        entries = "entry" if len(result.stale) == 1 else "entries"
        parts += [Text(), paragraph(f"stale {entries} of the baseline, of no check: {_guarded(listed(result.stale))}")]
    style = "green" if result.holds else "yellow" if result.exit_code == 0 else "red"
    return Group(*parts, Text(), title(_guarded(closing(result)), f"bold {style}"))


def console_text(result: GateResult, version: str) -> str:
    """Return the report without colours, for a file; ``version`` is memplan's."""
    return _rendered(Group(paragraph(f"memplan {version}"), gate_report(result)), WIDTH)


def verdict_details(verdict: Verdict, width: int = WIDTH) -> str:
    """Return what is told of one check that fails, as plain text in lines of at most ``width`` cells."""
    return _rendered(Group(*_details(verdict, indent=0)), width)


def _rendered(report: RenderableType, width: int) -> str:
    screen = io.StringIO()
    # The environment and the platform decide nothing: the same text everywhere.
    console = Console(
        file=screen, width=width, color_system=None, force_terminal=False, legacy_windows=False, _environ={}
    )
    console.print(report)
    return screen.getvalue()


def _heading(result: GateResult) -> Iterator[RenderableType]:
    against = "no baseline" if result.baseline is None else f"baseline {_text(result.baseline)}"
    checks = count(len(result.verdicts), "check")
    yield paragraph(f"{checks} of {_text(result.config)}, {against}; {result.seconds:.1f} s")
    yield paragraph("sizes are upper estimates, which limits are held against")
    for place, note in enumerate(result.notes):
        loud = place == 0 and result.baseline is None
        yield paragraph(f"note: {_text(note)}", style="bold yellow" if loud else "")


def _table(result: GateResult) -> Columns:
    rows = result.verdicts
    now = [None if verdict.reading is None else verdict.reading.bytes for verdict in rows]
    before = [None if verdict.baseline is None else verdict.baseline.bytes for verdict in rows]
    changes = [_change(verdict) for verdict in rows]
    columns = [
        Column("check", tuple(_text(verdict.check.name) for verdict in rows), right=False, elastic=True),
        Column("limit", tuple(shown_bytes(verdict.limit_bytes) for verdict in rows)),
        Column("now", tuple(map(shown_bytes, now))),
        Column("baseline", tuple(map(shown_bytes, before)), leaves=2),
        Column("change", tuple(growth for growth, _ in changes), leaves=3),
        Column("", tuple(share for _, share in changes), leaves=1),
        Column("verdict", tuple(word_of(verdict, result) for verdict in rows), right=False),
    ]
    if any(verdict.check.of != "peak" for verdict in rows):
        columns.insert(1, Column("of", tuple(verdict.check.of for verdict in rows), right=False))
    return Columns(tuple(columns), styles=tuple(_STYLES.items()))


def _change(verdict: Verdict) -> tuple[str, str]:
    """Return growth in bytes, and in percent."""
    if verdict.growth_bytes is None or verdict.baseline is None:
        return NOTHING, ""
    growth, _, share = growth_text(verdict.growth_bytes, verdict.baseline.bytes).partition(" (")
    return growth, share.removesuffix(")")


def _details(verdict: Verdict, indent: int = 2) -> Iterator[RenderableType]:
    for failure in verdict.failures:
        yield paragraph(_text(failure.sentence), indent=indent)
    reading = verdict.reading
    if reading is None:
        return
    what = QUANTITIES[reading.of]
    if reading.where:
        yield paragraph(f"moment: {_text(reading.where)}", indent=indent)
    yield from (Text(), paragraph(f"Largest layers of the {what}", indent=indent, style="bold"))
    yield _layers(reading, indent + 2)
    if verdict.differences or verdict.changes:
        yield from (Text(), paragraph("Since the baseline", indent=indent, style="bold"))
        yield from (paragraph(f"setting: {_text(each)}", indent=indent + 2) for each in verdict.differences)
        if verdict.changes:
            yield from _changed(verdict.changes, indent + 2)
    if verdict.sought:
        yield from (Text(), paragraph(ways_back(verdict), indent=indent, style="bold"))
        yield from _remedies(verdict.remedies, indent + 2)


def _layers(reading: Reading, indent: int) -> Columns:
    rows = layer_rows(reading)
    return Columns(
        (
            Column("layer", tuple(_guarded(row.name) for row in rows), right=False, elastic=True),
            Column("type", tuple(_guarded(row.type) for row in rows), right=False, leaves=1),
            Column("bytes", tuple(shown_bytes(row.bytes) for row in rows)),
            Column("share", tuple(shown_share(row.share) for row in rows)),
        ),
        indent,
    )


def _changed(changes: Sequence[Change], indent: int) -> Iterator[RenderableType]:
    first, rest = named(changes)
    columns = Columns(
        (
            Column("layer", tuple(_guarded(layer_name(change.layer)) for change in first), right=False, elastic=True),
            Column("type", tuple(_text(change.type) for change in first), right=False, leaves=1),
            Column("before", tuple(shown_bytes(change.before_bytes) for change in first)),
            Column("", ("->",) * len(first)),
            Column("after", tuple(shown_bytes(change.after_bytes) for change in first)),
            Column("change", tuple(signed(change.growth_bytes) for change in first), leaves=2),
        ),
        indent,
    )
    words = tuple(_text(", ".join(change.words)) for change in first)
    yield Hanging(columns, "what else", words) if any(words) else columns
    if rest:
        growth = signed(sum(change.growth_bytes for change in rest))
        yield paragraph(f"...and {len(rest):,} more, {growth} together", indent=indent)


def _remedies(remedies: Sequence[Remedy], indent: int) -> Iterator[RenderableType]:
    for remedy in remedies:
        yield paragraph(
            f"{shown_bytes(remedy.bytes)}, {remedy.gradients} gradients: {_text(remedy.what)}", indent=indent
        )
        if remedy.command is not None:
            yield _Command(plain(remedy.command), indent + 2)


@dataclass(frozen=True, slots=True)
class _Command:
    """A command that can be copied from a narrow screen too: lines that go on end as a shell wants it."""

    command: str
    indent: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = _continued(_words(self.command), options.max_width - self.indent)
        yield from (Text(" " * self.indent + line, overflow="fold") for line in lines)


def _words(command: str) -> Iterator[str]:
    """Yield the words of a command; quotes keep apart what GitHub's runner would take for a command of its own."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = [command]
    for word in words:
        quoted = shlex.quote(word).replace("##[", "##''[")
        yield f"':'{quoted[1:]}" if quoted.startswith("::") else quoted


def _continued(words: Iterable[str], width: int) -> Iterator[str]:
    line = ""
    for word in words:
        if line and cell_len(line) + 1 + cell_len(word) + 2 > width:
            yield f"{line} \\"
            line = f"  {word}"
        else:
            line = f"{line} {word}" if line else word
    yield line


def _text(text: str) -> str:
    return _guarded(plain(text))


def _guarded(text: str) -> str:
    return _COMMAND.sub(lambda found: f"{found[0]} ", text)
