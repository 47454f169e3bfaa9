"""A page can be read and used without a pointer, without colours, on a narrow screen, on paper, and without scripts."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from memplan.gate.formats.html import html_text
from memplan.reports.html import analysis_page, front_page, planned_page
from memplan.reports.sizes import size
from memplan.results import Analysis
from tests.gate import toy as gates
from tests.reports import plans, toy
from tests.reports.html.conftest import Opener
from tests.reports.html.reading import figures
from tests.reports.html.records import analysis, method, planned

VERSION = "1.2.3"

#: Controls and images that no name is computed for, of all that are in view.
NAMELESS = """() => [...document.querySelectorAll("button, select, input, a, [role=slider], [role=button], [role=img]")]
    .filter((each) => each.checkVisibility())
    .filter((each) => !(each.ariaLabel || each.textContent.trim() || each.labels?.length))
    .map((each) => each.outerHTML)"""


#: Boxes of the network whose name reaches into the bytes beside it, or whose text leaves them.
OVERFLOWING = """() => [...document.querySelectorAll("#network .node[role]")].filter((box) => {
    const edge = box.querySelector(".back").getBBox().width;
    const [name, bytes, small] = [...box.querySelectorAll("text")].map((text) => text.getBBox());
    return name.x + name.width > (bytes.width ? bytes.x : edge) || small.x + small.width > edge;
}).map((box) => box.textContent)"""


#: The colours of each label in the memory's picture and of what was drawn below it last, if anything was.
LABELS = """() => [...document.querySelectorAll("[data-panel='0'] .memory-chart svg text")].map((text) => {
    const box = text.getBoundingClientRect();
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    const filled = (shape) => getComputedStyle(shape).fill !== "none";
    const covers = ({ left, right, top, bottom }) => left <= x && x <= right && top <= y && y <= bottom;
    const before = (shape) => text.compareDocumentPosition(shape) & Node.DOCUMENT_POSITION_PRECEDING;
    const below = [...text.ownerSVGElement.querySelectorAll("path[fill]")]
        .filter((shape) => filled(shape) && before(shape) && covers(shape.getBoundingClientRect())).at(-1);
    const card = getComputedStyle(text.closest(".panel")).backgroundColor;
    return [text.textContent, getComputedStyle(text).fill, below ? getComputedStyle(below).fill : card];
})"""

#: The colours of the edges of controls and boxes, and of what they stand on.
EDGES = """() => [...document.querySelectorAll("button, select, input[type=search], .chip.bare, .node.bare .back")]
    .filter((each) => each.checkVisibility() && !each.closest("thead"))
    .map((each) => {
        const style = getComputedStyle(each);
        const on = getComputedStyle(each.closest(".graph") ?? document.body).backgroundColor;
        return [each.outerHTML, each.matches(".back") ? style.stroke : style.borderTopColor, on];
    })"""


def contrast(one: str, other: str) -> float:
    """Return how far two colours are apart in lightness, as WCAG counts it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_labels_and_controls_stand_out_from_what_is_below_them(opened: Opener, scheme: str) -> None:
    # The first layer has no parameters; the budget lies on what is saved.
    step = toy.chain()
    bare = replace(step, parameters=step.parameters[1:])
    row = method("full", bare, budget_bytes=60_000_000)
    record = Analysis(toy.SETTING, step.blocks, 60_000_000, (row,), 0.25)
    page = opened(analysis_page(record, VERSION), color_scheme=scheme)
    page.locator("[data-panel='0']").scroll_into_view_if_needed()
    labels = page.evaluate(LABELS)
    assert {"budget 60.0 MB", size(row.footprint.peak_bytes)} <= {text for text, *_ in labels}
    assert [label for label in labels if contrast(*label[1:]) < 4.5] == []
    edges = page.evaluate(EDGES)
    assert "back" in edges[-1][0]
    assert [edge for edge in edges if contrast(*edge[1:]) < 3] == []


def test_landmarks_and_headings_give_the_order(opened: Opener) -> None:
    page = opened(planned_page(planned(), VERSION))
    for landmark in ("banner", "main", "contentinfo", "navigation"):
        assert page.get_by_role(landmark).count() == 1
    titles = page.locator("section > h2").all_inner_texts()
    assert titles == page.locator("nav a").all_inner_texts()
    assert page.get_by_role("region", name="Memory over the step").count() == 1
    assert page.locator("h1").count() == 1


def test_everything_that_can_be_used_has_a_name(opened: Opener) -> None:
    for text in (planned_page(planned(), VERSION), front_page(plans.front(), VERSION)):
        assert opened(text).evaluate(NAMELESS) == []


def test_every_picture_has_its_figures_as_text(opened: Opener) -> None:
    page = opened(planned_page(planned(), VERSION))
    assert page.get_by_role("slider").count() == 2
    assert "table below has the figures" in page.locator("#layers-bars").get_attribute("aria-label")
    labels = page.locator("#network-blocks [role=button] title").all_text_contents()
    assert all("saved" in label and ("trains" in label or "frozen" in label) for label in labels)


def test_the_keyboard_reaches_every_part(opened: Opener) -> None:
    page = opened(planned_page(planned(), VERSION))
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('section, header, .skip')?.id || 'top'"))
    assert {"top", "memory", "layers", "network"} <= reached
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") is not None


