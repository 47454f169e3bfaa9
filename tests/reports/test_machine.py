"""JSON: complete, in bytes, and every key described in the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memplan.reports.machine import analysis_to_json, to_text, verification_to_json
from tests.reports.plans import planned
from tests.reports.toy import analysis, verification

PAGE = Path(__file__).parents[2] / "docs" / "json.md"

ANALYSIS = analysis_to_json(
    replace(analysis(budget_bytes=70_000_000, notes=("a note",), unpriced=("a thing",)), suggestion=planned()), "0.1.0"
)
VERIFICATION = verification_to_json(verification(), "0.1.0")


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every key: ``methods[].peak.bytes``."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield f"{path}{key}"
            yield from keys(child, f"{path}{key}.")
    elif isinstance(value, list):
        for child in value:
            yield from keys(child, f"{path.removesuffix('.')}[].")


def described(command: str) -> list[str]:
    section = PAGE.read_text().partition(f"## `memplan {command} --json`")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize(("command", "data"), [("analyze", ANALYSIS), ("verify", VERIFICATION)])
def test_every_key_is_described_and_every_description_has_its_key(command: str, data: dict[str, Any]) -> None:
    assert described(command) == list(dict.fromkeys(keys(data)))


@pytest.mark.parametrize("data", [ANALYSIS, VERIFICATION])
def test_the_text_says_the_same(data: dict[str, Any]) -> None:
    text = to_text(data)
    assert json.loads(text) == data
    assert text.endswith("}\n")


def test_one_layer_is_one_line() -> None:
    rows = [line for line in to_text(ANALYSIS).splitlines() if '"state_bytes"' in line and '"name"' in line]
    assert len(rows) == sum(len(method["layers"]) for method in ANALYSIS["methods"])


@pytest.mark.parametrize("data", [ANALYSIS, VERIFICATION])
def test_bytes_are_integers(data: dict[str, Any]) -> None:
    def check(value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            for name, child in value.items():
                check(child, name)
        elif isinstance(value, list):
            for child in value:
                check(child, key)
        elif key.endswith("bytes"):
            assert type(value) is int, key

    check(data)


def test_the_numbers_are_the_records() -> None:
    full = ANALYSIS["methods"][0]
    # Four layers of 4 MB weights with momentum; each keeps its input of 8 MB.
    assert full["saved_bytes"] == 4 * 8_000_000 == sum(layer["saved_bytes"] for layer in full["layers"])
    assert full["composition"] == {
        "parameter_bytes": 16_000_000,
        "buffer_bytes": 0,
        "gradient_bytes": 16_000_000,
        "state_bytes": 16_000_000,
        "input_bytes": 8_000_000,
    }
    moments = sum(phase["moments"] for phase in full["timeline"]["phases"])
    kinds = [full["timeline"][f"{kind}_bytes"] for kind in ("resident", "saved", "temp")]
    assert [len(kind) for kind in kinds] == [moments] * 3
    assert max(map(sum, zip(*kinds, strict=True))) == full["peak_bytes"] == full["peak"]["bytes"]
    assert (full["fits"], ANALYSIS["methods"][1]["fits"], ANALYSIS["fits"]) == (False, True, True)


def test_without_a_budget_nothing_is_said_to_fit() -> None:
    data = analysis_to_json(analysis(), "0.1.0")
    assert (data["budget_bytes"], data["fits"], data["methods"][0]["fits"]) == (None, None, None)
