"""Run a function on many tasks in worker processes: on this machine, or on a cluster through joblib's backends."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from memplan.errors import UsageError, known

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from memplan.clusters import Cluster

T = TypeVar("T")
R = TypeVar("R")

#: Where workers are: processes of this machine, or those of a cluster.
BACKENDS: Final = ("loky", "dask", "ray")

_ORPHAN_SECONDS: Final = 1.0
_SIGNAL: Final = re.compile(r"(SIG[A-Z0-9]+)\(-\d+\)")
_EXIT: Final = re.compile(r"EXIT\((\d+)\)")


@dataclass(frozen=True, slots=True)
class Died:
    """The outcome of a task whose worker process died, and why, in one line."""

    reason: str


def run_all(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    jobs: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
) -> Iterator[tuple[int, R | Died]]:
    """Return an iterator over the index and the outcome of each task, as it finishes.

    A worker that dies ends its own task only. Workers use as many threads as this process does, for what kernels
    need depends on it, and stop when the iterator is closed. With one job on this machine tasks run in this process.

    Args:
        function: what is run on each task, importable in the workers; what it raises is raised here.
        tasks: its arguments; each is run once.
        jobs: worker processes; a Dask cluster has as many as it has.
        backend: ``loky`` for processes of this machine, ``dask`` or ``ray`` for a cluster's.
        scheduler: the address of Dask's scheduler.

    Raises:
        UsageError: there is no such backend, it is not installed, or its scheduler cannot be reached.
    """
    check_backend(backend, scheduler)
    if jobs < 1:
        raise UsageError(f"jobs must be 1 or more, not {jobs}")
    if backend != "loky":
        from memplan.clusters import connected

        return _there(connected(backend, scheduler, jobs), function, tasks)
    return ((index, function(task)) for index, task in enumerate(tasks)) if jobs == 1 else _here(function, tasks, jobs)


def check_backend(backend: str, scheduler: str | None) -> None:
    """Raise where workers are asked for that cannot be had; no cluster is contacted.

    Raises:
        UsageError: there is no such backend, it is not installed, or its scheduler is missing or not needed.
    """
    known("backend", backend, BACKENDS)
    if backend != "loky":
        from memplan.clusters import check_installed

        check_installed(backend)
    if backend == "dask" and scheduler is None:
        raise UsageError(
            "backend dask needs its scheduler's address; write for example --scheduler tcp://10.0.0.1:8786"
        )
    if backend != "dask" and scheduler is not None:
        raise UsageError(f"scheduler {scheduler!r} is for backend dask, not {backend}; add --backend dask")


def _there(cluster: Cluster, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R | Died]]:
    """Yield outcomes from a cluster.

    A worker that dies can take other tasks with it. The first task that is lost is run again alone, and has killed its
    worker if it is lost again; the others are run again together.
    """
    from memplan.clusters import Lost

    waiting = list(range(len(tasks)))
    try:
        while waiting:
            lost = []
            for index, outcome in cluster.run(function, tasks, waiting):
                if isinstance(outcome, Lost):
                    lost.append(index)
                else:
                    yield index, outcome
            for index, outcome in cluster.run(function, tasks, lost[:1]):
                yield index, Died(outcome.reason) if isinstance(outcome, Lost) else outcome
            waiting = lost[1:]
    finally:
        cluster.leave()


def _here(function: Callable[[T], R], tasks: Sequence[T], jobs: int) -> Iterator[tuple[int, R | Died]]:
    """Yield outcomes from processes of this machine.

    Each worker is a pool of its own, for a pool in which one worker dies loses the tasks of all.
    """
    from joblib.externals.loky import FIRST_COMPLETED, wait
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    waiting = iter(enumerate(tasks))
    running: dict[Future[R], tuple[int, Executor]] = {}

    def start(pool: Executor) -> None:
        for index, task in waiting:
            running[pool.submit(function, task)] = index, pool
            return
        _stop(pool)

    try:
        for _ in range(min(jobs, len(tasks))):
            start(_pool())
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index, pool = running.pop(future)
                error = future.exception()
                if isinstance(error, TerminatedWorkerError):
                    _stop(pool)
                    start(_pool())
                    yield index, Died(_death(str(error)))
                else:
                    start(pool)
                    yield index, future.result()
    finally:
        for _, pool in running.values():
            _stop(pool)


def _pool() -> Executor:
    """Return a pool of one process, which is started when it has a task.

    The libraries of a new process use as many threads as this one's did at first; torch may have been told another
    number since.
    """
    from joblib.externals.loky import ProcessPoolExecutor

    torch = sys.modules.get("torch")
    threads = None if torch is None else torch.get_num_threads()
    pool: Executor = ProcessPoolExecutor(1, initializer=_settle, initargs=(os.getpid(), threads))
    return pool


def _stop(pool: Any) -> None:
    pool.shutdown(kill_workers=True)


def _settle(parent: int, threads: int | None) -> None:
    """Make this worker leave interrupts to its parent, end when the parent is gone, and use as many threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _end_with(parent: int) -> NoReturn:
    while os.getppid() == parent:
        time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


def _death(text: str) -> str:
    """Return why a worker died, given what joblib says of it."""
    if killed := _SIGNAL.search(text):
        why = f"was killed by {killed[1]}"
        return f"the worker process {why}; out of memory?" if killed[1] == "SIGKILL" else f"the worker process {why}"
    left = _EXIT.search(text)
    return f"the worker process exited with {left[1]}" if left else "the worker process died"
