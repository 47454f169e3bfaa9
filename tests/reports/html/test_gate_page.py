"""A gate's page in a browser: its table is sorted, its bars go from modules to layers, and nothing in it can act."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.gate.formats.html import html_text
from memplan.gate.records import Change, GateResult, Verdict
from memplan.units import format_bytes
from tests.gate import toy
from tests.reports.html.conftest import Opener
from tests.reports.html.reading import figures, name_of, table
from tests.reports.html.test_access import NAMELESS


def nested() -> GateResult:
    """Return a check of 10 + 20 + 30 MB in two modules and 5 MB beside them, which were 10 + 10 + 30 and 5 MB."""
    sizes = {"body.a.conv": 10, "body.a.norm": 20, "body.b.conv": 30, "head": 5}
    now = toy.reading(*(toy.layer(name, size * 10**6) for name, size in sizes.items()))
    before = toy.reading(*(toy.layer(name, (10 if size == 20 else size) * 10**6) for name, size in sizes.items()))
    changes = (Change("body.a.norm", "Conv2d", 10**7, 2 * 10**7),)
    check = toy.check("net", budget_bytes=80_000_000)
    return GateResult((Verdict(check, now, before, 80_000_000, changes=changes),), toy.CONFIG, "baseline.json")


def bars(page: Any, place: int = 0) -> Any:
    """Return a check's picture, when it is in view and drawn."""
    found = page.locator(f"[data-bars='{place}']")
    found.scroll_into_view_if_needed()
    found.locator("svg path").first.wait_for(state="attached")
    return found


def names(found: Any) -> list[str]:
    return [
        text
        for text in found.locator("svg text").all_text_contents()
        if text != "peak" and not text.endswith((" MB", " B"))
    ]


def column(page: Any, place: int) -> list[str]:
    return [row[place] for row in table(page, "#checks-table")]


def test_the_checks_are_sorted_by_their_headings(opened: Opener) -> None:
    page = opened(html_text(toy.mixed(), toy.VERSION))
    order = ["deep/stock", "small/saved", "growing", "broken", "fresh"]
    assert column(page, 0) == order
    now = page.locator("#checks-table").get_by_role("button", name="now")
    now.click()
    assert column(page, 0) == ["deep/stock", "small/saved", "growing", "fresh", "broken"]  # 107, 6, 3.4 MB, 12.3 KB
    assert page.locator("#checks-table th[aria-sort=descending]").inner_text().strip() == "now"
    now.press("Enter")
    assert column(page, 0) == ["broken", "fresh", "growing", "small/saved", "deep/stock"]
    now.click()
    assert column(page, 0) == order
    page.locator("#checks-table").get_by_role("button", name="verdict").click()
    assert column(page, 8) == ["error", "fails", "fails", "ok", "ok"]


def test_the_figures_that_one_sees_are_the_verdicts(opened: Opener) -> None:
    page = opened(html_text(toy.mixed(), toy.VERSION))
    assert figures(page, "#check-1 .sizes") == [6_000_000, 6_000_000, 6_000_000, 6_000_000, 8_000_000, 6_000_000]
    assert page.locator("#check-0 .changes data.change").first.inner_text() == "+7.0 MB"  # from 7 to 14 MB


def test_bars_go_from_modules_to_layers_and_back(opened: Opener) -> None:
    page = opened(html_text(nested(), toy.VERSION))
    found = bars(page)
    shown = page.locator("[data-shown='0']")
    assert names(found) == ["body", "head"]
    box = found.bounding_box()
    page.mouse.move(box["x"] + 260, box["y"] + 40)
    assert "3 layers" in found.inner_text()
    # 10 + 10 + 30 before, and 10 + 20 + 30 now
    assert figures(page, "[data-bars='0'] .tip") == [50_000_000, 60_000_000]
    page.mouse.click(box["x"] + 260, box["y"] + 40)
    assert shown.evaluate("shown => shown.selectedOptions[0].text") == "body"
    assert sorted(names(found)) == ["body.a", "body.b.conv"]
    shown.select_option("layers")
    assert names(found) == ["body.b.conv", "body.a.norm", "body.a.conv", "head"]
    page.locator("[data-largest='0']").uncheck()
    assert names(found) == ["body.a.conv", "body.a.norm", "body.b.conv", "head"]
    shown.select_option(label="body.a")
    page.mouse.click(box["x"] + 260, box["y"] + 40)
    assert shown.input_value() == "modules"


