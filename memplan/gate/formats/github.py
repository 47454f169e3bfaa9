"""Workflow commands that GitHub shows as annotations, beside the line of a pull request that a check is written in.

``annotations`` is the function here, so that the feature of that name is not imported.
"""

from collections.abc import Iterator
from typing import Final, Literal

from memplan.gate.formats.contents import listed, without_baseline
from memplan.gate.formats.places import repository_path
from memplan.gate.records import GateResult, Place
from memplan.reports.sizes import count
from memplan.tables import plain

#: Annotations of one kind that GitHub shows of one step; it drops the others without a word.
SHOWN: Final = 10

Level = Literal["error", "warning", "notice"]


def annotations(result: GateResult) -> str:
    """Return a line for each failure, and notices of what has no baseline; at most ten of a kind.

    Limits that fail are warnings with ``warn_only``; a model that could not be analysed is an error all the same.
    """
    told: dict[Level, list[str]] = {"error": [], "warning": [], "notice": []}
    for verdict in result.failing():
        level: Level = "warning" if result.warn_only and verdict.analysed else "error"
        for failure in verdict.failures:
            title = f"memplan {failure.kind}: {verdict.check.name}"
            told[level].append(_line(level, title, failure.sentence, verdict.check.place))
    told["notice"] += _notices(result)
    return "".join(f"{line}\n" for level, lines in told.items() for line in _shown(level, lines))


def _notices(result: GateResult) -> Iterator[str]:
    place = Place(result.config)
    fresh = without_baseline(result)
    if result.baseline is None and result.notes:
        yield _line("notice", "memplan: baseline", result.notes[0], place)
    elif fresh:
        message = f"growth is not checked where the baseline has no entry: {listed(fresh)}"
        yield _line("notice", "memplan: not in the baseline", message, place)


def _shown(level: Level, lines: list[str]) -> list[str]:
    """Return the lines that GitHub shows; the last says how many it would not have shown, and where they are."""
    if len(lines) <= SHOWN:
        return lines
    hidden = len(lines) - SHOWN + 1
    more = f"{count(hidden, 'failure')} more: see the job summary, or the log of this step"
    return [*lines[: SHOWN - 1], _line(level, "memplan gate", more, None)]


def _line(level: Level, title: str, message: str, place: Place | None) -> str:
    properties = {}
    if place is not None:
        properties["file"] = repository_path(place.file)
        if place.line is not None:
            properties["line"] = str(place.line)
    properties["title"] = title
    written = ",".join(f"{name}={_escaped(plain(value), ':,')}" for name, value in properties.items())
    return f"::{level} {written}::{_escaped(plain(message))}"


def _escaped(text: str, also: str = "") -> str:
    """Return ``text`` as the runner reads it back: percent signs, line ends and the signs ``also`` as codes."""
    for sign in f"%\r\n{also}":  # the percent sign first: it begins the codes
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text
