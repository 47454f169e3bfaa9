"""Run other people's code without letting it write into memplan's output."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator


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
