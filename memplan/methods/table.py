"""All methods by name."""

from __future__ import annotations

from typing import Final

from memplan.errors import UsageError, did_you_mean
from memplan.methods.lossless import LOSSLESS
from memplan.methods.method import Method
from memplan.methods.mobiletl import MOBILETL
from memplan.methods.stock import STOCK_METHODS
from memplan.methods.tinytl import TINYTL_METHODS
from memplan.methods.tune import TUNE

METHODS: Final[dict[str, Method]] = {
    method.name: method for method in (*STOCK_METHODS, LOSSLESS, MOBILETL, *TINYTL_METHODS, TUNE)
}


def method_named(name: str) -> Method:
    """Return a method.

    Raises:
        UsageError: there is no such method.
    """
    if not isinstance(name, str) or name not in METHODS:
        hint = did_you_mean(name, METHODS) or f"; choose from {', '.join(METHODS)}"
        raise UsageError(f"no method {name!r}{hint}")
    return METHODS[name]
