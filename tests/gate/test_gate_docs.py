"""The gate's pages: what docs/gate.md shows is run, and docs/gate-reference.md is what the code says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from benchmarks.gate_reference import PAGE as REFERENCE
from benchmarks.gate_reference import with_tables
from memplan import __version__
from memplan.gate.baseline import read_baseline
from memplan.gate.config import Configuration, read_configuration
from memplan.gate.growth import parse_growth
from memplan.gate.judge import judged, limit_of
from memplan.gate.keys import CHECK_KEYS, GATE_KEYS
from memplan.gate.records import Limits, Reading
from memplan.gating import gate
from memplan.steps import DEFAULT_K
from memplan.units import parse_bytes
from tests.gate import toy
from tests.gate.ci import ROOT, Ran, Runner
from tests.gate.test_ci_files import CONFIGURATION, MODEL, assert_valid, git

PAGE: Final = ROOT / "docs" / "gate.md"
FENCES: Final = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
MEMPLAN: Final = f"OWNER/memplan@v{__version__}"


def fences(language: str, start: str = "") -> list[str]:
    return [body for kind, body in FENCES if kind == language and body.startswith(start)]


WORKFLOWS: Final = fences("yaml", "# .github/workflows/memory.yml\n")
(GITLAB,) = fences("yaml", "# .gitlab-ci.yml\n")
PRE_COMMIT: Final = fences("yaml", "# .pre-commit-config.yaml\n")
OF_PAGE, OF_LIBRARY = fences("toml")


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    made = Runner(tmp_path / "runner")
    made.recorded("pip", tmp_path / "pip")
    made.command("pytest", 'exec python -m pytest "$@"')
    return made


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the page's files, before its first command."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for body in fences("python"):
        (folder / body.split()[1]).write_text(body)
    (folder / "pyproject.toml").write_text(OF_PAGE)
    git(folder, "init", "--quiet")
    for name in ("name", "email"):
        git(folder, "config", f"user.{name}", "memplan@localhost")
    return folder


@pytest.fixture(scope="module")
def accepted_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The baseline of the page's checks."""
    folder = tmp_path_factory.mktemp("accepted")
    (folder / "model.py").write_text(fences("python")[0])
    (folder / "pyproject.toml").write_text(OF_PAGE)
    assert gate(read_configuration(folder / "pyproject.toml"), update_baseline=True).holds
    return folder / "memplan-baseline.json"


@pytest.fixture
def accepted(repository: Path, accepted_file: Path) -> Path:
    """The repository when the page's baseline has been committed."""
    shutil.copy(accepted_file, repository)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "baseline")
    return repository


def grow(folder: Path) -> None:
    model = folder / "model.py"
    model.write_text(model.read_text().replace("width: int = 16", "width: int = 24"))


def test_the_commands_do_what_the_page_says(runner: Runner, repository: Path) -> None:
    """All in turn, in one repository; what is printed is what the page shows of it."""
    codes = []
    for place, (kind, body) in enumerate(FENCES):
        if kind != "bash":
            continue
        ran = runner.script(body, repository, {"COLUMNS": "80", "GITHUB_ACTIONS": ""})
        codes.append(ran.exit_code)
        following, shown = FENCES[place + 1] if place + 1 < len(FENCES) else ("", "")
        if following == "text":
            assert_shown(shown, ran.stdout)
    # run, accept, the test of pytest, the wider net, more growth allowed
    assert codes == [0, 0, 0, 1, 0]
    assert git(repository, "show", "--name-only", "--format=").splitlines() == [
        "memplan-baseline.json",
        "model.py",
        "pyproject.toml",
    ]


def assert_shown(shown: str, printed: str) -> None:
    """Check that every shown line is printed, in that order, and next to each other where no dots stand between."""
    lines = iter(_told(printed))
    for part in shown.split("...\n"):
        wanted = _told(part)
        for line in lines:
            if line == wanted[0]:
                break
        else:
            pytest.fail(f"{wanted[0]!r} is not printed any more: refresh the page with\n{printed}")
        assert [next(lines, "") for _ in wanted[1:]] == wanted[1:], f"refresh the page with\n{printed}"


