"""Markdown for pull requests, read back as a browser would show it: figures are the JSON's, and names are text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
from lxml import html
from markdown_it import MarkdownIt

from memplan.memory import Footprint
from memplan.memory.accounting import Accounted
from memplan.planner.records import Budget
from memplan.reports.console import at_peak
from memplan.reports.front import front_to_json
from memplan.reports.machine import analysis_to_json, verification_to_json
from memplan.reports.markdown import (
    analysis_markdown,
    front_markdown,
    planned_markdown,
    verification_markdown,
)
from memplan.reports.markdown_signs import code, code_html, prose
from memplan.reports.plan_file import Asked, planned_to_json
from memplan.results import Analysis, Planned, Setting
from memplan.tables import plain
from memplan.units import format_bytes
from tests.gate.toy import HOSTILE
from tests.reports.plans import PLAN, SEGMENTS, front, planned, point
from tests.reports.toy import SETTING, analysis, verification

Golden = Callable[[str, str], None]

VERSION = "0.1.0"

#: What memplan's own Markdown becomes; nothing else may.
TAGS = {"code", "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "p", "h3", "strong"}
TAGS |= {"sub", "div"}

ANALYSIS = dataclasses.replace(
    analysis(budget_bytes=70_000_000, notes=("a note",), unpriced=("a thing",)), suggestion=planned()
)

TEXTS: dict[str, Callable[[], str]] = {
    "analysis": lambda: analysis_markdown(ANALYSIS, VERSION),
    "planned": lambda: planned_markdown(planned(), VERSION),
    "front": lambda: front_markdown(front(), VERSION),
    "verification": lambda: verification_markdown(verification(), VERSION),
}


def page(text: str) -> html.HtmlElement:
    """Return what a browser makes of it."""
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    return html.fragment_fromstring(rendered, create_parent="div")


def rows(table: html.HtmlElement) -> list[list[str]]:
    return [[cell.text_content().strip() for cell in row.iter("td")] for row in table.iter("tr")][1:]


def headings(table: html.HtmlElement) -> list[str]:
    return [cell.text_content().strip() for cell in table.iter("th")]


def details(document: html.HtmlElement, summary: str) -> html.HtmlElement:
    (found,) = [each for each in document.iter("details") if each.find("summary").text_content().startswith(summary)]
    return found


def mb(size_bytes: int) -> str:
    return format_bytes(size_bytes)


@pytest.mark.parametrize("name", TEXTS)
def test_reports_are_written_as_ever(name: str, golden: Golden) -> None:
    golden(f"{name}.md", TEXTS[name]())


@pytest.mark.parametrize("name", TEXTS)
def test_a_report_begins_with_what_finds_it_again_and_has_the_answer_before_the_details(name: str) -> None:
    text = TEXTS[name]()
    command = {"analysis": "analyze", "planned": "plan", "front": "pareto", "verification": "verify"}[name]
    assert text.startswith(f"<!-- memplan {command} -->\n### memplan {command}: `chain`\n\n")
    above = text.partition("<details>")[0]
    assert "\n**" in above
    assert "\n|" in above
    assert len(above.splitlines()) < 30
    assert text.count("<details>") == text.count("</details>")
    assert {element.tag for element in page(text).iter() if isinstance(element.tag, str)} <= TAGS


def test_the_methods_are_the_jsons() -> None:
    data = analysis_to_json(ANALYSIS, VERSION)
    table = next(page(analysis_markdown(ANALYSIS, VERSION)).iter("table"))
    assert headings(table) == [
        *("runner", "method", "saved", "temp", "resident", "peak", "trains", "FLOPs", "gradients", "70.0 MB")
    ]
    for row, method in zip(rows(table), data["methods"], strict=True):
        label = method["name"] if method["k"] is None else f"{method['name']} k={method['k']}"
        sizes = [mb(method[f"{kind}_bytes"]) for kind in ("saved", "temp", "resident", "peak")]
        work = f"{(method['flops_forward'] + method['flops_backward']) / 1e3:.1f} k"
        trains = f"{method['trained_parameters'] / 1e6:.2f} M"
        fits = "yes" if method["fits"] else "no"
        assert row == [method["runner"], label, *sizes, trains, work, method["gradients"], fits]


def test_the_peaks_storages_are_the_jsons_and_add_up_to_it() -> None:
    peak = analysis_to_json(ANALYSIS, VERSION)["methods"][0]["peak"]
    folded = details(page(analysis_markdown(ANALYSIS, VERSION)), "Where stock full peaks: backward of layers.3, toy")
    kinds = ", ".join(f"{kind} {mb(peak[f'{kind}_bytes'])}" for kind in ("resident", "saved", "temp"))
    assert f"{mb(peak['bytes'])} alive: {kinds}" in [line.text_content() for line in folded.iter("p")]
    (table,) = folded.iter("table")
    sizes = [float(row[0].removesuffix(" MB")) for row in rows(table)]
    assert sum(sizes) == peak["bytes"] / 1e6
    named = [(mb(each.bytes), each.kind) for each in at_peak(ANALYSIS.methods[0].footprint)[:4]]
    assert [tuple(row[:2]) for row in rows(table)[:-1]] == named
    assert rows(table)[-1][1:] == ["", f"...and {len(at_peak(ANALYSIS.methods[0].footprint)) - 4} more"]


def added_up(table: list[list[str]], column: int) -> float:
    return sum(float(row[column].removesuffix(" MB")) for row in table)


def test_the_layers_are_the_jsons_and_columns_add_up() -> None:
    layers = analysis_to_json(ANALYSIS, VERSION)["methods"][0]["layers"]
    (table,) = details(page(analysis_markdown(ANALYSIS, VERSION)), "Layers of stock full").iter("table")
    quantities = ("saved_bytes", "temp_bytes", "gradient_bytes", "parameter_bytes", "state_bytes")
    *shown, total = rows(table)
    expected = {each["name"] or "(model)": [each["type"], *(mb(each[name]) for name in quantities)] for each in layers}
    assert {row[0]: row[1:] for row in shown} == expected
    assert total[:2] == ["all", ""]
    for column, name in enumerate(quantities, start=2):
        if name == "temp_bytes":
            assert total[column] == f"max {mb(max(each[name] for each in layers))}"
        else:
            assert total[column] == mb(sum(each[name] for each in layers))
            assert added_up(shown, column) == added_up([total], column)


def test_the_blocks_are_the_jsons_layers_and_columns_add_up() -> None:
    record = dataclasses.replace(ANALYSIS, suggestion=None)
    data = analysis_to_json(record, VERSION)
    (table,) = details(page(analysis_markdown(record, VERSION)), "Blocks").iter("table")
    assert headings(table) == [
        *("block", "saved, stock full", "temp, stock full", "saved, stock top-k k=1", "temp, stock top-k k=1")
    ]
    *shown, total = rows(table)
    paths = {"head": "layers.3", "(model)": ""}
    for place, method in enumerate(data["methods"]):
        layers = {each["name"]: each for each in method["layers"]}
        for row in shown:
            own = layers[paths.get(row[0], row[0])]
            assert row[1 + 2 * place : 3 + 2 * place] == [mb(own["saved_bytes"]), mb(own["temp_bytes"])]
        assert total[1 + 2 * place] == mb(method["saved_bytes"])
        assert added_up(shown, 1 + 2 * place) == method["saved_bytes"] / 1e6
        assert total[2 + 2 * place] == f"max {mb(max(each['temp_bytes'] for each in method['layers']))}"


def test_a_plan_is_the_jsons() -> None:
    data = planned_to_json(planned(), Asked(), VERSION)
    document = page(planned_markdown(planned(), VERSION))
    table = next(document.iter("table"))
    for row, run in zip(rows(table), (data["stock"], data["predicted"]), strict=True):
        assert row[1:5] == [mb(run[f"{kind}_bytes"]) for kind in ("saved", "temp", "resident", "peak")]
        assert row[5] == f"{run['trained_parameters'] / 1e6:.2f} M"
        assert row[6] == f"{(run['flops_forward'] + run['flops_backward']) / 1e3:.1f} k"
    told = [item.text_content() for item in document.iter("li")]
    budget, spare = data["budget"]["bytes"], data["margin_bytes"]
    assert told[0] == f"predicted peak {mb(data['predicted']['bytes'])} of {mb(budget)}, {mb(spare)} to spare"
    (segments,) = details(document, "What each segment does").iter("table")
    assert rows(segments) == [
        [each["name"], "yes" if each["trained"] else "no", mb(each["kept_bytes"]), ", ".join(each["treatments"])]
        for each in data["segments"]
    ]
    (savings,) = details(document, "What each saving bought").iter("table")
    expected = sorted(data["savings"], key=lambda each: -each["bytes"])
    assert [(row[0], row[1]) for row in rows(savings)] == [
        (each["treatment"], f"+{mb(each['bytes'])}") for each in expected
    ]
    (channels,) = details(document, "Channels kept").iter("table")
    assert rows(channels) == [["layers.1", "24", "32"]]
    upgrade = data["next"][0]
    assert f"Next: {upgrade['what']}: {mb(upgrade['bytes'] - budget)} more, a budget of {mb(upgrade['bytes'])}." in told
    assert "optimizer momentum (in-backward)" in document.find("p/sub").text_content()


def test_a_front_is_the_jsons() -> None:
    data = front_to_json(front(), VERSION)
    (table,) = page(front_markdown(front(), VERSION)).iter("table")
    assert rows(table) == [
        [
            mb(each["bytes"]),
            str(each["k"]),
            f"{each['approximations']} block{'' if each['approximations'] == 1 else 's'}",
            f"{each['flops'] / 1e9:.1f} G",
            f"{each['bytes'] / data['stock_bytes']:.0%}",
            ", ".join(each["treatments"]) or "none",
        ]
        for each in data["points"]
    ]


def test_a_verification_is_the_jsons() -> None:
    record = verification(measured_saved_bytes=32_000_001, measured_bytes=100_000_000)
    data = verification_to_json(record, VERSION)
    document = page(verification_markdown(record, VERSION))
    (table,) = document.iter("table")
    assert rows(table) == [
        ["saved", mb(data["predicted_saved_bytes"]), mb(data["measured_saved_bytes"]), "-1 B"],
        *(
            [
                f"peak, step {each['number']}",
                mb(each["predicted_peak_bytes"]),
                mb(each["measured_peak_bytes"]),
                f"{each['error']:+.2%}",
            ]
            for each in data["steps"]
        ),
    ]
    answers = [each.text_content() for each in document.iter("strong")]
    assert answers == [
        "Does not hold: saved bytes differ, worst peak -12.00%; allowed are peaks from step 2 within -1% and +3%.",
        "Does not fit in 90.0 MB: the highest peak is 100.0 MB, 10.0 MB more.",
    ]


def test_an_accounting_is_folded_with_its_figures() -> None:
    account = Accounted("tinytl", 1_000_000, 2_000_000, 3_000_000, "a", 4_000_000, 7_000_000, (), ("a note of it",))
    methods = (dataclasses.replace(ANALYSIS.methods[0], accounted=account),)
    document = page(analysis_markdown(dataclasses.replace(ANALYSIS, methods=methods), VERSION))
    folded = details(document, "By the accounting of tinytl, which is not what PyTorch needs")
    (table,) = folded.iter("table")
    assert rows(table) == [["stock full", "1.0 MB", "3.0 MB", "4.0 MB", "7.0 MB"]]
    assert [item.text_content() for item in folded.iter("li")] == ["a note of it"]


def test_the_same_bytes_give_the_same_text_however_long_it_took() -> None:
    assert analysis_markdown(dataclasses.replace(ANALYSIS, seconds=9.0), VERSION) == TEXTS["analysis"]()
    assert planned_markdown(planned(seconds=(9.0, 9.0)), VERSION) == TEXTS["planned"]()
    other = dataclasses.replace(verification(), rss_bytes=1, rss_before_bytes=2)
    assert verification_markdown(other, VERSION) == TEXTS["verification"]()
    assert not re.search(r"\d s\b|second(?!\ step)s", "".join(text() for text in TEXTS.values()))


def test_without_a_budget_nothing_is_said_to_fit() -> None:
    text = analysis_markdown(analysis(), VERSION)
    assert "**" not in text
    assert "budget" not in text
    assert "yes" not in text


def test_why_there_is_no_plan_is_said() -> None:
    record = dataclasses.replace(analysis(budget_bytes=1), no_suggestion="the smallest budget is 1_2 MB")
    said = [line.text_content() for line in page(analysis_markdown(record, VERSION)).iter("p")]
    assert "No plan: the smallest budget is 1_2 MB" in said


def test_remarks_and_points_beyond_what_is_named_are_counted() -> None:
    notes = tuple(f"note {number}" for number in range(30))
    told = [item.text_content() for item in page(analysis_markdown(analysis(notes=notes), VERSION)).iter("li")]
    assert told == [*notes[:10], "...and 20 more"]
    text = front_markdown(front(*(point(10**6 * k, k) for k in range(70))), VERSION)
    assert len(rows(next(page(text).iter("table")))) == 50
    assert "\n...and 20 plans more\n" in text


def hostile(name: str) -> tuple[Analysis, Planned, Setting]:
    """Return records in which every text that comes from a model is ``name``."""
    setting = dataclasses.replace(SETTING, model=name, origin=name, inputs=(name,))

    def of(footprint: Footprint) -> Footprint:
        layers = tuple(dataclasses.replace(each, path=name, type=name) for each in footprint.layers)
        alive = tuple(dataclasses.replace(each, layer=name, op=name) for each in footprint.peak.alive)
        peak = dataclasses.replace(footprint.peak, layer=name, op=name, alive=alive)
        return dataclasses.replace(footprint, layers=layers, peak=peak, unpriced=(name,))

    plan = dataclasses.replace(PLAN, notes=(name,), untreated=(name,))
    segments = tuple(dataclasses.replace(each, name=name, path=name, channels=((name, 1, 2),)) for each in SEGMENTS)
    base = planned()
    blocks = tuple(dataclasses.replace(each, path=name, type=name) for each in base.blocks[:1])
    found = planned(
        setting=setting,
        plan=plan,
        segments=segments,
        blocks=blocks,
        footprint=of(base.footprint),
        stock=of(base.stock),
        notes=(name,),
    )
    record = analysis(budget_bytes=70_000_000, notes=(name,))
    methods = tuple(dataclasses.replace(each, footprint=of(each.footprint)) for each in record.methods)
    return (
        dataclasses.replace(record, setting=setting, methods=methods, blocks=blocks, suggestion=found),
        found,
        setting,
    )


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_name_becomes_anything_but_text(name: str) -> None:
    record, found, setting = hostile(name)
    texts = (
        analysis_markdown(record, name),
        planned_markdown(found, name),
        front_markdown(dataclasses.replace(front(), setting=setting, notes=(name,)), name),
        verification_markdown(
            dataclasses.replace(verification(), setting=setting, method=name, quantity=name, notes=(name,)), name
        ),
    )
    for text in texts:
        document = page(text)
        elements = [element for element in document.iter() if isinstance(element.tag, str)]
        assert {element.tag for element in elements} <= TAGS
        assert {key for element in elements for key in element.attrib} <= {"style"}  # of a cell: its alignment
        for table in document.iter("table"):
            assert {len(row) for row in rows(table)} == {len(headings(table))}
        # Outside of code nobody is called and nothing is linked or referred to.
        words = "".join(document.xpath("//text()[not(ancestor::code)]"))
        assert not re.search(r"[@#]\w|://|GH-\d|www\.", words)
        assert text.count("<details>") == len(list(document.iter("details")))
    shown = plain(name) if len(plain(name)) <= 120 else f"{name[:97]}...{name[-20:]}"
    (segments,) = details(page(texts[1]), "What each segment does").iter("table")
    assert [row[0] for row in rows(segments)] == [shown.strip()] * len(SEGMENTS)


def test_a_plain_name_is_readable_before_it_is_rendered() -> None:
    assert code("features.3.block.0/conv_1") == "`features.3.block.0/conv_1`"
    assert code("a|b") == "<code>a&#124;b</code>"
    assert code("") == "<code> </code>"
    assert code_html("features.3") == "<code>features&#46;3</code>"
    assert prose("features.3_a <b>") == "features.3&#95;a &lt;b&gt;"


@pytest.mark.parametrize(
    "text", ["# 1", "- item", "1. item", "+ item", "> quote", "===", "www.example.org GH-12", "@a"]
)
def test_a_sentence_begins_nothing_and_calls_nobody(text: str) -> None:
    item = page(f"- {prose(text)}").find("ul/li")
    assert item.text_content().strip().replace("\u2060", "") == text
    assert not list(item)
    assert not re.search(r"[@#]\w|GH-\d|www\.", item.text_content())


def test_a_budget_on_something_else_is_called_that() -> None:
    text = planned_markdown(planned(budget=Budget(80_000_000, "kept"), bytes=24_000_000), VERSION)
    assert "- predicted kept for the backward 24.0 MB of 80.0 MB, 56.0 MB to spare\n" in text


@pytest.mark.parametrize("name", TEXTS)
def test_a_report_is_short(name: str) -> None:
    assert len(TEXTS[name]()) < 5_000


def test_a_large_analysis_fits_into_a_comment() -> None:
    record: Any = dataclasses.replace(ANALYSIS, methods=ANALYSIS.methods * 20)
    # GitHub refuses a comment of more characters.
    assert len(analysis_markdown(record, VERSION)) < 65_536
