"""Markdown for pull requests, read back as a browser would show it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
from lxml import html
from markdown_it import MarkdownIt

from memplan.gate.formats.contents import plain
from memplan.gate.formats.markdown import COMMENT_CHARACTERS, SUMMARY_BYTES, code, markdown_text, prose, summary
from memplan.gate.records import GateResult
from tests.gate import toy

Golden = Callable[[str, str], None]

#: What memplan's own Markdown becomes; nothing else may.
TAGS = {"code", "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "p", "h3", "strong"}
TAGS |= {"blockquote", "sub", "div"}


def page(text: str) -> html.HtmlElement:
    """Return what a browser makes of it; half a surrogate pair would not get here."""
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    return html.fragment_fromstring(rendered, create_parent="div")


def rows(table: html.HtmlElement) -> list[list[str]]:
    return [[cell.text_content() for cell in row.iter("td")] for row in table.iter("tr")][1:]


def test_a_result_is_written_as_ever(golden: Golden) -> None:
    golden("gate.md", markdown_text(toy.mixed(), toy.VERSION))


def test_a_result_without_a_baseline_is_written_as_ever(golden: Golden) -> None:
    golden("gate-without-baseline.md", markdown_text(toy.without_baseline(warn_only=True), toy.VERSION))


def test_every_figure_of_the_table_is_the_records() -> None:
    document = page(markdown_text(toy.mixed(), toy.VERSION))
    assert rows(next(document.iter("table"))) == [
        # 105 MB of layers, 1 MB of the batch, 1 MB of margin; before 105 / 2 + 1, of which 2 % more is 54.57 MB.
        ["deep/stock", "peak", "54.6 MB", "107.0 MB", "53.5 MB", "+53.5 MB (+100.00 %)", "fails"],
        ["small/saved", "saved", "6.0 MB", "6.0 MB", "6.0 MB", "0 B (0 %)", "ok"],
        # 400,000 more than 3,000,000 are 13.33 %.
        ["growing", "peak", "3.1 MB", "3.4 MB", "3.0 MB", "+400.0 KB (+13.33 %)", "fails"],
        ["broken", "peak", "-", "-", "-", "-", "error"],
        ["fresh", "peak", "-", "12.3 KB", "-", "-", "ok"],
    ]


def test_the_details_of_a_failure_are_folded_and_complete() -> None:
    document = page(markdown_text(toy.mixed(), toy.VERSION))
    names = [each.find("summary").text_content() for each in document.iter("details")]
    assert names == ["deep/stock: fails", "growing: fails", "broken: error"]
    first, second, _ = document.iter("details")
    layers, changes = first.iter("table")
    assert rows(layers) == [
        *([f"features.{n}", "Conv2d", f"{14 - n}.0 MB", f"{(14 - n) / 106:.1%}"[:-1] + " %"] for n in range(10)),
        ["...and 4 more", "", "10.0 MB", "9.4 %"],  # 4 + 3 + 2 + 1 MB of 106
        ["(batch and optimizer)", "", "1.0 MB", "0.9 %"],
        ["all, as predicted", "", "106.0 MB", "100.0 %"],
    ]
    assert rows(changes)[0] == ["features.0", "Conv2d", "7.0 MB", "14.0 MB", "+7.0 MB", OUTPUT]
    assert rows(changes)[-1] == ["...and 4 more", "", "", "", "+5.0 MB", ""]  # half of 4 + 3 + 2 + 1 MB
    assert rows(list(second.iter("table"))[1])[1:] == [
        ["new", "GELU", "-", "100.0 KB", "+100.0 KB", "new"],
        ["old", "ReLU", "500.0 KB", "-", "-500.0 KB", "gone"],
    ]
    told = [item.text_content() for item in first.iter("li")]
    assert told[:3] == [*(failure.sentence for failure in toy.over_budget().failures), f"moment: {WHERE}"]
    assert told[3] == "setting: inputs 8x3x64x64 float32 -> 16x3x64x64 float32"
    assert told[4:] == [
        f"{remedy.bytes / 1e6:.1f} MB, {remedy.gradients} gradients: {remedy.what}"
        + (f": {remedy.command}" if remedy.command else "")
        for remedy in toy.REMEDIES
    ]
    assert "Three ways back under 54.6 MB:" in [line.text_content() for line in first.iter("p")]


OUTPUT = "output 8x32x56x56 -> 8x64x56x56"
WHERE = "backward of features.0, convolution"


def test_what_holds_is_one_table_and_no_details() -> None:
    text = markdown_text(toy.all_hold(), toy.VERSION)
    assert text.startswith("<!-- memplan gate -->\n### memplan gate: All 2 checks hold\n")
    assert "<details>" not in text
    assert len(text.splitlines()) < 15


def test_no_checks_are_no_table() -> None:
    document = page(markdown_text(toy.empty(), toy.VERSION))
    assert not list(document.iter("table"))
    assert next(document.iter("h3")).text_content() == f"memplan gate: Nothing was checked: {toy.CONFIG} has no checks"


def test_the_same_bytes_give_the_same_text_however_long_it_took() -> None:
    assert markdown_text(toy.mixed(seconds=1.0), "1") == markdown_text(toy.mixed(seconds=2.0), "1")


def test_warnings_are_called_that() -> None:
    document = page(markdown_text(toy.mixed(warn_only=True), toy.VERSION))
    words = [row[-1] for row in rows(next(document.iter("table")))]
    assert words == ["warns", "ok", "warns", "error", "ok"]
    assert next(document.iter("summary")).text_content() == "deep/stock: warns"


def test_a_missing_baseline_comes_before_the_table() -> None:
    text = markdown_text(toy.without_baseline(), toy.VERSION)
    assert text.index("> [!WARNING]\n> - there is no baseline") < text.index("| check |")
    assert "> [!NOTE]\n> - a note\n" in markdown_text(toy.mixed(notes=("a note",)), toy.VERSION)


@pytest.mark.parametrize("name", toy.HOSTILE, ids=ascii)
def test_no_name_becomes_anything_but_text(name: str) -> None:
    text = markdown_text(toy.hostile(name), name)
    document = page(text)
    elements = [element for element in document.iter() if isinstance(element.tag, str)]
    assert {element.tag for element in elements} <= TAGS
    assert {key for element in elements for key in element.attrib} <= {"style"}  # of a cell: its alignment
    shown = plain(name) if len(plain(name)) <= 120 else f"{name[:97]}...{name[-20:]}"
    table, layers, changes = document.iter("table")
    assert [row[0].strip() for row in rows(table)] == [shown.strip()] * 3
    assert [row[-1] for row in rows(table)] == ["fails", "ok", "error"]
    assert [len(row) for row in rows(layers)] == [4, 4, 4]
    assert [len(row) for row in rows(changes)] == [6, 6]
    assert len(list(document.iter("details"))) == 2
    # Outside of code nobody is called and nothing is linked or referred to.
    words = "".join(document.xpath("//text()[not(ancestor::code)]"))
    assert not re.search(r"[@#]\w|://|GH-\d|www\.", words)


@pytest.mark.parametrize(
    "name", ["# 1", "- item", "1. item", "+ item", "> quote", "===", "| a | b |", "\\| a", "www.example.org GH-12"]
)
def test_a_sentence_begins_nothing(name: str) -> None:
    item = page(f"- {prose(name)}").find("ul/li")
    assert item.text_content().strip().replace("\u2060", "") == name
    assert not list(item)


def test_a_plain_name_is_readable_before_it_is_rendered() -> None:
    assert code("features.3.block.0/conv_1") == "`features.3.block.0/conv_1`"
    assert code("a|b") == "<code>a&#124;b</code>"
    assert code("") == "<code> </code>"


def counts(text: str, result: GateResult) -> tuple[int, int, int]:
    """Return how many checks, failing checks left out and details the text tells of, adding those it only counts."""
    shown = len(re.findall(r"^\| (?:`|<code>)", text.partition("<details>")[0], re.MULTILINE))
    left = re.search(r"room: ([\d,]+) checks?, of which ([\d,]+)", text)
    hidden, failing = (int(group.replace(",", "")) for group in left.groups()) if left else (0, 0)
    details = text.count("<details>")
    omitted = re.search(r"the details of ([\d,]+) checks?", text)
    return shown + hidden, failing, details + (int(omitted[1].replace(",", "")) if omitted else 0)


@pytest.mark.parametrize(("failing", "holding"), [(200, 50), (900, 300), (2_000, 300)])
def test_a_comment_is_never_too_long_and_counts_what_it_leaves_out(failing: int, holding: int) -> None:
    result = toy.many(failing, holding)
    text = markdown_text(result, toy.VERSION)
    # Filled up: another check's details, or its row, have no room.
    assert COMMENT_CHARACTERS - 1_000 < len(text) <= COMMENT_CHARACTERS
    total, _, details = counts(text, result)
    assert (total, details) == (failing + holding, failing)
    assert text.count("<details>") == text.count("</details>")


def test_checks_that_are_left_out_of_the_table_are_told_with_those_that_fail() -> None:
    result = toy.many(2_000, 300)
    text = markdown_text(result, toy.VERSION)
    shown = text.count("\n| `")
    assert shown < 2_000
    assert counts(text, result)[1] == 2_000 - shown
    assert "<details>" not in text


def test_a_summary_is_measured_in_bytes_with_what_is_there_already() -> None:
    wide = dataclasses.replace(toy.over_budget(), check=toy.check("层" * 100))
    result = GateResult((wide,) * 400, toy.CONFIG, "b.json")
    for used in (0, 1_000_000):
        text = summary(result, toy.VERSION, used)
        room = SUMMARY_BYTES - used
        assert room - 5_000 < len(text.encode()) <= room
        total, _, details = counts(text, result)
        assert (total, details) == (400, 400)
    assert len(summary(toy.mixed(), toy.VERSION)) < 10_000


def test_without_any_room_there_is_the_verdict_or_nothing() -> None:
    text = summary(toy.mixed(), toy.VERSION, SUMMARY_BYTES - 200)
    assert text == "<!-- memplan gate -->\n### memplan gate: 2 of 5 checks fail, 1 could not be analysed\n"
    assert summary(toy.mixed(), toy.VERSION, SUMMARY_BYTES - 50) == ""
    assert summary(toy.mixed(), toy.VERSION, 2 * SUMMARY_BYTES) == ""
