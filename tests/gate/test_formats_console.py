"""What a terminal shows of a gate. The golden texts are refreshed by ``--refresh-golden``."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable

import pytest
from rich.cells import cell_len

from memplan.gate.formats.console import gate_report, verdict_details
from memplan.gate.formats.contents import plain
from memplan.gate.records import GateResult, Remedy, Verdict
from tests.gate import toy
from tests.reports.toy import shown

Golden = Callable[[str, str], None]

RESULTS = {
    "mixed": toy.mixed(),
    "warnings": toy.mixed(warn_only=True),
    "no baseline": toy.without_baseline(),
    "many": toy.many(14, 2),
    "none": toy.empty(),
    "all hold": toy.all_hold(),
}


@pytest.mark.parametrize("width", [80, 200])
def test_a_result_is_shown_as_ever(golden: Golden, width: int) -> None:
    golden(f"gate-{width}.txt", shown(gate_report(toy.mixed()), width))


def table(result: GateResult, width: int = 200) -> dict[str, list[str]]:
    """Return the cells of each row of the table behind the check's name, a size with its unit in one."""
    lines = shown(gate_report(result), width).splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("  check "))
    rows = lines[first + 1 : first + 1 + len(result.verdicts)]
    return {line.split()[0]: re.split(r" {2,}", line.strip())[1:] for line in rows}


def test_every_figure_of_the_table_is_the_records() -> None:
    assert table(toy.mixed()) == {
        # 105 MB of layers, 1 MB of the batch, 1 MB of margin; before 105 / 2 + 1, of which 2 % more is 54.57 MB.
        "deep/stock": ["peak", "54.6 MB", "107.0 MB", "53.5 MB", "+53.5 MB", "+100.00 %", "fails"],
        "small/saved": ["saved", "6.0 MB", "6.0 MB", "6.0 MB", "0 B", "0 %", "ok"],
        # 400,000 more than 3,000,000 are 13.33 %.
        "growing": ["peak", "3.1 MB", "3.4 MB", "3.0 MB", "+400.0 KB", "+13.33 %", "fails"],
        "broken": ["peak", "-", "-", "-", "-", "error"],
        "fresh": ["peak", "-", "12.3 KB", "-", "-", "ok"],
    }


def test_the_quantity_has_a_column_where_it_is_not_the_peak_everywhere() -> None:
    assert table(toy.many(1)) == {"check0000": ["1.0 MB", "2.0 MB", "-", "-", "fails"]}


def section(text: str, heading: str) -> list[str]:
    """Return the lines between a heading and the next empty line."""
    return text.partition(f"{heading}\n")[2].partition("\n\n")[0].splitlines()


def test_the_largest_layers_add_up_to_what_was_predicted() -> None:
    rows = section(verdict_details(toy.over_budget()), "Largest layers of the peak")[1:]
    cells = [re.split(r" {2,}", row.strip()) for row in rows]
    expected = [[f"features.{n}", "Conv2d", f"{14 - n}.0 MB", f"{(14 - n) / 106:.1%}"[:-1] + " %"] for n in range(10)]
    assert cells == [
        *expected,
        ["...and 4 more", "10.0 MB", "9.4 %"],  # 4 + 3 + 2 + 1 MB of 106
        ["(batch and optimizer)", "1.0 MB", "0.9 %"],
        ["all, as predicted", "106.0 MB", "100.0 %"],
    ]


def test_a_single_layer_is_never_only_counted() -> None:
    layers = [toy.layer(f"l{place:02}", 1_000_000) for place in range(11)]
    verdict = dataclasses.replace(toy.over_budget(), reading=toy.reading(*layers))
    rows = section(verdict_details(verdict), "Largest layers of the peak")
    assert [row.split()[0] for row in rows] == ["layer", *(f"l{place:02}" for place in range(11)), "all,"]


