"""Run other people's code without letting it write into memplan's output."""

from __future__ import annotations

import contextlib
import logging
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


def first_line(error: BaseException) -> str:
    """Return the first line of the error's text: a message of memplan is one line."""
    return str(error).strip().partition("\n")[0]