def test_the_focus_is_visible(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION))
    page.keyboard.press("Tab")
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_colours_follow_the_system_and_the_switch(opened: Opener, scheme: str, other: str) -> None:
    page = opened(analysis_page(analysis(), VERSION), color_scheme=scheme)

    def colours() -> tuple[str, set[str]]:
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        fills = page.locator("[data-panel='0'] .memory-chart path").evaluate_all(
            "all => all.map(e => e.getAttribute('fill'))"
        )
        return back, set(fills)

    page_colour = {"light": "rgb(247, 247, 245)", "dark": "rgb(20, 24, 30)"}
    saved = {"light": "#1f6fb2", "dark": "#3f8fd6"}
    assert colours()[0] == page_colour[scheme]
    assert saved[scheme] in colours()[1]
    page.get_by_role("button", name=other.capitalize()).click()
    assert colours()[0] == page_colour[other]
    assert saved[other] in colours()[1]
    page.get_by_role("button", name="Auto").click()
    assert colours()[0] == page_colour[scheme]


@pytest.mark.parametrize("width", [320, 600, 1_000, 1_920])
def test_no_width_makes_the_page_scroll_sideways(opened: Opener, width: int) -> None:
    for text in (planned_page(planned(), VERSION), front_page(plans.front(), VERSION)):
        page = opened(text, width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [400, 1_280])
def test_long_names_make_no_page_scroll_sideways_and_stay_in_their_boxes(opened: Opener, width: int) -> None:
    names = ("n" * 500, "W" * 40, "\N{FULLWIDTH LATIN CAPITAL LETTER W}" * 40)
    step = toy.chain(len(names))
    layers = (step.layers[0], *(replace(layer, path=name) for layer, name in zip(step.layers[1:], names, strict=True)))
    blocks = tuple(replace(block, path=names[block.index]) for block in step.blocks)
    row = replace(method("full", replace(step, layers=layers, blocks=blocks)), name=names[1])
    setting = replace(toy.SETTING, model=names[0], origin=names[0], inputs=names)
    record = Analysis(setting, blocks, None, (row, replace(row, name=names[0])), 0.25, notes=names)
    gate = html_text(gates.hostile("n" * 60), VERSION)
    for text in (analysis_page(record, VERSION), gate):
        page = opened(text, width=width)
        page.locator("#layers-bars, .check-bars").first.scroll_into_view_if_needed()
        page.locator("#layers-bars, .check-bars").first.hover(position={"x": 200, "y": 45})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERFLOWING) == []


def test_pictures_follow_the_width_of_the_window(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION))
    wide = page.locator("[data-panel='0'] .memory-chart svg").bounding_box()["width"]
    page.set_viewport_size({"width": 500, "height": 900})
    page.wait_for_function("wide => document.querySelector('.memory-chart svg').clientWidth < wide - 100", arg=wide)
    assert page.locator("#layers-bars svg").bounding_box()["width"] <= 500


def test_on_paper_there_are_figures_and_no_controls(opened: Opener) -> None:
    page = opened(analysis_page(analysis(), VERSION), color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert not page.locator("#layers-find").is_visible()
    assert page.locator("#layers-table").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_what_was_not_drawn_yet_is_drawn_before_it_is_printed(opened: Opener) -> None:
    never = "window.requestIdleCallback = () => 0; window.IntersectionObserver = class { observe() {} unobserve() {} };"
    page = opened(planned_page(planned(), VERSION), drawn=False, script=never)
    pictures = page.locator(".memory-chart svg, #layers-bars svg, .graph > svg")
    assert pictures.count() == 1
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert pictures.count() == 5  # two steps, the bars, the blocks, and the layers of one of them
    assert len(figures(page, "#layers-table tfoot")) == 6


def test_paper_has_all_layers_and_says_which_bars_it_has(opened: Opener) -> None:
    page = opened(analysis_page(analysis(40), VERSION), width=718)  # of an A4 page between its margins
    rows = page.locator("#layers-table tbody tr")
    assert rows.count() == 16
    page.locator("#layers-shown").select_option("layers")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert rows.count() == 41
    table = page.locator("#layers-table").bounding_box()
    assert table["x"] + table["width"] <= 718
    assert page.locator("#layers-bars").get_attribute("data-part") == "The first 24 of 41 bars"
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert rows.count() == 16
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert rows.count() == 16


def test_paper_has_every_plan_of_a_front(opened: Opener) -> None:
    page = opened(front_page(plans.front(), VERSION))
    assert page.locator("article:visible").count() == 1
    page.emulate_media(media="print")
    assert page.locator("article:visible").count() == 3


def test_what_comes_into_view_is_drawn_before_what_does_not(opened: Opener) -> None:
    never = "window.requestIdleCallback = () => 0;"
    page = opened(planned_page(planned(), VERSION), drawn=False, script=never)
    assert page.locator("#network-blocks svg").count() == 0
    page.evaluate("document.getElementById('network').scrollIntoView()")
    page.locator("#network-blocks svg").wait_for(state="attached")


def test_without_scripts_the_tables_are_there(opened: Opener) -> None:
    record = analysis()
    page = opened(analysis_page(record, VERSION), drawn=False, java_script_enabled=False)
    assert len(figures(page, "#methods")) == 4 * len(record.methods)
    assert not page.locator("#layers-find").is_visible()
    assert page.inner_text("noscript") == "The pictures and the table of layers need JavaScript, which is off."


def test_no_line_ends_between_a_number_and_its_unit(opened: Opener) -> None:
    page = opened(planned_page(planned(), VERSION), width=320)
    sizes = page.locator("#summary .sentences .size, #summary .headline .size, #methods data, .told data, .kinds data")
    assert sizes.count() > 8
    assert set(sizes.evaluate_all("all => all.map((size) => size.getClientRects().length)")) == {1}
    left = page.locator("#summary .sentences").evaluate(
        "list => [...list.querySelectorAll('li')].flatMap((line) => [...line.childNodes])"
        ".filter((node) => node.nodeType === Node.TEXT_NODE && /\\d [KMG]?B\\b/.test(node.data)).length"
    )
    assert left == 0
