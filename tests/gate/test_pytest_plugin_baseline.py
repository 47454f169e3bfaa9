"""Growth against the baseline: what is compared, written, kept, missing and stale."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.gate.marked import BATCH, SAVED, WIDTH, Project, warm

pytest_plugins = ["pytester"]

FILE = "memplan-baseline.json"
UPDATE = "--memplan-update-baseline"
GROWS = "@growth({limit}, **shape)\ndef test_it(): return net()\n"

#: One more column of the hidden layer, as float32: 2.08 % of ``SAVED``.
MORE = 4 * BATCH


@pytest.fixture(scope="module")
def warmed() -> None:
    warm()  # before pytester notes what is imported


@pytest.fixture
def project(warmed: None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(pytester, monkeypatch)


def baseline(project: Project, name: str = FILE) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((project.pytester.path / name).read_text())
    return values


def wider(project: Project, *args: str, **environment: str) -> pytest.RunResult:
    return project.run(*args, WIDTH=str(WIDTH + 1), **environment)


def test_an_update_writes_what_each_test_needs_by_its_node_id(project: Project) -> None:
    run = project.on(
        """
@limit("1GB", **shape)
@pytest.mark.parametrize("width", [8, 16])
def test_it(width): return net(width)

class TestClass:
    @growth("0", **shape)
    def test_method(self): return net()

@growth("0", **shape)
def test_fails(): assert False

