"""A gate's HTML page as text: what it tells of each check, what its data hold, and names that cannot act."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lxml import html

from memplan.cli.gating import _files
from memplan.cli.gating import gate as command
from memplan.errors import UsageError
from memplan.gate.formats.html import html_text
from memplan.gate.formats.json import gate_to_json
from memplan.gate.records import GateResult
from memplan.tables import plain
from memplan.units import format_bytes
from tests.gate import toy
from tests.reports.html.reading import series_of

MIXED = toy.mixed(notes=("a note",))
PAGE = html.fromstring(html_text(MIXED, toy.VERSION))
JSON = gate_to_json(MIXED, toy.VERSION)


def data_of(page: Any) -> dict[str, Any]:
    return json.loads(page.xpath("//script[@id='memplan-data']")[0].text)


def sizes(element: Any) -> list[int]:
    """Return the exact bytes of all figures below an element, each checked against the text that is shown."""
    for each in element.iterdescendants("data"):
        text = each.text.lstrip("+-")
        assert text == format_bytes(abs(int(each.get("value"))), unit=text.rpartition(" ")[2])
    return [int(each.get("value")) for each in element.iterdescendants("data")]


def article(place: int) -> Any:
    return PAGE.get_element_by_id(f"check-{place}")


def test_every_figure_of_the_table_is_the_jsons() -> None:
    rows = PAGE.xpath("//table[@id='checks-table']/tbody/tr")
    for row, check in zip(rows, JSON["checks"], strict=True):
        figures = (check[key] for key in ("limit_bytes", "bytes", "baseline_bytes", "growth_bytes"))
        assert sizes(row) == [figure for figure in figures if figure is not None]
        assert row.xpath(".//a")[0].text == check["name"]
        assert row.xpath(".//span")[0].text == check["verdict"]


@pytest.mark.parametrize("place", range(len(MIXED.verdicts)))
def test_every_figure_of_a_check_is_the_jsons(place: int) -> None:
    check = JSON["checks"][place]
    keys = ("bytes", "predicted_bytes", "lower_bytes", "limit_bytes", "budget_bytes", "baseline_bytes")
    figures = [check[key] for key in keys]
    figures += [remedy["bytes"] for remedy in check["remedies"]]
    for change in check["changes"]:
        figures += [change["before_bytes"], change["after_bytes"], change["growth_bytes"]]
    assert sizes(article(place)) == [figure for figure in figures if figure is not None]


@pytest.mark.parametrize("place", range(len(MIXED.verdicts)))
def test_the_data_have_the_layers_of_now_and_of_the_baseline(place: int) -> None:
    data, check, verdict = data_of(PAGE), JSON["checks"][place], MIXED.verdicts[place]
    columns = data["gate"]["checks"][place]
    if verdict.reading is None:
        assert columns is None
        return
    names = [data["texts"][at] for at in columns["layer"]]
    for key in ("bytes", "saved_bytes", "temp_bytes", "held_bytes"):
        now = {name: size for name, size in zip(names, columns[key], strict=True) if size is not None}
        assert now == {layer["layer"]: layer[key] for layer in check["layers"]}
    assert sum(size or 0 for size in columns["bytes"]) + columns["rest_bytes"] == check["predicted_bytes"]
    before = {name: size for name, size in zip(names, columns["before_bytes"], strict=True) if size is not None}
    parts = () if verdict.baseline is None else verdict.baseline.layers
    assert before == {part.layer: part.bytes for part in parts}


def test_a_check_that_fails_tells_why_when_what_changed_and_what_helps() -> None:
    text = article(0).text_content()
    for words in (
        "The peak of deep/stock is 107.0 MB, 43.0 MB above the budget of 64.0 MB.",
        "backward of features.0, convolution",
        "Setting: inputs 8x3x64x64 float32 -> 16x3x64x64 float32",
        "output 8x32x56x56 -> 8x64x56x56",
        "Three ways back under 54.6 MB",
        "ci/memplan gate.toml:7",
    ):
        assert words in text
    commands = [code.text for code in article(0).xpath(".//code")]
    assert commands == [remedy.command for remedy in toy.REMEDIES if remedy.command]
    assert len(article(0).xpath(".//table[contains(@class, 'changes')]/tbody/tr")) == 14


def test_the_largest_layers_stand_in_a_table_that_adds_up() -> None:
    rows = article(0).xpath(".//table[caption[starts-with(., 'The largest layers')]]/tbody/tr")
    shown = [[cell.text for cell in row] for row in rows]
    assert [row[2] for row in shown[:10]] == [f"{14 - number}.0 MB" for number in range(10)]
    # 4 + 3 + 2 + 1 = 10 MB of the other four, and 105 + 1 = 106 MB with the batch.
    assert [row[2] for row in shown[10:]] == ["10.0 MB", "1.0 MB", "106.0 MB"]
    assert shown[0][3] == "13.2 %"  # 14 / 106


def test_the_bars_and_the_lines_of_the_limits_are_on_one_scale() -> None:
    meter = article(0).xpath(".//svg")[0]
    now, before = (float(bar.get("width").rstrip("%")) for bar in meter.iter("rect"))
    limit, budget = (float(line.get("x1").rstrip("%")) for line in meter.iter("line"))
    # 107 MB now and 53.5 MB before, where growth allows 54.57 MB and the budget 64 MB.
    assert now == pytest.approx(100 / 1.04, abs=0.01)
    assert before == pytest.approx(now * 53.5 / 107, abs=0.01)
    assert limit == pytest.approx(now * 54.57 / 107, abs=0.01)
    assert budget == pytest.approx(now * 64 / 107, abs=0.01)
    assert [line.get("class") for line in meter.iter("line")] == ["limit", "budget"]


def test_the_summary_shows_the_check_that_is_the_farthest_above_its_limit() -> None:
    summary = PAGE.get_element_by_id("summary")
    assert "2 of 5 checks fail, 1 could not be analysed." in summary.text_content()
    # 107 / 54.57 is more than 3.4 / 3.1, and 6 / 6 is at its limit.
    assert sizes(summary) == [107_000_000, 54_570_000, 53_500_000]
    assert "52.4 MB above the limit" in summary.text_content()


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        (toy.all_hold(), "good", "All 2 checks hold."),
        (toy.mixed(), "bad", "2 of 5 checks fail"),
        (GateResult((toy.grown(),), "x.toml", warn_only=True), "plain", "1 of 1 check warns"),
        (toy.without_baseline(), "good", "write it with --update-baseline"),
        (toy.empty(), "good", "Nothing was checked"),
    ],
)
def test_the_answer_has_the_verdict_in_words(result: GateResult, kind: str, words: str) -> None:
    page = html.fromstring(html_text(result, toy.VERSION))
    answer = page.xpath("//div[contains(@class, 'answer')]")[0]
    assert answer.get("class") == f"answer {kind}"
    assert words in answer.text_content()


def test_notes_stale_entries_the_machine_and_versions_are_named() -> None:
    text = PAGE.get_element_by_id("about").text_content()
    facts = ("cpu AVX2", "2.13.0", toy.VERSION, toy.CONFIG, "memplan-baseline.json", "4.2 s")
    remarks = ("note: a note", "stale entry of the baseline, of no check: forgotten", "fresh: no baseline")
    for each in (*facts, *remarks):
        assert each in " ".join(text.split())


@pytest.mark.parametrize("name", toy.HOSTILE, ids=ascii)
def test_a_name_is_text_wherever_it_stands(name: str) -> None:
    text = html_text(toy.hostile(name), toy.VERSION)
    page = html.fromstring(text)
    assert len(page.xpath("//script")) == 3
    assert not page.xpath("//img | //article//script | //table//failure")
    assert page.xpath("//table[@id='checks-table']//a")[0].text == (plain(name) or "(no name)")
    assert data_of(page)["texts"][0] == plain(name)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text.partition("<script>")[0])


def test_the_memory_over_the_step_is_that_of_each_check_and_of_its_ways_back() -> None:
    result = toy.with_steps()
    page = html.fromstring(html_text(result, toy.VERSION))
    data = data_of(page)
    holds, _, failing = result.verdicts
    steps = (holds.step, failing.step, failing.remedies[0].step)
    names = ("small: stock full", "wide: stock full", "wide: memplan half")
    for run, step, name in zip(data["runs"], steps, names, strict=True):
        assert step is not None
        footprint = step.footprint
        assert run["label"] == name
        assert (run["peak_bytes"], run["saved_bytes"]) == (footprint.peak_bytes, footprint.saved_bytes)
        for kind, series in series_of(run, data["kinds"]).items():
            assert series == tuple(getattr(footprint.timeline, kind))
    # The nearest to its limit comes first, with its first way back; only a peak has a line in the picture.
    assert data["chosen"] == [1, 2]
    assert [run["limit_bytes"] for run in data["runs"]] == [None, failing.limit_bytes, failing.limit_bytes]
    assert page.xpath("//li[contains(@class, 'budget-key')]")[0].text_content() == "limit"


def test_each_check_has_the_network_of_its_own_model() -> None:
    data = data_of(html.fromstring(html_text(toy.with_steps(), toy.VERSION)))
    assert [run["network"] for run in data["runs"]] == [0, 1, 1]
    calls = [[data["texts"][place] for place in network["layer"]] for network in data["networks"]]
    assert calls == [[f"layers.{number}" for number in range(count)] for count in (2, 4)]


def test_without_steps_there_is_no_picture_of_them() -> None:
    assert not PAGE.xpath("//section[@id='memory' or @id='network']")
    assert data_of(PAGE)["runs"] == data_of(PAGE)["chosen"] == []


def test_a_page_of_many_checks_has_a_row_for_each() -> None:
    page = html.fromstring(html_text(toy.many(30, 20), toy.VERSION))
    assert len(page.xpath("//table[@id='checks-table']/tbody/tr")) == 50
    assert "...and 20 more" in page.get_element_by_id("summary").text_content()


def test_the_option_is_short_for_the_format(tmp_path: Path) -> None:
    file = str(tmp_path / "report.html")
    assert _files([f"html={file}"], {}) == {"html": file} == _files([], {"html": file})
    with pytest.raises(UsageError, match="named twice"):
        _files([f"html={tmp_path / 'other.html'}"], {"html": file})
    with pytest.raises(UsageError, match="named twice"):
        _files([f"json={file}"], {"html": file})


def test_the_option_refuses_standard_output_and_a_place_that_is_not_there(tmp_path: Path) -> None:
    for file, words in (("-", "name a file, such as report.html"), (str(tmp_path / "no" / "a.html"), "no directory")):
        done = CliRunner().invoke(command, ["--html", file], obj={"debug": False})
        assert isinstance(done.exception, UsageError)
        assert words in str(done.exception)


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memplan.gating.gate", lambda *_, **__: MIXED)
    config = tmp_path / "gate.toml"
    config.write_text('[[checks]]\nmodel = "net.py:net"\n')
    file = tmp_path / "report.html"
    done = CliRunner().invoke(
        command, ["--config", str(config), "--html", str(file)], obj={"debug": False}, standalone_mode=False
    )
    assert done.return_value == MIXED.exit_code == 3
    assert data_of(html.fromstring(file.read_text(encoding="utf-8"))) == data_of(PAGE)
