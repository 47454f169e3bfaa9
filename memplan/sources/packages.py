"""Import a model library: quietly, and with one line about what to install when it is missing."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Final

from memplan.errors import AnalysisError
from memplan.sources.quiet import first_line, quietly
from memplan.sources.torchvision_compat import declare_missing_operators

REQUIREMENTS: Final[dict[str, str]] = {
    "torchvision": "torchvision",
    "timm": "memplan[timm]",
    "transformers": "memplan[transformers]",
}
"""Package -> what pip is asked for."""


def is_installed(package: str) -> bool:
    """Return whether ``package`` can be found; it is not imported."""
    return importlib.util.find_spec(package) is not None


def import_library(module: str) -> ModuleType:
    """Return ``module``, a model library or a module of one.

    Raises:
        AnalysisError: its package is not installed, or does not import.
    """
    package = module.partition(".")[0]
    install = f"pip install '{REQUIREMENTS[package]}'"
    if not is_installed(package):
        raise AnalysisError(f"{package} is not installed; run: {install}")
    declare_missing_operators()
    try:
        with quietly():
            return importlib.import_module(module)
    except Exception as error:
        raise AnalysisError(
            f"{package} does not import ({type(error).__name__}: {first_line(error)}); run: {install} --force-reinstall"
        ) from error
