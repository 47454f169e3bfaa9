"""The file of a plan: it comes back as it was, and what is not a plan is told in one line."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from memplan.errors import UsageError
from memplan.methods.plan import SCHEMA, plan_from_json, plan_to_json
from memplan.reports.front import front_to_json
from memplan.reports.plan_file import (
    Account,
    Asked,
    account_from_json,
    account_of,
    contents,
    plan_file,
    planned_to_json,
    read_account,
    read_plan,
)
from memplan.results import SearchReport
from tests.reports.plans import PLAN, front, planned
from tests.reports.test_machine import described, keys
from tests.test_torch_free import run

ASKED = Asked(
    spec="toy.py:chain",
    input_shape=(250_000,),
    classes=3,
    max_flops="1.1x",
    max_prune=0.25,
    importance="l1",
    forbid=("shift-only",),
    keep=("layers.3",),
)
TEXT = plan_file(planned(), ASKED)


def test_a_file_comes_back_as_it_was() -> None:
    assert account_from_json(TEXT) == account_of(planned(), ASKED)


def test_a_file_is_a_plan_like_any_other() -> None:
    assert plan_from_json(TEXT) == PLAN
    assert contents(plan_to_json(PLAN), "it") == (PLAN, None)


def test_the_file_is_the_same_each_time_and_has_one_entry_per_line(golden: Callable[[str, str], None]) -> None:
    assert plan_file(planned(), ASKED) == TEXT
    assert plan_file(planned(seconds=(9.0, 9.0)), ASKED) == TEXT
    golden("plan.json", TEXT.replace(SCHEMA, "memplan.plan/#"))
    lines = TEXT.splitlines()
    assert [line for line in lines if line.startswith('    {"name": "layers.1", "path"')]
    assert sum(line.startswith('    "layers.') and line.endswith('.weight",') for line in lines) == 2


def test_one_more_block_changes_few_lines() -> None:
    other = plan_file(planned(plan=replace(PLAN, k=1, trained=PLAN.trained[1:])), ASKED)
    assert len(set(TEXT.splitlines()) ^ set(other.splitlines())) == 3  # k, before and after, and the parameter


def test_the_file_says_what_it_was_made_for_and_what_is_predicted() -> None:
    data = json.loads(TEXT)
    assert data["schema"] == SCHEMA
    assert data["made_for"]["inputs"] == ["8x250000 float32"]
    assert data["asked"]["spec"] == "toy.py:chain"
    assert data["predicted"]["bytes"] == planned().bytes == data["predicted"]["peak_bytes"]
    assert data["stock"]["trained_parameters"] == 4 * 10**6
    assert data["predicted"]["trained_parameters"] == 3 * 10**6
    assert data["remarks"] == ["weights are random"]  # the plan's own note is the plan's
    assert data["notes"] == ["layers.2 is a toy"]


@pytest.mark.parametrize(("of", "size"), [("kept", 24_000_000), ("activations", 48_000_000)])
def test_a_budget_on_something_else_is_met_by_that(of: Any, size: int) -> None:
    # 3 values of 8 MB are kept; beside them there are, in the backward, three that come and go.
    from memplan.planner.costs import quantity_of

    assert quantity_of(planned().footprint, of) == size


def test_json_has_the_plan_and_what_one_run_knows() -> None:
    data = planned_to_json(planned(), ASKED, "0.1.0")
    assert (data["schema"], data["memplan"], data["fits"]) == ("memplan.planned/1", "0.1.0", True)
    assert data["margin_bytes"] == 80_000_000 - planned().bytes
    assert (data["recording_seconds"], data["search_seconds"]) == (1.25, 0.5)
    assert plan_from_json(json.dumps(data["plan"])) == PLAN
    assert json.loads(json.dumps(data))["segments"][2]["channels"] == [["layers.1", 24, 32]]


@pytest.mark.parametrize(
    ("command", "data"),
    [("plan", planned_to_json(planned(), ASKED, "0.1.0")), ("pareto", front_to_json(front(), "0.1.0"))],
)
def test_every_key_is_described(command: str, data: dict[str, Any]) -> None:
    told_elsewhere = ("plan.", "stock.", "predicted.peak.")
    found = dict.fromkeys(keys(json.loads(json.dumps(data))))
    assert described(command) == [key for key in found if not key.startswith(told_elsewhere)]


def test_what_is_not_finite_is_null_in_the_file() -> None:
    found = planned(search=SearchReport("HiGHS", (("memory", math.inf),), math.inf, math.inf, 0, 0, 0.0))
    text = plan_file(found)
    assert "Infinity" not in text
    assert account_from_json(text) == account_of(found)


def edited(change: Callable[[dict[str, Any]], Any]) -> str:
    data = json.loads(TEXT)
    change(data)
    return json.dumps(data)


#: What is done to a file -> what is said of it.
CASES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a newer schema": (
        lambda data: data.update(schema="memplan.plan/99"),
        "it was written by a newer memplan (schema memplan.plan/99); upgrade memplan",
    ),
    "another schema": (
        lambda data: data.update(schema="memplan.analysis/1"),
        f"it has the schema 'memplan.analysis/1', not '{SCHEMA}'; write it again with memplan apply",
    ),
    "a negative number": (
        lambda data: data["predicted"].update(bytes=-3),
        "it is not a plan: predicted.bytes is -3, not a whole number from 0 on; write it again with memplan plan --out",
    ),
    "a fraction": (
        lambda data: data["segments"][2].update(kept_bytes=1.5),
        "it is not a plan: segments[2].kept_bytes is 1.5, not a whole number from 0 on; ",
    ),
    "a text for a number": (
        lambda data: data["budget"].update(bytes="64MB"),
        "it is not a plan: budget.bytes is '64MB', not a whole number from 0 on; ",
    ),
    "a negative k": (lambda data: data.update(k=-1), "it is not a plan: -1 is not a number from 0 on; "),
    "no k": (lambda data: data.pop("k"), "it is not a whole plan: there is no 'k'; "),
    "an unknown treatment of a layer": (
        lambda data: data["layers"][0].update(treatments=["bitmusk"]),
        "it is not a plan: no treatment 'bitmusk'; did you mean 'bitmask'?",
    ),
    "an unknown treatment of a segment": (
        lambda data: data["segments"][0].update(treatments=["zzz"]),
        "it is not a plan: no treatment 'zzz'; choose from lean-frozen, ",
    ),
    "an unknown preference": (
        lambda data: data.update(prefer="best"),
        "it is not a plan: prefer is 'best', not k or accuracy-proxy or speed or memory; ",
    ),
    "a section that is missing": (lambda data: data.pop("segments"), "it is not a plan: there is no segments; "),
    "a section of another kind": (
        lambda data: data.update(next={}),
        "it is not a plan: next is {}, not a list; ",
    ),
    "no account": (
        lambda data: data.pop("made_for"),
        "it is a plan of planned without the account of a search; give a file that memplan plan --out wrote",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_nonsense_is_one_line(name: str) -> None:
    change, line = CASES[name]
    with pytest.raises(UsageError, match="^" + re.escape(line)) as caught:
        account_from_json(edited(change), "it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"schema": 3}', pytest.param("[" * 100_000, id="deep")])
def test_what_is_no_plan_at_all_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"^it "):
        account_from_json(text, "it")


def places(value: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from places(child, *path, name)


SECTIONS = [entry.name for entry in fields(Account) if entry.name != "plan"]
PLACES = [path for path in places({name: json.loads(TEXT)[name] for name in SECTIONS}) if path]


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_another_type_is_refused_wherever_it_is(path: tuple[str | int, ...]) -> None:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = {"unknown": "kind"}

    with pytest.raises(UsageError, match=r"^it is not a plan: .*; write it again with memplan plan --out$"):
        account_from_json(edited(change), "it")


def test_what_is_not_known_is_left_out() -> None:
    def change(data: dict[str, Any]) -> None:
        data["colour"] = "blue"
        data["budget"]["colour"] = "blue"

    assert account_from_json(edited(change)) == account_from_json(TEXT)


def test_a_file_is_read_by_its_path_or_its_directory(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(TEXT)
    assert read_plan(tmp_path)[2] == TEXT
    assert read_account(tmp_path / "plan.json").plan == PLAN
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("none.json", "binary", "nul\0"):
        with pytest.raises(UsageError, match=r"; give a plan\.json that memplan plan --out or memplan apply wrote$"):
            read_plan(tmp_path / name)


def cli(code: str) -> subprocess.CompletedProcess[str]:
    """Run memplan where torch cannot be imported."""
    return run(f"import sys\nfrom memplan.cli import main\nsys.argv[1:] = {code}\nmain()")


def test_plans_are_explained_and_compared_without_torch(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(TEXT)
    second.write_text(edited(lambda data: data.update(k=1)))
    explained = cli(repr(["explain", str(first)]))
    assert (explained.returncode, explained.stderr) == (0, "")
    assert "Why k is 2" in explained.stdout
    assert cli(repr(["diff", str(first), str(first)])).returncode == 0
    differ = cli(repr(["diff", str(first), str(second)]))
    assert (differ.returncode, differ.stderr) == (1, "")
    assert "1 difference from" in " ".join(differ.stdout.split())
