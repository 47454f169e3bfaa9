"""The baseline's file: stable, readable by people, and never half believed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from memplan.errors import UsageError
from memplan.gate.baseline import Baseline, baseline_from, baseline_text, read_baseline, write_baseline
from memplan.gate.records import LayerPart, Reading
from memplan.graph.records import Machine


def reading(conv: int = 3_000_000, rest: int = 500_000) -> Reading:
    predicted = conv + 1_000_000 + rest
    return Reading(
        of="peak",
        bytes=predicted + predicted // 2000,
        predicted_bytes=predicted,
        lower_bytes=predicted - 3 * predicted // 2000,
        where="backward of conv, convolution_backward",
        model="Net",
        inputs=("2x3x8x8 float32",),
        dtype="float32",
        method="full",
        runner="stock",
        optimizer="sgd (loop)",
        machine=Machine("cpu", "AVX2", 2, "2.13.0"),
        rest_bytes=rest,
        layers=(
            LayerPart("conv", "Conv2d", "2x8x8x8", True, conv, 10, 20, 30),
            LayerPart("head", "Linear", "2x10", True, 1_000_000, 1, 2, 3),
        ),
    )


BASELINE = Baseline(
    {"b": reading(), "a": reading(2_000_000)}, {"tests/test_x.py::test_fits": reading(rest=-7)}, "2.13.0"
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "memplan-baseline.json"
    write_baseline(file, BASELINE, "1.0")
    found = read_baseline(file)
    assert found is not None
    assert (found.checks, found.tests, found.torch) == (BASELINE.checks, BASELINE.tests, "2.13.0")
    assert baseline_text(found, "1.0") == file.read_text()


def test_entries_are_sorted_and_a_layer_is_one_line() -> None:
    text = baseline_text(BASELINE, "1.0")
    assert text.index('"a": {') < text.index('"b": {')
    assert sum('{"layer": "conv"' in line for line in text.splitlines()) == 3
    other = baseline_text(replace(BASELINE, checks={**BASELINE.checks, "a": reading(2_000_001)}), "1.0")
    differing = [line for line, old in zip(other.splitlines(), text.splitlines(), strict=True) if line != old]
    # The prediction, both estimates, and the layer's own line.
    assert len(differing) == 4, differing


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_baseline(tmp_path / "nothing.json") is None


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda text: text.replace('"bytes": 3000000', '"bytes": 2900000', 1), "the parts add up to 4,400,000"),
        (lambda text: text.replace('"predicted_bytes": 4500000', '"predicted_bytes": 4', 1), "changed by hand"),
        (lambda text: text.replace('"bytes": 4502250', '"bytes": 9', 1), "bytes is 9 where 4,500,000 are predicted"),
        (
            lambda text: text.replace('"bytes": 4502250', '"bytes": 4499999', 1),
            "bytes is 4,499,999 where 4,500,000 are predicted: it was changed by hand",
        ),
        (
            lambda text: text.replace('"lower_bytes": 4493250', '"lower_bytes": 4500001', 1),
            "lower_bytes is 4,500,001 where 4,500,000 are predicted: it was changed by hand",
        ),
        (lambda text: text.replace('"bytes": 4502250', '"bytes": "many"', 1), "b.bytes is 'many', not a whole number"),
        (lambda text: text.replace('"where"', '"were"', 1), "there is no a.where"),
        (lambda text: text.replace('"trains": true', '"trains": 1', 1), "not true or false"),
        (lambda text: text.replace('"bytes": 1000000', '"bytes": -5', 1), "not a whole number from 0 on"),
    ],
)
def test_an_edit_by_hand_is_told_with_its_line(edit: object, told: str) -> None:
    text = baseline_text(BASELINE, "1.0")
    edited = edit(text)  # type: ignore[operator]
    assert edited != text
    with pytest.raises(UsageError) as caught:
        baseline_from(edited, "memplan-baseline.json")
    message = str(caught.value)
    assert told in message
    assert message.endswith("restore it, or delete it and write it with --update-baseline")
    name = '"b"' if "b." in told or "4,4" in told or "4,5" in told else '"a"'
    line = next(number for number, each in enumerate(text.splitlines(), 1) if each.strip().startswith(f"{name}: {{"))
    if name == '"b"':
        assert message.startswith(f"memplan-baseline.json:{line}: ")


def test_what_a_merge_wrote_twice_is_told_with_its_line() -> None:
    text = baseline_text(BASELINE, "1.0")
    twice = text.replace('    "b": {', '    "a": {', 1)
    with pytest.raises(UsageError, match=r"^base\.json:6: 'a' is written twice; leave one of them out$"):
        baseline_from(twice, "base.json")
    twice = text.replace('"model": "Net"', '"model": "Net", "model": "Other"', 1)
    with pytest.raises(UsageError, match=r"^base\.json: 'model' is written twice; leave one of them out$"):
        baseline_from(twice, "base.json")


@pytest.mark.parametrize("digits", [20, 401, 5_000])
def test_a_number_that_no_machine_has_is_told(digits: int) -> None:
    text = baseline_text(BASELINE, "1.0").replace('"bytes": 4502250', f'"bytes": {"1" * digits}', 1)
    with pytest.raises(
        UsageError, match=rf"^base\.json: 1{{19}}\.\.\. has {digits:,} digits: it was changed by hand; "
    ):
        baseline_from(text, "base.json")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="/dev/zero is Unix's")
def test_a_device_is_no_baseline(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(UsageError) as caught:
            read_baseline(path)
        assert str(caught.value) == f"the baseline '{path}' is no regular file; name another file"


def test_a_conflict_left_by_git_is_told_with_its_line() -> None:
    text = baseline_text(BASELINE, "1.0").replace('  "checks"', '<<<<<<< HEAD\n  "checks"', 1)
    with pytest.raises(
        UsageError,
        match=r"^base\.json:5: this is not JSON: .*; restore it, or delete it and write it with --update-baseline$",
    ):
        baseline_from(text, "base.json")


def test_another_schema_is_named() -> None:
    text = baseline_text(BASELINE, "1.0").replace("memplan.baseline/1", "memplan.baseline/9")
    with pytest.raises(UsageError, match=r"is of the schema 'memplan.baseline/9', and this memplan reads"):
        baseline_from(text, "base.json")
    for other in ("[]", "{}", '{"schema": null}'):
        with pytest.raises(UsageError, match=r"^base\.json is no baseline of memplan, "):
            baseline_from(other, "base.json")


def git(folder: Path, *words: str) -> None:
    own = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    subprocess.run(["git", "-C", str(folder), *own, *words], check=True, capture_output=True)


def test_a_revision_is_read_from_git(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    file = folder / "base.json"
    git(tmp_path, "init")
    write_baseline(file, BASELINE, "1.0")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "then")
    write_baseline(file, Baseline(torch="9"), "1.0")
    found = read_baseline(file, "then")
    assert found is not None
    assert found.checks == BASELINE.checks
    assert found.origin == f"{file} at then"
    assert read_baseline(tmp_path / "other.json", "then") is None
    with pytest.raises(UsageError, match=r"cannot read the baseline at 'nowhere': there is no such revision; fetch it"):
        read_baseline(file, "nowhere")
    with pytest.raises(UsageError, match=r"no git revision '--output=x'"):
        read_baseline(file, "--output=x")


def test_a_hook_of_a_linked_worktree_reads_its_own_files(tmp_path: Path) -> None:
    """Git tells its hooks a directory of git's, with which every folder would be taken for the top."""
    folder = tmp_path / "main" / "deep"
    folder.mkdir(parents=True)
    git(tmp_path / "main", "init")
    write_baseline(folder / "base.json", BASELINE, "1.0")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    git(folder, "worktree", "add", str(tmp_path / "linked"))
    hook = tmp_path / "main" / ".git" / "hooks" / "pre-commit"
    code = "from pathlib import Path; from memplan.gate.baseline import read_baseline; "
    code += "print(sorted(read_baseline(Path('deep/base.json'), 'HEAD').checks))"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} > {tmp_path / 'told'}\n")
    hook.chmod(0o755)
    for place in ("main", "linked"):
        git(tmp_path / place, "commit", "--allow-empty", "-m", "second")
        assert (tmp_path / "told").read_text() == "['a', 'b']\n"
        (tmp_path / "told").unlink()


def test_a_work_tree_that_is_given_goes_with_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "top"
    top.mkdir()
    git(tmp_path, "init", "--bare", "store")
    write_baseline(top / "base.json", BASELINE, "1.0")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("GIT_WORK_TREE", str(top))
    git(top, "add", ".")
    git(top, "commit", "-m", "first")
    assert read_baseline(top / "base.json", "HEAD") is not None


def test_outside_a_repository_there_is_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(
        UsageError, match=r"not a git repository.*; run it in a clone of the repository, or leave out the revision$"
    ):
        read_baseline(tmp_path / "base.json", "main")


def test_the_file_is_json_that_others_read() -> None:
    values = json.loads(baseline_text(BASELINE, "1.0"))
    assert values["schema"] == "memplan.baseline/1"
    entry = values["checks"]["b"]
    assert sum(layer["bytes"] for layer in entry["layers"]) + entry["rest_bytes"] == entry["predicted_bytes"]