def test_what_the_optimizer_no_longer_holds_is_told_below_zero() -> None:
    verdict = dataclasses.replace(
        toy.over_budget(), reading=toy.reading(toy.layer("a", 4_000_000), rest_bytes=-1_000_000)
    )
    rows = section(verdict_details(verdict), "Largest layers of the peak")
    assert rows[2].split() == ["(batch", "and", "optimizer)", "-1.0", "MB", "-33.3", "%"]  # -1 of 4 - 1


def test_what_changed_since_the_baseline_is_told_setting_first() -> None:
    rows = section(verdict_details(toy.over_budget()), "Since the baseline")
    assert rows[0] == "  setting: inputs 8x3x64x64 float32 -> 16x3x64x64 float32"
    assert len(rows) == 1 + 1 + 10 + 1
    # The last four layers had half of 4 + 3 + 2 + 1 MB.
    assert rows[-1] == "  ...and 4 more, +5.0 MB together"
    changes = [
        re.split(r" {2,}", row.strip()) for row in section(verdict_details(toy.grown()), "Since the baseline")[1:]
    ]
    assert changes == [
        ["stem", "Conv2d", "1.0 MB", "->", "1.8 MB", "+800.0 KB", "trains now"],
        ["new", "GELU", "-", "->", "100.0 KB", "+100.0 KB", "new"],
        ["old", "ReLU", "500.0 KB", "->", "-", "-500.0 KB", "gone"],
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_ways_back_are_counted_and_their_commands_can_be_copied(width: int) -> None:
    lines = section(verdict_details(toy.over_budget(), width), "Three ways back under 54.6 MB")
    text = "\n".join(line.removeprefix("    ") for line in lines)
    first, second, third = (remedy.command for remedy in toy.REMEDIES)
    assert second is not None
    assert third is None
    pasted = text[text.index("memplan plan toynet.py") :].partition("\n  32.0 MB")[0].replace("\\\n", "")
    assert shlex.split(pasted) == shlex.split(second)
    assert f"    {first}" in lines or width == 40


def test_a_command_that_github_would_read_is_told_in_quotes() -> None:
    for name in ("::error::x", "##[error]x"):
        verdict = dataclasses.replace(toy.over_budget(), remedies=(Remedy("do", 1, "exact", f"plan '{name}'"),))
        line = verdict_details(verdict).splitlines()[-1]
        assert name not in line
        assert shlex.split(line) == ["plan", name]


def test_the_number_of_ways_is_said_in_words() -> None:
    verdict = toy.over_budget()
    one = dataclasses.replace(verdict, remedies=toy.REMEDIES[:1], limit_bytes=None)
    assert "\nOne way back under the limit\n" in verdict_details(one)
    assert "ways back" not in verdict_details(dataclasses.replace(verdict, remedies=()))


def test_a_failing_checks_details_are_plain_text_of_the_asked_width() -> None:
    text = verdict_details(toy.over_budget(), 60)
    assert text.startswith("the peak of deep/stock is 107.0 MB, 43.0 MB above the")
    assert "\nmoment: backward of features.0, convolution\n" in text
    assert max(map(len, text.splitlines())) <= 60
    assert verdict_details(toy.broken()).split() == toy.broken().failures[0].sentence.split()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("name", RESULTS)
def test_every_line_fits_the_screen(name: str, width: int) -> None:
    lines = shown(gate_report(RESULTS[name]), width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines), "blanks at a line's end"


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", toy.HOSTILE, ids=ascii)
def test_no_name_breaks_the_report(name: str, width: int) -> None:
    text = shown(gate_report(toy.hostile(name)), width)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    lines = text.splitlines()
    # "Since the baseline" wraps its words by their number, so that wide characters may pass the edge.
    assert all(cell_len(line) <= width for line in lines) or not name.isascii()
    assert not any(line.lstrip().startswith("::") or "##[" in line for line in lines), "GitHub would read a command"
    assert lines[-1] == "1 of 3 checks fails, 1 could not be analysed."
    start = next(place for place, line in enumerate(lines) if line.startswith("  check "))
    assert [line.split()[-1] for line in lines[start + 1 : start + 4]] == ["fails", "ok", "error"]


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_screen_keeps_what_answers_the_question(width: int) -> None:
    text = shown(gate_report(toy.mixed()), width)
    for needed in ("deep/stock", "54.6 MB", "107.0 MB", "fails", "error"):
        assert needed in text


def test_80_columns_have_the_baseline_and_the_change_beside_long_names() -> None:
    verdict = dataclasses.replace(toy.over_budget(), check=toy.check("a/very/long/name/of/a/check/for/a/network"))
    text = shown(gate_report(dataclasses.replace(toy.mixed(), verdicts=(verdict, toy.holding()))), 80)
    assert re.search(r"check +of +limit +now +baseline +change +verdict\n", text)


def test_a_pipe_gets_neither_colour_nor_drawing() -> None:
    text = shown(gate_report(toy.mixed()), 80)
    assert text.isascii()
    assert "\x1b" not in text
    assert "\x1b[" in shown(gate_report(toy.mixed()), 80, terminal=True)


def test_limits_that_fail_are_warnings_where_that_is_asked_for() -> None:
    rows = table(toy.mixed(warn_only=True))
    assert [cells[-1] for cells in rows.values()] == ["warns", "ok", "warns", "error", "ok"]


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (toy.mixed(), "2 of 5 checks fail, 1 could not be analysed."),
        (toy.mixed(warn_only=True), "2 of 5 checks warn, 1 could not be analysed."),
        (toy.mixed(exit_zero=True), "2 of 5 checks fail, 1 could not be analysed; the exit code is 0 all the same."),
        (toy.many(2, 8), "2 of 10 checks fail."),
        (toy.many(1), "1 of 1 check fails."),
        (GateResult((toy.broken(), toy.holding()), "x.toml"), "1 of 2 checks could not be analysed."),
        (toy.all_hold(), "All 2 checks hold."),
        (toy.without_baseline(), "The one check holds."),
        (toy.empty(), f"Nothing was checked: {toy.CONFIG} has no checks."),
    ],
)
def test_the_last_line_is_the_verdict(result: GateResult, sentence: str) -> None:
    assert shown(gate_report(result), 200).splitlines()[-1] == sentence


