"""What the tests give to workers: functions in a module that imports little, for each worker imports it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

#: Far longer than a test waits, so that what ends sooner was ended.
SLEEP_SECONDS = 300


def square(number: int) -> int:
    return number * number


def squares_then_exit(count: int) -> Iterator[int]:
    yield from (number * number for number in range(count))
    os._exit(9)


def squares_then_sleep(count: int) -> Iterator[int]:
    yield from (number * number for number in range(count))
    time.sleep(SLEEP_SECONDS)


def logged(task: tuple[str, int, str]) -> int:
    """Write which task runs, and end the process as it is told."""
    log, number, end = task
    with open(log, "a", encoding="utf-8") as lines:
        lines.write(f"{number}\n")
    time.sleep(0.05)
    if end == "exit":
        os._exit(9)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "kill parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(SLEEP_SECONDS)
    return number


def raising(number: int) -> int:
    if number == 2:
        raise ValueError("no 2")
    return number


class Unlike(Exception):
    """One that pickle makes again with fewer arguments than it needs."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def raising_what_cannot_travel(_: int) -> None:
    raise Unlike("no", "reason")


def leaving_a_child(log: str) -> None:
    """Die with a child of one's own left, which has all that was open."""
    if os.fork() == 0:
        with open(log, "a", encoding="utf-8") as lines:
            lines.write(f"{os.getpid()}\n")
        time.sleep(SLEEP_SECONDS)
        os._exit(0)
    os._exit(9)


def process(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def process_and_parent(_: int) -> tuple[int, int]:
    time.sleep(0.1)
    return os.getpid(), os.getppid()


def threads(_: int) -> int:
    import torch

    return torch.get_num_threads()


def sleeping(log: str) -> int:
    with open(log, "a", encoding="utf-8") as lines:
        lines.write(f"{os.getpid()}\n")
    time.sleep(SLEEP_SECONDS)
    return 0


def logged_then_sleeping(task: tuple[str, int]) -> int:
    log, number = task
    if number:
        return sleeping(log)
    with open(log, "a", encoding="utf-8") as lines:
        lines.write(f"{os.getpid()}\n")
    return number
