"""docs/pytest.md: its tests run, and what is generated in it is current."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from memplan.pytest_plugin.asking import OPTIONS, PRICED
from memplan.pytest_plugin.settings import SETTINGS
from tests.gate.marked import warm

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parent.parent.parent / "docs" / "pytest.md"

#: The page's example, which is widened until it fails.
_EXAMPLE = re.compile(r"^```python\n# test_memory\.py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_WIDER = ('"4MB", input_shape=(3, 32, 32), batch_size=4)', '"4MB", input_shape=(3, 32, 32), suggest=False)')


@pytest.fixture(scope="module")
def warmed() -> None:
    warm()  # before pytester notes what is imported


def example() -> str:
    (match,) = _EXAMPLE.finditer(PAGE.read_text())
    return match[1]


def test_the_example_passes_and_can_be_accepted(warmed: None, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_memory=example())
    pytester.runpytest_inprocess("-Werror").assert_outcomes(passed=5)
    pytester.runpytest_inprocess("--memplan-update-baseline").assert_outcomes(passed=5)
    pytester.runpytest_inprocess("--memplan-require-baseline", "--strict-markers").assert_outcomes(passed=5)


def test_the_failure_that_is_shown_is_the_examples(
    warmed: None, pytester: pytest.Pytester, request: pytest.FixtureRequest
) -> None:
    pytester.makepyfile(test_memory=example().replace(*_WIDER))
    run = pytester.runpytest_inprocess("-k", "fits")
    run.assert_outcomes(failed=1, deselected=4)
    first = run.outlines.index(next(line for line in run.outlines if line.startswith("the peak of")))
    last = run.outlines.index(next(line for line in run.outlines if line.lstrip().startswith("all")))
    shown = ["With the default batch of 8 samples the first test above fails:", "", "```text"]
    check_generated("failure", [*shown, *run.outlines[first : last + 1], "```"], request)


def test_the_settings_are_those_of_the_plugin(request: pytest.FixtureRequest) -> None:
    check_generated("settings", list(settings_table()), request)


def test_the_options_are_those_of_the_markers(request: pytest.FixtureRequest) -> None:
    check_generated("options", list(options_table()), request)


def settings_table() -> Iterator[str]:
    yield "| command line | environment | ini | |"
    yield "|---|---|---|---|"
    for setting in SETTINGS.values():
        value = "" if setting.metavar is None else f" {setting.metavar}".replace("|", "\\|")
        flag = "" if setting.flag is None else f"`{setting.flag}{value}`"
        others = [f"`{name}`" if name else "" for name in (setting.variable, setting.ini)]
        yield f"| {flag} | {' | '.join(others)} | {setting.help} |".replace("  ", " ")


def options_table() -> Iterator[str]:
    yield "| option | | `training_memory` |"
    yield "|---|---|---|"
    for name, text in OPTIONS.items():
        fixture = "yes" if name in PRICED or name in ("model", "inputs") else ""
        told = {"model": f"{text}; the fixture's first argument", "inputs": f"{text}; the fixture's second"}
        yield f"| `{name}` | {told.get(name, text)} | {fixture} |".replace("  ", " ")


def check_generated(name: str, lines: list[str], request: pytest.FixtureRequest) -> None:
    """Compare what stands between two marks of the page with these lines, or write them there."""
    text = PAGE.read_text()
    block = "\n".join((f"<!-- {name} -->", *lines, "<!-- end -->"))
    refreshed = re.sub(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)
    if request.config.getoption("--refresh-golden"):
        PAGE.write_text(refreshed)
    assert PAGE.read_text() == refreshed, f"the {name} differ; see pytest --refresh-golden"
