"""Processes that run tasks beside this one: each by itself, with as many threads, and gone when this one is."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, NoReturn, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_ORPHAN_SECONDS: Final = 1.0
_SIGNAL: Final = re.compile(r"(SIG[A-Z0-9]+)\(-\d+\)")
_EXIT: Final = re.compile(r"EXIT\((\d+)\)")


@dataclass(frozen=True, slots=True)
class Died:
    """The outcome of a task whose worker process died, and why, in one line."""

    reason: str


class Worker:
    """A process for one task at a time, started when it has one.

    It is a pool of its own, for a pool in which one process dies loses the tasks of all. Once a task has died with it,
    it takes no other.
    """

    def __init__(self, threads: int | None = None, idle_seconds: float | None = None) -> None:
        """Make a worker.

        Args:
            threads: what torch is told to use; by default what its libraries use of themselves, as in this process
                unless torch was told another number here.
            idle_seconds: how long the process waits for a task before it ends; the next task starts another.
        """
        from joblib.externals.loky import ProcessPoolExecutor

        self._pool = ProcessPoolExecutor(
            1, timeout=idle_seconds, initializer=_settle, initargs=(os.getpid(), threads or _threads_here())
        )

    def start(self, function: Callable[[T], R], task: T) -> Future[R]:
        """Run ``function`` on ``task`` and return what will be its outcome, for :func:`outcome_of`."""
        future: Future[R] = self._pool.submit(function, task)
        return future

    def stop(self) -> None:
        """End the process, and the task that it runs."""
        self._pool.shutdown(kill_workers=True)


def outcome_of(future: Future[R]) -> R | Died:
    """Wait for a task and return what its function returned, or why its worker died; raise what it raised."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        return future.result()
    except TerminatedWorkerError as error:
        return Died(_death(str(error)))


def _threads_here() -> int | None:
    """Return how many threads torch uses in this process, unless it was not imported yet."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


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
