"""Workers: every task once, a death that costs one task, and the same number of threads everywhere."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from memplan.errors import UsageError
from memplan.processes import Died
from memplan.workers import run_all, stream_all
from tests.tasks_for_workers import (
    SLEEP_SECONDS,
    leaving_a_child,
    logged,
    logged_then_sleeping,
    process,
    raising,
    raising_what_cannot_travel,
    square,
    squares_then_exit,
    squares_then_sleep,
    threads,
)
from tests.threads import torch_threads
from tests.waiting import is_running, until

ROOT = Path(__file__).parent.parent


def pids_in(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_task_has_its_outcome(jobs: int) -> None:
    assert dict(run_all(square, (3, 4), jobs=jobs)) == {0: 9, 1: 16}


def test_no_tasks_give_nothing() -> None:
    assert list(run_all(square, (), jobs=2)) == []


def test_one_job_runs_in_this_process_when_it_is_asked_for() -> None:
    ran: list[int] = []
    outcomes = run_all(ran.append, range(3))
    assert ran == []
    assert next(outcomes) == (0, None)
    assert ran == [0]


def test_a_death_costs_its_own_task_and_nothing_runs_twice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tasks = [(str(log), number, {1: "exit", 4: "kill"}.get(number, "")) for number in range(8)]
    died = {
        1: Died("the worker process exited with 9"),
        4: Died("the worker process was killed by SIGKILL; out of memory?"),
    }
    assert dict(run_all(logged, tasks, jobs=2)) == {number: died.get(number, number) for number in range(8)}
    assert sorted(log.read_text().split()) == [str(n) for n in range(8)]


def test_results_come_while_their_task_goes_on() -> None:
    results = stream_all(squares_then_sleep, (3, 3), jobs=2)
    assert sorted(next(results) for _ in range(6)) == [(task, square) for task in (0, 1) for square in (0, 1, 4)]
    results.close()  # type: ignore[attr-defined]


def test_a_death_leaves_the_results_that_came_before_it() -> None:
    died = Died("the worker process exited with 9")
    assert list(stream_all(squares_then_exit, (2,), jobs=2)) == [(0, 0), (0, 1), (0, died)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_the_function_raises_is_raised(jobs: int) -> None:
    with pytest.raises(ValueError, match="no 2"):
        list(run_all(raising, range(8), jobs=jobs))


def test_what_is_raised_in_a_worker_says_where() -> None:
    with pytest.raises(ValueError, match="no 2") as raised:
        list(run_all(raising, range(3), jobs=2))
    assert "in raising" in str(raised.value.__cause__)


def test_what_is_raised_travels_at_least_as_text() -> None:
    with pytest.raises(RuntimeError, match=r"^Unlike: no: reason$") as raised:
        list(run_all(raising_what_cannot_travel, range(2), jobs=2))
    assert "in raising_what_cannot_travel" in str(raised.value.__cause__)


def test_a_death_is_told_where_a_child_of_the_worker_lives_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    try:
        outcomes = [outcome for _, outcome in run_all(leaving_a_child, [str(log)] * 2, jobs=2)]
        assert outcomes == [Died("the worker process exited with 9")] * 2
    finally:
        for pid in pids_in(log):
            os.kill(pid, signal.SIGKILL)


def test_a_worker_runs_many_tasks() -> None:
    used = [pid for _, pid in run_all(process, range(12), jobs=2)]
    assert len(set(used)) == 2
    assert os.getpid() not in used


def test_workers_use_as_many_threads_as_this_process() -> None:
    more = torch.get_num_threads() + 1
    with torch_threads(more):
        assert [outcome for _, outcome in run_all(threads, range(2), jobs=2)] == [more] * 2


def test_by_default_workers_use_the_threads_of_a_process_that_has_not_imported_torch_yet() -> None:
    code = (
        "from memplan.workers import run_all\n"
        "from tests.tasks_for_workers import threads\n"
        "print(*[n for _, n in run_all(threads, range(2), jobs=2)], threads(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, own = done.stdout.split()
    assert first == second == own


def test_workers_end_when_nobody_wants_more(tmp_path: Path) -> None:
    log = tmp_path / "log"
    outcomes = run_all(logged_then_sleeping, [(str(log), number) for number in range(4)], jobs=2)
    assert next(outcomes) == (0, 0)
    assert until(lambda: len(pids_in(log)) >= 2)
    began = time.monotonic()
    outcomes.close()  # type: ignore[attr-defined]
    assert until(lambda: not any(map(is_running, pids_in(log))))
    assert time.monotonic() - began < SLEEP_SECONDS / 2


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process in a group of its own whose two workers sleep, and the log of their pids."""
    log = tmp_path / "log"
    code = (
        "from memplan.workers import run_all\n"
        "from tests.tasks_for_workers import sleeping\n"
        "if __name__ == '__main__':\n"
        f"    list(run_all(sleeping, [{str(log)!r}] * 4, jobs=2))"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert until(lambda: len(pids_in(log)) == 2)
    yield started, log
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.communicate()


def test_an_interrupt_ends_the_workers_promptly_and_they_say_nothing(
    busy: tuple[subprocess.Popen[str], Path],
) -> None:
    process, log = busy
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert told.count("Traceback") == 1
    assert told.strip().endswith("KeyboardInterrupt")
    assert not any(map(is_running, pids_in(log)))


def test_workers_do_not_outlive_a_process_that_is_killed(busy: tuple[subprocess.Popen[str], Path]) -> None:
    process, log = busy
    process.kill()
    assert until(lambda: not any(map(is_running, pids_in(log))))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"backend": "lokky"}, "no backend 'lokky'; did you mean 'loky'?; choose one of loky, dask, ray"),
        ({"jobs": 0}, "jobs must be 1 or more, not 0"),
        ({"scheduler": "tcp://a:1"}, "scheduler 'tcp://a:1' is for backend dask, not loky; add --backend dask"),
    ],
)
def test_what_cannot_be_had_is_told_at_once(options: dict[str, object], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_all(square, (), **options)  # type: ignore[arg-type]
    assert str(caught.value) == line


def test_a_backend_that_is_not_installed_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"^backend dask needs distributed; run: pip install 'memplan\[dask\]'$"):
        run_all(square, (), backend="dask", scheduler="tcp://127.0.0.1:1")
