"""The GitHub Action and the pre-commit hook: valid, complete, and run as their runners run them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import yaml

from memplan.cli.gating import gate
from tests.gate.ci import ACTION, ROOT, Ran, Runner

HOOKS: Final = ROOT / ".pre-commit-hooks.yaml"
STEPS: Final = ACTION["runs"]["steps"]
SCRIPTS: Final = [step for step in STEPS if "run" in step]

MODEL: Final = """import torch
from torch import nn


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)), torch.empty(8, 1, 8, 8)
"""
CONFIGURATION: Final = """[tool.memplan]
max-growth = "2%"

[[tool.memplan.checks]]
name = "net"
model = "model.py:net"
budget = "1MB"
"""


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "runner")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A user's repository, with one check that holds."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    (folder / "pyproject.toml").write_text(CONFIGURATION)
    return folder


def gated(runner: Runner, folder: Path, **inputs: str) -> Ran:
    given = {"install": "false", **{name.replace("_", "-"): value for name, value in inputs.items()}}
    return runner.action(folder, given)


def grow(folder: Path) -> None:
    """Make the hidden layer four times as wide."""
    (folder / "model.py").write_text(MODEL.replace("100", "400"))


def reported(ran: Ran) -> dict[str, object]:
    values: dict[str, object] = json.loads(Path(ran.outputs["report"]).read_text())
    return values


def texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [str(value)]


def test_github_would_take_the_action() -> None:
    assert_valid("vendor.github-actions", ROOT / "action.yml")


def assert_valid(schema: str, file: Path) -> None:
    """Check a file against the schema of that name which check-jsonschema brings."""
    run = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_input_is_used() -> None:
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(STEPS)))
    assert used == set(ACTION["inputs"])


def test_every_input_is_explained_and_may_be_left_out() -> None:
    for name, each in ACTION["inputs"].items():
        assert set(each) == {"description", "default"}, name
        assert isinstance(each["default"], str), f"YAML takes the default of {name} for {each['default']!r}"
        assert isinstance(each["description"], str), name


@pytest.mark.parametrize("step", SCRIPTS, ids=lambda step: step["name"])
def test_a_script_reads_all_of_its_variables_and_no_expression(step: dict[str, object]) -> None:
    assert "${{" not in str(step["run"])
    assert set(re.findall(r"\$(INPUT_\w+)", str(step["run"]))) == set(step["env"])


def test_the_action_needs_no_token_and_no_secret() -> None:
    expressions = re.findall(r"\$\{\{\s*(.*?)\s*\}\}", "\n".join(texts(ACTION)))
    assert expressions
    assert all(each.startswith(("inputs.", "steps.gate.outputs.")) for each in expressions)


def test_every_option_that_the_action_passes_is_one_of_the_command() -> None:
    known = {name for parameter in gate.params for name in parameter.opts if name.startswith("--")}
    passed = re.findall(r"^\s*(?:option|switch) (--[\w-]+)", SCRIPTS[1]["run"], re.MULTILINE)
    assert len(passed) == 10
    assert set(passed) <= known


def test_the_action_takes_a_baseline_then_holds_then_fails(runner: Runner, repository: Path) -> None:
    first = gated(runner, repository)
    assert (first.exit_code, first.outputs["holds"]) == (0, "true")
    assert "there is no baseline" in first.stdout

    accepted = gated(runner, repository, update_baseline="true")
    assert (accepted.exit_code, accepted.outputs["holds"]) == (0, "true")
    entry = json.loads((repository / "memplan-baseline.json").read_text())["checks"]["net"]

    held = gated(runner, repository)
    assert (held.exit_code, held.outputs["exit-code"], held.outputs["holds"]) == (0, "0", "true")
    (check,) = reported(held)["checks"]
    assert check["bytes"] == check["baseline_bytes"] == entry["bytes"]

    grow(repository)
    grown = gated(runner, repository)
    assert (grown.exit_code, grown.outputs["exit-code"], grown.outputs["holds"]) == (1, "1", "false")
    (check,) = reported(grown)["checks"]
    assert check["failures"][0]["kind"] == "growth"
    assert check["failures"][0]["sentence"] in " ".join(grown.stdout.split())
    assert "::error file=pyproject.toml,line=4,title=memplan growth%3A net::" in grown.stderr
    assert runner.summary.read_text().count("<!-- memplan gate -->") == 4

    warned = gated(runner, repository, warn_only="true", out="junit=report.xml\njson=report.json\n")
    assert (warned.exit_code, warned.outputs["exit-code"], warned.outputs["holds"]) == (0, "0", "false")
    assert warned.outputs["report"] == str(repository / "report.json")
    assert "<testsuite" in (repository / "report.xml").read_text()

    broken = gated(runner, repository, checks="nett", out="json=report.json")
    assert (broken.exit_code, broken.outputs) == (2, {"exit-code": "2", "holds": "false", "report": ""})
    assert "no check 'nett'" in broken.stderr

    (repository / "model.py").write_text("raise ImportError('no such layer')\n")
    lost = gated(runner, repository)
    assert (lost.exit_code, lost.outputs["exit-code"], lost.outputs["holds"]) == (3, "3", "false")
    assert reported(lost)["exit_code"] == 3


def test_the_action_runs_in_a_folder_below_with_a_file_of_another_name(runner: Runner, repository: Path) -> None:
    below = repository / "training"
    below.mkdir()
    (below / "model.py").write_text(MODEL)
    (below / "memory.toml").write_text('[[checks]]\nname = "two words"\nmodel = "model.py:net"\n')
    inputs = {"working_directory": "training", "config": "memory.toml", "checks": "  two words\n\n", "format": "json"}
    ran = gated(runner, repository, **inputs)
    assert ran.exit_code == 0, ran.stderr
    assert [check["name"] for check in json.loads(ran.stdout)["checks"]] == ["two words"]


def test_inputs_reach_the_command_as_they_are(runner: Runner, repository: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    runner.recorded("memplan", told)
    pwned = tmp_path / "pwned"
    evil = f'"; touch {pwned}; $(touch {pwned}) `touch {pwned}` * \\'
    inputs = dict.fromkeys(("config", "baseline", "baseline_ref", "max_growth", "jobs", "format"), evil)
    ran = gated(runner, repository, **inputs, out=f"json={evil}", checks=f"{evil}\n--exit-zero\n")
    assert ran.exit_code == 0, ran.stderr
    assert not pwned.exists()
    assert told.read_text().splitlines() == [
        "gate",
        *(f"--{name.replace('_', '-')}={evil}" for name in inputs),
        f"--out=json={evil}",
        "--",
        evil,
        "--exit-zero",
        "",
    ]


def test_a_switch_that_is_neither_on_nor_off_ends_the_step(runner: Runner, repository: Path) -> None:
    runner.recorded("memplan", repository / "told")
    ran = gated(runner, repository, warn_only="yes\n::warning::no")
    assert ran.exit_code == 2
    assert ran.stdout == "::error title=memplan gate::warn-only is $'yes\\n::warning::no'; write true or false\n"
    assert not (repository / "told").exists()


def test_the_action_installs_itself_and_what_is_asked_for(runner: Runner, repository: Path, tmp_path: Path) -> None:
    pip = tmp_path / "pip"
    runner.recorded("python", pip)
    runner.recorded("memplan", tmp_path / "told")
    ran = runner.action(repository, {"install-args": "-r requirements.txt\n--pre   timm\n"})
    assert ran.exit_code == 0, ran.stderr
    quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pins = f"--constraint={ROOT}/constraints.txt"
    index = "--index-url=https://download.pytorch.org/whl/cpu"
    wanted = [str(ROOT), "-r", "requirements.txt", "--pre", "timm"]
    torch, rest, _ = pip.read_text().split("\n\n")
    assert torch.splitlines() == [*quiet, pins, "--no-deps", index, "torch", "torchvision"]
    assert rest.splitlines() == [*quiet, pins, *wanted]

    pip.unlink()
    assert runner.action(repository, {"pinned": "false", "torch-index-url": ""}).exit_code == 0
    assert pip.read_text().splitlines() == [*quiet, str(ROOT), ""]


def test_the_job_fails_where_memplan_cannot_be_installed(runner: Runner, repository: Path, tmp_path: Path) -> None:
    runner.recorded("python", tmp_path / "pip", code=1)
    runner.recorded("memplan", tmp_path / "told")
    ran = runner.action(repository)
    assert (ran.exit_code, ran.outputs["exit-code"]) == (1, "")
    assert not (tmp_path / "told").exists()


def test_python_is_set_up_where_a_version_is_given(runner: Runner, repository: Path, tmp_path: Path) -> None:
    runner.recorded("memplan", tmp_path / "told")
    assert gated(runner, repository).used == ()
    assert gated(runner, repository, python_version="3.12").used == ("actions/setup-python@v6",)


def test_the_pins_that_the_action_installs_have_pytorch() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    # It is installed without what it needs, so that nothing but a pin would choose its version.
    assert {"torch", "torchvision"} <= {pin.partition("==")[0] for pin in pins}


def test_pre_commit_would_take_the_hook() -> None:
    from pre_commit.clientlib import load_manifest

    (hook,) = load_manifest(HOOKS)
    assert (hook["id"], hook["language"], hook["pass_filenames"]) == ("memplan-gate", "python", False)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("model.py", True),
        ("src/net/blocks.py", True),
        ("pyproject.toml", True),
        ("ci/memory.toml", True),
        ("memplan-baseline.json", True),
        ("training/memplan-baseline.json", True),
        ("README.md", False),
        ("data.json", False),
        ("model.pyc", False),
    ],
)
def test_the_hook_runs_for_what_can_change_a_model_or_its_limits(path: str, wanted: bool) -> None:
    (hook,) = yaml.safe_load(HOOKS.read_text())
    assert bool(re.search(hook["files"], path)) is wanted


def git(folder: Path, *words: str) -> str:
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    about = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = {f"GIT_{role}_{what}": "memplan@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    run = subprocess.run(
        ["git", *words], cwd=folder, env={**own, **about, **who}, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def published_hook(folder: Path) -> str:
    """Make a repository that has the hook's file, and return its revision."""
    folder.mkdir()
    (folder / HOOKS.name).write_text(HOOKS.read_text())
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "hook")
    return git(folder, "rev-parse", "HEAD")


