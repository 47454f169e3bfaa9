"""Run a function on many tasks in worker processes: on this machine, or on a cluster through joblib's backends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Final, TypeVar

from memplan.errors import UsageError, known
from memplan.processes import LOOK_SECONDS, Died, Ended, Worker

if TYPE_CHECKING:
    from memplan.clusters import Cluster

T = TypeVar("T")
R = TypeVar("R")

#: Where workers are: processes of this machine, or those of a cluster.
BACKENDS: Final = ("loky", "dask", "ray")


def run_all(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    jobs: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
) -> Iterator[tuple[int, R | Died]]:
    """Return an iterator over the index and the outcome of each task, as it finishes.

    Args: see :func:`stream_all`; ``function`` returns the outcome.

    Raises:
        UsageError: see there.
    """
    return stream_all(partial(_alone, function), tasks, jobs=jobs, backend=backend, scheduler=scheduler)


def _alone(function: Callable[[T], R], task: T) -> tuple[R]:
    return (function(task),)


def stream_all(
    function: Callable[[T], Iterable[R]],
    tasks: Sequence[T],
    *,
    jobs: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
) -> Iterator[tuple[int, R | Died]]:
    """Return an iterator over the results of all tasks, each with the index of its task, as they are made.

    A worker that dies ends its own task only, whose results until then are given; on a cluster the results of a task
    come together, at its end. Workers use as many threads as this process does, for what kernels
    need depends on it, and stop when the iterator is closed. With one job on this machine tasks run in this process.

    Args:
        function: gives the results of a task, and is importable in the workers; what it raises is raised here.
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
    if jobs > 1:
        return _here(function, tasks, jobs)
    return ((index, result) for index, task in enumerate(tasks) for result in function(task))


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


def _there(
    cluster: Cluster, function: Callable[[T], Iterable[R]], tasks: Sequence[T]
) -> Iterator[tuple[int, R | Died]]:
    """Yield results from a cluster.

    A worker that dies can take other tasks with it. The first task that is lost is run again alone, and has killed its
    worker if it is lost again; the others are run again together.
    """
    from memplan.clusters import Lost

    waiting = list(range(len(tasks)))
    try:
        while waiting:
            lost = []
            for index, result in cluster.run(function, tasks, waiting):
                if isinstance(result, Lost):
                    lost.append(index)
                else:
                    yield index, result
            for index, result in cluster.run(function, tasks, lost[:1]):
                yield index, Died(result.reason) if isinstance(result, Lost) else result
            waiting = lost[1:]
    finally:
        cluster.leave()


def _here(function: Callable[[T], Iterable[R]], tasks: Sequence[T], jobs: int) -> Iterator[tuple[int, R | Died]]:
    """Yield results from processes of this machine."""
    waiting = iter(enumerate(tasks))
    running: dict[Any, tuple[int, Worker]] = {}

    def start(worker: Worker) -> None:
        for index, task in waiting:
            worker.start(function, task)
            running[worker.results] = index, worker
            return
        worker.stop()

    try:
        for _ in range(min(jobs, len(tasks))):
            start(Worker())
        while running:
            gone = (pipe for pipe, (_, worker) in running.items() if worker.is_gone)
            for ready in wait(list(running), LOOK_SECONDS) or list(gone):
                index, worker = running[ready]
                result = worker.received()
                if isinstance(result, Ended | Died):
                    del running[ready]
                    if isinstance(result, Died):
                        worker.stop()
                        worker = Worker()
                    start(worker)
                if isinstance(result, Ended):
                    result.check()
                else:
                    yield index, result
    finally:
        for _, worker in running.values():
            worker.stop()