def test_free(training_memory): training_memory(net(), batch())
""",
        UPDATE,
    )
    run.assert_outcomes(passed=4, failed=1)
    run.stdout.fnmatch_lines([f"{FILE} is written: 3 tests now accepted, 0 kept"])
    written = baseline(project)
    assert {name: entry["bytes"] for name, entry in written["tests"].items()} == {
        "test_toy.py::TestClass::test_method": SAVED,
        "test_toy.py::test_it[16]": SAVED - 4 * BATCH * (WIDTH - 16),
        "test_toy.py::test_it[8]": SAVED - 4 * BATCH * (WIDTH - 8),
    }
    assert written["checks"] == {}
    assert written["torch"].startswith("2.")


@pytest.mark.parametrize(
    ("limit", "holds"),
    [
        ("'2%'", False),  # 7 bytes
        ("'3%'", True),  # 11 bytes
        (f"'{MORE}B'", True),
        (f"'{MORE - 1}B'", False),
        ("'0'", False),
        (f"'0', min_growth='{MORE}B'", True),
        (f"'0', min_growth={MORE - 1}", False),
    ],
)
def test_growth_beyond_what_is_allowed_fails(project: Project, limit: str, holds: bool) -> None:
    project.on(GROWS.format(limit=limit), UPDATE).assert_outcomes(passed=1)
    project.run().assert_outcomes(passed=1)
    run = wider(project, "--memplan-report")
    run.assert_outcomes(passed=int(holds), failed=int(not holds))
    growth = f"+{MORE} B (+{MORE / SAVED * 100:.2f} %)"
    run.stdout.fnmatch_lines([f"test_toy.py::test_it *{SAVED + MORE} B *{growth}  {'ok' if holds else 'fails'}"])
    if not holds:
        run.stdout.fnmatch_lines(
            [
                f"the saved bytes of Sequential grew from {SAVED} B to {SAVED + MORE} B: {growth}, where *",
                "*- memplan -*",
                "Since the baseline",
                f"*1 *ReLU *{4 * BATCH * WIDTH} B *->* {4 * BATCH * (WIDTH + 1)} B *+{MORE} B *",
            ]
        )


def test_an_update_accepts_growth_and_keeps_what_did_not_run(project: Project) -> None:
    tests = "@growth('0', **shape)\ndef test_{name}(): return net()\n"
    project.write(tests.format(name="a") + tests.format(name="b"))
    project.write(tests.format(name="c"), "test_other")
    project.run(UPDATE).assert_outcomes(passed=3)
    path = project.pytester.path / FILE
    values = baseline(project)
    values["checks"]["of the gate"] = values["tests"]["test_toy.py::test_a"]
    path.write_text(json.dumps(values))
    run = wider(project, UPDATE, "test_toy.py", "-k", "test_a")
    run.assert_outcomes(passed=1, deselected=1)
    run.stdout.fnmatch_lines([f"{FILE} is written: 1 test now accepted, 2 kept"])
    found = baseline(project)
    assert {name: entry["bytes"] for name, entry in found["tests"].items()} == {
        "test_other.py::test_c": SAVED,
        "test_toy.py::test_a": SAVED + MORE,
        "test_toy.py::test_b": SAVED,
    }
    assert found["checks"] == values["checks"]


def test_an_update_accepts_what_is_over_a_limit_too_but_the_test_fails(project: Project) -> None:
    run = project.on(f"@limit({SAVED - 1}, **shape)\ndef test_it(): return net()", UPDATE)
    run.assert_outcomes(failed=1)
    assert baseline(project)["tests"]["test_toy.py::test_it"]["bytes"] == SAVED


def test_nothing_is_written_where_nothing_was_asked_for_or_analysed(project: Project) -> None:
    path = project.pytester.path / FILE
    project.on(GROWS.format(limit="'2%'"))
    project.run(UPDATE, "--collect-only")
    assert not path.exists()
    run = project.on("@growth('2%', **shape)\ndef test_it(): return nn.ReLU", UPDATE)
    run.stdout.fnmatch_lines([f"nothing was analysed: {FILE} is as it was"])
    assert not path.exists()
    run = project.on("def test_it(): pass", UPDATE)
    assert "memplan -" not in run.stdout.str()
    assert not path.exists()


def test_a_missing_baseline_is_said_loudly_and_fails_only_where_it_is_required(project: Project) -> None:
    project.write(GROWS.format(limit="'2%'") + "@limit('1GB', **shape)\ndef test_size(): return net()")
    run = project.run("--color=yes")
    run.assert_outcomes(passed=2)
    said = f"there is no baseline {FILE}: growth is not checked, limits are; write it with {UPDATE}"
    (line,) = (line for line in run.outlines if said in line)
    assert line.startswith("\x1b[33m\x1b[1m")
    required = project.run("--memplan-require-baseline")
    required.assert_outcomes(failed=2)
    for test in ("test_it", "test_size"):
        required.stdout.fnmatch_lines([f"there is no entry of test_toy.py::{test} in {FILE}; write it with {UPDATE}"])
    project.run(UPDATE, "--memplan-require-baseline").assert_outcomes(passed=2)
    project.run("--memplan-require-baseline").assert_outcomes(passed=2)


def test_a_test_without_an_entry_is_named(project: Project) -> None:
    project.on(GROWS.format(limit="'2%'"), UPDATE)
    run = project.on(GROWS.format(limit="'2%'") + "@growth('0', **shape)\ndef test_new(): return net()")
    run.assert_outcomes(passed=2)
    run.stdout.fnmatch_lines([f"growth is not checked where {FILE} has no entry: test_toy.py::test_new; *{UPDATE}"])
    assert f"there is no baseline {FILE}" not in run.stdout.str()


STALE = f"stale entries of {FILE}, of no marked test: "


@pytest.fixture
def renamed(project: Project) -> Project:
    """A project of two files that had a test more when its baseline was written, and lost a third file."""
    tests = "@limit('1GB', **shape)\ndef test_{name}(): return net()\n"
    project.write(tests.format(name="a") + tests.format(name="old"))
    project.write(tests.format(name="b"), "test_other")
    project.write(tests.format(name="c"), "test_gone")
    project.run(UPDATE)
    (project.pytester.path / "test_gone.py").unlink()
    project.write(tests.format(name="a"))
    return project


@pytest.mark.parametrize("args", [[], ["."], ["-k", "test_a"], ["test_toy.py", "test_toy.py::test_a"], ["-m", "limit"]])
def test_entries_of_tests_that_are_gone_are_listed(renamed: Project, args: list[str]) -> None:
    run = renamed.run(*args)
    run.stdout.fnmatch_lines([f"{STALE}test_gone.py::test_c, test_toy.py::test_old; drop them with {UPDATE}"])
    assert run.ret in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


@pytest.mark.parametrize("args", [["test_toy.py::test_a"], ["test_other.py"], ["--last-failed", "-p", "cacheprovider"]])
def test_nothing_is_stale_in_a_file_that_was_not_collected_completely(renamed: Project, args: list[str]) -> None:
    assert "test_old" not in renamed.run(*args).stdout.str()


def test_nothing_is_stale_in_a_file_that_skips_itself_or_is_broken(renamed: Project) -> None:
    for body in ("pytest.skip('not here', allow_module_level=True)", "raise ValueError"):
        renamed.write(body)
        run = renamed.run("--continue-on-collection-errors")
        run.stdout.fnmatch_lines([f"{STALE}test_gone.py::test_c; drop them with {UPDATE}"])


def test_an_update_drops_stale_entries_and_says_so(renamed: Project) -> None:
    run = renamed.run(UPDATE)
    run.stdout.fnmatch_lines(
        [
            f"{FILE} is written: 2 tests now accepted, 0 kept",
            "dropped from it, of no marked test: test_gone.py::test_c, test_toy.py::test_old",
        ]
    )
    assert set(baseline(renamed)["tests"]) == {"test_other.py::test_b", "test_toy.py::test_a"}


BY_A_HOOK = """
import pytest

