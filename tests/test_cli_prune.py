"""The command that prunes: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import memplan
from memplan.cli import main
from tests.models_for_cli import Convolutions

ROOT = Path(__file__).parent.parent
NET = "tests/models_for_cli.py:convolutions"


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, ["prune", *arguments])


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_command_writes_a_plan_that_is_verified_and_applied(tmp_path: Path) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    result = invoke(NET, "--target-peak", "-20%", "--out", str(file))
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    assert result.stdout.isascii()
    report, _, commands = result.stdout.partition("\nWritten to ")
    assert max(map(len, report.splitlines())) <= 80
    assert 4 * 1024 * (16 + 32) == 196_608
    assert "the peak per sample falls from 196.6 KB to" in report
    assert memplan.load_plan(file).treatments == ("prune",)
    verified = CliRunner().invoke(main, ["verify", NET, str(file), "--json", "-"])
    assert (verified.exit_code, json.loads(verified.stdout)["holds"]) == (0, True)
    assert CliRunner().invoke(main, ["apply", NET, str(file), "--out", str(out)]).exit_code == 0
    model = memplan.apply(Convolutions(), memplan.load_plan(out))
    model.load_state_dict(torch.load(out / "model.pt"))
    assert [line.split()[:2] for line in commands.splitlines()[1:]] == [["memplan", "verify"], ["memplan", "apply"]]
    assert invoke(NET, "--target-peak", "-20%", "--out", str(file)).exit_code == 2
    assert invoke(NET, "--target-peak", "-20%", "--out", str(file), "--force").exit_code == 0


def test_json_has_the_numbers_of_the_result() -> None:
    data = json.loads(invoke(NET, "--target-peak", "-20%", "--json", "-").stdout)
    assert data["schema"] == "memplan.pruned/1"
    assert (data["counting"], data["samples"]) == ("tinytl", 8)
    assert data["before"]["peak_bytes"] == 4 * 1024 * (16 + 32)
    assert data["target_bytes"] == 4 * 1024 * (16 + 32) * 80 // 100
    assert data["after"]["peak_bytes"] <= data["target_bytes"]
    assert data["groups"]
    assert data["groups"][0].keys() == {"name", "kept", "channels", "lost"}


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("", 2, "no --target-peak is given; write for example --target-peak -65%"),
        ("--target-peak -100%", 2, "a peak falls by more than 0 and less than 100 %, not by '-100%'"),
        ("--target-peak 10MB", 2, "the target '10MB' is not below the present peak of 196.6 KB per sample"),
        ("--target-peak 1KB", 1, "convolutions cannot be pruned to 1.0 KB per sample: the smallest peak is "),
        ("--target-peak -20% --keep stam", 2, "no layer 'stam' to keep; did you mean 'stem'?"),
        ("--target-peak -20% --counting reel", 2, "no counting 'reel'; did you mean 'real'?"),
        ("--target-peak -20% --importance fisher", 2, "importance 'fisher' needs data; give --calibration FILE"),
        ("--target-peak -20% --calibration none.pt", 2, "--calibration is for importance taylor or fisher, not l1"),
        ("--target-peak -20% --importance taylor --calibration none.pt", 2, "no calibration file 'none.pt'; save "),
        ("--target-peak -20% --out none/plan.json", 2, "cannot write 'none/plan.json': there is no directory "),
        ("--target-peak -20% --out README.md", 2, "'README.md' is there already; name another file, or add --force"),
        ("--target-peak -20% --max-prune some", 2, "--max-prune: 'some' is not a number; write for example 0.3"),
    ],
)
def test_the_command_refuses_in_one_line(arguments: str, code: int, line: str) -> None:
    result = invoke(NET, *arguments.split())
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"memplan: {line}")
    assert len(result.stderr.splitlines()) == 1
