"""What the README and the documentation show is run here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_runs(page: Path, tmp_path: Path) -> None:
    written_files(page, tmp_path)
    for command in commands(page):
        words = shlex.split(command)
        assert words[0] == "memplan", f"{page.name} shows {command!r}, which this test cannot run"
        run = subprocess.run(
            [sys.executable, "-m", "memplan", *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        # 1 says that nothing listed fits the budget: an answer, not a failure.
        assert run.returncode in (0, 1), run.stderr
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_example_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for body in fences(page, "python"):
        exec(compile(body, page.name, "exec"), {"__name__": "example"})


def test_the_source_that_the_docs_show_can_be_registered(tmp_path: Path) -> None:
    written_files(ROOT / "docs" / "sources.md", tmp_path)
    metadata = tmp_path / "zoo-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[memplan.sources]\nzoo = zoo\n")
    run = subprocess.run(
        [sys.executable, "-m", "memplan", "analyze", "zoo:256", "--method", "full"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "mlp256" in run.stdout


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
    return " ".join(re.sub(r"[0-9.,]+", "#", line).split())


def test_ci_runs_the_readmes_test_command_and_nothing_else() -> None:
    shown = [line for body in fences(ROOT / "README.md", "bash") for line in body.splitlines()]
    ran = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert ran == [f"exec {shown[-1]}"]


def test_both_commands_install_the_pinned_versions() -> None:
    setup = fences(ROOT / "README.md", "bash")[0]
    assert "-c constraints.txt" in setup
    assert "--constraint constraints.txt" in (ROOT / "check").read_text()
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    assert "torch==2.13.0" in pins