def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.max_training_memory_growth("2%", of="saved", input_shape=(16,), batch_size=2))
"""
BY_A_FIXTURE = """
import pytest

@pytest.fixture(autouse=True)
def limited(request):
    request.node.add_marker(
        pytest.mark.max_training_memory_growth("2%", of="saved", input_shape=(16,), batch_size=2)
    )
"""


@pytest.mark.parametrize("conftest", [BY_A_HOOK, BY_A_FIXTURE], ids=["hook", "fixture"])
def test_entries_of_tests_that_are_marked_late_are_not_stale(project: Project, conftest: str) -> None:
    project.pytester.makeconftest(conftest)
    project.write("def test_1(): return net()\ndef test_2(): return net()")
    project.run(UPDATE).assert_outcomes(passed=2)
    assert STALE not in project.run().stdout.str()
    run = project.run(UPDATE, "-k", "test_1")
    run.stdout.fnmatch_lines([f"{FILE} is written: 1 test now accepted, 1 kept"])
    assert set(baseline(project)["tests"]) == {"test_toy.py::test_1", "test_toy.py::test_2"}


def test_the_entry_of_a_test_that_ran_without_its_marker_is_stale(project: Project) -> None:
    project.on("@limit('1GB', **shape)\ndef test_a(): return net()\n" + GROWS.format(limit="'2%'"), UPDATE)
    run = project.on("def test_a(): pass\n" + GROWS.format(limit="'2%'"))
    run.stdout.fnmatch_lines([f"{STALE}test_toy.py::test_a; drop them with {UPDATE}"])
    assert STALE not in project.run("-k", "test_it").stdout.str(), "a fixture may mark what did not run"


def test_a_baseline_of_another_torch_is_named(project: Project) -> None:
    project.on(GROWS.format(limit="'2%'"), UPDATE)
    path = project.pytester.path / FILE
    now = baseline(project)["torch"]
    values = baseline(project)
    values["tests"]["test_toy.py::test_it"]["machine"]["torch"] = "2.9.1"
    path.write_text(json.dumps(values))
    run = project.run()
    run.assert_outcomes(passed=1)
    run.stdout.fnmatch_lines([f"{FILE} is of torch 2.9.1, this is torch {now}: bytes may differ for that alone; *"])


def test_a_baseline_that_cannot_be_read_stops_marked_tests_and_is_not_overwritten(project: Project) -> None:
    path = project.pytester.path / FILE
    path.write_text("{\n!")
    tests = GROWS.format(limit="'2%'") + "def test_other(): pass"
    run = project.on(tests)
    run.assert_outcomes(passed=1, errors=1)
    reason = f"*{FILE}:2: this is not JSON: *; restore it, or delete it and write it with {UPDATE}"
    run.stdout.fnmatch_lines([f"test_toy.py::test_it: {reason}"])
    update = project.run(UPDATE)
    assert update.ret == pytest.ExitCode.USAGE_ERROR
    update.stderr.fnmatch_lines([f"ERROR: {reason}"])
    assert path.read_text() == "{\n!"


def test_a_baseline_that_cannot_be_written_is_said_before_any_test_runs(project: Project) -> None:
    run = project.on(GROWS.format(limit="'2%'"), UPDATE, "--memplan-baseline", "nowhere/b.json")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines(["ERROR: cannot write *nowhere/b.json*: there is no directory *; create it first"])


@pytest.mark.parametrize("args", [[], [UPDATE]])
def test_a_baseline_that_is_no_regular_file_is_refused(project: Project, args: list[str]) -> None:
    os.mkfifo(project.pytester.path / "pipe")
    run = project.on(GROWS.format(limit="'2%'"), *args, "--memplan-baseline", "pipe")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines([f"ERROR: --memplan-baseline: 'pipe' is no regular file; name one, such as {FILE}"])


def test_a_baseline_that_is_lost_meanwhile_is_an_error_of_the_run(project: Project) -> None:
    run = project.on(f"@growth('2%', **shape)\ndef test_it():\n    os.mkdir('{FILE}')\n    return net()", UPDATE)
    run.assert_outcomes(passed=1)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stdout.fnmatch_lines(["the baseline * is no regular file; name another file"])


def test_the_command_line_comes_before_the_environment_and_that_before_the_ini_file(project: Project) -> None:
    project.write("@limit('1GB', **shape)\ndef test_it(): return net()")
    folder = project.pytester.mkdir("config")
    ini = folder / "pytest.ini"
    ini.write_text("[pytest]\nmemplan_baseline = of-ini.json\nmemplan_max_growth = 2%\n")
    ways: list[tuple[list[str], dict[str, str], str]] = [
        ([], {}, "config/of-ini.json"),
        ([], {"MEMPLAN_BASELINE": "of-environment.json"}, "of-environment.json"),
        (["--memplan-baseline", "of-line.json"], {"MEMPLAN_BASELINE": "of-environment.json"}, "of-line.json"),
    ]
    common = ["-c", str(ini), "--rootdir", str(project.pytester.path), str(project.pytester.path)]
    for args, environment, file in ways:
        project.run(*common, UPDATE, *args, **environment).assert_outcomes(passed=1)
        assert baseline(project, file)["tests"]["test_toy.py::test_it"]["bytes"] == SAVED
    assert not (project.pytester.path / FILE).exists()

    for args, environment, failed in (
        ([], {}, 1),
        ([], {"MEMPLAN_MAX_GROWTH": "3%"}, 0),
        (["--memplan-max-growth", "1B"], {"MEMPLAN_MAX_GROWTH": "3%"}, 1),
        (["--memplan-max-growth", "3%"], {"MEMPLAN_MAX_GROWTH": "1B"}, 0),
    ):
        run = wider(project, *common, *args, **environment)
        run.assert_outcomes(passed=1 - failed, failed=failed)


def test_the_markers_own_growth_beats_all(project: Project) -> None:
    project.on(
        GROWS.format(limit="'3%'") + "@growth(**shape)\ndef test_default(): return net()",
        UPDATE,
        "--memplan-max-growth=1B",
    )
    run = wider(project, "--memplan-max-growth", "0", MEMPLAN_MAX_GROWTH="0")
    run.assert_outcomes(passed=1, failed=1)
    run.stdout.fnmatch_lines(["FAILED test_toy.py::test_default *"])


@pytest.mark.parametrize(
    ("args", "environment", "given"),
    [
        (["--memplan-max-growth", "lots"], {}, "--memplan-max-growth"),
        ([], {"MEMPLAN_MAX_GROWTH": "lots"}, "MEMPLAN_MAX_GROWTH"),
        (["-o", "memplan_max_growth=lots"], {}, "memplan_max_growth"),
    ],
)
def test_a_growth_that_cannot_be_read_is_said_with_who_gave_it(
    project: Project, args: list[str], environment: dict[str, str], given: str
) -> None:
    project.write("def test_it(): pass")
    run = project.run(*args, **environment)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines([f"ERROR: {given}: cannot read 'lots' as a growth; *"])


def test_a_baseline_in_the_marker_takes_the_place_of_the_file(project: Project) -> None:
    run = project.on(
        f"""
from memplan.checking import check
before = check(net({WIDTH}), batch(), of="saved")

@growth("0", baseline=before, inputs=batch(), of="saved", suggest=False)
def test_it(): return net()
"""
    )
    run.assert_outcomes(passed=1)
    assert "= memplan =" not in run.stdout.str()
    wider(project).assert_outcomes(failed=1)
