"""Which tests there are, and the files of which all were collected: other entries of theirs are stale."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from memplan.pytest_plugin.asking import is_marked


@dataclass(frozen=True, slots=True)
class Collected:
    """The node ids of all tests and of the files of which none was left out; nothing where no test is marked."""

    tests: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


class Collection:
    """Watches what pytest collects, in every process that does."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._passed: set[str] = set()
        self._incomplete: set[str] = set()
        self._tests: tuple[str, ...] = ()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note which files could be collected."""
        file, _, inside = report.nodeid.partition("::")
        if report.outcome != "passed":
            self._incomplete.add(file)
        elif not inside:
            self._passed.add(file)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> Generator[None, object, object]:
        """Note which tests there are: before -k, -m and the like leave any out, after other hooks have marked some."""
        first = tuple(items)
        result = yield
        if any(map(is_marked, first)):
            self._tests = tuple(item.nodeid for item in first)
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send what was collected to the controller, from a worker of xdist."""
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            found = self.collected()
            output["memplan_collected"] = (found.tests, found.files)

    def collected(self) -> Collected:
        """Return what was collected so far."""
        if not self._tests:
            return Collected()
        return Collected(self._tests, tuple(sorted(self._complete(self._passed - self._incomplete))))

    def _complete(self, files: Iterable[str]) -> Iterable[str]:
        """Yield the files of which the command line did not ask for some tests alone."""
        config = self._config
        asked = [(arg.partition("::")[0], "::" in arg) for arg in config.args]
        # --last-failed leaves tests out while they are collected; what --pyargs names need not be a path.
        if config.getoption("lf", False) or (config.getoption("pyargs", False) and any(part for _, part in asked)):
            return
        folder = config.invocation_params.dir
        whole = [(folder / arg).resolve() for arg, part in asked if not part]
        partial = {(folder / arg).resolve() for arg, part in asked if part}
        for file in files:
            path: Path = (config.rootpath / file).resolve()
            if path.suffix and (path not in partial or any(path.is_relative_to(each) for each in whole)):
                yield file
