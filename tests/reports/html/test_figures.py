"""Every figure of a page is the record's: in the data that it carries, and in the text that one sees."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import groupby

import pytest

from memplan.memory import LayerFootprint
from memplan.memory.lifetimes import moments
from memplan.reports.console import short_op
from memplan.reports.html import analysis_page, front_page, planned_page, verification_page
from memplan.reports.html.page import SCRIPTS, _asset
from memplan.reports.sizes import size
from memplan.results import Analysis
from memplan.units import format_bytes, parse_bytes
from tests.reports import plans, toy
from tests.reports.html.conftest import Opener
from tests.reports.html.reading import data_of, figures, name_of, series_of, table
from tests.reports.html.records import analysis, method, planned, verification

VERSION = "1.2.3"


def test_the_data_add_up_to_each_timeline(opened: Opener) -> None:
    record = analysis(5, budget_bytes=80_000_000)
    data = data_of(opened(analysis_page(record, VERSION)))
    assert [run["label"] for run in data["runs"]] == ["stock full", "stock half", "stock last"]
    for run, row in zip(data["runs"], record.methods, strict=True):
        timeline = row.footprint.timeline
        assert series_of(run, data["kinds"]) == {
            "resident": timeline.resident,
            "saved": timeline.saved,
            "temp": timeline.temp,
        }
        assert run["phases"] == [[phase, len(list(ran))] for phase, ran in groupby(timeline.phases)]
        assert run["peak_bytes"] == row.footprint.peak_bytes == timeline.totals[run["peak_moment"]]
    assert data["budget_bytes"] == 80_000_000


def test_the_data_name_the_operator_and_the_layer_of_each_moment(opened: Opener) -> None:
    record = analysis()
    data = data_of(opened(analysis_page(record, VERSION)))
    for run, row in zip(data["runs"], record.methods, strict=True):
        assert row.step is not None
        expected = moments(row.step, "momentum", row.implementation)
        assert [data["texts"][place] for place in run["moments"]["layer"]] == [moment.layer for moment in expected]
        assert [data["texts"][place] for place in run["moments"]["op"]] == [short_op(moment.op) for moment in expected]


def test_the_data_have_each_layer_of_each_run(opened: Opener) -> None:
    record = analysis()
    data = data_of(opened(analysis_page(record, VERSION)))
    names = [field.name for field in fields(LayerFootprint) if field.name.endswith("_bytes")]
    assert len(names) == 5
    for run, row in zip(data["runs"], record.methods, strict=True):
        rows, layers = run["layers"], row.footprint.layers
        assert [data["texts"][place] for place in rows["path"]] == [layer.path for layer in layers]
        assert [data["texts"][place] for place in rows["type"]] == [layer.type for layer in layers]
        for name in names:
            assert rows[name] == [getattr(layer, name) for layer in layers]


def test_all_methods_are_listed_with_their_bytes(opened: Opener) -> None:
    record = analysis(budget_bytes=80_000_000)
    page = opened(analysis_page(record, VERSION))
    prints = [method.footprint for method in record.methods]
    expected = [getattr(p, f"{kind}_bytes") for p in prints for kind in ("saved", "temp", "resident", "peak")]
    assert figures(page, "#methods") == expected
    assert [row[-1] for row in table(page, "#methods")] == ["yes" if m.fits else "no" for m in record.methods]


def test_the_summary_has_the_peaks_and_the_budget(opened: Opener) -> None:
    record = planned()
    page = opened(planned_page(record, VERSION))
    assert figures(page, "#summary") == [record.stock.peak_bytes, record.footprint.peak_bytes, record.budget.bytes]
    assert "Best plan in 80.0 MB: the last 2 of 3 blocks and the head train" in page.inner_text("#summary")
    assert f"{record.footprint.peak_bytes / record.stock.peak_bytes:.0%} of stock full" in page.inner_text("#summary")


def test_every_moment_that_is_pointed_at_shows_its_own_bytes(opened: Opener) -> None:
    record = analysis()
    page = opened(analysis_page(record, VERSION))
    timeline = record.methods[0].footprint.timeline
    slider = page.locator("[data-panel='0'] [role=slider]")
    slider.press("Home")
    for moment, total in enumerate(timeline.totals):
        told = figures(page, "[data-panel='0'] .told")
        assert slider.get_attribute("aria-valuenow") == str(moment + 1)
        assert told[:4] == [total, timeline.resident[moment], timeline.saved[moment], timeline.temp[moment]]
        assert sum(told[4:]) == total
        assert f"{size(total)} alive" in slider.get_attribute("aria-valuetext")
        slider.press("ArrowRight")


def test_without_a_recording_the_picture_is_drawn_from_the_timeline(opened: Opener) -> None:
    record = analysis()
    bare = replace(record, methods=tuple(replace(method, step=None) for method in record.methods))
    page = opened(analysis_page(bare, VERSION))
    timeline = record.methods[0].footprint.timeline
    assert data_of(page)["runs"][0]["timeline"]["saved"] == list(timeline.saved)
    page.locator("[data-panel='0'] [role=slider]").press("Home")
    expected = [timeline.totals[0], timeline.resident[0], timeline.saved[0], timeline.temp[0]]
    assert figures(page, "[data-panel='0'] .told") == expected
    assert not page.locator("#network").is_visible()


def test_the_table_of_layers_adds_up(opened: Opener) -> None:
    record = analysis()
    page = opened(analysis_page(record, VERSION))
    first, second = record.methods[0].footprint, min(record.methods, key=lambda m: m.footprint.peak_bytes).footprint
    rows = []
    for one, other in zip(first.layers, second.layers, strict=True):
        held = [each.parameter_bytes + each.gradient_bytes + each.state_bytes for each in (one, other)]
        rows.append([one.saved_bytes, other.saved_bytes, one.temp_bytes, other.temp_bytes, *held])
    columns = list(zip(*rows, strict=True))
    last = [*map(sum, columns[:2]), *map(max, columns[2:4]), *map(sum, columns[4:])]
    assert figures(page, "#layers-table") == [*(size for row in rows for size in row), *last]
    assert last[0] == first.saved_bytes


@pytest.mark.parametrize(
    ("roots", "peak"), [((1,), "head"), ((3,), "head"), ((4,), "layers.2"), ((1, 2, 3, 4), "network")]
)
def test_blocks_have_all_that_is_saved_also_by_the_model_itself(
    opened: Opener, roots: tuple[int, ...], peak: str
) -> None:
    step = toy.chain()
    ops = tuple(replace(op, layer=0) if op.layer in roots else op for op in step.ops)
    parameters = tuple(replace(each, layer=0) if each.layer in roots else each for each in step.parameters)
    row = method("full", replace(step, ops=ops, parameters=parameters))
    page = opened(analysis_page(Analysis(toy.SETTING, step.blocks, None, (row,), 0.25), VERSION))
    own = row.footprint.layers[0]
    assert (own.path, own.saved_bytes) == ("", 8_000_000 * len(roots))
    nodes = page.locator("#network-blocks [role=button]")
    titles = nodes.locator("title").all_text_contents()
    saved = [parse_bytes(title.partition("saved ")[2].partition(";")[0]) for title in titles]
    assert sum(saved) == data_of(page)["runs"][0]["saved_bytes"] == 32_000_000
    assert {node.get_attribute("class") for node in nodes.all()} == {"node trains"}
    assert name_of(page.locator("#network-blocks [aria-pressed=true]")) == peak


def test_what_is_small_beside_the_peak_is_not_written_as_nothing(opened: Opener) -> None:
    step = toy.chain()
    # What the two middle layers and the head keep is 2 KB each; the input, which the first one keeps, stays 8 MB.
    small = dict.fromkeys(step.saved[1:], 2000)
    storages = tuple(replace(each, bytes=small.get(each.index, each.bytes)) for each in step.storages)
    row = method("full", replace(step, storages=storages))
    page = opened(analysis_page(Analysis(toy.SETTING, step.blocks, None, (row,), 0.25), VERSION))
    assert page.locator("#network-blocks .bytes").all_text_contents() == ["8.0 MB", "2.0 KB", "2.0 KB", "2.0 KB"]
    assert [row[3] for row in table(page, "#layers-table")] == ["0.0 MB", "8.0 MB", "2.0 KB", "2.0 KB", "2.0 KB"]
    page.locator("#layers-find").fill("layers.2")
    assert table(page, "#layers-table")[0][3:] == ["2.0 KB", "16.0 MB", "12.0 MB"]
    bars = page.locator("#layers-bars")
    bars.scroll_into_view_if_needed()
    box = bars.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 39 + 26 * 2)
    assert figures(page, "#layers-bars .tip") == [2_000, 16_000_000, 12_000_000]
    assert "2.0 KB" in bars.inner_text()


def test_a_method_that_saves_little_beside_its_peak_does_not_save_nothing(opened: Opener) -> None:
    step = toy.chain()
    storages = tuple(replace(each, bytes=2_000) if each.index in step.saved else each for each in step.storages)
    row = method("full", replace(step, storages=storages))
    page = opened(analysis_page(Analysis(toy.SETTING, step.blocks, None, (row,), 0.25), VERSION))
    assert table(page, "#methods")[0][1] == "8.0 KB"
    assert figures(page, "#methods")[0] == 8_000


def test_a_verification_shows_what_was_predicted_and_measured(opened: Opener) -> None:
    record = verification()
    page = opened(verification_page(record, VERSION))
    steps = [value for step in record.steps for value in (step.predicted_bytes, step.measured_bytes)]
    assert figures(page, "#measured") == [record.predicted_saved_bytes, record.measured_saved_bytes, *steps]
    assert "Holds: saved bytes equal" in page.inner_text("#summary")
    assert "Fits in 90.0 MB: the highest peak is 88.0 MB, 2.0 MB to spare." in page.inner_text("#summary")


def test_a_front_has_its_points(opened: Opener) -> None:
    record = plans.front()
    page = opened(front_page(record, VERSION))
    assert data_of(page)["front"]["bytes"] == [20_000_000, 40_000_000, 60_000_000]
    assert [row[1:3] for row in table(page, "#front-table")] == [["20.0 MB", "0"], ["40.0 MB", "2"], ["60.0 MB", "3"]]
    assert figures(page, "#summary") == [80_000_000, 20_000_000, 60_000_000]


def test_assumptions_and_versions_are_named(opened: Opener) -> None:
    record = planned()
    text = opened(planned_page(record, VERSION)).inner_text("#about")
    facts = ("chain (file)", "8x250000 float32", "momentum (loop)", "cpu AVX2", "2.13.0", VERSION)
    remarks = ("note: weights are random", "note: layers.2 is a toy", "toy keeps 8.0 MB", "steady state", "HiGHS")
    for each in (*facts, *remarks):
        assert each in text


@pytest.mark.parametrize("unit", ["MB", "KB", "B"])
def test_sizes_are_written_as_memplan_writes_them(opened: Opener, unit: str) -> None:
    scale = {"MB": 10**6, "KB": 10**3, "B": 1}[unit]
    sizes = [n * scale // 400 for n in range(0, 4_000, 7)] + [
        scale // 4,
        scale * 3 // 4,
        scale * 5 // 4,
        123_456_789_012,
    ]
    page = opened(analysis_page(analysis(), VERSION))
    script = f"""given => {{
        const document = {{ getElementById: () => ({{ textContent: "{{}}" }}) }};
        {_asset("assets", SCRIPTS[0])}
        return given.map((bytes) => formatBytes(bytes, "{unit}"));
    }}"""
    assert page.evaluate(script, sizes) == [format_bytes(each, unit=unit) for each in sizes]


def test_the_run_that_is_shown_can_be_chosen(opened: Opener) -> None:
    record: Analysis = analysis()
    page = opened(analysis_page(record, VERSION))
    page.locator("select[data-run='1']").select_option(label="stock half")
    half = record.methods[1].footprint
    assert figures(page, "[data-panel='1'] figcaption") == [half.peak_bytes]
    assert figures(page, "#layers-table tfoot")[1] == half.saved_bytes
    assert "stock half" in page.inner_text("#layers-legend")
