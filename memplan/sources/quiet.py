"""Run other people's code without letting it write into memplan's output."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Final

_STDOUT: Final = 1
_STDERR: Final = 2


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Drop warnings and log lines below an error, and send what is printed to stderr: stdout may be ``--json``."""
    disabled_level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        logging.disable(max(disabled_level, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(disabled_level)


@contextlib.contextmanager
def descriptor_away(*, to_stderr: bool) -> Iterator[None]:
    """Keep what native code and child processes write out of stdout: it goes nowhere, or to stderr.

    They know the descriptor alone, whatever Python's ``sys.stdout`` is; workers that are started meanwhile inherit it.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # of a descriptor that is closed there is nothing to keep clean
            own = os.dup(_STDOUT)
            stack.callback(os.close, own)
            _flush()
            stack.callback(os.dup2, own, _STDOUT)
            stack.callback(_flush)
            if to_stderr:
                os.dup2(_STDERR, _STDOUT)
            else:
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), _STDOUT)
        yield


def _flush() -> None:
    """Write what waits in buffers to where the descriptor leads now: Python's, and those of native code."""
    for stream in (sys.stdout, sys.__stdout__):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Put back what a model's code may set for the whole process: it must not change the numbers of the next model."""
    import torch

    folder, dtype, gradients = os.getcwd(), torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)


def first_line(error: BaseException) -> str:
    """Return the first line of the error's text: a message of memplan is one line."""
    return str(error).strip().partition("\n")[0]
