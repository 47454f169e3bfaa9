"""The ways back that the gate's command tells: each fits, and is for the gate's own machine and setting."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from memplan.cli import main
from memplan.gate.config import read_configuration
from memplan.gating import gate as run_gate
from memplan.memory.estimate import upper_estimate
from tests.gate.command import CONFIG, gate, told, write


def test_ways_back_are_told_and_each_fits(folder: Path) -> None:
    write(folder, width=4096, config=CONFIG.replace("1MB", "2320KB").replace('max-growth = "2%"', ""))
    result = gate("--format", "json", "net")
    assert result.exit_code == 1
    (check,) = told(result)["checks"]
    remedies = check["remedies"]
    assert 1 <= len(remedies) <= 3
    assert all(remedy["bytes"] <= 2_320_000 for remedy in remedies)
    assert remedies[0]["gradients"] == "exact"
    commands = [remedy["command"] for remedy in remedies if remedy["command"]]
    assert commands
    for command in commands:
        words = shlex.split(command.replace("DIR", "out"))
        assert words[0] == "memplan"
        run = CliRunner().invoke(main, words[1:])
        assert run.exit_code == 0, run.output


@pytest.mark.parametrize(("threads", "budget"), [(1, "9MB"), (16, "11MB")])
def test_the_plan_of_a_way_back_holds_on_the_machine_of_the_gate(folder: Path, threads: int, budget: str) -> None:
    """Which is seldom the one where the command is typed: kernels take scratch for each thread."""
    model = Path(__file__).parents[1] / "models_for_cli.py"
    check = f'[[tool.memplan.checks]]\nname = "net"\nmodel = "{model}:convolutions"\nbudget = "{budget}"\n'
    config = folder / "pyproject.toml"
    config.write_text(f"[tool.memplan]\nthreads = {threads}\n\n{check}")
    (failing,) = told(gate("--format", "json"))["checks"]
    commands = [each["command"] for each in failing["remedies"] if (each["command"] or "").startswith("memplan plan")]
    assert len(commands) == 1
    assert f"--threads {threads} --instruction-set AVX2" in commands[0]
    assert CliRunner().invoke(main, shlex.split(commands[0])[1:]).exit_code == 0
    with config.open("a") as file:
        file.write('plan = "plan.json"\n')
    assert gate().exit_code == 0


def test_that_no_way_back_was_found_is_told(folder: Path) -> None:
    write(folder, config=CONFIG.replace("1MB", "1KB"))
    result = gate("net", "--out", "markdown=told.md", "--out", "html=told.html", "--out", "json=told.json")
    assert "  No way back under 1.0 KB was found\n" in result.stdout
    assert "\nNo way back under 1.0 KB was found.\n" in (folder / "told.md").read_text()
    assert "No way back under 1.0 KB was found" in (folder / "told.html").read_text()
    assert json.loads((folder / "told.json").read_text())["checks"][0]["remedies"] == []
    assert "way back" not in gate("net", "--no-suggest").stdout


@pytest.mark.parametrize("jobs", [1, 2])
def test_steps_come_with_the_verdicts_where_they_are_asked_for(folder: Path, jobs: int) -> None:
    write(folder, width=4096)
    configuration = read_configuration(folder / "pyproject.toml", {"jobs": jobs, "budget": "2.32MB"})
    verdict = run_gate(configuration, with_steps=True).verdicts[0]
    reading, step = verdict.reading, verdict.step
    assert reading is not None
    assert step is not None
    footprint = step.footprint
    assert reading.predicted_bytes == max(footprint.peak_bytes, footprint.first_step_peak_bytes)
    assert verdict.remedies
    for remedy in verdict.remedies:
        assert remedy.step is not None
        footprint = remedy.step.footprint
        largest = max(footprint.peak_bytes, footprint.first_step_peak_bytes)
        assert remedy.bytes == upper_estimate(largest, "peak")
    small = run_gate(configuration).verdicts[0]
    assert small == verdict
    assert small.step is None
    assert all(remedy.step is None for remedy in small.remedies)


def test_remedies_ask_for_the_whole_setting(folder: Path) -> None:
    config = CONFIG.replace('budget = "1MB"', 'budget = "280KB"\noptimizer = "adam"\nbatch-size = 64')
    write(folder, config=config.replace('model = "model.py:net"', 'model = "model.py:batch"', 1))
    with (folder / "model.py").open("a") as file:
        file.write("\n\ndef batch(batch_size):\n    return net()[0], torch.empty(batch_size, 64)\n")
    (check,) = told(gate("net", "--format", "json"))["checks"]
    commands = [remedy["command"] for remedy in check["remedies"] if remedy["command"]]
    assert all("--batch-size 64" in command and "--optimizer adam" in command for command in commands)
