"""What notebooks show of records: exact bytes in tables in which no name can act, and records for pandas."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pandas
import pytest
from lxml import html

from memplan.graph import Block
from memplan.memory import Footprint, price
from memplan.methods import Plan
from memplan.methods.plan import LiteBranch, Microbatch, TreatedLayer, TunedPair
from memplan.methods.treatments.lite_residual import LiteShape
from memplan.reports.front import front_to_json
from memplan.reports.machine import analysis_to_json, verification_to_json
from memplan.reports.plan_file import Asked, planned_to_json
from memplan.results import Analysis, Front, Planned, Verification
from memplan.tables import SHOWN, Shown, Table, plain
from tests.gate.toy import HOSTILE
from tests.reports.plans import PLAN, front, planned
from tests.reports.toy import SETTING, analysis, chain, verification
from tests.test_torch_free import run

RECORDS: dict[str, Shown] = {
    "footprint": price(chain(), "momentum"),
    "plan": PLAN,
    "analysis": analysis(budget_bytes=70_000_000),
    "planned": planned(),
    "front": front(),
    "verification": verification(),
}

TAGS = {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}


def shown(record: Shown) -> html.HtmlElement:
    return html.fragment_fromstring(record._repr_html_(), create_parent="div")


def table(record: Shown) -> tuple[list[str], list[list[str]]]:
    """Return the headings and rows of what a notebook shows."""
    page = shown(record)
    headings = [cell.text_content() for cell in page.iter("th")]
    return headings, [[cell.text_content() for cell in row.iter("td")] for row in page.iter("tr")][1:]


@pytest.mark.parametrize("name", RECORDS)
def test_a_notebook_gets_html_and_everything_else_gets_text(name: str) -> None:
    record = RECORDS[name]
    bundle = record._repr_mimebundle_(include=None, exclude=None)
    assert bundle.keys() == {"text/plain", "text/html"}
    assert bundle["text/html"] == record._repr_html_()
    assert {element.tag for element in shown(record).iter()} <= TAGS
    headings, rows = table(record)
    lines = bundle["text/plain"].splitlines()
    assert lines[0] == shown(record).find("p").text_content()
    assert lines[1].split() == " ".join(headings).split()
    assert [line.split() for line in lines[2:]] == [" ".join(row).split() for row in rows]
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_plain_and_pandas_takes_them(name: str) -> None:
    records: Any = RECORDS[name].to_records()  # type: ignore[attr-defined]
    assert all(type(value) in (str, int, bool, type(None)) for record in records for value in record.values())
    frame = pandas.DataFrame(records)
    assert list(frame.columns) == list(records[0])
    assert len(frame) == len(records)
    for column in frame.columns:
        if column.endswith("bytes"):
            assert frame[column].dtype == "int64"
            assert frame[column].sum() == sum(record[column] for record in records)


def test_the_layers_in_pandas_are_the_jsons() -> None:
    layers = analysis_to_json(analysis(), "0.1.0")["methods"][0]["layers"]
    footprint = analysis().methods[0].footprint
    frame = pandas.DataFrame(footprint.to_records())
    assert frame.rename(columns={"path": "name"}).to_dict("records") == layers
    assert frame["saved_bytes"].sum() == footprint.saved_bytes == 4 * 8_000_000


def test_a_footprint_is_shown_in_exact_bytes_that_add_up() -> None:
    footprint = price(chain(20), "momentum")
    headings, rows = table(footprint)
    assert headings == [
        "path",
        "type",
        *(f"{name} bytes" for name in ("saved", "temp", "parameter", "gradient", "state")),
    ]
    assert len(rows) == 10 + 1 + 1  # the rest, and all
    *named, rest, total = [[int(cell.replace(",", "")) for cell in row[2:]] for row in rows]
    for column, sums in enumerate(zip(*named, rest, strict=True)):
        assert total[column] == (max(sums) if column == 1 else sum(sums))
    assert [rows[10][0], rows[11][0]] == ["...and 11 more", "all, or the largest temp"]
    # 20 layers keep inputs of 8 MB, and have weights, gradients and momenta of 4 MB each.
    assert (total[0], total[2:]) == (20 * 8_000_000, [20 * 4_000_000] * 3)
    words = shown(footprint).find("p").text_content()
    assert words == (
        f"peak {footprint.peak_bytes:,} bytes in the backward of layers.19; saved 160,000,000, "
        f"at most {footprint.temp_bytes:,} temp, at most {footprint.resident_bytes:,} resident"
    )


def test_an_update_that_is_the_peak_and_a_model_without_a_path_have_names() -> None:
    footprint = price(chain())
    for changes, words in (
        ({"phase": "optimizer", "layer": ""}, "in the optimizer's update;"),
        ({"phase": "forward", "layer": ""}, "in the forward of (model);"),
    ):
        changed = dataclasses.replace(footprint, peak=dataclasses.replace(footprint.peak, **changes))
        assert words in shown(changed).find("p").text_content()
    assert "(model)" in [row[0] for row in table(footprint)[1]]
    assert "" in [record["path"] for record in footprint.to_records()]


def test_a_plan_lists_what_is_done_where() -> None:
    plan = Plan(
        method="own",
        k=1,
        trained=("a.weight",),
        layers=(TreatedLayer("", ("lean-frozen",)), TreatedLayer("a", ("bitmask", "recompute"))),
        tuned=(TunedPair("b.conv", "b.norm"),),
        int8=("a",),
        lite=(LiteBranch("c", LiteShape(8, 8, 8, 3, 1, 1, None, "batch")),),
        pruned=PLAN.pruned,
        microbatch=Microbatch("d", 2),
    )
    assert plan.to_records() == [
        {"path": "", "treatments": "lean-frozen"},
        {"path": "a", "treatments": "bitmask, recompute, frozen-int8"},
        {"path": "b.conv", "treatments": "tune"},
        {"path": "b.norm", "treatments": "tune"},
        {"path": "c", "treatments": "lite-residual"},
        {"path": "layers.1", "treatments": "prune"},
        {"path": "d", "treatments": "prefix-microbatch"},
    ]
    words = shown(plan).find("p").text_content()
    assert words.startswith("own k=1: 1 tensor trains, gradients exact; treatments: lean-frozen, bitmask, recompute, ")
    assert table(plan)[1][0] == ["(model)", "lean-frozen"]


def test_a_plan_without_treatments_has_no_table() -> None:
    plan = Plan("full", None, ("a", "b"))
    assert plan._repr_html_() == "<p>full: 2 tensors train, gradients exact; treatments: none</p>"
    assert plan._repr_mimebundle_()["text/plain"] == "full: 2 tensors train, gradients exact; treatments: none"


def test_an_analysis_is_the_jsons() -> None:
    record = analysis(budget_bytes=70_000_000)
    data = analysis_to_json(record, "0.1.0")
    records = record.to_records()
    assert records == [{name: method[name] for name in records[0]} for method in data["methods"]]
    headings, rows = table(record)
    assert rows[1] == [
        "stock",
        "top-k",
        "1",
        "exact",
        "16,000,000",
        "24,000,000",
        "32,000,000",
        "68,000,000",
        "2,000,000",
        "yes",
    ]
    assert headings[4:8] == ["saved bytes", "temp bytes", "resident bytes", "peak bytes"]
    assert rows[0][-1] == "no"
    assert shown(record).find("p").text_content().endswith("; the budget is 70,000,000 bytes")
    assert table(analysis())[1][0][-1] == ""  # without a budget nothing fits or does not


def test_a_plan_that_was_found_a_front_and_a_verification_are_the_jsons() -> None:
    found = planned_to_json(planned(), Asked(), "0.1.0")
    assert [(row["name"], row["trains"], row["kept_bytes"]) for row in planned().to_records()] == [
        (each["name"], each["trained"], each["kept_bytes"]) for each in found["segments"]
    ]
    points = front_to_json(front(), "0.1.0")["points"]
    for row, point in zip(front().to_records(), points, strict=True):
        assert row == {**{name: point[name] for name in row}, "treatments": ", ".join(point["treatments"])}
    measured = verification_to_json(verification(), "0.1.0")
    assert [(row["predicted_bytes"], row["measured_bytes"]) for row in verification().to_records()] == [
        (measured["predicted_saved_bytes"], measured["measured_saved_bytes"]),
        *((step["predicted_peak_bytes"], step["measured_peak_bytes"]) for step in measured["steps"]),
    ]
    assert "memplan planned k=2: peak 76,000,000 bytes, the budget is 80,000,000; gradients" in planned()._repr_html_()
    assert "stock full: holds" in verification()._repr_html_()


def hostile(name: str) -> dict[str, Shown]:
    """Return records in which every text that comes from a model is ``name``."""
    setting = dataclasses.replace(SETTING, model=name, origin=name, inputs=(name,))
    footprint = RECORDS["footprint"]
    assert isinstance(footprint, Footprint)
    layers = tuple(dataclasses.replace(each, path=name, type=name) for each in footprint.layers)
    peak = dataclasses.replace(footprint.peak, layer=name, op=name)
    segments = tuple(dataclasses.replace(each, name=name, treatments=(name,)) for each in planned().segments)
    return {
        "footprint": dataclasses.replace(footprint, layers=layers, peak=peak),
        "plan": dataclasses.replace(PLAN, method=name, layers=(TreatedLayer(name, (name,)),), int8=(name,)),
        "analysis": dataclasses.replace(analysis(), setting=setting, blocks=(Block(0, name, name, 0, 0),)),
        "planned": planned(setting=setting, segments=segments),
        "front": dataclasses.replace(front(), setting=setting),
        "verification": dataclasses.replace(verification(), setting=setting, method=name),
    }


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_name_becomes_anything_but_text(name: str) -> None:
    for kind, record in hostile(name).items():
        bundle = record._repr_mimebundle_()
        page = shown(record)
        elements = [element for element in page.iter() if isinstance(element.tag, str)]
        assert {element.tag for element in elements} <= TAGS
        assert {(key, value) for element in elements for key, value in element.attrib.items()} <= {
            ("style", "text-align: left"),
            ("style", "text-align: right"),
        }
        bundle["text/html"].encode()  # half a surrogate pair would not go to a browser
        rows, plain_rows = (len(table(each)[1]) for each in (record, RECORDS[kind]))
        assert rows == plain_rows or kind == "plan"
        assert len(bundle["text/plain"].splitlines()) == 1 + 1 + rows
        assert "\x1b" not in bundle["text/plain"]
    named = hostile(name)["footprint"]
    assert table(named)[1][0][0] == (plain(name) or "(model)")


def test_a_script_in_a_layers_name_is_text() -> None:
    text = hostile("<script>alert('&')</script>")["footprint"]._repr_html_()
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in text
    assert "<script" not in text


@pytest.mark.parametrize(("count", "rows"), [(SHOWN + 1, SHOWN + 1), (SHOWN + 2, SHOWN)])
def test_records_beyond_what_is_shown_are_counted(count: int, rows: int) -> None:
    text = Table("many", [{"name": str(number), "bytes": number * 1_000} for number in range(count)])
    assert text.html().count("<tr>") == 1 + rows
    assert ("<p>...and 2 more</p>" in text.html()) is (rows < count)
    assert text.text().endswith("\n  ...and 2 more") is (rows < count)


def test_a_table_of_nothing_is_its_sentence() -> None:
    assert (Table("none", []).html(), Table("none", []).text()) == ("<p>none</p>", "none")


def test_records_are_frozen_have_no_dictionary_and_can_be_sent_to_another_process() -> None:
    for record in RECORDS.values():
        assert not hasattr(record, "__dict__")
        assert pickle.loads(pickle.dumps(record)) == record
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
            record.setting = 1  # type: ignore[attr-defined]
    assert all(issubclass(kind, Shown) for kind in (Analysis, Footprint, Front, Plan, Planned, Verification))


def test_tables_need_neither_torch_nor_pandas() -> None:
    done = run(
        "sys.modules['pandas'] = None\n"
        "from tests.reports.toy import analysis\n"
        "print(analysis().methods[0].footprint._repr_html_(), analysis().to_records())"
    )
    assert done.returncode == 0, done.stderr
    assert "<table>" in done.stdout
