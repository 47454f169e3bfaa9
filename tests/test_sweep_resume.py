"""A sweep that is killed, at any moment and as a whole: no finished row is lost, and none is made again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memplan.reports.row_files import Row, RowFile
from memplan.sweeping import COLUMNS
from tests.waiting import until

ROOT = Path(__file__).parent.parent
LOGGED = ROOT / "tests" / "logged_models.py"
SPECS = [f"{LOGGED}:chain{width}" for width in range(1, 9)]
METHODS = ("full", "last", "bias-last", "top-k")

#: The command as a process of its own, whether or not the main one has it.
COMMAND = (
    "from memplan.cli.border import Commands\n"
    "from memplan.cli.sweeping import sweep\n"
    "main = Commands(name='memplan')\n"
    "main.add_command(sweep)\n"
    "main.main()"
)


def start(folder: Path, out: str, *words: str, models: bool = True, jobs: str = "2") -> subprocess.Popen[bytes]:
    """Start a sweep of all models, or of none but those in ``words``, in a process group of its own."""
    arguments = [
        "sweep",
        "--models",
        ",".join(SPECS if models else []),
        "--methods",
        ",".join(METHODS),
        "--batch-sizes",
        "1",
    ]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments, "--jobs", jobs, "--out", out, *words],
        cwd=folder,
        env={**os.environ, "BUILDS": str(folder / "builds"), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def until_built(folder: Path, built: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a model has been built, or none is left to be."""
    until(lambda: process.poll() is not None or len(builds(folder)) > built)


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def rows_in(path: Path) -> list[Row]:
    """Return the whole rows of a file that nobody writes."""
    with RowFile(path, COLUMNS) as file:
        return file.rows


def untimed(rows: list[Row]) -> set[tuple[Any, ...]]:
    return {tuple(value for name, value in row.items() if name != "seconds") for row in rows}


def builds(folder: Path) -> list[str]:
    return (folder / "builds").read_text().split() if (folder / "builds").exists() else []


def finished(rows: list[Row]) -> set[str]:
    """Return the names of models all of whose rows are there."""
    made = [str(row["name"]) for row in rows]
    return {name for name in made if made.count(name) == len(METHODS)}


def kill_and_resume(folder: Path, kills: int, kind: str, seed: int) -> None:
    """Kill sweeps at random moments, go on until all is done, and compare with a sweep that nobody killed."""
    whole, parts = folder / "whole", folder / "parts"
    whole.mkdir()
    parts.mkdir()
    began = time.monotonic()
    process = start(whole, f"rows{kind}")
    assert process.communicate()[1] == b""
    assert process.returncode == 0
    seconds = time.monotonic() - began
    expected = rows_in(whole / f"rows{kind}")
    assert len(expected) == len(SPECS) * len(METHODS)

    moments = random.Random(seed)
    out = parts / f"rows{kind}"
    before: list[Row] = []
    for number in range(kills):
        built = len(builds(parts))
        process = start(parts, out.name)
        if number % 2:
            time.sleep(moments.uniform(0.1, 1.1) * seconds)
        else:
            # Most of the time goes into imports; every other kill is among the rows.
            until_built(parts, built, process)
            time.sleep(moments.uniform(0, 0.4))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert finished(before).isdisjoint(builds(parts)[built:])
        rows = rows_in(out)
        assert rows[: len(before)] == before
        assert len(untimed(rows)) == len(rows)
        before = rows
    built = len(builds(parts))
    process = start(parts, out.name)
    assert process.communicate()[1] == b""
    assert process.returncode == 0
    assert finished(before).isdisjoint(builds(parts)[built:])
    rows = rows_in(out)
    assert rows[: len(before)] == before
    assert len(rows) == len(expected)
    assert untimed(rows) == untimed(expected)


def test_a_sweep_that_is_killed_three_times_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 3, ".jsonl", seed=1)


@pytest.mark.corpus
@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_a_sweep_that_is_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path: Path, kind: str) -> None:
    kill_and_resume(tmp_path, 20, kind, seed=2)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_says_how_to_go_on_and_leaves_no_worker(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    process = start(tmp_path, "rows.parquet")
    journal = tmp_path / "rows.parquet.journal"
    assert until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 1)
    os.killpg(process.pid, sent)
    out, told = process.communicate(timeout=60)
    kept = len(journal.read_text().splitlines())
    line = f"memplan: interrupted: {kept} rows are in rows.parquet; the same command makes the others\n"
    assert (process.returncode, out, told.decode()) == (code, b"", line)
    assert until(lambda: not is_there(process.pid))


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_row_is_in_the_file_while_its_model_goes_on(tmp_path: Path, jobs: str) -> None:
    out = tmp_path / "rows.jsonl"
    process = start(tmp_path, out.name, "--models", f"{LOGGED}:waits_late", models=False, jobs=jobs)
    assert until(lambda: process.poll() is not None or (out.exists() and out.stat().st_size > 0))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert [(row["method"], row["error"]) for row in rows_in(out)] == [("full", None)]


def test_a_death_leaves_the_rows_that_are_there(tmp_path: Path) -> None:
    process = start(tmp_path, "rows.jsonl", "--models", f"{LOGGED}:dies_late", models=False)
    process.communicate()
    assert process.returncode == 3
    found = {row["method"]: row["error"] for row in rows_in(tmp_path / "rows.jsonl")}
    assert found == {"full": None, **dict.fromkeys(METHODS[1:], "the worker process exited with 9")}


def test_a_model_that_kills_its_process_is_a_row(tmp_path: Path) -> None:
    dies = f"{LOGGED}:dies"
    process = start(tmp_path, "rows.jsonl", "--models", dies)
    process.communicate()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert process.returncode == 3
    assert [row["error"] for row in rows if row["model"] == dies] == ["the worker process exited with 9"] * 4
    assert sum(row["error"] is None for row in rows) == 32
    assert sorted(builds(tmp_path)) == sorted(f"chain{width}" for width in range(1, 9))
