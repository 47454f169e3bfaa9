"""Factories in files and modules: what they may be, may return, and how they fail."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import torch

from memplan.errors import AnalysisError, MemplanError, UsageError
from memplan.sources import InputSpec, build, build_module, make_inputs, resolve
from memplan.sources.construction import Device

MODELS = """
    import torch
    from torch import nn
    from memplan.sources import InputSpec, Source

    class Net(nn.Module):
        def __init__(self, num_classes=10):
            super().__init__()
            self.stem = nn.Linear(8, 8)
            self.head = nn.Linear(8, num_classes)

        def forward(self, x, scale=1.0):
            return self.head(self.stem(x)) * scale

    def bare():
        return Net()

    def with_inputs(batch_size=2):
        return Net(), torch.full((batch_size, 8), 3.0)

    def with_kwargs():
        return Net(), {"x": torch.ones(2, 8), "scale": 2.0}

    def with_both():
        return Net(), (torch.ones(2, 8),), {"scale": 0.5}

    def sized(num_classes):
        return Net(num_classes), [torch.ones(2, 8)]

    def from_value():
        return Net(num_classes=int(torch.arange(5).sum().item())), torch.ones(1, 8)

    tied = Net(8)
    tied.head.weight = tied.stem.weight
    NUMBER = 7
    source = Source("", "net", "mine", Net, args=(InputSpec((5, 8)),))
    def gives_none(): return None
    def gives_pair(): return 1, 2
    def gives_text(): return "resnet"

    def chatty():
        import warnings
        warnings.warn("look out")
        print("hello")
        return Net(), torch.ones(1, 8)

    def wrong():
        width = 3
        raise ValueError("width 3 is odd\\nsecond line")

    def leaves():
        raise SystemExit(4)
"""


DEVICES: tuple[Device, ...] = ("meta", "cpu")
NOT_A_MODULE = "not a torch.nn.Module; return the module, (module, inputs) or (module, args, kwargs)"


def line_of(text: str) -> int:
    """Return the line of the models' file that holds ``text``."""
    return next(number for number, line in enumerate(MODELS.splitlines(), 1) if text in line)


@pytest.fixture
def models(tmp_path: Path) -> str:
    path = tmp_path / "models.py"
    path.write_text(dedent(MODELS))
    return str(path)


@pytest.mark.parametrize(
    ("factory", "kwargs", "batch"), [("with_inputs", {}, 6), ("with_both", {"scale": 0.5}, 2), ("from_value", {}, 1)]
)
def test_inputs_that_a_factory_gives_are_used_as_they_are(
    models: str, factory: str, kwargs: dict[str, float], batch: int
) -> None:
    source = resolve(f"{models}:{factory}", batch_size=6)
    assert (source.origin, source.name, source.inputs_from_factory) == ("file", factory, True)
    for device in DEVICES:
        model = build(source, device)
        assert model.args[0].shape == (batch, 8)
        assert model.args[0].device.type == device
        assert model.kwargs == kwargs
        assert model.module(*model.args, **model.kwargs).shape[0] == batch
    assert make_inputs(source, "cpu")[0][0].eq(3.0 if factory == "with_inputs" else 1.0).all()


def test_inputs_may_be_given_by_name(models: str) -> None:
    model = build(resolve(f"{models}:with_kwargs"), "meta")
    assert model.args == ()
    assert model.kwargs["x"].is_meta
    assert model.kwargs["scale"] == 2.0


@pytest.mark.parametrize("factory", ["bare", "Net", "tied", "with_inputs"])
def test_an_input_shape_serves_function_class_and_instance(models: str, factory: str) -> None:
    source = resolve(f"{models}:{factory}", batch_size=3, input_shape=(8,))
    assert source.args == (InputSpec((3, 8)),)
    for device in DEVICES:
        model = build(source, device)
        assert model.module(*model.args).shape[0] == 3
        assert all(tensor.device.type == device for tensor in model.module.parameters())


def test_an_instance_is_copied_and_its_ties_survive(models: str) -> None:
    source = resolve(f"{models}:tied", input_shape=(8,))
    for device in DEVICES:
        module = build_module(source, device)
        assert module.get_parameter("head.weight") is module.get_parameter("stem.weight")
    first, second = (build_module(source, "cpu").get_parameter("head.weight") for _ in range(2))
    assert first is not second
    assert torch.equal(first, second)


def test_a_source_object_is_used_as_it_is(models: str) -> None:
    source = resolve(f"{models}:source")
    assert (source.origin, source.args[0].shape) == ("mine", (5, 8))
    assert source.spec == f"{models}:source"


def test_classes_reach_a_factory_that_takes_them(models: str) -> None:
    assert build_module(resolve(f"{models}:sized", classes=4), "meta").get_parameter("head.bias").shape == (4,)
    with pytest.raises(UsageError) as raised:
        resolve(f"{models}:bare", classes=4)
    assert str(raised.value) == f"{models}:bare takes no num_classes, so --classes 4 does not apply; leave it out"
    with pytest.raises(UsageError) as raised:
        resolve(f"{models}:tied", classes=4)
    assert str(raised.value) == f"--classes 4 does not apply to {models}:tied, which is built already; leave it out"


