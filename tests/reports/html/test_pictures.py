"""What hover, click and keys do in the pictures."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from memplan.graph import Block
from memplan.reports.html import analysis_page, front_page, planned_page, verification_page
from memplan.results import Analysis
from tests.reports import plans, toy
from tests.reports.html.conftest import Opener
from tests.reports.html.reading import figures, name_of, table
from tests.reports.html.records import analysis, method, planned, verification

VERSION = "1.2.3"


def told(page: Any, panel: int = 0) -> str:
    return page.locator(f"[data-panel='{panel}'] .told").inner_text()


def plot(page: Any, panel: int = 0) -> dict[str, float]:
    """Return where the area of a panel is on the screen, without the labels beside it."""
    found = page.locator(f"[data-panel='{panel}'] .memory-chart")
    found.scroll_into_view_if_needed()
    box = found.bounding_box()
    return {"x": box["x"] + 70, "y": box["y"] + 22, "width": box["width"] - 84, "height": box["height"] - 30}


def test_pointing_names_the_operator_the_layer_and_what_is_alive(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION))
    area = plot(page)
    page.mouse.move(area["x"] + 2, area["y"] + 40)
    assert "forward of layers.0" in told(page)
    assert "toy, moment 1 of 18" in told(page)
    assert "layers.3" in told(page)
    assert "...and" in told(page)
    page.mouse.move(area["x"] + area["width"] - 2, area["y"] + 40)
    assert "the optimizer's update" in told(page)


def test_both_panels_show_the_same_place_of_the_step(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION))
    area = plot(page)
    page.mouse.move(area["x"] + 2, area["y"] + 40)
    assert "moment 1 of" in told(page, 1)
    assert page.locator("[data-panel='1'] .cursor").is_visible()


def test_a_click_keeps_the_moment_and_leaving_goes_back_to_it(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION))
    peak = told(page)
    area = plot(page)
    page.mouse.move(area["x"] + 2, area["y"] + 40)
    assert told(page) != peak
    page.mouse.move(area["x"] + 20, area["y"] - 200)
    assert told(page) == peak
    page.mouse.click(area["x"] + 2, area["y"] + 40)
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + 40)
    assert "moment 1 of 18" not in told(page)
    page.mouse.move(area["x"] + 20, area["y"] - 200)
    assert "moment 1 of 18" in told(page)
    page.locator("[data-zoom='peak']").click()
    assert told(page) == peak


def test_keys_move_by_one_moment_by_ten_and_to_the_ends(opened: Opener) -> None:
    record = analysis()
    page = opened(analysis_page(record, VERSION))
    slider = page.locator("[data-panel='0'] [role=slider]")
    last = len(record.methods[0].footprint.timeline.totals)
    for key, moment in (("Home", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("PageUp", 11), ("End", last)):
        slider.press(key)
        assert slider.get_attribute("aria-valuenow") == str(moment)
    assert slider.get_attribute("aria-valuemax") == str(last)


def scrolled(page: Any) -> float:
    """Return how far the page is scrolled, two frames after what was done to it."""
    frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(scrollY))))"
    return float(page.evaluate(frames))


def test_a_wheel_scrolls_the_page_and_zooms_with_ctrl(opened: Opener) -> None:
    page = opened(analysis_page(analysis(40), VERSION))
    forward = page.locator("[data-panel='0'] .phase.forward")
    before = forward.bounding_box()["width"]
    page.locator("#layers-shown").select_option("layers")
    for picture in ("[data-panel='0'] .memory-chart", "#layers-bars"):
        found = page.locator(picture)
        found.scroll_into_view_if_needed()
        box = found.bounding_box()
        page.mouse.move(box["x"] + 300, box["y"] + 60)
        start = scrolled(page)
        page.mouse.wheel(0, 60)
        page.wait_for_function("start => scrollY === start + 60", arg=start)
    assert forward.bounding_box()["width"] == before
    area = plot(page)
    page.mouse.move(area["x"] + 2, area["y"] + 40)
    start = scrolled(page)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("before => document.querySelector('.phase.forward').clientWidth > before + 9", arg=before)
    assert scrolled(page) == start


def test_a_finger_scrolls_the_page_over_the_memory(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION), width=400, has_touch=True, is_mobile=True)
    area = plot(page)
    start = scrolled(page)
    session = page.context.new_cdp_session(page)
    point = {"x": area["x"] + 100, "y": area["y"] + 150}
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    for step in range(1, 9):
        moved = {**point, "y": point["y"] - 15 * step}
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [moved]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("start => scrollY > start + 50", arg=start)


def test_the_budget_is_a_line_unless_it_is_far_above_all(opened: Opener) -> None:
    near = opened(analysis_page(analysis(budget_bytes=80_000_000), VERSION))
    assert near.locator(".budget-key").is_visible()
    assert "budget 80.0 MB" in near.locator("[data-panel='0'] .memory-chart").text_content()
    far = opened(analysis_page(analysis(budget_bytes=900_000_000), VERSION))
    assert not far.locator(".budget-key").is_visible()


def test_phases_are_named_below_the_picture(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION))
    assert page.locator("[data-panel='0'] .phase").all_inner_texts() == ["forward", "loss", "backward", "optimizer"]
    before = page.locator("[data-panel='0'] .phase.forward").bounding_box()["width"]
    page.locator("[data-zoom='in']").click()
    assert page.locator("[data-panel='1'] .phase.forward").bounding_box()["width"] != before
    page.locator("[data-zoom='all']").click()
    assert page.locator("[data-panel='0'] .phase.forward").bounding_box()["width"] == before


def test_no_name_of_a_phase_is_cut(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION))
    page.locator("[data-panel='0'] [role=slider]").press("Home")
    page.locator("[data-zoom='in']").click()
    area = plot(page)
    forward = page.locator("[data-panel='0'] .phase.forward")
    width = forward.bounding_box()["width"]
    x, y = area["x"] + width - 5, area["y"] + 40
    page.mouse.move(x, y)
    page.mouse.down()
    named = set()
    for left in range(70, 40, -1):
        page.mouse.move(x - width + left, y)
        assert forward.evaluate("phase => phase.scrollWidth <= phase.clientWidth")
        named.add(forward.inner_text())
    assert named == {"forward", ""}


def test_a_moment_outside_of_what_is_shown_is_moved_to(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION))
    slider = page.locator("[data-panel='0'] [role=slider]")
    for _ in range(3):
        page.locator("[data-zoom='in']").click()
    for key, far in (("Home", "optimizer"), ("End", "forward")):
        slider.press(key)
        assert page.locator("[data-panel='0'] .cursor").is_visible()
        assert page.locator(f"[data-panel='0'] .phase.{far}").evaluate("phase => phase.style.width") == "0px"
    page.locator("[data-zoom='peak']").click()
    assert page.locator("[data-panel='0'] .cursor").is_visible()


def test_a_click_on_a_block_shows_its_layers_and_another_one_all_blocks(opened: Opener) -> None:
    step = toy.chain()
    blocks = (Block(0, "layers.1", "Linear", 1, 1),)
    record = Analysis(toy.SETTING, blocks, None, (method("full", replace(step, blocks=blocks)),), 0.25)
    page = opened(analysis_page(record, VERSION))
    bars = page.locator("#layers-bars")
    assert all(name in bars.text_content() for name in ("stem", "layers.1", "head"))
    bars.scroll_into_view_if_needed()
    box = bars.bounding_box()
    page.mouse.move(box["x"] + 260, box["y"] + 39)
    assert "in stock full: trains" in bars.inner_text()
    assert figures(page, "#layers-bars .tip") == [8_000_000, 16_000_000, 12_000_000]  # a value; two; 3 of 4 MB each
    page.mouse.click(box["x"] + 260, box["y"] + 39)
    assert page.locator("#layers-shown").evaluate("shown => shown.selectedOptions[0].text") == "stem"
    assert "layers.0" in bars.text_content()
    assert "head" not in bars.text_content()
    page.mouse.click(box["x"] + 260, box["y"] + 39)
    assert page.locator("#layers-shown").input_value() == "blocks"


def test_the_table_is_sorted_by_its_headings_and_searched(opened: Opener) -> None:
    record = analysis()
    page = opened(analysis_page(record, VERSION))
    names = [layer.path or "(model)" for layer in record.methods[0].footprint.layers]
    heads = page.locator("#layers-table thead button")
    assert [row[0] for row in table(page, "#layers-table")] == names
    by_saved = page.get_by_role("button", name="Sort by saved, stock full")
    by_saved.click()
    saved = [row[3] for row in table(page, "#layers-table")]
    assert saved == sorted(saved, key=lambda text: -float(text.split()[0]))
    assert page.locator("#layers-table th[aria-sort=descending]").count() == 1
    by_saved.press("Enter")
    assert [row[3] for row in table(page, "#layers-table")] == saved[::-1]
    by_saved.click()
    assert [row[0] for row in table(page, "#layers-table")] == names
    heads.first.click()
    assert [row[0] for row in table(page, "#layers-table")] == sorted(names)
    page.locator("#layers-find").fill("LAYERS.2")
    assert [row[0] for row in table(page, "#layers-table")] == ["layers.2"]
    assert page.inner_text("#layers-count") == f"1 of {len(names)} layers"


def test_a_search_without_a_hit_says_so(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION))
    page.locator("#layers-find").fill("Nowhere")
    assert page.inner_text("#layers-count") == 'No layer matches "Nowhere"'
    assert table(page, "#layers-table") == []


def test_the_table_says_of_which_run_the_state_is_and_keeps_names_in_view(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION), width=400)
    heads = page.locator("#layers-table thead button").all_inner_texts()
    assert heads[2] == "state in stock last"
    name = page.locator("#layers-table tbody th").first
    before = name.bounding_box()["x"]
    page.locator("#layers .scroll").evaluate("region => region.scrollBy(200, 0)")
    assert name.bounding_box()["x"] == before
    alone = opened(verification_page(verification(), VERSION))
    assert alone.locator("#layers-table thead button").all_inner_texts()[2] == "state"


@pytest.mark.parametrize("width", [400, 718, 1_280])
def test_labels_of_bars_stand_apart(opened: Opener, width: int) -> None:
    page = opened(analysis_page(analysis(1_000), VERSION), width=width)
    page.locator("#layers-bars").scroll_into_view_if_needed()
    boxes = page.locator("#layers-bars svg text").evaluate_all(
        "all => all.filter((text) => text.textContent.endsWith(' MB')).map((text) => text.getBoundingClientRect())"
    )
    rows = {box["y"] for box in boxes}
    assert len(rows) == (2 if width < 700 else 1)
    for row in rows:
        found = sorted((box for box in boxes if box["y"] == row), key=lambda box: box["x"])
        assert len(found) >= 4 // len(rows)
        assert all(one["right"] + 12 <= other["left"] for one, other in pairwise(found))


def test_a_graph_of_one_box_is_no_taller_than_that(opened: Opener) -> None:
    page = opened(analysis_page(analysis(1), VERSION))
    assert page.locator("#network-blocks [role=button]").count() == 1
    assert page.locator("#network-blocks").bounding_box()["height"] < 120


def test_a_long_table_begins_short(opened: Opener) -> None:
    page = opened(analysis_page(analysis(40), VERSION))
    assert len(table(page, "#layers-table")) == 16
    page.get_by_role("button", name="Show all 41 layers").click()
    assert len(table(page, "#layers-table")) == 41
    assert not page.locator("#layers-more").is_visible()


def test_blocks_have_the_state_that_the_plan_gives_them(opened: Opener) -> None:
    page = opened(planned_page(planned(), VERSION))
    nodes = page.locator("#network-blocks [role=button]")
    states = {name_of(each): each.get_attribute("class") for each in nodes.all()}
    assert states == {
        "layers.0": "node frozen",
        "layers.1": "node trains",
        "layers.2": "node trains",
        "head": "node trains",
    }
    pruned = page.locator("#network-blocks .node:has(.mark-pruned)").all()
    assert [name_of(each) for each in pruned] == ["layers.1"]


def test_a_block_is_chosen_by_click_and_by_key(opened: Opener) -> None:
    page = opened(planned_page(planned(), VERSION))
    page.locator("#network-blocks [role=button]").first.click()
    assert page.inner_text("#network-layers-title") == "Layers of layers.0"
    assert page.locator("#network-layers .name").all_text_contents() == ["layers.0"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.inner_text("#network-layers-title") == "Layers of layers.1"
    assert name_of(page.locator("#network-blocks [aria-pressed=true]")) == "layers.1"


def test_a_point_of_the_front_shows_its_plan(opened: Opener) -> None:
    page = opened(front_page(plans.front(), VERSION))
    assert page.locator("article:visible h3").all_inner_texts() == ["Plan 1"]
    points = page.locator("#front-points")
    box = points.bounding_box()
    width, height = box["width"] - 54 - 24, box["height"] - 28 - 46
    # 60 of 100 MB to the right, and k = 3 of 3 at the top.
    page.mouse.click(box["x"] + 54 + width * 0.6, box["y"] + 28)
    assert page.locator("article:visible h3").all_inner_texts() == ["Plan 3"]
    assert "60.0 MB: 3 of 3 blocks train" in page.inner_text("article:visible")
    assert "2.0 GFLOPs" in page.inner_text("article:visible")
    page.get_by_role("button", name="Plan 2").press("Enter")
    assert "Treatments: signed-mask." in page.inner_text("article:visible")
    assert page.get_by_role("button", name="Plan 2").get_attribute("aria-pressed") == "true"
    points.scroll_into_view_if_needed()
    box = points.bounding_box()
    page.mouse.move(box["x"] + 54 + width * 0.4, box["y"] + 28 + height / 3)
    page.wait_for_selector("#front-points .tip")
    told = points.locator(".tip").inner_text().replace("\n", " ")
    assert re.search(r"Plan 2: 40\.0 MB.*approximate in 1 block", told)


def test_the_trained_blocks_of_a_plan_are_told_apart(opened: Opener) -> None:
    point = plans.point(40_000_000, 2)
    point = replace(point, plan=replace(point.plan, trained=("layers.1.weight", "layers.2.weight", "layers.3.weight")))
    page = opened(front_page(plans.front(point), VERSION))
    strip = page.locator(".strip li")
    assert [each.get_attribute("class") for each in strip.all()] == ["frozen", "trains", "trains"]
    assert strip.first.inner_text() == "layers.0 is frozen"
    assert figures(page, "#summary")[0] == 80_000_000
