"""A sweep on a cluster: a real Dask scheduler with workers in processes of their own, and Ray where it is installed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from memplan.cases import cases_for
from memplan.cli.border import Commands
from memplan.cli.sweeping import sweep as command
from memplan.errors import AnalysisError, UsageError
from memplan.processes import Died
from memplan.reports.row_files import Row, RowFile
from memplan.sweeping import COLUMNS, sweep, tasks_of
from memplan.workers import run_all, stream_all
from tests.tasks_for_workers import logged, process, process_and_parent, raising, squares_then_exit, threads
from tests.threads import torch_threads
from tests.waiting import is_running, until

distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "tests" / "models_for_cli.py"
NET, FAILS = f"{MODELS}:net", f"{MODELS}:fails"

#: A client of Dask warns of what it leaves to the garbage collector when it is closed while a batch is under way.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

main = Commands(name="memplan")
main.add_command(command)


def dask(folder: Path, *words: str, **more: str) -> subprocess.Popen[bytes]:
    with (folder / f"{words[0]}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **more},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[str]:
    """The address of a scheduler with two workers, the second of which has two threads."""
    folder = tmp_path_factory.mktemp("cluster")
    address = f"tcp://127.0.0.1:{port}"
    # A task whose worker dies is given up at once, so that the test of that does not wait for three more deaths.
    own = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    started = [dask(folder, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", **own)]
    assert until(lambda: answers(port)), (folder / "scheduler.log").read_text()
    with pytest.raises(UsageError, match=rf"^the Dask scheduler at '{address}' has no workers; run: dask worker"):
        run_all(raising, [0], backend="dask", scheduler=address)
    started += [dask(folder, "worker", address, "--nthreads", count, "--no-dashboard") for count in ("1", "2")]
    yield address
    for each in started:
        os.killpg(each.pid, signal.SIGKILL)
        each.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def untimed(rows: list[Row]) -> set[tuple[Any, ...]]:
    return {tuple(value for name, value in row.items() if name != "seconds") for row in rows}


def test_the_command_gives_the_rows_of_this_machine(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The workers run in another folder.
    monkeypatch.chdir(MODELS.parent)
    models = [f"models_for_cli.py:{name}" for name in ("net", "convolutions", "fails")]
    out = tmp_path / "rows.jsonl"
    words = ["--models", ",".join(models), "--methods", "full,lossless", "--batch-sizes", "1,2", "--out", str(out)]
    done = CliRunner().invoke(main, ["sweep", *words, "--backend", "dask", "--scheduler", scheduler])
    assert done.exit_code == 3, done.output
    with RowFile(out, COLUMNS) as file:
        there = file.rows
    here = list(sweep(models, batch_sizes=[1, 2], methods=["full", "lossless"]))
    assert len(there) == 3 * 2 * 2
    assert untimed(there) == untimed(here)


def test_tasks_use_the_threads_of_this_process(scheduler: str) -> None:
    more = torch.get_num_threads() + 1
    with torch_threads(more):
        found = [outcome for _, outcome in run_all(threads, range(4), backend="dask", scheduler=scheduler)]
    assert found == [more] * 4


def test_what_the_function_raises_is_raised(scheduler: str) -> None:
    with pytest.raises(ValueError, match="no 2"):
        list(run_all(raising, range(8), backend="dask", scheduler=scheduler))


def test_a_death_costs_its_own_task(scheduler: str, tmp_path: Path) -> None:
    tasks = [(str(tmp_path / "log"), number, "exit" if number == 3 else "") for number in range(8)]
    outcomes = dict(run_all(logged, tasks, backend="dask", scheduler=scheduler))
    died = Died("the worker process exited with 9")
    assert outcomes == {number: died if number == 3 else number for number in range(8)}


def test_a_death_leaves_the_results_that_came_before_it(scheduler: str) -> None:
    died = Died("the worker process exited with 9")
    results = list(stream_all(squares_then_exit, (2,), backend="dask", scheduler=scheduler))
    assert results == [(0, 0), (0, 1), (0, died)]


def test_a_plan_is_a_task_of_its_own_on_a_cluster() -> None:
    cases = cases_for(NET, methods=["full", "plan", "last"], budgets=["1MB", "2MB"])
    assert [len(task.cases) for task in tasks_of(cases)] == [6]
    methods = [[case.method for case in task.cases] for task in tasks_of(cases, anywhere=True)]
    assert methods == [["full", "full", "last", "last"], ["plan"], ["plan"]]


def test_a_death_of_the_cluster_s_own_worker_costs_its_own_task(scheduler: str, tmp_path: Path) -> None:
    tasks = [(str(tmp_path / "log"), number, "kill parent" if number == 3 else "") for number in range(8)]
    outcomes = dict(run_all(logged, tasks, backend="dask", scheduler=scheduler))
    died = Died("the Dask worker process died; out of memory?")
    assert outcomes == {number: died if number == 3 else number for number in range(8)}


def test_tasks_run_beside_the_cluster_s_own_workers_and_as_many_at_once(scheduler: str) -> None:
    """Dask holds the frames of its workers' threads, and what they hold lives on: a step is not recorded there."""
    with distributed.Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)  # one that another test killed starts again
    places = [place for _, place in run_all(process_and_parent, range(24), backend="dask", scheduler=scheduler)]
    processes, parents = {pid for pid, _ in places}, {parent for _, parent in places}
    assert len(processes) == 3, "one worker has one thread, the other two"
    assert len(parents) == 2
    assert processes.isdisjoint(parents)