def test_pre_commit_runs_the_hook(runner: Runner, repository: Path, tmp_path: Path) -> None:
    """With the command of this environment: all else is as the hook's file says."""
    revision = published_hook(tmp_path / "hooks")
    hook = {"id": "memplan-gate", "language": "unsupported"}  # pre-commit's word for a command that is there already
    settings = {"repos": [{"repo": str(tmp_path / "hooks"), "rev": revision, "hooks": [hook]}]}
    (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump(settings))
    git(repository, "init", "-q")
    git(repository, "add", ".")

    def committed(*words: str) -> Ran:
        script = f'PRE_COMMIT_HOME="{tmp_path}/home" python -m pre_commit run --color never {" ".join(words)}'
        return runner.script(script, repository)

    held = committed("--all-files")
    assert held.exit_code == 0, held.stdout + held.stderr
    assert re.search(r"^memplan gate\.+Passed$", held.stdout, re.MULTILINE)

    (repository / "README.md").write_text("a net\n")
    skipped = committed("--files", "README.md")
    assert re.search(r"^memplan gate\.+\(no files to check\)Skipped$", skipped.stdout, re.MULTILINE)

    (repository / "pyproject.toml").write_text(CONFIGURATION.replace("1MB", "1KB"))
    git(repository, "add", ".")
    failed = committed("--files", "pyproject.toml", "model.py")
    assert failed.exit_code == 1
    assert "- exit code: 1" in failed.stdout
    assert failed.stdout.count("1 of 1 check fails.") == 1
