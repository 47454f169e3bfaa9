"""Workflow commands, read back as GitHub's runner reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memplan.gate.formats.contents import plain
from memplan.gate.formats.github import SHOWN, annotations
from memplan.gate.formats.places import artifact_location, repository_path
from memplan.gate.records import GateResult
from tests.gate import toy

Command = tuple[str, dict[str, str], str]

_COMMAND = re.compile(r"::(\w+)(?: (.*?))?::(.*)")


@pytest.fixture(autouse=True)
def _no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        monkeypatch.delenv(name, raising=False)


def read(text: str) -> list[Command]:
    """Return the commands of lines: kind, properties, message. What is none fails."""
    commands = []
    for line in text.splitlines():
        match = _COMMAND.fullmatch(line)
        assert match is not None, line
        pairs = (pair.split("=", 1) for pair in (match[2] or "").split(","))
        commands.append((match[1], {key: unescaped(value, also=True) for key, value in pairs}, unescaped(match[3])))
    return commands


def unescaped(text: str, *, also: bool = False) -> str:
    for code, sign in [("%0D", "\r"), ("%0A", "\n"), *([("%3A", ":"), ("%2C", ",")] if also else []), ("%25", "%")]:
        text = text.replace(code, sign)
    return text


def test_every_failure_is_an_error_at_its_line() -> None:
    deep, growing, broken = toy.over_budget().failures, toy.grown().failures, toy.broken().failures
    commands = read(annotations(toy.mixed()))
    assert [(kind, told.get("line"), message) for kind, told, message in commands[:4]] == [
        ("error", "7", deep[0].sentence),
        ("error", "7", deep[1].sentence),
        ("error", "20", growing[0].sentence),
        ("error", "31", broken[0].sentence),
    ]
    assert {told["file"] for _, told, _ in commands} == {toy.CONFIG}
    assert [told["title"] for _, told, _ in commands[:4]] == [
        "memplan budget: deep/stock",
        "memplan growth: deep/stock",
        "memplan growth: growing",
        "memplan analysis: broken",
    ]


def test_limits_that_fail_are_warnings_where_that_is_asked_for_and_a_broken_model_is_not() -> None:
    kinds = [(kind, told["title"]) for kind, told, _ in read(annotations(toy.mixed(warn_only=True)))]
    assert kinds[0] == ("error", "memplan analysis: broken")
    assert [kind for kind, _ in kinds] == ["error", "warning", "warning", "warning", "notice"]


def test_a_missing_baseline_is_a_notice() -> None:
    ((kind, told, message),) = read(annotations(toy.without_baseline()))
    assert (kind, told["file"]) == ("notice", toy.CONFIG)
    assert message == toy.without_baseline().notes[0]


def test_a_check_that_is_not_in_the_baseline_is_a_notice() -> None:
    assert read(annotations(toy.all_hold())) == [
        (
            "notice",
            {"file": toy.CONFIG, "title": "memplan: not in the baseline"},
            "growth is not checked where the baseline has no entry: fresh",
        )
    ]


@pytest.mark.parametrize("result", [toy.empty(), GateResult((toy.holding(),), toy.CONFIG, "b.json")])
def test_where_nothing_is_to_be_told_there_is_no_line(result: GateResult) -> None:
    assert annotations(result) == ""


@pytest.mark.parametrize(("failing", "shown"), [(10, 10), (11, 10), (40, 10)])
def test_more_than_ten_are_nine_and_how_many_more(failing: int, shown: int) -> None:
    commands = read(annotations(toy.many(failing)))
    assert len(commands) == shown == SHOWN
    last = commands[-1][2]
    if failing > SHOWN:
        assert last == f"{failing - 9} failures more: see the job summary, or the log of this step"
        assert commands[8][1]["title"] == "memplan budget: check0008"
    else:
        assert last.startswith("the peak of check0009")


@pytest.mark.parametrize("warn_only", [False, True])
@pytest.mark.parametrize("name", toy.HOSTILE, ids=ascii)
def test_no_name_adds_a_command_or_a_property(name: str, warn_only: bool) -> None:
    text = annotations(toy.hostile(name, warn_only=warn_only))
    text.encode()
    commands = read(text)
    assert len(commands) == 3
    for _, told, _ in commands:
        assert list(told) == ["file", "line", "title"]
        assert told["line"] == "3"
        assert told["title"].endswith(f": {plain(name)}".rstrip())
    assert plain(f"the peak of {name} grew by {name}") in [message for _, _, message in commands]


def test_a_file_is_told_from_the_root_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "packages" / "vision"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    assert repository_path("pyproject.toml") == "pyproject.toml"
    assert repository_path(str(package / "ci" / "gate.toml")) == "ci/gate.toml"
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert repository_path("pyproject.toml") == "packages/vision/pyproject.toml"
    assert repository_path("./ci/../pyproject.toml") == "packages/vision/pyproject.toml"
    assert repository_path("/etc/gate.toml") == "/etc/gate.toml"
    monkeypatch.delenv("GITHUB_WORKSPACE")
    monkeypatch.setenv("CI_PROJECT_DIR", str(tmp_path / "packages"))
    assert repository_path("pyproject.toml") == "vision/pyproject.toml"


def test_a_uri_has_codes_for_all_that_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert artifact_location("a b/c:d#e?f%g.toml")["uri"] == "a%20b/c%3Ad%23e%3Ff%25g.toml"
    assert artifact_location("层.toml")["uri"] == "%E5%B1%82.toml"
