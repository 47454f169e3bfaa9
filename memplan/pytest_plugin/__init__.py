"""Limits on training memory as pytest markers, and a fixture for free assertions.

Nothing but pytest is imported until a marked test runs: a run without one pays for this package alone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest

from memplan.errors import MemplanError
from memplan.pytest_plugin.asking import MARKERS, Asked, asked_of, check_supported, is_marked
from memplan.pytest_plugin.collected import Collection
from memplan.pytest_plugin.settings import Settings, add_settings, settings_of
from memplan.pytest_plugin.summary import ATTRIBUTE, Summary, said

if TYPE_CHECKING:
    from torch import nn

    from memplan.gate.baseline import Baseline
    from memplan.memory import Footprint
    from memplan.pytest_plugin.outcomes import Outcome


@dataclass(slots=True)
class _Run:
    """What came of one run of one test."""

    outcomes: list[Outcome] = field(default_factory=list)
    section: str = ""


_SETTINGS: Final[pytest.StashKey[Settings]] = pytest.StashKey()
_BASELINE: Final[pytest.StashKey[Baseline | None]] = pytest.StashKey()
_RUN: Final[pytest.StashKey[_Run]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Make the plugin's settings known."""
    add_settings(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known, and watch what is collected and what comes of it."""
    for name, marker in MARKERS.items():
        config.addinivalue_line("markers", f"{name}({marker.option}, **options): {marker.help}")
    settings = config.stash[_SETTINGS] = settings_of(config)
    collection = Collection(config)
    config.pluginmanager.register(collection, "memplan-collection")
    # A worker of xdist leaves what comes of its tests to the controller.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Summary(config, settings, collection), "memplan-summary")
        if settings.update and not config.option.collectonly:
            _check_baseline(settings)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Read the markers of a test when it is collected, so that a typo in one is told before anything runs."""
    with _failing(metafunc.definition.nodeid):
        asked_of(metafunc.definition, metafunc.config.stash[_SETTINGS])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Read the markers of a test, those of its parameters too, and its entry in the baseline."""
    item.stash[_RUN] = _Run()
    with _failing(item.nodeid):
        if asked_of(item, item.config.stash[_SETTINGS]) is not None:
            check_supported(item)
            _read_baseline(item.config)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Take what a marked test returns, and check its model once the test itself has passed."""
    # Read again: a fixture may have added a marker.
    with _failing(), _told(pyfuncitem):
        asked = asked_of(pyfuncitem, pyfuncitem.config.stash[_SETTINGS])
    if asked is None:
        return (yield)
    test = pyfuncitem.obj
    calls: list[tuple[Any, dict[str, Any]]] = []

    @functools.wraps(test)
    def keep(**arguments: Any) -> None:
        calls.append((test(**arguments), arguments))

    pyfuncitem.obj = keep
    try:
        result = yield
    finally:
        pyfuncitem.obj = test
    if not calls:
        pytest.fail(f"another plugin ran {pyfuncitem.nodeid}, so that its model is not seen", pytrace=False)
    _check(pyfuncitem, asked, *calls[-1])
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Give the report of a test its section, and what the end of the run tells of it."""
    report = yield
    run = item.stash.get(_RUN, None)
    if call.when == "call" and run is not None:
        if run.section:
            report.sections.append(("memplan", run.section))
        # Plain types, which xdist sends to the controller with the report.
        setattr(report, ATTRIBUTE, (is_marked(item), [asdict(outcome) for outcome in run.outcomes]))
    return report


@pytest.fixture
def training_memory(request: pytest.FixtureRequest) -> Callable[..., Footprint]:
    """Return a function of a model, its inputs and options that gives the memplan.Footprint of one training step."""

    def priced(model: str | nn.Module, inputs: Any = None, **options: Any) -> Footprint:
        from memplan.pytest_plugin.outcomes import footprint_of

        footprint, outcome = footprint_of(request.node.nodeid, model, inputs, options)
        request.node.stash[_RUN].outcomes.append(outcome)
        return footprint

    return priced


@contextlib.contextmanager
def _failing(test: str | None = None) -> Iterator[None]:
    """Turn an error of memplan into a failure of the test, in one line without a traceback."""
    try:
        yield
    except MemplanError as error:
        reason = said(error) if test is None else f"{test}: {said(error)}"
        raise pytest.fail.Exception(reason, pytrace=False) from None


@contextlib.contextmanager
def _told(item: pytest.Item, of: object = "peak") -> Iterator[None]:
    """Give a marked test that cannot be checked its row of the report."""
    try:
        yield
    except Exception:
        from memplan.pytest_plugin.outcomes import Outcome

        item.stash[_RUN].outcomes.append(Outcome(item.nodeid, "", str(of), "error", None))
        raise


def _check(item: pytest.Function, asked: Asked, returned: Any, arguments: dict[str, Any]) -> None:
    """Fail a test whose model does not hold; record what was found."""
    from memplan.pytest_plugin.outcomes import outcome_of, properties_of, section_of, verdict_on

    settings, run = item.config.stash[_SETTINGS], item.stash[_RUN]
    with _failing(), _told(item, asked.options.get("of", "peak")):
        baseline = _read_baseline(item.config)
        before = None if baseline is None else baseline.tests.get(item.nodeid)
        verdict = verdict_on(item.nodeid, asked, returned, arguments, settings, before)
    outcome = outcome_of(item.nodeid, verdict, update=settings.update)
    run.outcomes.append(outcome)
    found = properties_of(outcome)
    item.user_properties[:] = [*(each for each in item.user_properties if each[0] not in found), *found.items()]
    if not verdict.holds:
        run.section = section_of(verdict)
        pytest.fail("\n".join(failure.sentence for failure in verdict.failures), pytrace=False)


def _read_baseline(config: pytest.Config) -> Baseline | None:
    """Return the baseline, which is read once in a process; ``None`` where there is none."""
    from memplan.gate.baseline import read_baseline

    if _BASELINE not in config.stash:
        config.stash[_BASELINE] = read_baseline(config.stash[_SETTINGS].baseline)
    return config.stash[_BASELINE]


def _check_baseline(settings: Settings) -> None:
    """Raise where a baseline cannot be written, before any test runs."""
    from memplan.gate.baseline import read_baseline
    from memplan.reports.files import check_writable

    try:
        check_writable(settings.baseline)
        read_baseline(settings.baseline)
    except MemplanError as error:
        raise pytest.UsageError(said(error)) from error
