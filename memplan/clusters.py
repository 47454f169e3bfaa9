"""Workers of a cluster, through joblib's backends for Dask and Ray."""

from __future__ import annotations

import importlib.util
import multiprocessing
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from joblib import Parallel, delayed
from joblib._dask import DaskDistributedBackend

from memplan.errors import AnalysisError, UsageError
from memplan.processes import Died, Ended, Worker

T = TypeVar("T")
R = TypeVar("R")

#: What is imported for a backend; the extra that installs it has the backend's name.
_PACKAGES: Final = {"dask": "distributed", "ray": "ray"}

#: How long a scheduler may take to answer.
TIMEOUT_SECONDS: Final = 5

#: How long a process that has run a task waits on a cluster's machine for another one.
IDLE_SECONDS: Final = 60.0

#: Where a cluster's worker runs tasks: workers of ours that wait, by their threads.
_WAITING: Final[dict[int, list[Worker]]] = {}


@dataclass(frozen=True, slots=True)
class Lost:
    """What stands for the outcome of a task that was on a worker that died, whether or not the task killed it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """Workers that answer: how tasks get to them, how they are left, and how many threads a task is to use."""

    parallel: Callable[[], Parallel]
    leave: Callable[[], None]
    threads: int

    def run(
        self, function: Callable[[T], Iterable[R]], tasks: Sequence[T], chosen: Sequence[int]
    ) -> Iterator[tuple[int, R | Died | Lost]]:
        """Yield the results of each chosen task with its index, as it finishes."""
        if not chosen:
            return
        outcomes = self.parallel()(delayed(_outcome)(function, index, tasks[index], self.threads) for index in chosen)
        try:
            for index, results in outcomes:
                for result in results:
                    yield index, result
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joblib tells what is given up
                outcomes.close()


def check_installed(backend: str) -> None:
    """Raise where the package behind a backend is missing.

    Raises:
        UsageError: it is.
    """
    if importlib.util.find_spec(_PACKAGES[backend]) is None:
        raise UsageError(f"backend {backend} needs {_PACKAGES[backend]}; run: pip install 'memplan[{backend}]'")


def connected(backend: str, scheduler: str | None, jobs: int) -> Cluster:
    """Return the workers of a cluster; ``scheduler`` is Dask's, ``jobs`` how many of Ray's workers.

    Raises:
        UsageError: the cluster does not answer, or has too few workers.
    """
    import torch

    threads = torch.get_num_threads()
    return _dask(str(scheduler), threads) if backend == "dask" else _ray(jobs, threads)


def _dask(scheduler: str, threads: int) -> Cluster:
    from distributed import Client
    from distributed.comm import get_address_host_port

    try:
        # A client that finds nobody leaves threads that go on looking.
        socket.create_connection(get_address_host_port(scheduler), TIMEOUT_SECONDS).close()
        client = Client(scheduler, timeout=TIMEOUT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {scheduler!r} within {TIMEOUT_SECONDS} s; check the address, and start it"
        ) from error
    try:
        client.wait_for_workers(1, timeout=TIMEOUT_SECONDS)
    except TimeoutError as error:
        client.close()
        raise UsageError(f"the Dask scheduler at {scheduler!r} has no workers; run: dask worker {scheduler}") from error
    return Cluster(lambda: _parallel(_Dask(client=client), -1), client.close, threads)


def _ray(jobs: int, threads: int) -> Cluster:
    """Return workers of the Ray cluster that ``RAY_ADDRESS`` names, or of one that is started on this machine."""
    import ray

    started = not ray.is_initialized()
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise UsageError("no Ray cluster answers at RAY_ADDRESS; check the address, and that it runs") from error
    processors = int(ray.cluster_resources().get("CPU", 0))
    if processors < 2:
        raise UsageError(f"the Ray cluster has {processors} CPUs, and 2 are needed; add a node or leave out ray")
    # With one job joblib would run the tasks in this process.
    workers = min(max(jobs, 2), processors)
    return Cluster(lambda: _parallel(_ray_backend(), workers), ray.shutdown if started else lambda: None, threads)


def _parallel(backend: Any, jobs: int) -> Parallel:
    return Parallel(jobs, backend=backend, batch_size=1, return_as="generator_unordered")


class _Dask(DaskDistributedBackend):  # type: ignore[misc]  # joblib has no types
    """joblib's backend, which of itself waits for ever for a task whose worker died."""

    def effective_n_jobs(self, n_jobs: int) -> int:
        """Return how many tasks run at a time; with one joblib would run them in this process."""
        return max(2, int(super().effective_n_jobs(n_jobs)))

    def submit(self, func: Any, callback: Any = None) -> Any:
        """Start a batch of one task; ``callback`` is told of its end."""
        future = super().submit(func, callback)

        def failed(done: Future[Any]) -> None:
            if (error := done.exception()) is not None:
                callback((_index(func), error))

        future.add_done_callback(failed)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return the batch's outcomes, or raise what the cluster failed with."""
        from distributed import KilledWorker

        index, error = out if isinstance(out, tuple) else (0, out)
        if isinstance(error, CancelledError):
            raise AnalysisError("the Dask scheduler is gone; start it, and run the same command again") from error
        if isinstance(error, KilledWorker):
            return [(index, [Lost("the Dask worker process died; out of memory?")])]
        if not isinstance(out, tuple):
            return super().retrieve_result_callback(out)
        raise error


def _ray_backend() -> Any:
    """Return Ray's backend for joblib, which can give outcomes as they come and does not say so."""
    from ray.exceptions import RayError
    from ray.util.joblib.ray_backend import RayBackend

    class Streaming(RayBackend):  # type: ignore[misc]  # Ray is no dependency
        supports_return_generator = True

        def submit(self, func: Any, callback: Any = None) -> Any:
            lost = [(_index(func), [Lost("the Ray worker process died; out of memory?")])]
            return super().submit(func, lambda out: callback(lost if isinstance(out, RayError) else out))

    return Streaming()


def _index(batch: Any) -> int:
    """Return the index of the task in a batch, which is among the arguments of ``_outcome``."""
    ((_, (_, index, *_), _),) = batch.items
    return int(index)


def _outcome(function: Callable[[T], Iterable[R]], index: int, task: T, threads: int) -> tuple[int, list[R | Died]]:
    """Return the index and the results of one task, on a cluster's worker, which runs it in a process beside it.

    Dask samples the frames of its workers' threads for a profile, and a frame that is held keeps the tensors of its
    call alive for longer than a step does. A worker with several tasks at once would mix what models set for the whole
    process, and its libraries are given one thread.
    """
    # multiprocessing lets a daemon, as Dask's workers are, start nothing: what we start ends with it by itself.
    multiprocessing.current_process().daemon = False
    waiting = _WAITING.setdefault(threads, [])
    try:
        worker = waiting.pop()
    except IndexError:
        worker = Worker(threads, IDLE_SECONDS)
    worker.start(function, task)
    results: list[R | Died] = []
    while not isinstance(result := worker.received(), Ended):
        results.append(result)
        if isinstance(result, Died):
            worker.stop()
            return index, results
    waiting.append(worker)
    result.check()
    return index, results
