"""Errors that reach a user as one line: what happened, the user's own value, the next step."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import TypeVar

_Name = TypeVar("_Name", bound=str)


class MemplanError(Exception):
    """A failure that is explained in one line and maps to one exit code."""

    exit_code = 3


class UsageError(MemplanError):
    """The request itself cannot be understood: an unknown name, a malformed size, a bad combination."""

    exit_code = 2


class AnalysisError(MemplanError):
    """The request is clear, but the model cannot be loaded, recorded, priced or measured."""

    exit_code = 3


class NothingTrainsError(AnalysisError):
    """A method trains no parameter of the model."""


class BudgetError(MemplanError):
    """The request is clear and the model can be analysed, but nothing that is allowed fits the budget."""

    exit_code = 1


def did_you_mean(name: object, known: Iterable[str], *, limit: int = 2) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the names closest to ``name``, or ``""`` when none is close.

    >>> did_you_mean("resnet5", ["resnet50", "vgg16"])
    "; did you mean 'resnet50'?"
    """
    close = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.6) if isinstance(name, str) else []
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def known(what: str, name: _Name, names: Collection[str]) -> _Name:
    """Return ``name`` where it is one of ``names``; ``what`` says what they name.

    Raises:
        UsageError: it is none.

    >>> known("runner", "stock", ("stock", "memplan"))
    'stock'
    """
    if not isinstance(name, str) or name not in names:
        raise UsageError(f"no {what} {name!r}{did_you_mean(name, names)}; choose one of {', '.join(names)}")
    return name
