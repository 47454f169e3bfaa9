"""Which model a marked test is about: what it returns or is given, and its inputs."""

from __future__ import annotations

import pytest

from tests.gate.marked import BATCH, IN, SAVED, WIDTH, Project, pattern, warm

pytest_plugins = ["pytester"]


@pytest.fixture(scope="module")
def warmed() -> None:
    warm()  # before pytester notes what is imported


@pytest.fixture
def project(warmed: None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(pytester, monkeypatch)


WAYS = {
    "returned": "def test_it(): return net(), batch()",
    "shape": "def test_it(): return net()",
    "argument": "def test_it(model, inputs): pass",
    "example": "def test_it(model, example_inputs): assert model is not None",
    "only module": "def test_it(inputs, mlp, number): pass",
    "spec": "def test_it(): return 'toy_models.py:mlp'",
    "spec argument": "@pytest.mark.parametrize('model', ['toy_models.py:mlp'])\ndef test_it(model): pass",
}

FIXTURES = """
@pytest.fixture
def model(): return net()
@pytest.fixture
def mlp(): return net()
@pytest.fixture
def number(): return 3
@pytest.fixture
def inputs(): return batch()
@pytest.fixture
def example_inputs(): return batch()
only = dict(of="saved", suggest=False)
"""


@pytest.mark.parametrize("way", WAYS)
def test_the_model_is_what_a_test_returns_or_is_given(project: Project, way: str) -> None:
    project.pytester.makepyfile(
        toy_models=f"import torch\nfrom torch import nn\n"
        f"def mlp():\n    net = nn.Sequential(nn.Linear({IN}, {WIDTH}), nn.ReLU(), nn.Linear({WIDTH}, 4))\n"
        f"    return net, torch.zeros({BATCH}, {IN})"
    )
    options = "shape" if way == "shape" else "only"
    for size, passed in ((SAVED, 1), (SAVED - 1, 0)):
        run = project.on(f"{FIXTURES}\n@limit({size}, **{options})\n{WAYS[way]}")
        run.assert_outcomes(passed=passed, failed=1 - passed)


def test_the_marker_names_the_arguments_or_brings_the_inputs(project: Project) -> None:
    run = project.on(
        f"""{FIXTURES}
@limit({SAVED}, model="mlp", inputs="example_inputs", **only)
def test_named(model, mlp, example_inputs): pass

@limit({SAVED}, inputs=batch(), **only)
def test_brought(model): pass

@limit({2 * SAVED}, inputs=dict(input=batch().repeat(2, 1)), **only)
def test_brought_by_keyword(model): pass

@limit({SAVED - 1}, inputs=batch(), **only)
def test_too_large(model): pass
"""
    )
    run.assert_outcomes(passed=3, failed=1)


@pytest.mark.parametrize(
    ("marker", "test", "sentence"),
    [
        ("only", "def test_it(model, mlp, inputs):\n    del inputs", None),  # the argument called model comes first
        (
            "only",
            "def test_it(mlp, net_b, inputs): pass",
            "which argument is the model: mlp or net_b? Write model='mlp'",
        ),
        ("only", "def test_it(number): pass", "the test returns no model and has none among its arguments; *"),
        ("only", "def test_it(): return batch()", "the test returns a Tensor, which is no model; *"),
        ("only", "def test_it(): return nn.ReLU", "the test returns a class, ReLU, which is no model; *"),
        ("only", "def test_it(): return 1, 2, 3", "the test returns a tuple of int and int and int, which is no *"),
        ("only", "def test_it(mlp): pass", "Sequential is given without inputs; *input_shape such as (3, 32, 32)"),
        ("shape", "def test_it(mlp, inputs): pass", "input_shape and batch_size and inputs are given to *"),
        ("dict(model='mpl')", "def test_it(mlp): pass", "the test has no argument 'mpl'; did you mean 'mlp'?"),
        ("dict(model='x')", "def test_it(mlp): return net(), batch()", "the test has no argument 'x'; it has mlp"),
        ("dict(inputs='x')", "def test_it(mlp): pass", "the test has no argument 'x'; it has mlp"),
        ("dict(input_shape='3')", "def test_it(mlp): pass", "cannot make a batch of 8 samples of shape '3'; *"),
        ("dict(input_shape=(3, 0))", "def test_it(mlp): pass", "cannot make a batch of 8 samples of shape (3, 0); *"),
        (
            "dict(input_shape=(16,), dtype='flaot64')",
            "def test_it(mlp): pass",
            "no dtype 'flaot64'; did you mean 'float64'*",
        ),
        ("dict(classes=3, **shape)", "def test_it(mlp): pass", "classes is for specs, and Sequential is a module; *"),
        ("only", "def test_it(): return 'resnet188'", "no model 'resnet188'*; did you mean 'resnet18'*"),
        ("dict(method='ful', **shape)", "def test_it(): return net()", "no method 'ful'; *"),
        ("dict(optimizer='sdg', **shape)", "def test_it(): return net()", "no optimizer 'sdg'; did you mean 'sgd'*"),
    ],
)
def test_a_model_that_is_not_found_or_understood_is_said_in_one_line(
    project: Project, marker: str, test: str, sentence: str | None
) -> None:
    run = project.on(f"{FIXTURES}\n@pytest.fixture\ndef net_b(): return net()\n@limit('1GB', **{marker})\n{test}")
    run.assert_outcomes(passed=int(sentence is None), failed=int(sentence is not None))
    if sentence is not None:
        run.stdout.fnmatch_lines([pattern(sentence)])
        assert "Traceback" not in run.stdout.str()
        assert "During handling" not in run.stdout.str()