def test_a_check_that_holds_is_drawn_when_one_comes_near_and_on_paper(opened: Opener) -> None:
    text = html_text(toy.many(2, 40), toy.VERSION)
    page = opened(text)
    assert page.locator("[data-bars='1'] svg").count() == 1
    assert page.locator("[data-bars='41'] svg").count() == 0
    bars(page, 41)
    page = opened(text)
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.locator("[data-bars] svg").count() == 42


def test_the_memory_and_the_network_are_of_the_check_that_is_chosen(opened: Opener) -> None:
    result = toy.with_steps()
    page = opened(html_text(result, toy.VERSION))
    holds, _, failing = result.verdicts
    first, back, other = failing.step, failing.remedies[0].step, holds.step
    assert first is not None
    assert back is not None
    assert other is not None
    assert figures(page, "#memory figcaption") == [first.footprint.peak_bytes, back.footprint.peak_bytes]
    assert f"limit {format_bytes(first.footprint.peak_bytes - 1)}" in page.locator("#memory svg").first.text_content()
    assert page.locator("#network-run option:checked").inner_text() == "wide: memplan half"
    assert nodes(page) == ["layers.0", "layers.1", "layers.2", "head"]
    page.locator("select[data-run='1']").select_option("small: stock full")
    assert figures(page, "#memory figcaption") == [first.footprint.peak_bytes, other.footprint.peak_bytes]
    assert page.locator("#network-run option:checked").inner_text() == "small: stock full"
    assert nodes(page) == ["layers.0", "head"]
    # Its saved bytes are limited, and its peak is not: there is a line in the other panel alone.
    assert ["limit" in panel.text_content() for panel in page.locator("#memory .memory-chart").all()] == [True, False]
    page.locator("#network-run").select_option("wide: stock full")
    assert nodes(page) == ["layers.0", "layers.1", "layers.2", "head"]
    assert page.evaluate(NAMELESS) == []


def nodes(page: Any) -> list[str]:
    return [name_of(node) for node in page.locator("#network-blocks [role=button]").all()]


@pytest.mark.parametrize("name", [name for name in toy.HOSTILE if name], ids=ascii)
def test_names_are_text_in_tables_and_pictures(opened: Opener, name: str) -> None:
    page = opened(html_text(toy.hostile(name), toy.VERSION))
    found = bars(page)
    box = found.bounding_box()
    page.mouse.move(box["x"] + 260, box["y"] + 40)
    assert found.locator(".tip strong").count() == 1
    page.locator("[data-shown='0']").select_option("layers")
    assert page.locator("img, article script").count() == 0
    assert page.locator("script").count() == 3


def test_everything_has_a_name_and_is_reached_by_keys(opened: Opener) -> None:
    page = opened(html_text(toy.mixed(), toy.VERSION))
    assert page.evaluate(NAMELESS) == []
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('section')?.id"))
    assert {"checks", "verdicts"} <= reached


@pytest.mark.parametrize("width", [320, 1_000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_every_width_in_either_colours(opened: Opener, width: int, scheme: str) -> None:
    page = opened(html_text(toy.mixed(), toy.VERSION), width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = {"light": "rgb(255, 255, 255)", "dark": "rgb(27, 32, 39)"}
    assert page.locator("#check-0").evaluate("each => getComputedStyle(each).backgroundColor") == back[scheme]


def test_without_scripts_the_tables_are_there(opened: Opener) -> None:
    page = opened(html_text(toy.mixed(), toy.VERSION), drawn=False, java_script_enabled=False)
    assert len(table(page, "#checks-table")) == 5
    assert not page.locator("[data-shown='0']").is_visible()
    assert "all, as predicted" in page.inner_text("#check-0")