def _told(text: str) -> list[str]:
    """Return the lines that say something; seconds are of no matter."""
    return [re.sub(r"[0-9.]+ s$", "# s", line) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=range(len(WORKFLOWS)))
def test_github_would_take_the_workflows(workflow: str, tmp_path: Path) -> None:
    (tmp_path / "memory.yml").write_text(workflow)
    assert_valid("vendor.github-workflows", tmp_path / "memory.yml")


def test_a_workflow_holds_a_pull_request_to_the_baseline_that_it_brings(runner: Runner, accepted: Path) -> None:
    grow(accepted)
    (failed,) = worked(runner, WORKFLOWS[0], accepted)
    assert failed.exit_code == 1
    assert "title=memplan growth%3A whole::" in failed.stderr
    assert "### memplan gate: 2 of 2 checks fail" in runner.summary.read_text()


def test_a_workflow_holds_a_pull_request_to_the_baseline_of_its_target(runner: Runner, accepted: Path) -> None:
    base = git(accepted, "rev-parse", "HEAD")
    grow(accepted)
    updated = gate(read_configuration(accepted / "pyproject.toml"), update_baseline=True)
    assert updated.holds
    git(accepted, "commit", "--quiet", "--all", "--message", "wider, and accepted by its author")

    first, told = worked(runner, WORKFLOWS[1], accepted, {"github.event.pull_request.base.sha": base})
    assert first.exit_code == 1
    assert f"baseline memplan-baseline.json at {base}" in " ".join(first.stdout.split())
    report = first.outputs["report"]
    assert told.stdout == f"holds is false, all bytes are in {report}\n"
    read, whole = json.loads(Path(report).read_text()), updated.verdicts[0]
    assert whole.reading is not None
    assert read["checks"][0]["growth_bytes"] == whole.growth_bytes
    assert read["checks"][0]["bytes"] == whole.reading.bytes
    assert all((accepted / name).stat().st_size for name in ("memplan.xml", "memplan.md"))


def test_the_workflow_without_the_action_runs(runner: Runner, accepted: Path, tmp_path: Path) -> None:
    installed, held = worked(runner, WORKFLOWS[2], accepted)
    assert (installed.exit_code, held.exit_code) == (0, 0), held.stdout
    assert_installed(tmp_path / "pip")


def worked(runner: Runner, workflow: str, folder: Path, known: Mapping[str, str] | None = None) -> list[Ran]:
    """Run a workflow's one job in ``folder``: our action and the scripts; others' actions are known by name."""
    (job,) = yaml.safe_load(workflow)["jobs"].values()
    values, done = dict(known or {}), []

    def filled(options: Mapping[str, Any]) -> dict[str, str]:
        return {
            name: re.sub(r"\$\{\{ (\S+) \}\}", lambda found: values[found[1]], str(value))
            for name, value in options.items()
        }

    for step in job["steps"]:
        if "run" in step:
            done.append(runner.script(step["run"], folder, filled(step.get("env", {}))))
        elif step["uses"] == MEMPLAN:
            ran = runner.action(folder, {**filled(step["with"]), "install": "false"})
            done.append(ran)
            values |= {f"steps.{step.get('id')}.outputs.{name}": value for name, value in ran.outputs.items()}
        else:
            assert step["uses"] in ("actions/checkout@v6", "actions/setup-python@v6")
    return done


def assert_installed(pip: Path) -> None:
    """Check that the recorded pip was to install PyTorch from the CPU index, and memplan of this version."""
    torch, ours, _ = (call.splitlines() for call in pip.read_text().split("\n\n"))
    index = "https://download.pytorch.org/whl/cpu"
    assert torch == ["install", "torch", "torchvision", "--index-url", index]
    assert ours == ["install", f"memplan @ git+https://github.com/{MEMPLAN}"]


def test_gitlab_would_take_its_job(tmp_path: Path) -> None:
    (tmp_path / ".gitlab-ci.yml").write_text(GITLAB)
    assert_valid("vendor.gitlab-ci", tmp_path / ".gitlab-ci.yml")


