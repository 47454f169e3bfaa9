"""Processes that run tasks beside this one: each by itself, with as many threads, and gone when this one is."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final, NoReturn, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: How often a process looks whether another one is still there.
LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Died:
    """The outcome of a task whose worker process died, and why, in one line."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """What comes after the last result of a task: what its function raised, if it did, and where in the worker."""

    error: BaseException | None = None
    where: str = ""

    def check(self) -> None:
        """Raise what the function raised; a report of a fault needs its traceback, which does not travel by itself."""
        if self.error is not None:
            raise self.error from RuntimeError(f"in a worker:\n{self.where}")


class Worker:
    """A process for one task at a time, started when it has one; once a task has died with it, it takes no other.

    It has a pipe of its own, by which results come while the task goes on: a pool gives what a task returns.
    """

    def __init__(self, threads: int | None = None, idle_seconds: float | None = None) -> None:
        """Make a worker.

        Args:
            threads: what torch is told to use; by default what its libraries use of themselves, as in this process
                unless torch was told another number here.
            idle_seconds: how long the process waits for a task before it ends; the next task starts another.
        """
        self._threads, self._idle_seconds = threads or _threads_here(), idle_seconds
        self._started: tuple[BaseProcess, Connection] | None = None
        self._idle_since = 0.0

    @property
    def results(self) -> Connection:
        """What has something to read when :meth:`received` does not wait, for a task that was started."""
        assert self._started is not None
        return self._started[1]

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended; a child that it leaves behind keeps its end of the pipe open."""
        assert self._started is not None
        return self._started[0].exitcode is not None

    def start(self, function: Callable[[T], Iterable[Any]], task: T) -> None:
        """Run ``function`` on ``task``; each thing that it gives is for :meth:`received`."""
        # The process waits for twice as long as it is used, and so never ends while it is given a task.
        if self._idle_seconds is not None and time.monotonic() - self._idle_since > self._idle_seconds / 2:
            self.stop()
        if self._started is None:
            self._started = self._new()
        with contextlib.suppress(BrokenPipeError):  # it died, as what is received says
            self.results.send((function, task))

    def received(self) -> Any:
        """Wait for what the task gives next, and return it; at its end return :class:`Ended` or :class:`Died`."""
        assert self._started is not None
        process, pipe = self._started
        while not (pipe.poll(LOOK_SECONDS) or self.is_gone):
            pass
        try:
            found = pipe.recv() if pipe.poll() else Died(_death(process.exitcode))
        except (EOFError, ConnectionResetError):
            process.join()
            found = Died(_death(process.exitcode))
        if isinstance(found, Ended | Died):
            self._idle_since = time.monotonic()
        return found

    def stop(self) -> None:
        """End the process, and the task that it runs."""
        if self._started is not None:
            process, pipe = self._started
            self._started = None
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
                process.join()
            pipe.close()

    def _new(self) -> tuple[BaseProcess, Connection]:
        # Its processes leave the caller's main module alone, which a script without a guard needs.
        from joblib.externals.loky.backend import get_context

        context = get_context("loky")
        here, there = context.Pipe()
        process = context.Process(
            target=_serve, args=(there, os.getpid(), self._threads, self._idle_seconds), daemon=True
        )
        process.start()
        there.close()
        return process, here


def _serve(pipe: Connection, parent: int, threads: int | None, idle_seconds: float | None) -> None:
    """Run the tasks that come, until none comes for a while or nobody is there."""
    _settle(parent, threads)
    while pipe.poll(idle_seconds):
        try:
            function, task = pipe.recv()
        except EOFError:
            return
        ended = Ended()
        try:
            for result in function(task):
                pipe.send(result)
        except BaseException as error:
            ended = Ended(_travelling(error), traceback.format_exc())
        pipe.send(ended)


def _travelling(error: BaseException) -> BaseException:
    """Return an exception, or where it cannot be sent and made again elsewhere, one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


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
        time.sleep(LOOK_SECONDS)
    os._exit(1)


def _death(code: int | None) -> str:
    """Return why a worker died, given its exit code."""
    if code is None or code >= 0:
        return f"the worker process exited with {code}"
    name = signal.Signals(-code).name
    why = f"the worker process was killed by {name}"
    return f"{why}; out of memory?" if name == "SIGKILL" else why
