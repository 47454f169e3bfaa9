"""A gate's result as JUnit XML, which continuous integration shows as tests: one suite, one test case for a check.

The form is that of Jenkins' schema for it, which comes from Maven Surefire's: a test case has neither a file nor a line
nor properties of its own, so that places stand in its text, and bytes among the suite's properties.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from memplan.gate.formats.console import verdict_details
from memplan.gate.formats.contents import word_of
from memplan.gate.records import GateResult, Verdict
from memplan.tables import plain

#: The name of the suite.
SUITE: Final = "memplan gate"

#: Characters that no XML 1.0 document has, however they are written.
_ILLEGAL: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_text(result: GateResult, version: str) -> str:
    """Return the XML; ``version`` is memplan's. With ``warn_only`` limits that fail are output of tests that pass."""
    words = [word_of(verdict, result) for verdict in result.verdicts]
    counts = {"tests": len(words), "failures": words.count("fails"), "errors": words.count("error")}
    told = {**{name: str(number) for name, number in counts.items()}, "time": f"{result.seconds:.3f}"}
    root = Element("testsuites", {"name": SUITE, **told})
    suite = SubElement(root, "testsuite", {"name": SUITE, **told, "skipped": "0", "file": _word(result.config)})
    properties = SubElement(suite, "properties")
    for name, value in _properties(result, version):
        SubElement(properties, "property", {"name": _word(name), "value": _word(value)})
    for verdict, word in zip(result.verdicts, words, strict=True):
        _case(suite, verdict, word, result.config)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _properties(result: GateResult, version: str) -> Iterator[tuple[str, str]]:
    yield from (("memplan", version), ("config", result.config))
    if result.baseline is not None:
        yield "baseline", result.baseline
    for verdict in result.verdicts:
        reading, baseline = verdict.reading, verdict.baseline
        sizes = {
            "bytes": None if reading is None else reading.bytes,
            "limit_bytes": verdict.limit_bytes,
            "baseline_bytes": None if baseline is None else baseline.bytes,
            "growth_bytes": verdict.growth_bytes,
        }
        name = f"{verdict.check.name}.{verdict.check.of}"
        yield from ((f"{name}.{what}", str(value)) for what, value in sizes.items() if value is not None)


def _case(suite: Element, verdict: Verdict, word: str, config: str) -> None:
    check = verdict.check
    file = config if check.place is None else check.place.file
    case = SubElement(suite, "testcase", {"name": _word(check.name), "classname": _word(file)})
    # An analysis' sentence begins with its place.
    place = "" if check.place is None or not verdict.analysed else f"{plain(str(check.place))}\n"
    if word == "ok":
        output = "\n".join(plain(note) for note in verdict.notes)
    elif word == "warns":
        output = f"{place}{verdict_details(verdict)}"
    else:
        output = ""
        tag = "error" if word == "error" else "failure"
        for failure in verdict.failures:
            # Readers that show one failure of a test show the first: it has everything.
            first = failure is verdict.failures[0]
            told = SubElement(case, tag, {"message": _word(failure.sentence), "type": failure.kind})
            told.text = _legal(f"{place}{verdict_details(verdict)}" if first else plain(failure.sentence))
    if output:
        SubElement(case, "system-out").text = _legal(output)


def _word(text: str) -> str:
    """Return text for an attribute, where line breaks would become blanks."""
    return _legal(plain(text))


def _legal(text: str) -> str:
    return _ILLEGAL.sub("", text)