def test_the_job_of_gitlab_leaves_its_report(runner: Runner, accepted: Path, tmp_path: Path) -> None:
    job = yaml.safe_load(GITLAB)["memory"]
    grow(accepted)
    ran = runner.script("\n".join(job["script"]), accepted, {"GITHUB_ACTIONS": ""})
    assert ran.exit_code == 1
    assert (accepted / job["artifacts"]["reports"]["junit"]).read_text().count("<failure") == 2
    assert job["artifacts"]["when"] == "always"
    assert_installed(tmp_path / "pip")


@pytest.mark.parametrize("snippet", PRE_COMMIT, ids=("published", "local"))
def test_pre_commit_would_take_its_configurations(snippet: str, tmp_path: Path) -> None:
    from pre_commit.clientlib import load_config, load_manifest

    file = tmp_path / ".pre-commit-config.yaml"
    file.write_text(snippet)
    (repo,) = load_config(file)["repos"]
    (hook,) = repo["hooks"]
    (ours,) = load_manifest(ROOT / ".pre-commit-hooks.yaml")
    assert hook["id"] == ours["id"]
    assert (repo["repo"], repo.get("rev")) in (("https://github.com/OWNER/memplan", f"v{__version__}"), ("local", None))
    assert repo["repo"] != "local" or hook["entry"] == ours["entry"]


def test_the_local_hook_runs(runner: Runner, accepted: Path, tmp_path: Path) -> None:
    (accepted / ".pre-commit-config.yaml").write_text(PRE_COMMIT[1])
    (accepted / "model.py").write_text(fences("python")[0] + "# changed\n")
    git(accepted, "add", ".")
    ran = runner.script("python -m pre_commit run --color never", accepted, {"PRE_COMMIT_HOME": str(tmp_path / "home")})
    assert ran.exit_code == 0
    assert re.search(r"^memplan gate\.+Passed$", ran.stdout, re.MULTILINE), ran.stdout + ran.stderr


