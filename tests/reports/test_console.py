"""What a terminal shows, from records made by hand. The golden texts are refreshed by ``--refresh-golden``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from memplan.memory import price
from memplan.reports.console import analysis_report, at_peak, methods_report, verification_report
from tests.reports.toy import analysis, chain, shown, verification

Golden = Callable[[str, str], None]


def test_an_analysis_at_80_columns(golden: Golden) -> None:
    text = shown(analysis_report(analysis(budget_bytes=70_000_000), top=3), 80)
    golden("analysis-80.txt", text)


def test_a_verification_at_80_columns(golden: Golden) -> None:
    golden("verification-80.txt", shown(verification_report(verification()), 80))


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_every_line_fits_the_screen(width: int) -> None:
    parts = (
        analysis_report(analysis(budget_bytes=70_000_000, notes=("a long note " * 9,)), top=9),
        verification_report(verification()),
    )
    for part in parts:
        lines = shown(part, width).splitlines()
        assert max(map(len, lines)) <= width
        assert all(line == line.rstrip() for line in lines), "blanks at a line's end"


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_screen_keeps_what_answers_the_question(width: int) -> None:
    text = shown(analysis_report(analysis(budget_bytes=70_000_000)), width)
    for needed in ("full", "top-k k=1", "84.0 MB", "68.0 MB", "yes", "no", "70.0 MB"):
        assert needed in text


def test_a_pipe_gets_neither_colour_nor_drawing() -> None:
    text = shown(analysis_report(analysis(budget_bytes=70_000_000), top=2), 80)
    assert text.isascii()
    assert "\x1b" not in text


def test_a_terminal_gets_colour_and_shades() -> None:
    text = shown(analysis_report(analysis(budget_bytes=70_000_000)), 80, terminal=True)
    assert "\x1b[" in text
    assert all(shade in text for shade in "█▓░╌")


def test_the_verdict_lists_what_fits() -> None:
    assert "\nFits in 70.0 MB: stock top-k k=1 (68.0 MB)\n" in shown(analysis_report(analysis(budget_bytes=70_000_000)))


def test_the_verdict_says_by_how_much_the_nearest_misses() -> None:
    text = shown(analysis_report(analysis(budget_bytes=67_999_900)), 120)
    # 68,000,000 - 67,999,900: a miss never reads as 0.0 MB.
    assert "Nothing listed fits in 68.0 MB: the nearest, stock top-k k=1, needs 68.0 MB, 100 B more." in text


def test_without_a_budget_there_is_no_verdict() -> None:
    text = shown(analysis_report(analysis()))
    assert "fits" not in text.lower()
    assert "budget" not in text


def test_layers_are_listed_on_demand_and_in_the_order_asked_for() -> None:
    assert "Layers of" not in shown(analysis_report(analysis()))
    text = shown(analysis_report(analysis(), top=1, sort="order"), 120)
    assert "Layers of stock full, by order" in text
    table = text[text.index("Layers of") :].splitlines()
    assert table[1].split() == ["layer", "type", "saved", "temp", "gradient", "parameters", "state", "total"]
    assert table[-1].split()[:4] == ["all", "(...and", "4", "more)"]


def test_the_last_row_adds_up_what_adds_up() -> None:
    text = shown(analysis_report(analysis(), top=9), 120)
    last = text.splitlines()[-1]
    # Four layers: inputs of 8 MB each, gradients, weights and momentum of 4 MB each; temp is a maximum, not a sum.
    assert " ".join(last.split()) == "all 32.0 MB max 16.0 MB 16.0 MB 16.0 MB 16.0 MB"


def test_what_is_alive_at_the_peak_adds_up_to_it() -> None:
    for method in analysis().methods:
        rows = at_peak(method.footprint)
        assert sum(row.bytes for row in rows) == method.footprint.peak_bytes
        assert [row.bytes for row in rows] == sorted((row.bytes for row in rows), reverse=True)


def test_an_adam_update_is_named_when_it_is_the_peak() -> None:
    graph = chain(1)
    footprint = price(graph, "adam", alive=len(graph.storages))
    footprint = dataclasses.replace(footprint, peak=dataclasses.replace(footprint.peak, phase="optimizer", layer=""))
    record = analysis()
    method = dataclasses.replace(record.methods[0], footprint=footprint)
    text = shown(analysis_report(dataclasses.replace(record, methods=(method,))))
    assert "Where stock full peaks: the optimizer's update" in text


def test_storages_that_are_not_named_are_counted() -> None:
    text = shown(analysis_report(analysis(), top=2))
    named = [line for line in text.splitlines() if line.endswith("more") and "...and" in line]
    assert len(named) == 1
    rest = at_peak(analysis().methods[0].footprint)[2:]
    assert named[0].split() == [f"{sum(row.bytes for row in rest) / 1e6:.1f}", "MB", "...and", str(len(rest)), "more"]


def test_notes_and_what_is_not_priced_are_said() -> None:
    text = shown(analysis_report(analysis(notes=("one thing", "another"), unpriced=("2 tensors of layout sparse",))))
    assert text.endswith("\nnote: one thing\nnote: another\n\nnot priced: 2 tensors of layout sparse\n")


def test_layer_paths_are_text_and_not_markup() -> None:
    record = analysis()
    footprint = record.methods[0].footprint
    layers = (dataclasses.replace(footprint.layers[0], path="[bold]x"), *footprint.layers[1:])
    method = dataclasses.replace(record.methods[0], footprint=dataclasses.replace(footprint, layers=layers))
    assert "[bold]x" in shown(analysis_report(dataclasses.replace(record, methods=(method,)), top=9))


def test_a_verification_that_does_not_hold_says_why() -> None:
    text = shown(verification_report(verification(measured_saved_bytes=32_000_001, measured_bytes=100_000_000)), 120)
    # 88 MB promised of 100 MB measured is 12 % too little.
    assert "Does not hold: saved bytes differ, worst peak -12.00%; allowed are peaks from step 2 within -1%" in text
    assert " -1 B " in text


def test_a_verification_names_its_quantities() -> None:
    text = shown(verification_report(verification()), 120)
    assert "peaks are the allocator peak (CPU profiler)" in text
    assert "RSS of this process: high-water mark 500.0 MB, 400.0 MB before the model was built" in text
    assert "RSS" not in shown(verification_report(dataclasses.replace(verification(), rss_bytes=None)))


def test_methods_are_listed_with_what_changes_and_their_source() -> None:
    entries = shown(methods_report(), 120).split("\nmobiletl\n")[1].split("\ntinytl-bias\n")[0].splitlines()
    assert [line.split(":")[0].strip() for line in entries[:1]] == ["trains"]
    assert "  runner: memplan" in entries
    assert any(line.startswith("  gradients: approximate: through activations g * 1[x >= 0]") for line in entries)
    assert entries[-1] == "  source: MobileTL (AAAI 2023)"


def test_who_runs_a_method_and_whether_its_gradients_are_exact_are_shown() -> None:
    record = analysis()
    method = dataclasses.replace(record.methods[0], runner="memplan", gradients="approximate")
    text = shown(analysis_report(dataclasses.replace(record, methods=(*record.methods, method))), 120)
    (row,) = (line for line in text.splitlines() if line.startswith("  memplan"))
    assert row.split()[1:3] == ["full", "32.0"]
    assert row.endswith("approximate")
