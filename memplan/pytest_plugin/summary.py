"""The end of a run: the baseline is written, once, and what was checked is told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from memplan.errors import MemplanError
from memplan.pytest_plugin.collected import Collected, Collection
from memplan.pytest_plugin.settings import Settings

if TYPE_CHECKING:
    from memplan.gate.baseline import Baseline
    from memplan.pytest_plugin.outcomes import Outcome

#: What the report of a test bears from the process that ran it to the one that tells.
ATTRIBUTE: Final = "memplan"

_UPDATE: Final = "--memplan-update-baseline"


@dataclass(frozen=True, slots=True)
class Note:
    """One sentence at the end; a ``loud`` one is no detail."""

    text: str
    loud: bool = False


class Summary:
    """Gathers the outcomes of all tests, in the process that reports."""

    def __init__(self, config: pytest.Config, settings: Settings, collection: Collection) -> None:
        self._settings, self._collection = settings, collection
        self._root, self._folder = config.rootpath, config.invocation_params.dir
        self._found: dict[str, tuple[Outcome, ...]] = {}
        self._unmarked: set[str] = set()
        self._sent = Collected()
        self._notes: tuple[Note, ...] = ()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a test's report bears; the last run of a test counts."""
        if report.when != "call":
            return
        marked, told = getattr(report, ATTRIBUTE, (True, ()))
        (self._unmarked.discard if marked else self._unmarked.add)(report.nodeid)
        self._found.pop(report.nodeid, None)
        if told:
            from memplan.pytest_plugin.outcomes import Outcome

            expected = hasattr(report, "wasxfail") and report.outcome == "skipped"
            outcomes = [Outcome(**{**each, "unpriced": tuple(each["unpriced"])}) for each in told]
            self._found[report.nodeid] = tuple(
                replace(each, word="xfails") if expected and each.word in ("fails", "error") else each
                for each in outcomes
            )

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker of xdist collected; all collect the same."""
        sent = getattr(node, "workeroutput", {}).get("memplan_collected")
        if sent is not None:
            self._sent = Collected(*map(tuple, sent))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the baseline if that was asked for, and settle what is to be told."""
        checked = [each for each in self._outcomes() if each.word]
        collected = self._sent if self._sent.tests else self._collection.collected()
        if session.config.option.collectonly or not (checked or collected.tests):
            return
        try:
            self._notes = tuple(self._settled(checked, collected))
        except MemplanError as error:
            self._notes = (Note(said(error), loud=True),)
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table, if it was asked for, and the notes."""
        if not self._settings.report and not self._notes:
            return
        terminalreporter.section("memplan")
        outcomes = self._outcomes()
        if self._settings.report and outcomes:
            # A log wraps no line, and is searched for them.
            width = terminalreporter.config.get_terminal_writer().fullwidth if terminalreporter.isatty else sys.maxsize
            heading, *lines = table_of(outcomes, width)
            terminalreporter.write_line(heading, bold=True)
            for outcome, line in zip(outcomes, lines, strict=True):
                terminalreporter.write_line(line, red=outcome.word in ("fails", "error"))
        if self._settings.report:
            terminalreporter.write_line(closing(outcomes))
        for note in self._notes:
            terminalreporter.write_line(note.text, yellow=note.loud, bold=note.loud)

    def _outcomes(self) -> list[Outcome]:
        """Return all outcomes by node id: workers finish in any order."""
        return [outcome for test in sorted(self._found) for outcome in self._found[test]]

    def _settled(self, checked: Sequence[Outcome], collected: Collected) -> Iterator[Note]:
        from memplan.gate.baseline import Baseline, read_baseline

        path = self._settings.baseline
        before = read_baseline(path)
        stale = tuple(self._stale({} if before is None else before.tests, checked, collected))
        shown = os.path.relpath(path, self._folder) if path.is_relative_to(self._folder) else str(path)
        if self._settings.update:
            yield from self._written(before or Baseline(origin=str(path)), checked, stale, shown)
        else:
            yield from _missing(before, checked, shown)
            if stale:
                yield Note(f"stale entries of {shown}, of no marked test: {_listed(stale)}; drop them with {_UPDATE}")
        for outcome in checked:
            if outcome.unpriced:
                yield Note(f"{outcome.test}: not priced: {'; '.join(outcome.unpriced)}")

    def _stale(self, entries: Iterable[str], checked: Sequence[Outcome], collected: Collected) -> Iterator[str]:
        """Yield the entries of tests that ran without a marker, or are no more.

        Those are no more whose file is gone, or was collected completely and has no such test. One that was not run may
        be marked by a fixture.
        """
        there = {*collected.tests, *(outcome.test for outcome in checked)}
        for test in entries:
            file = test.partition("::")[0]
            gone = test not in there and (file in collected.files or not (self._root / file).exists())
            if gone or test in self._unmarked:
                yield test

    def _written(
        self, before: Baseline, checked: Sequence[Outcome], stale: Sequence[str], shown: str
    ) -> Iterator[Note]:
        from memplan import __version__
        from memplan.gate.baseline import write_baseline
        from memplan.gate.records import Reading
        from memplan.reports.decoding import decoded

        read = {
            each.test: decoded(Reading, json.loads(each.reading), each.test)
            for each in checked
            if each.reading is not None
        }
        if not read and not stale:
            yield Note(f"nothing was analysed: {shown} is as it was", loud=True)
            return
        kept = {test: entry for test, entry in before.tests.items() if test not in stale}
        torch = next((each.torch for each in checked if each.torch), before.torch)
        write_baseline(self._settings.baseline, replace(before, tests={**kept, **read}, torch=torch), __version__)
        yield Note(f"{shown} is written: {_tests(len(read))} now accepted, {len(kept.keys() - read.keys())} kept")
        if stale:
            yield Note(f"dropped from it, of no marked test: {_listed(stale)}")


def said(error: Exception) -> str:
    """Return an error's sentence with the option that pytest has for the gate's ``--update-baseline``."""
    return str(error).replace("--update-baseline", _UPDATE)


def table_of(outcomes: Sequence[Outcome], width: int) -> list[str]:
    """Return the headings and the rows of all checked tests; names that find no room have lines of their own."""
    from memplan.gate.formats.contents import NOTHING, shown_bytes
    from memplan.gate.judge import growth_text
    from memplan.reports.layout import Column, Columns
    from memplan.tables import plain

    def change(outcome: Outcome) -> str:
        if outcome.bytes is None or outcome.baseline_bytes is None:
            return NOTHING
        return growth_text(outcome.bytes - outcome.baseline_bytes, outcome.baseline_bytes)

    def name(outcome: Outcome) -> str:
        return plain(outcome.test if outcome.word else f"{outcome.test} ({outcome.model})")

    names = Column("test", tuple(map(name, outcomes)), right=False)
    columns = [
        Column("limit", tuple(shown_bytes(each.limit_bytes) for each in outcomes)),
        Column("now", tuple(shown_bytes(each.bytes) for each in outcomes)),
        Column("baseline", tuple(shown_bytes(each.baseline_bytes) for each in outcomes), leaves=1),
        Column("change", tuple(map(change, outcomes)), leaves=2),
        Column("verdict", tuple(each.word or NOTHING for each in outcomes), right=False),
    ]
    if any(each.of != "peak" for each in outcomes):
        columns.insert(0, Column("of", tuple(each.of for each in outcomes), right=False))
    table = list(Columns((names, *columns), indent=0).lines(sys.maxsize))
    if max(line.cell_len for line in table) <= width:
        return [line.plain for line in table]
    rows = Columns(tuple(columns)).lines(width)
    return [f"{test}\n{row.plain}" for test, row in zip((names.heading, *names.cells), rows, strict=True)]


def closing(outcomes: Iterable[Outcome]) -> str:
    """Return what all verdicts come to, in a sentence."""
    words = [outcome.word for outcome in outcomes if outcome.word]
    failing = sum(word in ("fails", "error") for word in words)
    if not words:
        return "No test was held to a limit."
    if failing:
        return f"{failing} of {_tests(len(words))} fail{'s' if failing == 1 else ''}."
    return "The one test holds." if len(words) == 1 else f"All {_tests(len(words))} hold."


def _missing(before: Baseline | None, checked: Sequence[Outcome], shown: str) -> Iterator[Note]:
    """Yield what a baseline would tell and does not, and that it is of another torch."""
    without = [
        each.test for each in checked if each.growth_limited and each.baseline_bytes is None and each.bytes is not None
    ]
    if without and before is None:
        yield Note(f"there is no baseline {shown}: growth is not checked, limits are; write it with {_UPDATE}", True)
    elif without:
        yield Note(
            f"growth is not checked where {shown} has no entry: {_listed(without)}; write it with {_UPDATE}", True
        )
    for then, now in sorted({(each.baseline_torch, each.torch) for each in checked if each.baseline_torch}):
        if now and then != now:
            yield Note(
                f"{shown} is of torch {then}, this is torch {now}: bytes may differ for that alone; "
                f"write it again with {_UPDATE}",
                loud=True,
            )


def _listed(names: Sequence[str]) -> str:
    from memplan.gate.formats.contents import listed

    return listed(names)


def _tests(number: int) -> str:
    from memplan.reports.sizes import count

    return count(number, "test")
