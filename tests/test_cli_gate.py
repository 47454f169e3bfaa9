"""The gate's command: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import memplan
from memplan.cli import main
from memplan.errors import UsageError
from memplan.gate.baseline import read_baseline
from memplan.gate.config import read_configuration
from memplan.gating import gate as run_gate
from memplan.memory.estimate import upper_estimate

MODEL = """
import os
import torch
from torch import nn

WIDTH = {width}


def net():
    return nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4)), torch.empty(8, 64)


def dies():
    os._exit(7)


def fails():
    raise RuntimeError("no such data set")


def leaves():
    raise SystemExit(5)
"""

CONFIG = """[tool.memplan]
max-growth = "2%"

[[tool.memplan.checks]]
name = "net"
model = "model.py:net"
budget = "1MB"

[[tool.memplan.checks]]
name = "saved"
model = "model.py:net"
of = "saved"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("MEMPLAN_", "GITHUB_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path


def write(folder: Path, width: int = 256, config: str = CONFIG) -> None:
    (folder / "model.py").write_text(MODEL.format(width=width))
    (folder / "pyproject.toml").write_text(config)


def gate(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(main, ["gate", *words], env=environment)


def told(result: Result) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(result.stdout)
    return values


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
    model = Path(__file__).parent / "models_for_cli.py"
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


def test_a_revision_without_a_baseline_says_what_helps(folder: Path) -> None:
    for words in ("init -q", "-c user.name=a -c user.email=a@b.c commit -q --allow-empty -m first"):
        subprocess.run(["git", *words.split()], check=True)
    (note,) = told(gate("--no-suggest", "--format", "json", "--baseline-ref", "HEAD"))["notes"]
    assert note == (
        "there is no baseline memplan-baseline.json at HEAD: growth is not checked, budgets are; "
        "commit one there, or name another revision"
    )


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


def test_one_broken_check_does_not_hide_the_others(folder: Path) -> None:
    extra = "".join(
        f'\n[[tool.memplan.checks]]\nname = "{name}"\nmodel = "model.py:{name}"\n'
        for name in ("fails", "leaves", "moved")
    )
    write(folder, config=CONFIG + extra)
    result = gate("--format", "json")
    assert result.exit_code == 3
    checks = told(result)["checks"]
    assert [check["name"] for check in checks] == ["net", "saved", "fails", "leaves", "moved"]
    assert [check["verdict"] for check in checks] == ["ok", "ok", "error", "error", "error"]
    sentences = [check["failures"][0]["sentence"] for check in checks[2:]]
    assert "no such data set" in sentences[0]
    assert all(sentence.startswith("pyproject.toml:") and "\n" not in sentence for sentence in sentences)


def test_a_worker_that_dies_is_one_checks_error(folder: Path) -> None:
    extra = '\n[[tool.memplan.checks]]\nname = "dies"\nmodel = "model.py:dies"\n'
    write(folder, config=CONFIG + extra)
    result = gate("--format", "json", "--jobs", "2")
    assert result.exit_code == 3
    checks = told(result)["checks"]
    assert [check["verdict"] for check in checks] == ["ok", "ok", "error"]
    assert checks[2]["failures"][0]["sentence"].endswith("dies: the worker process exited with 7")


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
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (config,) = re.findall(r"^```toml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    write(folder, config=config)
    result = gate("--format", "json")
    assert result.exit_code == 0, result.output
    (check,) = told(result)["checks"]
    assert (check["name"], check["limit_bytes"]) == ("fits the phone", 200_000_000)


# Determinism


def test_a_hundred_runs_give_the_same_bytes(folder: Path) -> None:
    model = memplan.check("model.py:net", suggest=False)
    assert model.reading is not None
    assert all(memplan.check("model.py:net", suggest=False).reading == model.reading for _ in range(99))


def test_hash_seeds_threads_and_jobs_do_not_matter(folder: Path) -> None:
    """A convolution's scratch depends on the threads of the machine: the gate's machine is a named one."""
    more = '\n[[tool.memplan.checks]]\nmodel = "mobilenet_v3_small"\nbatch-size = 2\nmethod = "lossless"\n'
    write(folder, config=CONFIG + more)
    runs = [("0", "1", "1"), ("1", "2", "2"), ("4321", "4", "1")]
    outputs = set()
    for seed, threads, jobs in runs:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        words = ("gate", "--format", "json", "--jobs", jobs)
        run = subprocess.run(
            [sys.executable, "-m", "memplan", *words], env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        outputs.add(re.sub(r'"seconds": [\d.]+', "", run.stdout))
    assert len(outputs) == 1


NOISY = """
import ctypes, os, sys


def noisy():
    os.write(1, b"raw\\n")
    os.system("echo child")
    ctypes.CDLL(None).puts(b"native")
    sys.__stdout__.write("original\\n")
    print("printed")
    return net()
"""


def shell(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "memplan", *words], text=True, check=False, **how)


@pytest.mark.skipif(os.name != "posix", reason="the C library has another name")
@pytest.mark.parametrize("words", [(), ("--debug",), ("--jobs", "2")])
def test_what_a_model_writes_past_python_is_not_in_the_report(folder: Path, words: tuple[str, ...]) -> None:
    noisy = "model.py:noisy"
    write(folder, config=CONFIG.replace("model.py:net", noisy, 1))
    with (folder / "model.py").open("a") as file:
        file.write(NOISY)
    run = shell("gate", "--format", "json", *words, capture_output=True)
    assert (run.returncode, json.loads(run.stdout)["checks"][0]["model"]) == (0, noisy), run.stderr
    heard = {"raw", "child", "native", "original", "printed"} & set(run.stderr.split())
    assert heard == ({"raw", "child", "native", "original", "printed"} if words == ("--debug",) else {"printed"})


def test_no_stdout_at_all_leaves_the_exit_code(folder: Path) -> None:
    for form, budget, code in (("json", "1MB", 0), ("console", "1KB", 1)):
        own = ("net", "--no-suggest", "--format", form, "--budget", budget)
        words = shlex.join([sys.executable, "-m", "memplan", "gate", *own])
        run = subprocess.run(["sh", "-c", f"{words} >&-"], capture_output=True, check=False)
        assert (run.returncode, run.stderr) == (code, b"")


def test_a_descriptor_is_put_back_after_every_command(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.write(1, b"before\n")
    assert gate("--format", "json").exit_code == 0
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "before\nafter\n"


# What hurried users and other projects' files did to it


def test_two_models_may_have_modules_of_one_name(folder: Path) -> None:
    for name, width in (("a", 8), ("b", 64)):
        (folder / name).mkdir()
        (folder / name / "layers.py").write_text(f"WIDTH = {width}\n")
        (folder / name / "model.py").write_text(
            "import torch\nfrom layers import WIDTH\n\n\ndef net():\n"
            "    return torch.nn.Linear(4, WIDTH), torch.empty(2, 4)\n"
        )
    checks = "".join(f'[[tool.memplan.checks]]\nmodel = "{name}/model.py:net"\n' for name in "abab")
    write(folder, config=checks.replace('b/model.py:net"', 'b/model.py:net"\nof = "peak"', 1))
    (folder / "pyproject.toml").write_text(
        "".join(f'[[tool.memplan.checks]]\nname = "{at}"\nmodel = "{at[0]}/model.py:net"\n' for at in ("a", "b", "a2"))
    )
    sizes = [check["predicted_bytes"] for check in told(gate("--format", "json"))["checks"]]
    assert sizes[0] == sizes[2]
    # Parameters and their gradients, 4 * WIDTH weights and WIDTH biases each.
    assert sizes[1] - sizes[0] >= 2 * 4 * 5 * (64 - 8)


def test_what_a_model_sets_for_the_process_does_not_reach_the_next(folder: Path) -> None:
    (folder / "odd.py").write_text(
        "import torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(True)\n\n\n"
        "def net():\n    return torch.nn.Linear(4, 4), torch.empty(2, 4)\n"
    )
    alone = told(gate("net", "--format", "json"))["checks"][0]["bytes"]
    write(folder, config='[[tool.memplan.checks]]\nname = "odd"\nmodel = "odd.py:net"\n' + CONFIG)
    odd, net, _ = told(gate("--format", "json"))["checks"]
    assert net["bytes"] == alone
    assert odd["verdict"] == "ok"


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


def test_remedies_ask_for_the_whole_setting(folder: Path) -> None:
    config = CONFIG.replace('budget = "1MB"', 'budget = "280KB"\noptimizer = "adam"\nbatch-size = 64')
    write(folder, config=config.replace('model = "model.py:net"', 'model = "model.py:batch"', 1))
    with (folder / "model.py").open("a") as file:
        file.write("\n\ndef batch(batch_size):\n    return net()[0], torch.empty(batch_size, 64)\n")
    (check,) = told(gate("net", "--format", "json"))["checks"]
    commands = [remedy["command"] for remedy in check["remedies"] if remedy["command"]]
    assert all("--batch-size 64" in command and "--optimizer adam" in command for command in commands)


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
