"""The markers and the fixture of the pytest plugin: when a model is checked, and how a failure reads."""

from __future__ import annotations

import inspect

import pytest

from memplan.checking import check
from memplan.pytest_plugin.asking import MARKERS, OPTIONS, PRICED
from memplan.subject import subject_of
from tests.gate.marked import BATCH, IN, SAVED, WIDTH, Project, pattern, warm

pytest_plugins = ["pytester"]


@pytest.fixture(scope="module")
def warmed() -> None:
    warm()  # before pytester notes what is imported


@pytest.fixture
def project(warmed: None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(pytester, monkeypatch)


def test_a_model_passes_at_its_bytes_and_fails_one_byte_below(project: Project) -> None:
    run = project.on(
        f"""
@limit({SAVED}, **shape)
def test_at(): return net()

@limit({SAVED - 1}, **shape)
def test_below(): return net()
"""
    )
    run.assert_outcomes(passed=1, failed=1)
    largest = 4 * BATCH * WIDTH
    sentence = f"the saved bytes of Sequential is {SAVED} B, 1 B above the budget of {SAVED - 1} B; "
    run.stdout.fnmatch_lines(
        [
            f"{sentence}the largest part, {largest} B, is of 1",
            "*- memplan -*",
            "moment: end of the forward",
            f"*1 *ReLU *{largest} B *66.7 %",
            f"*all* {SAVED} B *100.0 %",
            f"FAILED test_toy.py::test_below - Failed: {sentence[:20]}*",
        ]
    )
    assert "Traceback" not in run.stdout.str()
    assert "test_toy.py: " not in run.stdout.str()
    # Where CI is set, pytest's summary has the whole sentence too.
    failures, _, _ = run.stdout.str().partition("short test summary info")
    assert failures.count("1 B above the budget") == 1, "the section does not say it again"


@pytest.mark.parametrize(
    ("marker", "sentence"),
    [
        ("limit('1KB', optimiser='sgd')", "limit_training_memory has no option 'optimiser'; did you mean 'optimizer'?"),
        ("limit('1KB', zzz=1)", "limit_training_memory has no option 'zzz'; choose from model, inputs, *"),
        ("limit('1 parsec')", "cannot read '1 parsec' as a size; *"),
        ("limit('1KB', '2KB')", "limit_training_memory takes one limit, not 2; write limit_training_memory('64MB')"),
        ("limit('1KB', limit='2KB')", "limit_training_memory is given its limit twice; leave one of them out"),
        ("limit()", "limit_training_memory gives no limit and memplan_limit is not set; *"),
        ("growth()", "max_training_memory_growth gives no max_growth and memplan_max_growth is not set; *"),
        ("growth('much')", "cannot read 'much' as a growth; *"),
        ("growth(5)", "max_growth is 5; write a percentage or a size in quotes, such as '2%' or '1MB'"),
        ("growth('2%', min_growth='tiny')", "cannot read 'tiny' as a growth; *"),
        ("limit('1KB', model=net())", "model is Sequential, not the name of an argument; *"),
    ],
)
def test_a_wrong_marker_is_an_error_of_the_collection(project: Project, marker: str, sentence: str) -> None:
    run = project.on(f"@{marker}\ndef test_it(): raise SystemExit('it runs')\ndef test_other(): pass")
    assert run.ret == pytest.ExitCode.INTERRUPTED
    run.assert_outcomes(errors=1)
    run.stdout.fnmatch_lines([pattern(f"test_toy.py::test_it: {sentence}")])
    assert "it runs" not in run.stdout.str()


def test_both_markers_share_their_options_and_give_none_twice(project: Project) -> None:
    run = project.on(
        f"""
@growth("2%")
@limit({SAVED}, **shape)
def test_shared(): return net()
"""
    )
    run.assert_outcomes(passed=1)
    run = project.on("@growth('2%', k=3)\n@limit('1KB', k=3)\ndef test_twice(): return net()")
    run.stdout.fnmatch_lines(["*k is given by both limit_training_memory and max_training_memory_growth; leave it*"])


def test_a_wrong_marker_of_a_parameter_fails_that_one_before_it_runs(project: Project) -> None:
    run = project.on(
        f"""
@pytest.mark.parametrize("width", [
    pytest.param({WIDTH}, marks=limit({SAVED}, **shape)),
    pytest.param({WIDTH + 1}, marks=limit({SAVED}, **shape)),
    pytest.param(1, marks=limit("1KB", kk=1)),
    2,
])
def test_it(width):
    assert width != 1
    return net(width) if width > 2 else None
"""
    )
    run.assert_outcomes(passed=2, failed=1, errors=1)
    run.stdout.fnmatch_lines(
        [
            "test_toy.py::test_it[[]1[]]: limit_training_memory has no option 'kk'; did you mean 'k'[?]",
            f"the saved bytes of Sequential is {SAVED + 4 * BATCH} B, {4 * BATCH} B above the budget of {SAVED} B; *",
        ]
    )


def test_the_closest_marker_counts_whole(project: Project) -> None:
    run = project.on(
        f"""
pytestmark = limit({SAVED - 1}, **shape)

@limit({SAVED}, **shape)
class TestClass:
    def test_of_the_class(self): return net()

    @limit(1, **shape)
    def test_of_its_own(self): return net()

def test_of_the_module(): return net()
"""
    )
    run.assert_outcomes(passed=1, failed=2)
    run.stdout.fnmatch_lines(["FAILED test_toy.py::TestClass::test_of_its_own *", "FAILED *::test_of_the_module *"])


def test_a_fixture_can_add_the_marker(project: Project) -> None:
    run = project.on(
        f"""
@pytest.fixture(autouse=True, params=[{SAVED}, {SAVED - 1}])
def limited(request): request.node.add_marker(limit(request.param, **shape))

def test_it(): return net()
"""
    )
    run.assert_outcomes(passed=1, failed=1)


def test_a_test_that_does_not_pass_by_itself_is_not_checked(project: Project) -> None:
    run = project.on(
        """
@limit(1, **shape)
def test_fails(): assert 1 == 2

@limit(1, **shape)
def test_raises(model): pass

@pytest.fixture
def model(): raise ValueError("no model today")

@limit(1, **shape)
def test_skips(): pytest.skip("not here")

@limit(1, **shape)
@pytest.mark.skip
def test_is_skipped(): return net()

@limit(1, **shape)
@pytest.mark.xfail(strict=True)
def test_is_expected_to_fail(): assert False

@limit(1, **shape)
@pytest.mark.xfail(strict=True)
def test_is_expected_to_need_more(): return net()

@limit("1GB", **shape)
@pytest.mark.xfail
def test_passes_all_the_same(): return net()
""",
        "--memplan-report",
    )
    run.assert_outcomes(failed=1, errors=1, skipped=2, xfailed=2, xpassed=1)
    run.stdout.fnmatch_lines(["*assert 1 == 2", "*ValueError: no model today"])
    text = run.stdout.str()
    assert "budget" not in text
    table = text[text.index("= memplan =") : text.index("short test summary")]
    assert table.count("test_toy.py:") == 2
    run.stdout.fnmatch_lines(
        [
            "test_toy.py:*need_more *xfails",
            "test_toy.py:*the_same *ok",
            "All 2 tests hold.",
        ]
    )


def test_what_is_not_supported_is_said_in_one_line(project: Project) -> None:
    run = project.on(
        """
import unittest

@limit("1KB")
async def test_async(): return net()

class TestCase(unittest.TestCase):
    @limit("1KB")
    def test_method(self): return net()
"""
    )
    run.assert_outcomes(errors=2)
    run.stdout.fnmatch_lines(
        [
            "*::test_async: limit_training_memory cannot mark an async test; use a plain function, or the fixture *",
            "*::TestCase::test_method: limit_training_memory cannot mark a method of unittest.TestCase, which *",
        ]
    )


def test_a_doctest_that_is_marked_is_refused(project: Project) -> None:
    run = project.on("pytestmark = limit('1KB')\n\ndef one():\n    '''\n    >>> 1\n    1\n    '''", "--doctest-modules")
    run.assert_outcomes(errors=1)
    run.stdout.fnmatch_lines(["*limit_training_memory can mark test functions, and this is a DoctestItem"])


def test_returned_values_are_taken_from_marked_tests_alone(project: Project) -> None:
    run = project.on(f"@limit({SAVED}, **shape)\ndef test_it(): return net()", "-Werror", "--strict-markers")
    run.assert_outcomes(passed=1)
    run = project.on("def test_it(): return net()", "-Werror")
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines(["*PytestReturnNotNoneWarning: *"])


def test_warnings_and_prints_of_a_model_do_no_harm(project: Project) -> None:
    run = project.on(
        f"""
import warnings
class Loud(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, x):
        warnings.warn("deprecated")
        print("forward")
        return self.net(x)

@limit({SAVED}, **shape)
def test_it(): return Loud()
""",
        "-Werror",
        "-s",
    )
    run.assert_outcomes(passed=1)
    assert "forward" not in run.stdout.str()


def test_a_model_that_cannot_be_analysed_fails_with_the_reason(project: Project) -> None:
    run = project.on(
        """
class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
    def forward(self, x):
        return self.layer(x)

@limit("1GB", **shape)
def test_it(): return Broken()
""",
        "--memplan-report",
    )
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines(
        [
            "the model fails in its forward: ran up to layer 'layer' (Linear), then RuntimeError: *",
            "test_toy.py::test_it * - *error",
            "1 of 1 test fails.",
        ]
    )


def test_a_model_that_is_not_found_has_a_row_too(project: Project) -> None:
    run = project.on(
        """
@limit("1GB")
def test_none(): pass

@limit("1GB", of="saved")
def test_spec(): return "resnet5"

@limit("1GB")
def test_inputs(): return net()

@pytest.fixture
def limited(request): request.node.add_marker(limit("1 parsec"))

def test_late(limited): return net()

@limit("1GB")
@pytest.mark.xfail
def test_expected(): return net()
""",
        "--memplan-report",
    )
    run.assert_outcomes(failed=4, xfailed=1)
    run.stdout.fnmatch_lines(
        [
            "test_toy.py::test_expected *- *xfails",
            "test_toy.py::test_inputs *- *error",
            "test_toy.py::test_late *- *error",
            "test_toy.py::test_none *- *error",
            "test_toy.py::test_spec *saved *- *error",
            "4 of 5 tests fail.",
        ]
    )


def test_what_cannot_be_priced_is_told_and_fails_when_strict(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from memplan import checking

    plain = checking.reading_of
    monkeypatch.setattr(checking, "reading_of", lambda *given: replace(plain(*given), unpriced=("aten.odd",)))
    tests = "@limit('1GB', **shape)\ndef test_it(): return net()\n"
    run = project.on(f"{tests}@limit('1GB', strict=True, **shape)\ndef test_strict(): return net()")
    run.assert_outcomes(passed=1, failed=1)
    run.stdout.fnmatch_lines(
        ["Sequential is strict and not all is priced: aten.odd", "test_toy.py::test_it: not priced: aten.odd"]
    )


def test_the_fixture_gives_the_footprint_for_the_machine_that_limits_are_held_on(project: Project) -> None:
    run = project.on(
        f"""
import memplan
from memplan.checking import check

def test_it(training_memory):
    threads = torch.get_num_threads()
    found = training_memory(net(), batch(), optimizer="adam")
    assert isinstance(found, memplan.Footprint)
    assert found.saved_bytes == {SAVED}
    assert found.composition.state_bytes >= 2 * found.composition.parameter_bytes
    assert torch.get_num_threads() == threads
    reading = check(net(), batch(), optimizer="adam").reading
    assert max(found.peak_bytes, found.first_step_peak_bytes) == reading.predicted_bytes
    last = training_memory(net(), input_shape=({IN},), batch_size={BATCH}, method="last", threads=1)
    assert last.peak_bytes < found.peak_bytes

def test_wrong(training_memory):
    with pytest.raises(memplan.UsageError, match="training_memory has no option 'limit'; choose from"):
        training_memory(net(), batch(), limit="1KB")
    with pytest.raises(memplan.UsageError, match="has no option 'optimiser'; did you mean 'optimizer'"):
        training_memory(net(), batch(), optimiser="sgd")
    with pytest.raises(memplan.UsageError, match="one runner, stock or memplan, and one k"):
        training_memory(net(), batch(), runner="both")
    with pytest.raises(memplan.UsageError, match="takes a method's name, not a tuple"):
        training_memory(net(), batch(), method=("full", "last"))
    with pytest.raises(memplan.UsageError, match="given a NoneType, which is no model; pass a module or a spec"):
        training_memory(None)
    with pytest.raises(memplan.UsageError, match="given a class, Linear, which is no model"):
        training_memory(nn.Linear, batch())
    training_memory(net().double(), input_shape=(16,), dtype=torch.float64)
    with pytest.raises(memplan.AnalysisError, match="fails in its forward"):
        training_memory(net(), batch()[:, :3])
""",
        "--memplan-report",
    )
    run.assert_outcomes(passed=2)
    run.stdout.fnmatch_lines(["test_toy.py::test_it (Sequential) *- *KB *- *- *-", "No test was held to a limit."])


def test_a_size_of_the_configuration_is_the_default_limit(project: Project) -> None:
    tests = "@limit(**shape)\ndef test_it(): return net()\n@limit('1GB', **shape)\ndef test_own(): return net()"
    for size, failed in ((SAVED, 0), (SAVED - 1, 1)):
        project.pytester.makeini(f"[pytest]\nmemplan_limit = {size}B")
        run = project.on(tests)
        run.assert_outcomes(passed=2 - failed, failed=failed)
    project.pytester.makeini("[pytest]\nmemplan_limit = lots")
    run = project.run()
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines(["ERROR: memplan_limit: cannot read 'lots' as a size; *"])


def test_the_markers_take_every_option_of_check_and_no_other() -> None:
    def keywords(function: object) -> set[str]:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        return {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}

    assert set(OPTIONS) == keywords(check) | keywords(subject_of)
    assert {marker.option for marker in MARKERS.values()} <= set(OPTIONS)
    assert set(PRICED) < set(OPTIONS)
