"""A gate's JSON: complete, in bytes, and every key described in the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memplan.gate.formats.json import gate_to_json, json_text
from tests.gate import toy

PAGE = Path(__file__).parents[2] / "docs" / "gate-formats.md"

MIXED = gate_to_json(toy.mixed(notes=("a note",)), toy.VERSION)
DEEP, SMALL, GROWING, BROKEN, FRESH = MIXED["checks"]


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every key: ``checks[].place.line``."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield f"{path}{key}"
            yield from keys(child, f"{path}{key}.")
    elif isinstance(value, list):
        for child in value:
            yield from keys(child, f"{path.removesuffix('.')}[].")


def test_every_key_is_described_and_every_description_has_its_key() -> None:
    section = PAGE.read_text().partition("## JSON")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE) == list(dict.fromkeys(keys(MIXED)))


@pytest.mark.parametrize("result", [toy.mixed(), toy.empty(), *map(toy.hostile, toy.HOSTILE)])
def test_the_text_says_the_same(result: Any) -> None:
    text = json_text(result, toy.VERSION)
    assert json.loads(text) == gate_to_json(result, toy.VERSION)
    assert text.isascii()
    assert text.endswith("}\n")


@pytest.mark.parametrize("name", toy.HOSTILE, ids=ascii)
def test_a_name_is_given_as_it_is(name: str) -> None:
    data = json.loads(json_text(toy.hostile(name), toy.VERSION))
    first = data["checks"][0]
    assert (data["config"], first["name"], first["layers"][0]["layer"], first["where"]) == (name,) * 4


def test_bytes_are_integers_or_null() -> None:
    def check(value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            for name, child in value.items():
                check(child, name)
        elif isinstance(value, list):
            for child in value:
                check(child, key)
        elif key.endswith("bytes"):
            assert value is None or type(value) is int, key

    check(MIXED)


def test_the_numbers_are_the_records() -> None:
    sizes = ("budget_bytes", "limit_bytes", "bytes", "predicted_bytes", "lower_bytes", "rest_bytes", "baseline_bytes")
    # 105 MB of layers, 1 MB of the batch; 1 MB of margin to both sides; before 105 / 2 + 1, of which 2 % more is 54.57.
    assert [DEEP[key] for key in sizes] == [
        64_000_000,
        54_570_000,
        107_000_000,
        106_000_000,
        105_000_000,
        1_000_000,
        53_500_000,
    ]
    assert sum(layer["bytes"] for layer in DEEP["layers"]) + DEEP["rest_bytes"] == DEEP["predicted_bytes"]
    assert (DEEP["growth_bytes"], DEEP["growth_share"], DEEP["max_growth"]) == (107 * 10**6 - 53_500_000, 1.0, "2%")
    assert (GROWING["growth_bytes"], GROWING["growth_share"]) == (400_000, 400 / 3_000)
    assert [change["growth_bytes"] for change in GROWING["changes"]] == [800_000, 100_000, -500_000]
    assert [change["before_bytes"] for change in GROWING["changes"]] == [1_000_000, None, 500_000]
    assert [remedy["bytes"] for remedy in DEEP["remedies"]] == [52_000_000, 50_500_000, 32_000_000]
    assert (SMALL["bytes"], SMALL["growth_bytes"], SMALL["growth_share"]) == (6_000_000, 0, 0.0)
    assert DEEP["layers"][0] == {
        "layer": "features.0",
        "type": "Conv2d",
        "output": "8x64x56x56",
        "trains": True,
        "bytes": 14_000_000,
        "saved_bytes": 7_000_000,
        "temp_bytes": 3_500_000,
        "held_bytes": 3_500_000,
    }


def test_the_verdicts_are_told_whole_and_by_check() -> None:
    assert [check["verdict"] for check in MIXED["checks"]] == ["fails", "ok", "fails", "error", "ok"]
    assert (MIXED["holds"], MIXED["exit_code"], MIXED["stale"]) == (False, 3, ["gone", "forgotten"])
    assert [failure["kind"] for failure in DEEP["failures"]] == ["budget", "growth"]
    assert DEEP["place"] == {"file": toy.CONFIG, "line": 7}
    assert FRESH["notes"] == ["fresh: no baseline, so that its growth is not checked"]
    assert gate_to_json(toy.all_hold(), "1")["exit_code"] == 0
    assert gate_to_json(toy.mixed(seconds=1.23456), "1")["seconds"] == 1.235


def test_warnings_are_told_by_the_gate_and_a_failed_limit_fails() -> None:
    data = gate_to_json(toy.many(2, 1), "1"), gate_to_json(toy.mixed(warn_only=True), "1")
    assert [(each["warn_only"], each["exit_code"]) for each in data] == [(False, 1), (True, 3)]
    assert data[1]["checks"][0]["verdict"] == "fails"


def test_a_model_that_was_not_analysed_has_the_same_keys_without_values() -> None:
    assert list(BROKEN) == list(DEEP)
    assert {key for key, value in BROKEN.items() if value is None} >= {"bytes", "where", "machine", "growth_bytes"}
    assert (BROKEN["layers"], BROKEN["budget_bytes"]) == ([], 1_000_000)


def test_one_layer_is_one_line() -> None:
    rows = [line for line in json_text(toy.mixed(), "1").splitlines() if '"held_bytes"' in line]
    assert len(rows) == 14 + 2 + 3 + 0 + 1
