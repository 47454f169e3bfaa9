"""How the verdicts of a gate are told: to people, to pull requests and to the readers of continuous integration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from memplan.gate.records import GateResult


def _console(result: GateResult, version: str) -> str:
    from memplan.gate.formats.console import console_text

    return console_text(result, version)


def _markdown(result: GateResult, version: str) -> str:
    from memplan.gate.formats.markdown import markdown_text

    return markdown_text(result, version)


def _json(result: GateResult, version: str) -> str:
    from memplan.gate.formats.json import json_text

    return json_text(result, version)


def _junit(result: GateResult, version: str) -> str:
    from memplan.gate.formats.junit import junit_text

    return junit_text(result, version)


def _sarif(result: GateResult, version: str) -> str:
    from memplan.gate.formats.sarif import sarif_text

    return sarif_text(result, version)


def _github(result: GateResult, version: str) -> str:  # noqa: ARG001  # as every format
    from memplan.gate.formats.github import annotations

    return annotations(result)


def _html(result: GateResult, version: str) -> str:
    from memplan.gate.formats.html import html_text

    return html_text(result, version)


#: What writes each format: the text for a result, where the second argument is memplan's version.
FORMATS: Final[dict[str, Callable[[GateResult, str], str]]] = {
    "console": _console,
    "markdown": _markdown,
    "html": _html,
    "json": _json,
    "junit": _junit,
    "sarif": _sarif,
    "github": _github,
}
