"""SARIF: of the form that its specification asks for, read back by a consumer, and compared with the records."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import pytest
from sarif.loader import load_sarif_file

from memplan.gate.formats.contents import plain
from memplan.gate.formats.sarif import RULES, gate_to_sarif, sarif_text
from memplan.gate.records import GateResult, Place, Reading
from tests.gate import toy


def form(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """Return the schema of an object that has these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def some(items: Any, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least}


TEXT = {"type": "string"}
MESSAGE = form({"text": TEXT})
LEVEL = {"enum": ["none", "note", "warning", "error"]}
WHOLE = {"type": "integer"}

#: What SARIF 2.1.0 asks of the objects that memplan writes (section 3 of its specification), in words of our own: no
#: package carries its schema. Properties that are legal and that memplan does not write fail here too.
SCHEMA = form(
    {
        "version": {"const": "2.1.0"},
        "runs": some(
            form(
                {
                    "tool": form(
                        {
                            "driver": form(
                                {"name": TEXT, "version": TEXT},
                                rules=some(
                                    form(
                                        {"id": TEXT},
                                        name=TEXT,
                                        shortDescription=MESSAGE,
                                        fullDescription=MESSAGE,
                                        help=MESSAGE,
                                        defaultConfiguration=form({"level": LEVEL}),
                                    )
                                ),
                            )
                        }
                    ),
                    "results": some(
                        form(
                            {"message": MESSAGE, "ruleId": TEXT, "level": LEVEL},
                            ruleIndex={"type": "integer", "minimum": -1},
                            locations=some(
                                form(
                                    {
                                        "physicalLocation": form(
                                            {
                                                "artifactLocation": form(
                                                    {"uri": {"type": "string", "format": "uri-reference"}},
                                                    uriBaseId=TEXT,
                                                )
                                            },
                                            region=form({"startLine": {"type": "integer", "minimum": 1}}),
                                        )
                                    },
                                    logicalLocations=some(
                                        form({"name": TEXT}, fullyQualifiedName=TEXT, kind=TEXT), least=1
                                    ),
                                )
                            ),
                            partialFingerprints={"type": "object", "additionalProperties": TEXT},
                            properties={"type": "object"},
                        )
                    ),
                    "invocations": some(
                        form(
                            {"executionSuccessful": {"type": "boolean"}},
                            exitCode=WHOLE,
                            exitCodeDescription=TEXT,
                            toolExecutionNotifications=some(form({"message": MESSAGE}, level=LEVEL)),
                        )
                    ),
                }
            )
        ),
    },
    **{"$schema": {"type": "string", "format": "uri"}},
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

RESULTS = {
    "mixed": toy.mixed(),
    "warnings": toy.mixed(warn_only=True),
    "no baseline": toy.without_baseline(),
    "many": toy.many(3, 2),
    "none": toy.empty(),
    **{f"hostile {name!a}": toy.hostile(name) for name in toy.HOSTILE},
}


@pytest.fixture(autouse=True)
def _no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        monkeypatch.delenv(name, raising=False)


def results(result: GateResult) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gate_to_sarif(result, toy.VERSION)["runs"][0]["results"]
    return found


@pytest.mark.parametrize("name", RESULTS)
def test_the_form_is_that_of_the_specification(name: str) -> None:
    data = json.loads(sarif_text(RESULTS[name], toy.VERSION))
    VALIDATOR.validate(data)
    assert data == gate_to_sarif(RESULTS[name], toy.VERSION)


def test_the_form_refuses_what_the_specification_does() -> None:
    data = gate_to_sarif(toy.mixed(), toy.VERSION)
    for path, value in ((("version",), "2.0"), (("runs", 0, "results", 0, "level"), "fatal")):
        wrong = copy.deepcopy(data)
        inner: Any = wrong
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        assert not VALIDATOR.is_valid(wrong)


@pytest.mark.parametrize("name", RESULTS)
def test_a_consumer_reads_every_result(name: str, tmp_path: Path) -> None:
    file = tmp_path / "gate.sarif"
    file.write_text(sarif_text(RESULTS[name], toy.VERSION), encoding="utf-8")
    read = load_sarif_file(str(file))
    expected = sum(len(verdict.failures) for verdict in RESULTS[name].verdicts)
    assert read.get_result_count() == expected
    assert len(read.get_records()) == expected


def test_a_consumer_reads_level_rule_and_place(tmp_path: Path) -> None:
    file = tmp_path / "gate.sarif"
    file.write_text(sarif_text(toy.mixed(), toy.VERSION), encoding="utf-8")
    records = load_sarif_file(str(file)).get_records()
    assert [(each["Tool"], each["Severity"], each["Code"], each["Line"]) for each in records] == [
        ("memplan", "error", "memplan/budget", 7),
        ("memplan", "error", "memplan/growth", 7),
        ("memplan", "error", "memplan/growth", 20),
        ("memplan", "error", "memplan/analysis", 31),
    ]


def test_every_figure_is_the_records() -> None:
    budget, growth, growing, broken = (each["properties"] for each in results(toy.mixed()))
    # 105 MB of layers, 1 MB of the batch, 1 MB of margin; before 105 / 2 + 1, of which 2 % more is 54.57 MB.
    sizes = {"bytes": 107_000_000, "limit_bytes": 54_570_000, "baseline_bytes": 53_500_000, "growth_bytes": 53_500_000}
    assert budget == growth == {"check": "deep/stock", "model": "toynet.py:toynet", "of": "peak", **sizes}
    assert (growing["bytes"], growing["limit_bytes"], growing["growth_bytes"]) == (3_400_000, 3_100_000, 400_000)
    assert broken == {"check": "broken", "model": "toynet.py:toynet", "of": "peak"}
    sentences = [failure.sentence for verdict in toy.mixed().failing() for failure in verdict.failures]
    assert [each["message"]["text"] for each in results(toy.mixed())] == sentences


def test_every_result_has_its_rule() -> None:
    run = gate_to_sarif(toy.mixed(), toy.VERSION)["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [f"memplan/{kind}" for kind in RULES]
    assert set(RULES) == {"budget", "growth", "baseline", "unpriced", "analysis"}
    assert all(rules[each["ruleIndex"]]["id"] == each["ruleId"] for each in run["results"])
    assert not any("helpUri" in rule for rule in rules)


def test_the_layer_to_blame_is_a_logical_location() -> None:
    budget, growth, growing, broken = (each["locations"][0] for each in results(toy.mixed()))
    layers = [each["logicalLocations"][0]["fullyQualifiedName"] for each in (budget, growth, growing)]
    assert layers == ["features.0", "features.0", "stem"]
    assert "logicalLocations" not in broken


def test_a_place_outside_the_repository_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "a b"
    inside.mkdir()
    monkeypatch.chdir(inside)
    for file in ("../gate.toml", str(tmp_path / "gate.toml")):
        verdict = dataclasses.replace(toy.broken(), check=dataclasses.replace(toy.broken().check, place=Place(file, 3)))
        (found,) = results(GateResult((verdict,), file))
        place = found["locations"][0]["physicalLocation"]["artifactLocation"]
        assert place == {"uri": (tmp_path / "gate.toml").as_uri()}


def test_the_place_is_relative_to_the_repository_with_codes() -> None:
    (physical, *_) = (each["locations"][0]["physicalLocation"] for each in results(toy.mixed()))
    assert physical == {
        "artifactLocation": {"uri": "ci/memplan%20gate.toml", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 7},
    }
    nowhere = dataclasses.replace(toy.broken(), check=dataclasses.replace(toy.broken().check, place=None))
    (found,) = results(GateResult((nowhere,), "memplan.toml"))
    assert found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "memplan.toml"
    assert "region" not in found["locations"][0]["physicalLocation"]


def test_limits_that_fail_are_warnings_where_that_is_asked_for_and_a_broken_model_is_not() -> None:
    levels = [each["level"] for each in results(toy.mixed(warn_only=True))]
    assert levels == ["warning", "warning", "warning", "error"]


def test_a_finding_keeps_its_fingerprint_whatever_its_bytes_and_line() -> None:
    def prints(result: GateResult) -> list[str]:
        return [each["partialFingerprints"]["memplanCheck/v1"] for each in results(result)]

    before = prints(toy.mixed())
    assert len(set(before)) == 4
    deep = toy.over_budget()
    reading: Reading | None = deep.reading
    assert reading is not None
    moved = dataclasses.replace(
        deep,
        check=dataclasses.replace(deep.check, place=Place("other.toml", 99)),
        reading=dataclasses.replace(reading, bytes=reading.bytes + 1),
        failures=tuple(dataclasses.replace(failure, sentence="other words") for failure in deep.failures),
    )
    assert prints(GateResult((moved,), "other.toml")) == before[:2]


def test_notes_and_the_exit_code_are_the_invocations() -> None:
    (invocation,) = gate_to_sarif(toy.mixed(notes=("a note",)), toy.VERSION)["runs"][0]["invocations"]
    assert (invocation["executionSuccessful"], invocation["exitCode"]) == (False, 3)
    told = [each["message"]["text"] for each in invocation["toolExecutionNotifications"]]
    assert told == ["a note", *toy.fresh().notes]


@pytest.mark.parametrize("name", toy.HOSTILE, ids=ascii)
def test_a_name_is_text_and_its_file_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = sarif_text(toy.hostile(name), toy.VERSION)
    assert "\\ud800" not in text.replace("\\\\ud800", "")
    budget, growth, _ = json.loads(text)["runs"][0]["results"]
    assert (budget["properties"]["check"], budget["message"]["text"]) == (plain(name), plain(name))
    location = growth["locations"][0]
    uri = location["physicalLocation"]["artifactLocation"]["uri"]
    assert uri.isascii()
    assert not set(uri) & set(' "<>\\^`{|}\n:?#')
    if "\x00" not in name and "\ud800" not in name and "//" not in name:
        assert unquote(uri) == (name or ".")
    assert location["logicalLocations"][0]["fullyQualifiedName"] == (plain(name) or "the model itself")
