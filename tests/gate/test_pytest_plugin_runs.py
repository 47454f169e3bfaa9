"""The plugin among others: xdist, JUnit files, reruns, the report, and runs that use none of it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from importlib.metadata import entry_points

import pytest

from memplan.gate.baseline import BASELINE_FILE as GATE_FILE
from memplan.pytest_plugin.asking import MARKERS
from memplan.pytest_plugin.outcomes import Outcome
from memplan.pytest_plugin.settings import BASELINE_FILE, SETTINGS
from memplan.pytest_plugin.summary import table_of
from tests.gate.marked import BATCH, SAVED, WIDTH, Project, warm

pytest_plugins = ["pytester"]


@pytest.fixture(scope="module")
def warmed() -> None:
    warm()  # before pytester notes what is imported


@pytest.fixture
def project(warmed: None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(pytester, monkeypatch)


def test_workers_of_xdist_send_what_they_find_and_the_controller_writes_once(project: Project) -> None:
    """Without workers and with two, the same project with the same baseline gives the same report and file."""
    project.write("@growth('2%', **shape)\ndef test_old(): return net()", "test_gone")
    project.write("@growth('2%', **shape)\ndef test_kept(): return net()", "test_other")
    project.run("--memplan-update-baseline").assert_outcomes(passed=2)
    (project.pytester.path / "test_gone.py").unlink()
    project.write(
        f"""
@pytest.mark.parametrize("width", [8, 16, 24])
@growth("2%", **shape)
def test_it(width): return net(width)

@limit({SAVED - 1}, **shape)
def test_too_large(): return net()

def test_free(training_memory): training_memory(net(), batch())
"""
    )
    file = project.pytester.path / BASELINE_FILE
    before = file.read_text()
    args = ("test_toy.py", "--memplan-report", "--memplan-update-baseline")
    alone, written = project.run(*args), file.read_text()
    file.write_text(before)
    together = project.pytester.runpytest_subprocess("-n2", *args)
    for run in (alone, together):
        run.assert_outcomes(passed=4, failed=1)
    assert file.read_text() == written
    assert told(together) == told(alone)
    assert told(alone)[-2:] == [
        f"{BASELINE_FILE} is written: 4 tests now accepted, 1 kept",
        "dropped from it, of no marked test: test_gone.py::test_old",
    ]
    together.stdout.fnmatch_lines([f"the saved bytes of Sequential is {SAVED} B, *", "*- memplan -*", "*ReLU *"])


def told(run: pytest.RunResult) -> list[str]:
    """Return the lines of the plugin's section at the end."""
    lines = [line for line in run.outlines if line]
    (start,) = (place for place, line in enumerate(lines) if line.startswith("=") and " memplan " in line)
    end = next(place for place in range(start + 1, len(lines)) if lines[place].startswith("="))
    return lines[start + 1 : end]


def test_a_junit_file_has_the_bytes_of_each_test_case(project: Project) -> None:
    project.write(
        f"@growth('2%', **shape)\n@limit({SAVED - 1})\ndef test_it(request):\n"
        "    request.node.user_properties.append(('own', 1))\n    return net()\ndef test_other(): pass"
    )
    project.run("--memplan-update-baseline")
    project.run("--junitxml=junit.xml").assert_outcomes(passed=1, failed=1)
    case, other = ElementTree.parse(project.pytester.path / "junit.xml").iter("testcase")
    assert {each.get("name"): each.get("value") for each in case.iter("property")} == {
        "own": "1",
        "memplan_saved_bytes": str(SAVED),
        "memplan_limit_bytes": str(SAVED - 1),
        "memplan_baseline_bytes": str(SAVED),
    }
    (failure,) = case.iter("failure")
    assert f"is {SAVED} B, 1 B above the budget of {SAVED - 1} B" in str(failure.get("message"))
    assert not list(other.iter("property"))


RERUN = """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    for width in ("8", "16"):
        item.config.width = width
        for report in runtestprotocol(item, nextitem=nextitem, log=False):
            item.ihook.pytest_runtest_logreport(report=report)
    return True
"""


def test_the_last_run_of_a_test_counts(project: Project) -> None:
    project.pytester.makeconftest(RERUN)
    run = project.on(
        f"@limit({SAVED}, **shape)\ndef test_it(request): return net(int(request.config.width))",
        "--memplan-report",
        "--memplan-update-baseline",
        "--junitxml=junit.xml",
    )
    needed = SAVED - 4 * BATCH * (WIDTH - 16)
    assert told(run)[1:] == [
        f"test_toy.py::test_it  saved  {SAVED} B  {needed} B         -       -  ok",
        "The one test holds.",
        f"{BASELINE_FILE} is written: 1 test now accepted, 0 kept",
    ]
    entries = json.loads((project.pytester.path / BASELINE_FILE).read_text())["tests"]
    assert entries["test_toy.py::test_it"]["bytes"] == needed
    last = list(ElementTree.parse(project.pytester.path / "junit.xml").iter("testcase"))[-1]
    found = [(each.get("name"), each.get("value")) for each in last.iter("property")]
    assert found.count(("memplan_saved_bytes", str(needed))) == len([name for name, _ in found if "saved" in str(name)])


def test_a_last_run_that_fails_by_itself_leaves_nothing_of_the_first(project: Project) -> None:
    project.pytester.makeconftest(RERUN)
    run = project.on(
        f"@limit({SAVED}, **shape)\ndef test_it(request):\n    assert request.config.width == '8'\n    return net(8)",
        "--memplan-report",
        "--memplan-update-baseline",
    )
    run.assert_outcomes(passed=1, failed=1)
    assert told(run) == ["No test was held to a limit.", f"nothing was analysed: {BASELINE_FILE} is as it was"]
    assert not (project.pytester.path / BASELINE_FILE).exists()