def test_what_ran_a_task_ends_with_the_cluster_s_worker(tmp_path: Path, port: int) -> None:
    address = f"tcp://127.0.0.1:{port + 2}"
    cluster = [dask(tmp_path, "scheduler", "--host", "127.0.0.1", "--port", str(port + 2), "--no-dashboard")]
    assert until(lambda: answers(port + 2))
    cluster.append(dask(tmp_path, "worker", address, "--nthreads", "1", "--no-dashboard"))
    try:
        ((_, (ran, _)),) = run_all(process_and_parent, [0], backend="dask", scheduler=address)
        assert is_running(ran)
        cluster[1].terminate()
        assert until(lambda: not is_running(ran))
    finally:
        for each in cluster:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
            each.wait()


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:9", "127.0.0.1", "tcp://nowhere.invalid:8786", "http://127.0.0.1:9", "tcp://:x"]
)
def test_a_scheduler_that_does_not_answer_is_told_soon(tmp_path: Path, address: str) -> None:
    began = time.monotonic()
    words = ["--models", NET, "--out", str(tmp_path / "rows.csv"), "--backend", "dask", "--scheduler", address]
    done = CliRunner().invoke(main, ["sweep", *words])
    assert time.monotonic() - began < 60
    assert done.exit_code == 2
    line = f"memplan: no Dask scheduler answers at {address!r} within 5 s; check the address, and start it\n"
    assert done.stderr == line
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_that_goes_is_told_and_the_rows_are_kept(tmp_path: Path, port: int) -> None:
    address = f"tcp://127.0.0.1:{port + 1}"
    going = dask(tmp_path, "scheduler", "--host", "127.0.0.1", "--port", str(port + 1), "--no-dashboard")
    assert until(lambda: answers(port + 1))
    worker = dask(tmp_path, "worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny")
    try:
        outcomes = run_all(process, range(200), backend="dask", scheduler=address)
        # joblib would run tasks here, for a cluster of one thread.
        assert next(outcomes)[1] not in (os.getpid(), None)
        os.killpg(going.pid, signal.SIGKILL)
        with pytest.raises(
            AnalysisError, match=r"^the Dask scheduler is gone; start it, and run the same command again$"
        ):
            list(outcomes)
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        for each in (going, worker):
            each.wait()


@pytest.mark.corpus
def test_ray_gives_the_rows_of_this_machine_and_a_death_costs_its_own_task(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    rows, here = (list(sweep([NET, FAILS], methods=["full", "last"], **at)) for at in ({"backend": "ray"}, {}))  # type: ignore[arg-type]
    assert untimed(rows) == untimed(here)
    tasks = [(str(tmp_path / "log"), number, "exit" if number == 1 else "") for number in range(4)]
    outcomes = dict(run_all(logged, tasks, backend="ray", jobs=2))
    died = Died("the worker process exited with 9")
    assert outcomes == {number: died if number == 1 else number for number in range(4)}