def test_another_machine_gives_the_same_baseline(runner: Runner, accepted: Path) -> None:
    other = {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"}
    ran = runner.script("memplan gate --update-baseline", accepted, other)
    assert ran.exit_code == 0
    assert git(accepted, "status", "--porcelain") == ""


def test_the_checks_of_a_library_model_hold(tmp_path: Path) -> None:
    configuration = configured(tmp_path, OF_LIBRARY)
    result = gate(configuration, suggest=False)
    assert [(verdict.check.name, verdict.word) for verdict in result.verdicts] == [("phone", "ok"), ("server", "ok")]
    assert len({(check.model, check.subject) for check in configuration.checks}) == 1  # so that they share a recording


def configured(folder: Path, text: str) -> Configuration:
    (folder / "model.py").write_text(MODEL)
    (folder / "pyproject.toml").write_text(text)
    return read_configuration(folder / "pyproject.toml")


def test_growth_is_let_pass_up_to_what_the_table_says() -> None:
    rows = re.findall(r"^\| (\d+ MB) \| (\d+ .B) \| (\d+ MB) \| (\d+ MB) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 3
    for before, share, least, upper in rows:
        baseline = toy.reading(toy.layer("0", parse_bytes(before)))
        growth = parse_growth("2%")
        assert growth.of(baseline.bytes) == parse_bytes(share)
        limits = Limits(max_growth=growth, min_growth_bytes=parse_bytes(least))
        assert limit_of(limits, baseline) == parse_bytes(upper)
        check = replace(toy.check("net"), limits=limits)
        for more, holds in ((0, True), (1, False)):
            now = toy.reading(toy.layer("0", parse_bytes(upper) + more))
            assert judged(check, now, baseline).holds is holds


def test_what_the_page_says_of_the_baseline(tmp_path: Path) -> None:
    other = '\n[[tool.memplan.checks]]\nname = "other"\nmodel = "model.py:net"\nmethod = "last"\n'
    file = tmp_path / "memplan-baseline.json"

    missing = gate(configured(tmp_path, CONFIGURATION))
    assert missing.holds
    assert missing.notes[0].startswith(f"there is no baseline {file}")
    required = gate(
        configured(tmp_path, CONFIGURATION.replace("[tool.memplan]", "[tool.memplan]\nrequire-baseline = true"))
    )
    assert [failure.kind for failure in required.verdicts[0].failures] == ["baseline"]

    gate(configured(tmp_path, CONFIGURATION + other), update_baseline=True)
    values = json.loads(file.read_text())
    values["tests"]["test_net.py::test_net"] = values["checks"]["net"]
    file.write_text(json.dumps(values))
    stale = gate(configured(tmp_path, CONFIGURATION))
    assert (stale.holds, stale.stale) == (True, ("other",))

    (tmp_path / "memplan.toml").write_text(CONFIGURATION + other)
    one = read_configuration(tmp_path / "memplan.toml", only=("net",))
    gate(one, update_baseline=True)
    assert named(file) == (["net", "other"], ["test_net.py::test_net"])
    gate(configured(tmp_path, CONFIGURATION), update_baseline=True)
    assert named(file) == (["net"], ["test_net.py::test_net"])

    whole = configured(tmp_path, CONFIGURATION)
    (tmp_path / "model.py").write_text("raise ImportError('no such layer')\n")
    assert gate(whole, update_baseline=True).exit_code == 3
    assert named(file) == (["net"], ["test_net.py::test_net"])


def named(file: Path) -> tuple[list[str], list[str]]:
    baseline = read_baseline(file)
    assert baseline is not None
    return list(baseline.checks), list(baseline.tests)


def test_the_reference_is_what_the_code_says() -> None:
    text = REFERENCE.read_text()
    assert with_tables(text) == text, "refresh the tables: python benchmarks/gate_reference.py"


def test_the_reference_has_every_key_and_every_variable() -> None:
    text = REFERENCE.read_text()
    from memplan.cli.gating import gate as command

    variables = {str(option.envvar) for option in command.params if option.envvar}
    assert len(variables) > len(GATE_KEYS)
    for name in (*CHECK_KEYS, *GATE_KEYS, *variables):
        assert f"`{name}` |" in text, name


def test_the_defaults_are_those_that_are_told(tmp_path: Path) -> None:
    """A check that says them is the same one; where a default is the model's or PyTorch's, it needs the same bytes."""
    assert CHECK_KEYS["k"].default == DEFAULT_K
    of_gate = "\n".join(_written(GATE_KEYS))
    plain = configured(tmp_path, CONFIGURATION)
    assert configured(tmp_path, CONFIGURATION.replace("max-growth", f"{of_gate}\nmax-growth")) == moved(
        plain, len(GATE_KEYS)
    )

    deep = {"batch-size": 4, "train": False, "foreach": True}
    told = {name: key for name, key in CHECK_KEYS.items() if key.default is not None and name != "k"}
    (check,) = plain.checks
    for name in set(told) - set(deep):
        (said,) = configured(tmp_path, CONFIGURATION + "\n".join(_written({name: told[name]}))).checks
        assert said == check, name
    model = (
        MODEL.replace("nn.ReLU()", "nn.BatchNorm1d(100)")
        .replace("net():", "net(batch_size):")
        .replace("8, 1, ", "batch_size, 1, ")
    )
    before = read_now(tmp_path, CONFIGURATION, model)
    for name, other in deep.items():
        assert read_now(tmp_path, CONFIGURATION + "\n".join(_written({name: told[name]})), model) == before, name
        assert read_now(tmp_path, f"{CONFIGURATION}{name} = {json.dumps(other)}\n", model) != before, name


def _written(keys: Mapping[str, Any]) -> Iterator[str]:
    return (f"{name} = {json.dumps(key.default)}" for name, key in keys.items())


def moved(configuration: Configuration, lines: int) -> Configuration:
    """Return a configuration whose checks are so many lines further down."""
    checks = []
    for check in configuration.checks:
        assert check.place is not None
        assert check.place.line is not None
        checks.append(replace(check, place=replace(check.place, line=check.place.line + lines)))
    return replace(configuration, checks=tuple(checks))


def read_now(folder: Path, text: str, model: str) -> Reading:
    configured(folder, text)
    (folder / "model.py").write_text(model)
    (verdict,) = gate(read_configuration(folder / "pyproject.toml"), suggest=False).verdicts
    assert verdict.reading is not None, verdict.failures
    return verdict.reading
