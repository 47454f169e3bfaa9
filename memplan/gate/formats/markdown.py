"""A gate's result for a pull request and for GitHub's job summary: short, the same text for the same bytes.

Names come from models and files, so that nothing in them may act: what is no plain word stands in ``<code>``, with
every sign that Markdown or HTML knows written as an entity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from memplan.gate.formats.contents import (
    NOTHING,
    PartRow,
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
from memplan.gate.records import GateResult, Verdict
from memplan.reports.markdown_signs import code, code_html, prose
from memplan.reports.sizes import count
from memplan.tables import plain

#: GitHub refuses a comment of more characters.
COMMENT_CHARACTERS: Final = 65_536

#: GitHub refuses a step's summary of more bytes.
SUMMARY_BYTES: Final = 1_048_576

#: What finds the comment of the last run again.
MARK: Final = "<!-- memplan gate -->"

#: Room that is kept free for the lines that say what is left out.
_RESERVE: Final = 200

_WORDS: Final = {"ok": "ok", "fails": "**fails**", "warns": "**warns**", "error": "**error**"}


def markdown_text(result: GateResult, version: str) -> str:
    """Return the text of a pull request's comment, at most 65,536 characters; ``version`` is memplan's."""
    return _fitted(result, version, COMMENT_CHARACTERS, len)


def summary(result: GateResult, version: str, used_bytes: int = 0) -> str:
    """Return the text of a step's summary on GitHub, so that it and ``used_bytes`` before it are at most 1 MiB."""
    return _fitted(result, version, SUMMARY_BYTES - used_bytes, lambda text: len(text.encode()))


def _fitted(result: GateResult, version: str, room: int, measure: Callable[[str], int]) -> str:
    """Return as much as ``room`` allows: the table comes before the details, and what is left out is counted."""
    head, foot = _head(result), _foot(result, version)
    rows = [_row(verdict, result) for verdict in result.verdicts]
    table = _table_head(result) if rows else ""
    left = room - measure(f"{head}{table}{foot}") - _RESERVE
    if left < 0:
        alone = f"{MARK}\n### memplan gate: {prose(closing(result)).removesuffix('.')}\n"
        return alone if measure(alone) <= room else ""
    shown = _fitting(rows, left, measure)
    body = f"{table}{''.join(rows[:shown])}"
    left -= measure("".join(rows[:shown]))
    if shown < len(rows):
        hidden = result.verdicts[shown:]
        failing = sum(not verdict.holds for verdict in hidden)
        body += f"\nLeft out for want of room: {count(len(hidden), 'check')}, of which {failing:,} do not hold.\n"
    details = [_details(verdict, result) for verdict in result.failing()]
    shown = _fitting(details, left, measure)
    body += "".join(details[:shown])
    if shown < len(details):
        body += f"\nLeft out for want of room: the details of {count(len(details) - shown, 'check')}.\n"
    return f"{head}{body}{foot}"


def _fitting(texts: Sequence[str], room: int, measure: Callable[[str], int]) -> int:
    """Return how many of the texts, from the first on, fit together."""
    for place, text in enumerate(texts):
        room -= measure(text)
        if room < 0:
            return place
    return len(texts)


def _head(result: GateResult) -> str:
    lines = [MARK, f"### memplan gate: {prose(closing(result)).removesuffix('.')}", ""]
    if result.notes:
        first, rest = named(result.notes)
        lines.append(f"> [!{'WARNING' if result.baseline is None else 'NOTE'}]")
        lines += [f"> - {prose(note)}" for note in first]
        lines += [f"> - ...and {count(len(rest), 'note')} more"] if rest else []
        lines.append("")
    return "\n".join([*lines, ""])


def _foot(result: GateResult, version: str) -> str:
    first, rest = named([note for verdict in result.verdicts for note in verdict.notes])
    notes = "".join(f"- {prose(note)}\n" for note in first)
    notes += f"- ...and {count(len(rest), 'note')} more\n" if rest else ""
    return f"\n{notes}\n<sub>sizes are upper estimates; memplan {prose(version)}, {_origin(result)}</sub>\n"