def test_dtype_is_left_alone_unless_it_is_asked_for(models: str) -> None:
    model = build(resolve(f"{models}:with_inputs", dtype="bfloat16"), "cpu")
    assert {tensor.dtype for tensor in (*model.module.parameters(), *model.args)} == {torch.bfloat16}
    assert resolve(f"{models}:with_inputs").dtype is None


def test_a_factory_may_not_write_to_stdout(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    build(resolve(f"{models}:chatty"), "meta")
    assert capsys.readouterr().out == ""


def test_an_import_path_finds_modules_of_the_current_directory(
    models: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmp_path.joinpath("zoo_of_mine.py").write_text("from models import Net\n")
    monkeypatch.chdir(tmp_path)
    source = resolve("zoo_of_mine:Net", input_shape=(8,))
    assert source.origin == "import"
    assert type(build_module(source, "meta")).__name__ == "Net"
    with pytest.raises(UsageError) as raised:
        resolve("zoo_of_mine:Nett")
    assert str(raised.value) == "no 'Nett' in zoo_of_mine; did you mean 'Net'?"
    tmp_path.joinpath("zoo_broken.py").write_text("import not_there_at_all\n")
    with pytest.raises(AnalysisError) as failed:
        resolve("zoo_broken:Net")
    assert str(failed.value) == (
        "importing zoo_broken raised ModuleNotFoundError: No module named 'not_there_at_all' (zoo_broken.py, line 1)"
    )


def test_neighbouring_modules_import_as_in_a_script(tmp_path: Path) -> None:
    tmp_path.joinpath("neighbour_of_net.py").write_text("WIDTH = 8\n")
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\ndef build():\n    from neighbour_of_net import WIDTH\n    return nn.Linear(WIDTH, 2)\n"
    )
    assert build_module(resolve(f"{path}:build", input_shape=(8,)), "meta").in_features == 8


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("withinputs", UsageError, "no 'withinputs' in {0}; did you mean 'with_inputs'?"),
        (
            "NUMBER",
            UsageError,
            "{0}:NUMBER is a int, not a factory; name a function, an nn.Module class or an nn.Module instance",
        ),
        (
            "bare",
            UsageError,
            "the input of {0}:bare is not known; give --input, such as --input 3x224x224, "
            "or let the factory return (module, inputs)",
        ),
        (
            "gives_none",
            AnalysisError,
            "{0}:gives_none gives None, " + NOT_A_MODULE,
        ),
        (
            "gives_pair",
            AnalysisError,
            "{0}:gives_pair gives (int, int), " + NOT_A_MODULE,
        ),
        (
            "gives_text",
            AnalysisError,
            "{0}:gives_text gives str, " + NOT_A_MODULE,
        ),
        ("wrong", AnalysisError, "{0}:wrong raised ValueError: width 3 is odd (models.py, line {1})"),
        ("leaves", AnalysisError, "{0}:leaves raised SystemExit: 4 (models.py, line {2})"),
        (
            "sized",
            AnalysisError,
            "{0}:sized raised TypeError: sized() missing 1 required positional argument: 'num_classes'",
        ),
    ],
)
def test_a_factory_that_does_not_work_is_one_line(
    models: str, factory: str, error: type[MemplanError], message: str
) -> None:
    with pytest.raises(error) as raised:
        build(resolve(f"{models}:{factory}"), "meta")
    assert str(raised.value) == message.format(models, line_of("raise ValueError"), line_of("raise SystemExit"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"def build(:\n", "{0} is not Python: invalid syntax (broken.py, line 1)"),
        (b"\x89PNG\x00\x01", "{0} is not Python: "),
        (b"import torch\n1 / 0\n", "importing {0} raised ZeroDivisionError: division by zero (broken.py, line 2)"),
        (b"raise SystemExit\n", "importing {0} raised SystemExit (broken.py, line 1)"),
        (
            b"import nowhere_to_be_found\n",
            "importing {0} raised ModuleNotFoundError: No module named 'nowhere_to_be_found' (broken.py, line 1)",
        ),
    ],
)
def test_a_file_that_does_not_import_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_bytes(content)
    with pytest.raises(AnalysisError) as raised:
        resolve(f"{path}:build")
    assert str(raised.value).startswith(message.format(path))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.py"
    with pytest.raises(UsageError) as raised:
        resolve(f"{path}:build")
    assert str(raised.value) == f"no file {str(path)!r}; write path/to/file.py:FACTORY"


def test_a_file_without_factories_says_so(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("")
    with pytest.raises(UsageError) as raised:
        resolve(f"{path}:build")
    assert str(raised.value) == f"no 'build' in {path}; it defines no function or class"