def test_the_report_is_printed_when_it_is_asked_for(project: Project) -> None:
    tests = f"@limit({SAVED}, **shape)\ndef test_b(): return net()\n@limit('1KB', **shape)\ndef test_a(): return net()"
    assert "= memplan =" not in project.on(tests).stdout.str()
    project.pytester.makeini("[pytest]\nmemplan_report = true")
    for run in (project.run(), project.run("-o", "memplan_report=false", "--memplan-report")):
        assert [line.split() for line in told(run)] == [
            ["test", "of", "limit", "now", "baseline", "change", "verdict"],
            ["test_toy.py::test_a", "saved", "1.0", "KB", str(SAVED), "B", "-", "-", "ok"],
            ["test_toy.py::test_b", "saved", str(SAVED), "B", str(SAVED), "B", "-", "-", "ok"],
            ["All", "2", "tests", "hold."],
        ]
    for run in (project.run("--collect-only"), project.run("--collect-only", "--memplan-update-baseline")):
        assert told(run) == ["No test was held to a limit."]


def test_a_switch_of_the_configuration_that_cannot_be_read_is_named(project: Project) -> None:
    project.pytester.makeini("[pytest]\nmemplan_report = maybe")
    run = project.on("def test_it(): pass")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines(["ERROR: memplan_report: invalid truth value 'maybe'; write true or false"])


def test_the_section_keeps_to_a_narrow_screen_and_a_row_of_a_log_is_whole(project: Project) -> None:
    test = f"test_{'long_' * 20}name"
    project.write(f"@growth('0', **shape)\n@limit({SAVED - 1})\ndef {test}(): return net()")
    project.run("--memplan-update-baseline")
    run = project.run("--memplan-report", COLUMNS="60", WIDTH=str(WIDTH + 1))
    (start,) = (place for place, line in enumerate(run.outlines) if line.startswith("-") and " memplan " in line)
    assert max(map(len, run.outlines[start : start + 10])) <= 60
    run.stdout.fnmatch_lines([f"test_toy.py::{test}  saved *{SAVED + 8} B *{SAVED} B *%)  fails"])


def test_a_name_that_finds_no_room_on_a_screen_has_a_line_of_its_own() -> None:
    tests = [f"tests/test_models.py::test_it[{name}]" for name in ("squeezenet1_0", "squeezenet1_1")]
    outcomes = [Outcome(test, "SqueezeNet", "peak", "ok", 1_000_000, 2_000_000, 900_000) for test in tests]
    wide = table_of(outcomes, 120)
    assert [line.split("  ")[0] for line in wide] == ["test", *tests]
    narrow = table_of(outcomes, 60)
    assert [line.split("\n")[0] for line in narrow] == ["test", *tests]
    assert [line.split("\n")[1].split() for line in narrow] == [line.split()[1:] for line in wide]


def test_pytest_knows_the_markers_and_the_settings(project: Project) -> None:
    markers, usage = project.run("--markers").stdout.str(), project.run("--help").stdout.str()
    for name in MARKERS:
        assert f"@pytest.mark.{name}(" in markers
    for setting in SETTINGS.values():
        assert all(name in usage for name in (setting.flag, setting.ini) if name is not None)
    assert GATE_FILE == BASELINE_FILE


def test_the_plugin_can_be_left_out(project: Project) -> None:
    run = project.on("@limit('1B')\ndef test_it(): pass", "-p", "no:memplan", "-Wignore")
    run.assert_outcomes(passed=1)
    strict = project.pytester.runpytest_subprocess("-p", "no:memplan", "--strict-markers")
    strict.stdout.fnmatch_lines(["'limit_training_memory' not found in `markers` configuration option"])


def test_a_run_that_uses_none_of_it_imports_pytest_and_the_plugin_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_plain="""
import pytest
import sys

HEAVY = ("torch", "numpy", "rich", "click", "scipy", "networkx")

@pytest.mark.parametrize("number", [1, 2])
def test_plain(number): pass

def test_imports():
    assert not [name for name in HEAVY if name in sys.modules]
    ours = {name for name in sys.modules if name.split(".")[0] == "memplan"}
    parts = {"asking", "collected", "settings", "summary"}
    own = {"memplan", "memplan.errors", "memplan.pytest_plugin"}
    assert ours == own | {f"memplan.pytest_plugin.{part}" for part in parts}
""",
        test_marked="""
import pytest
import sys

@pytest.mark.skip
@pytest.mark.limit_training_memory("64MB")
def test_skipped(): pass

def test_imports(): assert not [name for name in ("torch", "numpy", "rich", "click") if name in sys.modules]

@pytest.mark.limit_training_memory("64MB", max_growth="2%")
def test_marked(): assert "torch" in sys.modules, "it is imported when the test has passed"
""",
    )
    run = pytester.runpytest_subprocess("test_plain.py")
    run.assert_outcomes(passed=3)
    run = pytester.runpytest_subprocess("test_marked.py")
    run.assert_outcomes(passed=1, skipped=1, failed=1)
    run.stdout.fnmatch_lines(["*AssertionError: it is imported when the test has passed"])


def test_the_plugin_is_found_by_its_entry_point() -> None:
    assert {each.name: each.value for each in entry_points(group="pytest11")}["memplan"] == "memplan.pytest_plugin"