def _table_head(result: GateResult) -> str:
    quantity = _mixed(result)
    return (
        f"| check |{' of |' if quantity else ''} limit | now | baseline | change | verdict |\n"
        f"|---|{'---|' if quantity else ''}--:|--:|--:|--:|---|\n"
    )


def _mixed(result: GateResult) -> bool:
    return any(verdict.check.of != "peak" for verdict in result.verdicts)


def _row(verdict: Verdict, result: GateResult) -> str:
    reading, baseline, growth = verdict.reading, verdict.baseline, verdict.growth_bytes
    cells = [
        code(verdict.check.name),
        *([verdict.check.of] if _mixed(result) else []),
        shown_bytes(verdict.limit_bytes),
        shown_bytes(None if reading is None else reading.bytes),
        shown_bytes(None if baseline is None else baseline.bytes),
        NOTHING if growth is None or baseline is None else growth_text(growth, baseline.bytes),
        _WORDS[word_of(verdict, result)],
    ]
    return f"| {' | '.join(cells)} |\n"


def _details(verdict: Verdict, result: GateResult) -> str:
    lines = [
        "",
        f"<details><summary>{code_html(verdict.check.name)}: {word_of(verdict, result)}</summary>",
        "",
        *(f"- {prose(failure.sentence)}" for failure in verdict.failures),
    ]
    reading = verdict.reading
    if reading is not None:
        lines += [f"- moment: {prose(reading.where)}"] if reading.where else []
        lines += ["", f"| layer | type | bytes of the {QUANTITIES[reading.of]} | share |", "|---|---|--:|--:|"]
        for row in layer_rows(reading):
            kind = code(row.type) if row.type else ""
            lines.append(f"| {_layer(row)} | {kind} | {shown_bytes(row.bytes)} | {shown_share(row.share)} |")
        lines += _since(verdict)
        lines += ["", f"{ways_back(verdict)}{':' if verdict.remedies else '.'}", ""] if verdict.sought else []
        for remedy in verdict.remedies:
            command = "" if remedy.command is None else f": {_command(remedy.command)}"
            lines.append(f"- {shown_bytes(remedy.bytes)}, {remedy.gradients} gradients: {prose(remedy.what)}{command}")
    return "\n".join([*lines, "", "</details>", ""])


def _since(verdict: Verdict) -> Iterator[str]:
    if verdict.differences or verdict.changes:
        yield from ("", "Since the baseline:")
    if verdict.differences:
        yield ""
        yield from (f"- setting: {prose(each)}" for each in verdict.differences)
    first, rest = named(verdict.changes)
    if first:
        yield from ("", "| layer | type | before | after | change | what else |", "|---|---|--:|--:|--:|---|")
    for change in first:
        cells = (
            code(layer_name(change.layer)),
            code(change.type) if change.type else "",
            shown_bytes(change.before_bytes),
            shown_bytes(change.after_bytes),
            signed(change.growth_bytes),
            prose(", ".join(change.words)),
        )
        yield f"| {' | '.join(cells)} |"
    if rest:
        growth = signed(sum(change.growth_bytes for change in rest))
        yield f"| ...and {len(rest):,} more | | | | {growth} | |"


def _layer(row: PartRow) -> str:
    return code(row.name) if row.named else row.name


def _command(command: str) -> str:
    """Return a command whole: a part of it is none."""
    text = plain(command)
    fence = "`" * (max(map(len, re.findall(r"`+", text)), default=0) + 1)
    blank = " " if len(fence) > 1 else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def _origin(result: GateResult) -> str:
    against = "no baseline" if result.baseline is None else f"baseline {prose(result.baseline)}"
    entries = "entry" if len(result.stale) == 1 else "entries"
    stale = f"; stale {entries} of it: {prose(listed(result.stale))}" if result.stale else ""
    return f"{prose(result.config)}, {against}{stale}"
