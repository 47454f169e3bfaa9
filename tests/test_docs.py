"""What the README and the documentation show is run here."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.method_figures import with_tables
from memplan.cli import main
from memplan.methods import METHODS
from memplan.methods.treatments import TREATMENTS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
METHOD_PAGES = sorted((DOCS / "methods").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *METHOD_PAGES]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(page: Path, language: str) -> list[str]:
    return [body for kind, body in _FENCE.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[str]:
    return [line[2:] for body in fences(page, "console") for line in body.splitlines() if line.startswith("$ ")]


def written_files(page: Path, folder: Path) -> None:
    """Write the page's files, the fences that begin with a comment with a file name, into ``folder``."""
    for body in fences(page, "python"):
        match = re.match(r"# ([\w/]+\.py)\n", body)
        if match:
            (folder / match[1]).write_text(body)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with a page's files; what is imported from there is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_that_is_shown_runs(page: Path, folder: Path) -> None:
    written_files(page, folder)
    for command in commands(page):
        words = shlex.split(command)
        assert words[0] == "memplan", f"{page.name} shows {command!r}, which this test cannot run"
        run = CliRunner().invoke(main, words[1:])
        # 1 says that nothing listed fits the budget: an answer, not a failure.
        assert run.exit_code in (0, 1), run.output
        assert isinstance(run.exception, SystemExit | None), run.output


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_python_example_runs(page: Path, folder: Path) -> None:
    """The examples of a page run in turn, one after another in one session."""
    written_files(page, folder)
    session = {"__name__": "example"}
    for body in fences(page, "python"):
        exec(compile(body, page.name, "exec"), session)


@pytest.mark.parametrize("page", METHOD_PAGES, ids=named)
def test_the_blocks_figures_are_what_is_recorded_now(page: Path) -> None:
    text = page.read_text()
    assert with_tables(text, ("blocks",)) == text, "refresh the tables: python benchmarks/method_figures.py"


def test_every_method_has_a_page_and_its_figures() -> None:
    index = (DOCS / "methods" / "index.md").read_text()
    for name in METHODS:
        if name != "as-is":  # what it keeps is the user's choice
            (target,) = re.findall(rf"^\| \[{name}\]\((\S+)\)", index, re.MULTILINE)
            page = (DOCS / "methods" / target).read_text()
            assert f"<!-- blocks {name} -->" in page
            assert f"<!-- models {name} -->" in page


def test_every_treatment_is_explained() -> None:
    page = (DOCS / "treatments.md").read_text()
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == list(TREATMENTS)


def test_the_source_that_the_docs_show_can_be_registered(tmp_path: Path) -> None:
    run = with_package(tmp_path, "sources.md", "[memplan.sources]\nzoo = zoo\n", "analyze zoo:256 --method full")
    assert run.returncode == 0, run.stderr
    assert "mlp256" in run.stdout


def test_the_treatment_that_the_docs_show_can_be_registered(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import torch\n\ndef silu():\n    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU())\n"
        "    return net, torch.empty(2, 4)\n"
    )
    entry = "[memplan.treatments]\nrounded-silu = my_treatments:TREATMENT\n"
    command = "analyze model.py:silu --method full --runner memplan --treatment rounded-silu --json -"
    run = with_package(tmp_path, "own-treatment.md", entry, command)
    assert run.returncode == 0, run.stderr
    (row,) = json.loads(run.stdout)["methods"]
    assert row["saved_bytes"] == 4 * 2 * 4 + 2 * 2 * 8  # the linear layer's input, SiLU's in bfloat16
    assert row["gradients"] == "approximate"


def with_package(folder: Path, page: str, entry_points: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where the files of a page are installed with these entry points."""
    written_files(DOCS / page, folder)
    metadata = folder / "zoo-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)
    return subprocess.run(
        [sys.executable, "-m", "memplan", *shlex.split(command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_readme_shows_what_the_command_prints(tmp_path: Path) -> None:
    """The shown output is the command's: same lines, where seconds, threads and the machine's kernels may differ."""
    readme = (ROOT / "README.md").read_text()
    shown = next(body for body in fences(ROOT / "README.md", "console") if "analyze mobilenet_v3 --budget 64MB" in body)
    command, *expected = shown.splitlines()
    run = subprocess.run(
        [sys.executable, "-m", "memplan", *shlex.split(command)[2:]],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert [_words(line) for line in run.stdout.splitlines() if line.strip()] == [
        _words(line) for line in expected if line.strip()
    ], "refresh the README: its output is no longer the command's"
    assert "--budget 64MB" in readme


def _words(line: str) -> str:
    """Return a line without its figures, and of a picture the label: how it is filled is the machine's scratch too."""
    return " ".join(re.sub(r"[0-9.,]+", "#", line.partition(" |")[0]).split())


def test_ci_runs_the_readmes_test_command() -> None:
    shown = [line for body in fences(ROOT / "README.md", "bash") for line in body.splitlines()]
    ran = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    # Before it a browser is installed, which nothing but some tests needs.
    assert ran[-1] == f"exec {shown[-1]}"
    assert [line.partition(" ")[0] for line in ran[:-1]] == ["if", "", "fi"]


def test_both_commands_install_the_pinned_versions() -> None:
    setup = fences(ROOT / "README.md", "bash")[0]
    assert "-c constraints.txt" in setup
    assert "--constraint constraints.txt" in (ROOT / "check").read_text()
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    assert "torch==2.13.0" in pins
