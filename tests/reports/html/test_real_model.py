"""The page of a real ResNet-50: small, quick to open, and right about blocks, residuals and the plan's states."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.analysis import analyze
from memplan.reports.html import analysis_page, planned_page
from memplan.results import Analysis
from tests.reports.html.conftest import Opener
from tests.reports.html.reading import data_of, figures, name_of, series_of

VERSION = "1.2.3"


@pytest.fixture(scope="module")
def record() -> Analysis:
    return analyze("resnet50", batch_size=8, methods=("full", "last"), budget="300MB", suggest=True)


@pytest.fixture(scope="module")
def text(record: Analysis) -> str:
    return analysis_page(record, VERSION)


def around(page: Any, where: str) -> int:
    return page.locator(f"#{where} .link.around").count()


def test_the_page_is_below_two_megabytes(record: Analysis, text: str) -> None:
    assert record.suggestion is not None
    assert len(text.encode()) < 2_000_000
    assert len(planned_page(record.suggestion, VERSION).encode()) < 2_000_000


#: What stands on the page when the memory over the step is first drawn.
AT_FIRST = """
    window.atFirst = null;
    new MutationObserver(() => {
        if (atFirst !== null || !document.querySelector("[data-panel='0'] .memory-chart svg path")) return;
        const network = document.querySelectorAll("#network-blocks [role=button]").length;
        window.atFirst = { network, all: document.documentElement.dataset.drawn !== undefined };
    }).observe(document, { subtree: true, childList: true });
"""


def test_the_first_picture_does_not_wait_for_the_others(opened: Opener, text: str) -> None:
    page = opened(text, script=AT_FIRST)
    assert page.evaluate("atFirst") == {"network": 0, "all": False}
    assert page.locator("#network-blocks [role=button]").count() > 0


def test_the_data_add_up_to_the_plan_and_to_stock(opened: Opener, record: Analysis, text: str) -> None:
    data = data_of(opened(text))
    assert record.suggestion is not None
    prints = [*(method.footprint for method in record.methods), record.suggestion.footprint]
    assert [run["label"] for run in data["runs"]] == ["stock full", "stock last", "best plan in 300.0 MB"]
    assert data["chosen"] == [0, 2]
    for run, footprint in zip(data["runs"], prints, strict=True):
        timeline = footprint.timeline
        assert series_of(run, data["kinds"]) == {kind: getattr(timeline, kind) for kind in data["kinds"]}
        assert run["peak_bytes"] == footprint.peak_bytes


def test_at_its_peak_a_panel_names_what_the_analysis_names(opened: Opener, record: Analysis, text: str) -> None:
    page = opened(text)
    peak = record.methods[0].footprint.peak
    told = page.locator("[data-panel='0'] .told")
    assert f"{peak.phase} of {peak.layer}" in told.inner_text()
    assert figures(page, "[data-panel='0'] .told")[:4] == [
        peak.bytes,
        peak.resident_bytes,
        peak.saved_bytes,
        peak.temp_bytes,
    ]
    assert figures(page, "[data-panel='0'] .told")[4] == max(alive.bytes for alive in peak.alive)


def test_every_bottleneck_has_its_residual(opened: Opener, text: str) -> None:
    page = opened(text)
    assert page.locator("#network-blocks [role=button]").count() == 18  # the stem, 3 + 4 + 6 + 3 blocks, the head
    assert around(page, "network-blocks") == 16
    page.get_by_role("button", name="layer1.1,").click()
    names = page.locator("#network-layers .name").all_text_contents()
    own = ["conv1", "bn1", "relu", "conv2", "bn2", "relu (again)", "conv3", "bn3", "layer1.1", "relu (again)"]
    assert names == own
    assert around(page, "network-layers") == 1  # from the block's input to the addition
    page.get_by_role("button", name="layer1.0,").click()
    assert "downsample.0" in page.locator("#network-layers .name").all_text_contents()


def test_blocks_have_the_states_of_the_plan(opened: Opener, record: Analysis, text: str) -> None:
    page = opened(text)
    assert record.suggestion is not None
    segments = {segment.name: segment for segment in record.suggestion.segments}
    nodes = page.locator("#network-blocks [role=button]").all()
    assert len(nodes) == len(segments)
    for node in nodes:
        segment = segments[name_of(node)]
        assert node.get_attribute("class") == ("node trains" if segment.trained else "node frozen")
        assert bool(node.locator(".mark-recomputed").count()) == ("recompute" in segment.treatments)
    page.locator("#network-run").select_option(label="stock full")
    assert page.locator("#network-blocks .node.trains").count() == 18
