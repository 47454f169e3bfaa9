"""The gate's command: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import memplan
from memplan.errors import UsageError
from memplan.gate.baseline import read_baseline
from tests.gate.command import CONFIG, gate, told, write


def test_the_bytes_are_the_upper_estimate_of_what_analyze_says(folder: Path) -> None:
    result = gate("--format", "json")
    assert result.exit_code == 0, result.output
    peak, saved = told(result)["checks"]
    parameters = 64 * 256 + 256 + 256 * 4 + 4
    # Linear keeps its input, ReLU its result, which the second linear layer keeps too.
    assert saved["bytes"] == saved["predicted_bytes"] == 4 * 8 * 64 + 4 * 8 * 256
    assert peak["predicted_bytes"] >= 2 * 4 * parameters + 4 * 8 * 64
    assert peak["bytes"] == peak["predicted_bytes"] + -(-peak["predicted_bytes"] * 5 // 10_000)
    assert sum(layer["bytes"] for layer in peak["layers"]) + peak["rest_bytes"] == peak["predicted_bytes"]


def test_a_baseline_is_written_compared_and_exceeded(folder: Path) -> None:
    missing = gate()
    assert missing.exit_code == 0
    assert "there is no baseline memplan-baseline.json: growth is not checked" in " ".join(missing.stdout.split())
    assert gate("--require-baseline").exit_code == 1
    assert gate("--update-baseline").exit_code == 0
    written = (folder / "memplan-baseline.json").read_text()
    assert gate().exit_code == 0
    assert gate("--update-baseline").exit_code == 0
    assert (folder / "memplan-baseline.json").read_text() == written

    write(folder, width=300)
    grown = gate("--no-suggest")
    assert grown.exit_code == 1
    words = " ".join(grown.stdout.split())
    assert "the peak of net grew from" in words
    # The widened layer holds most of what is new; both are named.
    assert re.search(
        r"where 2% is allowed; 0 grew most: \+[\d.]+ KB \(output 8x256 -> 8x300, other parameters\)", words
    )
    saved = 4 * 8 * 64 + 4 * 8 * 300
    assert told(gate("--no-suggest", "--format", "json"))["checks"][1]["bytes"] == saved
    assert gate("--no-suggest", "--max-growth", "30%").exit_code == 0
    assert gate("--no-suggest", "--min-growth", "900KB").exit_code == 0
    assert gate("--no-suggest", "--warn-only").exit_code == 0
    assert gate("--no-suggest", "--exit-zero").exit_code == 0
    assert gate("--no-suggest", "saved").exit_code == 1
    assert gate("--update-baseline").exit_code == 0
    assert gate().exit_code == 0


def test_a_revision_without_a_baseline_says_what_helps(folder: Path) -> None:
    for words in ("init -q", "-c user.name=a -c user.email=a@b.c commit -q --allow-empty -m first"):
        subprocess.run(["git", *words.split()], check=True)
    (note,) = told(gate("--no-suggest", "--format", "json", "--baseline-ref", "HEAD"))["notes"]
    assert note == (
        "there is no baseline memplan-baseline.json at HEAD: growth is not checked, budgets are; "
        "commit one there, or name another revision"
    )


def test_the_command_line_comes_before_the_environment_and_that_before_the_file(folder: Path) -> None:
    def budget(*words: str, **environment: str) -> int:
        return int(
            told(gate("net", "--no-suggest", "--format", "json", *words, **environment))["checks"][0]["budget_bytes"]
        )

    assert budget() == 1_000_000
    assert budget(MEMPLAN_BUDGET="2MB") == 2_000_000
    assert budget("--budget", "3MB", MEMPLAN_BUDGET="2MB") == 3_000_000


def test_a_wrong_value_is_blamed_on_where_it_was_written(folder: Path) -> None:
    told = "'two' is not a whole number; write for example 8\n"
    assert gate(MEMPLAN_JOBS="two").stderr == f"memplan: MEMPLAN_JOBS: {told}"
    assert gate("--jobs", "two", MEMPLAN_JOBS="2").stderr == f"memplan: --jobs: {told}"


def test_a_plan_that_cannot_be_read_is_a_fault_of_the_configuration(folder: Path) -> None:
    write(folder, config=CONFIG + 'plan = "nowhere.json"\n')
    done = gate()
    assert (done.exit_code, done.stdout) == (2, "")
    line = CONFIG.rstrip().split("\n").index("[[tool.memplan.checks]]", 5) + 1
    assert done.stderr.startswith(f"memplan: pyproject.toml:{line}: check 'saved': cannot read 'nowhere.json'")


def test_every_format_goes_to_its_file(folder: Path) -> None:
    names = ("console", "markdown", "json", "junit", "sarif", "github")
    outs = [word for name in names for word in ("--out", f"{name}={name}.out")]
    assert gate(*outs).exit_code == 0
    for name in names:
        assert (folder / f"{name}.out").is_file()
    assert json.loads((folder / "json.out").read_text())["holds"] is True


def test_github_is_told_by_itself(folder: Path) -> None:
    gate("--update-baseline")
    write(folder, width=400)
    summary = folder / "summary.md"
    summary.write_text("before\n")
    result = gate("--no-suggest", "--format", "json", GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(summary))
    assert result.exit_code == 1
    assert len(told(result)["checks"]) == 2  # what is read from stdout stays whole
    assert result.stderr.count("::error ") == 2
    assert "file=pyproject.toml,line=4" in result.stderr
    assert summary.read_text().startswith("before\n")
    assert "| net |" in summary.read_text() or "net" in summary.read_text()
    assert "::error" not in gate("--no-suggest", "--format", "json").stderr


def test_stale_entries_are_listed_and_leave_with_an_update(folder: Path) -> None:
    gate("--update-baseline")
    write(folder, config=CONFIG.replace('name = "saved"', 'name = "kept"'))
    assert told(gate("--format", "json"))["stale"] == ["saved"]
    gate("--update-baseline", "net")  # of one check only: the others' entries stay
    before = read_baseline(folder / "memplan-baseline.json")
    assert before is not None
    assert set(before.checks) == {"net", "saved"}
    gate("--update-baseline")
    after = read_baseline(folder / "memplan-baseline.json")
    assert after is not None
    assert set(after.checks) == {"net", "kept"}


def test_another_torch_is_named(folder: Path) -> None:
    gate("--update-baseline")
    file = folder / "memplan-baseline.json"
    file.write_text(file.read_text().replace('"torch": "2.13.0"', '"torch": "2.12.1"'))
    result = gate("--format", "json")
    assert result.exit_code == 0
    (note,) = told(result)["notes"]
    assert "is of torch 2.12.1, this is torch" in note


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--out", "junit"),
            "memplan: --out 'junit' names no format and file; write for example --out junit=report.xml",
        ),
        (("--out", "xunit=a"), "memplan: --out 'xunit=a': no format 'xunit'; did you mean 'junit'?"),
        (("--out", "junit=a", "--out", "json=a"), "memplan: --out 'json=a': the format or the file is named twice"),
        (
            ("--out", "json=-"),
            "memplan: --out 'json=-': stdout has the one report of --format; write --format json\n",
        ),
        (("--out", "json=no/where/a"), "memplan: cannot write 'no/where/a': there is no directory"),
        (("--format", "marcdown"), "memplan: no format 'marcdown'; did you mean 'markdown'?"),
        (("--config", "gone.toml"), "memplan: there is no 'gone.toml' here"),
        (("nett",), "memplan: no check 'nett' in pyproject.toml; did you mean 'net'?"),
        (("--budget", "many"), "memplan: --budget (or MEMPLAN_BUDGET): cannot read 'many' as a size"),
        (("--jobs", "0"), "memplan: --jobs (or MEMPLAN_JOBS) is 0, not a whole number from 1 on"),
        (("--update-baseline", "--baseline-ref", "main"), "memplan: --update-baseline writes the file"),
        (("--baseline", "no/where.json", "--update-baseline"), "memplan: cannot write 'no/where.json'"),
        (("--baselin", "x"), "memplan: no option '--baselin'; did you mean"),
    ],
)
def test_a_wrong_request_is_one_line_and_exits_with_2(folder: Path, words: tuple[str, ...], line: str) -> None:
    result = gate(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith(line), result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        "model.py",
        "pyproject.toml",
    ]


def test_a_broken_baseline_exits_with_2_and_is_left_as_it_is(folder: Path) -> None:
    file = folder / "memplan-baseline.json"
    file.write_text("{")
    result = gate("--update-baseline")
    assert result.exit_code == 2
    assert result.stderr.startswith("memplan: memplan-baseline.json:1: this is not JSON")
    assert file.read_text() == "{"


def test_the_readmes_checks_hold(folder: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (config,) = re.findall(r"^```toml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    write(folder, config=config)
    result = gate("--format", "json")
    assert result.exit_code == 0, result.output
    (check,) = told(result)["checks"]
    assert (check["name"], check["limit_bytes"]) == ("fits the phone", 200_000_000)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"baseline": "x"}, "baseline is 'x'; give the verdict that an earlier check returned, or its reading"),
        ({"treatments": "recompute"}, "treatments is 'recompute'; write a list of names, ['recompute']"),
    ],
)
def test_an_argument_of_another_kind_is_told_before_anything_is_recorded(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        memplan.check("nowhere.py:net", limit="64MB", max_growth="2%", **wrong)
    assert str(caught.value) == told


def test_a_baseline_of_another_quantity_is_none(folder: Path) -> None:
    gate("--update-baseline")
    (check,) = told(gate("net", "--of", "saved", "--format", "json"))["checks"]
    assert check["baseline_bytes"] is None
    (note,) = check["notes"]
    assert note.startswith("net: the baseline is of its peak, not of its saved bytes: growth is not checked")


def test_treatments_are_memplans_and_their_names_are_read(folder: Path) -> None:
    write(folder, config=CONFIG + 'treatments = ["bitmaks"]\n')
    wrong = gate()
    assert wrong.exit_code == 2
    assert "check 'saved': no treatment 'bitmaks'; did you mean 'bitmask'?" in wrong.stderr
    write(folder, config=CONFIG + 'treatments = ["bitmask"]\nrunner = "stock"\n')
    assert "stock PyTorch cannot do bitmask" in gate().stderr
    write(folder, config=CONFIG + 'treatments = ["bitmask"]\n')
    saved = told(gate("saved", "--format", "json"))["checks"][0]
    assert saved["bytes"] == 4 * 8 * 64 + 4 * 8 * 256 + 8 * 256 // 8  # the mask is beside what the next layer keeps


def test_an_override_does_not_contradict_what_it_replaces(folder: Path) -> None:
    write(folder, config=CONFIG + 'method = "top-k"\nk = 1\n')
    assert gate("--k", "1", "--no-suggest").exit_code == 0
    assert gate("--method", "last", "--no-suggest").exit_code == 0
    assert gate("--min-growth", "1KB", "--no-suggest").exit_code == 0


def test_no_checks_at_all_is_a_wrong_configuration(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[tool.memplan]\nchecks = []\n")
    assert gate().exit_code == 2


def test_a_byte_order_mark_is_no_mistake(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(CONFIG, encoding="utf-8-sig")
    assert gate().exit_code == 0


def test_an_update_that_could_read_nothing_writes_nothing(folder: Path) -> None:
    write(folder, config='[[tool.memplan.checks]]\nmodel = "model.py:fails"\n')
    result = gate("--update-baseline", "--format", "json")
    assert result.exit_code == 3
    assert not (folder / "memplan-baseline.json").exists()
    assert told(result)["notes"] == ["memplan-baseline.json is left as it was: no model could be analysed"]


@pytest.mark.parametrize("file", ["pyproject.toml", "memplan-baseline.json", "model.py"])
def test_what_the_gate_reads_is_not_written_over(folder: Path, file: str) -> None:
    gate("--update-baseline")
    before = (folder / file).read_bytes()
    result = gate("--out", f"json={file}")
    assert result.exit_code == 2
    assert result.stderr == (
        f"memplan: '{file}' would be written over, and is what the command reads; name another file\n"
    )
    assert (folder / file).read_bytes() == before


def test_a_file_that_fails_hides_neither_the_verdict_nor_the_other_files(folder: Path) -> None:
    result = gate("--out", "json=/dev/full", "--out", "markdown=told.md")
    assert result.exit_code == 2
    assert "All 2 checks hold." in result.stdout
    assert (folder / "told.md").is_file()
    assert result.stderr.startswith("memplan: cannot write '/dev/full'")