def test_a_missing_baseline_is_said_loudly_and_before_the_table() -> None:
    text = shown(gate_report(toy.without_baseline()), 200)
    assert text.index("note: there is no baseline") < text.index("  check ") < text.index("note: fresh: no baseline")
    assert text.index("note: there is no baseline") < text.index("note: a second note")
    # 1 is bold, 33 yellow.
    assert re.search(r"\x1b\[1;33mnote: there is no", shown(gate_report(toy.without_baseline()), 200, terminal=True))


def test_stale_entries_are_listed() -> None:
    assert "\nstale entries of the baseline, of no check: gone, forgotten\n" in shown(gate_report(toy.mixed()))
    one = dataclasses.replace(toy.mixed(), stale=("gone",))
    assert "\nstale entry of the baseline, of no check: gone\n" in shown(gate_report(one))
    assert "stale" not in shown(gate_report(toy.all_hold()))


def test_notes_are_ten_and_the_rest_is_counted() -> None:
    verdict: Verdict = dataclasses.replace(toy.fresh(), notes=tuple(f"note number {place}" for place in range(13)))
    lines = shown(gate_report(GateResult((verdict,), "x.toml"))).splitlines()
    assert [line for line in lines if line.startswith("note: ")][-1] == "note: note number 9"
    assert "...and 3 notes more" in lines


def test_what_cannot_be_seen_is_written_as_a_code() -> None:
    assert plain("a\n b\tc") == "a b c"
    assert plain("\x1b[31m\x00\u202e\ud800") == r"\x1b[31m\x00\u202e\ud800"
    assert plain("emoji 🧠 层") == "emoji 🧠 层"
