"""The machine that a step is priced for: this one, or a named one, so that every machine gives the same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch

from memplan.errors import UsageError, known
from memplan.graph.records import INSTRUCTION_SETS, Machine

_instruction_set: ContextVar[str | None] = ContextVar("instruction_set", default=None)


def machine_of(device: torch.device) -> Machine:
    """Return what decides the bytes of kernels on ``device``, as this process, or a named machine, would run them."""
    capability = _instruction_set.get() or torch.backends.cpu.get_cpu_capability()
    version = torch.__version__.split("+")[0]
    return Machine(device.type, capability if device.type == "cpu" else "", torch.get_num_threads(), version)


@contextlib.contextmanager
def named_machine(threads: int, instruction_set: str) -> Iterator[None]:
    """Price steps for a CPU with this many threads and these instructions, such as ``AVX2``, while the context lasts.

    The process's own number of threads is put back: some kernels of memplan's layers ask for it while they are
    recorded.

    Raises:
        UsageError: there is no such machine.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise UsageError(f"threads must be a whole number from 1 on, not {threads!r}")
    known("instruction set", instruction_set, INSTRUCTION_SETS)
    before = torch.get_num_threads()
    token = _instruction_set.set(instruction_set)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _instruction_set.reset(token)
