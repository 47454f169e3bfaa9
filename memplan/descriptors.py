"""The descriptor of stdout, which native code and child processes write to, whatever Python's ``sys.stdout`` is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Final

STDERR: Final = 2

_STDOUT: Final = 1


@contextlib.contextmanager
def stdout_away(to: int | None = None) -> Iterator[None]:
    """Lead what is written to stdout past Python nowhere, or to another descriptor; processes started here inherit it.

    Where there is no stdout, nothing is done.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # of a descriptor that is closed there is nothing to keep clean
            own = os.dup(_STDOUT)
            stack.callback(os.close, own)
            _flush()
            stack.callback(os.dup2, own, _STDOUT)
            stack.callback(_flush)
            if to is not None:
                os.dup2(to, _STDOUT)
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
