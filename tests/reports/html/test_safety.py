"""Nothing in a page is code but the page's own, and nothing in it asks anything of any network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from memplan.reports.html import analysis_page, front_page, planned_page, verification_page
from memplan.reports.html.embedded import to_script
from memplan.results import Analysis
from memplan.tables import plain
from tests.reports import plans, toy
from tests.reports.html.conftest import Opener
from tests.reports.html.reading import data_of
from tests.reports.html.records import HOSTILE, analysis, hostile, method, planned, verification

VERSION = "1.2.3"
PAGES = {
    "analysis": lambda: analysis_page(analysis(), VERSION),
    "plan": lambda: planned_page(planned(), VERSION),
    "front": lambda: front_page(plans.front(), VERSION),
    "verification": lambda: verification_page(verification(), VERSION),
}


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_opens_without_errors_and_without_requests(opened: Opener, kind: str) -> None:
    page = opened(PAGES[kind]())
    assert page.locator("h1").inner_text() == "chain"


def test_names_are_text_wherever_they_stand(opened: Opener) -> None:
    page = opened(analysis_page(hostile(), VERSION))
    assert page.locator("h1").inner_text() == HOSTILE[0]
    assert page.title().startswith(HOSTILE[0])
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 3
    shown = page.locator("#layers-table tbody th").all_text_contents()
    assert set(map(plain, HOSTILE)) <= set(shown)
    nodes = page.locator("#network-blocks [role=button] title").all_text_contents()
    assert all(any(node.startswith(plain(name)) for node in nodes) for name in HOSTILE[:-1])
    for press in ("Home", *["ArrowRight"] * 8):
        page.locator("[data-panel='0'] [role=slider]").press(press)
    bars = page.locator("#layers-bars")
    bars.scroll_into_view_if_needed()
    box = bars.bounding_box()
    for row in range(6):
        page.mouse.move(box["x"] + 300, box["y"] + 39 + 26 * row)
    for node in page.locator("#network-blocks [role=button]").all():
        node.click()
    assert page.locator("img").count() == 0


#: What turns the direction of writing, breaks lines, moves a cursor or rings.
UNSEEN = re.compile("[\\u202a-\\u202e\\u2066-\\u2069\\u2028\\u2029\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f]")


def test_what_one_would_not_see_in_a_name_is_written_out(opened: Opener) -> None:
    names = ("line\nbreak\ttab", "bidi\u202eevil\u2066x", "\x1b[31mred\x07")
    step = toy.chain(len(names))
    layers = (step.layers[0], *(replace(layer, path=name) for layer, name in zip(step.layers[1:], names, strict=True)))
    blocks = tuple(replace(block, path=names[block.index]) for block in step.blocks)
    row = replace(method("full", replace(step, layers=layers, blocks=blocks)), name=names[1])
    setting = replace(toy.SETTING, model=names[0], origin=names[1], inputs=(names[2],))
    page = opened(analysis_page(Analysis(setting, blocks, None, (row,), 0.25, notes=names), VERSION))
    assert page.locator("h1").inner_text() == "line break tab"
    assert "bidi\\u202eevil\\u2066x" in page.inner_text("#memory")
    assert "line break tab" in page.locator("#layers-bars text").all_text_contents()
    assert "\\x1b[31mred\\x07" in page.locator("#layers-table tbody th").all_text_contents()
    slider = page.locator("[data-panel='0'] [role=slider]")
    slider.press("Home")
    seen = [
        page.title(),
        slider.get_attribute("aria-valuetext"),
        *page.locator("body *:not(script)").evaluate_all(
            "all => all.flatMap((e) => [e.textContent, e.title ?? '', e.ariaLabel ?? ''])"
        ),
    ]
    assert not [text for text in seen if UNSEEN.search(text)]


def test_names_in_plans_and_fronts_are_text(opened: Opener) -> None:
    setting = hostile().setting
    point = plans.point(20_000_000, 1)
    front = replace(
        plans.front(replace(point, plan=replace(point.plan, notes=HOSTILE))), setting=setting, notes=HOSTILE
    )
    page = opened(front_page(front, VERSION))
    assert HOSTILE[1] in page.inner_text("#about")
    assert HOSTILE[2] in page.inner_text("article:visible")
    segments = tuple(replace(segment, name=HOSTILE[1]) for segment in planned().segments)
    page = opened(planned_page(replace(planned(), setting=setting, segments=segments, notes=HOSTILE), VERSION))
    assert HOSTILE[1] in page.inner_text("#plan")
    assert page.locator("img").count() == 0


def test_data_cannot_end_their_element() -> None:
    text = to_script({"texts": HOSTILE})
    assert not set(text) & set("<>&\u2028\u2029")
    assert tuple(json.loads(text)["texts"]) == HOSTILE


def test_the_policy_allows_what_is_in_the_page_and_nothing_else() -> None:
    text = PAGES["analysis"]()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].replace("&#39;", "'").split("; "))
    assert rules.keys() == {"default-src", "base-uri", "form-action", "script-src", "style-src"}
    assert {rules[name] for name in ("default-src", "base-uri", "form-action")} == {"'none'"}

    def digests(tag: str) -> list[str]:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        return [f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in found]

    assert rules["script-src"].split() == digests("script")
    assert rules["style-src"].split() == digests("style")
    assert "src=" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("directive", "attempt"),
    [
        ("img-src", "document.createElement('img').src = 'https://example.org/a.png'"),
        ("connect-src", "fetch('https://example.org/').catch(() => null)"),
        ("script-src-attr", "document.body.setAttribute('onclick', 'alert(1)'); document.body.click()"),
        (
            "script-src-elem",
            "document.body.append(Object.assign(document.createElement('script'), {text: 'alert(1)'}))",
        ),
    ],
)
def test_what_would_leave_the_page_or_run_in_it_is_refused(
    chromium, tmp_path: Path, directive: str, attempt: str
) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGES["analysis"](), encoding="utf-8")
    page = chromium.new_page()
    answered: list[str] = []
    page.on("requestfinished", lambda request: answered.append(request.url))
    page.goto(file.as_uri())
    refused = page.evaluate(
        f"""async () => {{
            const refused = new Promise((done) => {{
                document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
                setTimeout(() => done("nothing"), 5000);
            }});
            {attempt};
            return refused;
        }}"""
    )
    page.close()
    assert refused == directive
    assert answered == [file.as_uri()]


def test_the_licences_of_what_is_bundled_are_in_the_page() -> None:
    text = PAGES["front"]()
    for notice in (
        "Apache ECharts\nCopyright 2017",
        "Apache License",
        "Copyright (c) 2017, Baidu Inc.",
        "Chris Pettitt",
    ):
        assert notice in text


def test_the_same_record_gives_the_same_page() -> None:
    assert PAGES["plan"]() == PAGES["plan"]()
    code = (
        "import hashlib; from tests.reports.html.test_safety import PAGES;"
        "print(*(hashlib.sha256(page().encode()).hexdigest() for page in PAGES.values()))"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_five_thousand_layers_open(opened: Opener) -> None:
    page = opened(analysis_page(analysis(5_000), VERSION))
    data = data_of(page)
    assert len(data["runs"][0]["layers"]["path"]) == 5_001
    assert page.inner_text("#layers-count") == "5,001 of 5,001 layers"
    groups = page.locator("#network-blocks [role=button]")
    assert groups.count() <= 120
    groups.last.click()
    assert "layers.4999" in page.inner_text("#network-layers-title") or "head" in page.inner_text(
        "#network-layers-title"
    )
    page.locator("#layers-shown").select_option("layers")
    assert "layers.0" in page.locator("#layers-bars").text_content()
