"""Specs, options, and the one-line errors of a request that cannot be understood."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from memplan.errors import AnalysisError, UsageError
from memplan.shapes import format_shape, parse_shape
from memplan.sources import InputSpec, Source, resolve
from memplan.sources.kinds import ALIASES


def test_importing_the_package_imports_neither_torch_nor_a_model_library() -> None:
    libraries = "('torch', 'torchvision', 'timm', 'transformers')"
    code = f"import sys, memplan.sources; print([name for name in {libraries} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_torchvision_name_imports_neither_timm_nor_transformers() -> None:
    code = (
        "import sys; from memplan.sources import build, resolve; build(resolve('mobilenet_v3'), 'meta');"
        "print([m for m in ('timm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("mobilenet_v3", "mobilenet_v3_large"),
        ("mobilenet_v2", "mobilenet_v2"),
        ("resnet50", "resnet50"),
        ("vit", "vit_b_16"),
    ],
)
def test_short_names_are_torchvisions(spec: str, name: str) -> None:
    source = resolve(spec)
    assert (source.spec, source.name, source.origin) == (spec, name, "torchvision")
    assert source.args == (InputSpec((8, 3, 224, 224)),)
    assert (source.classes, source.dtype) == (1000, "float32")


@pytest.mark.parametrize("alias", [alias for alias, spec in ALIASES.items() if spec.startswith("torchvision:")])
def test_every_torchvision_alias_resolves(alias: str) -> None:
    assert resolve(alias).origin == "torchvision"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size must be at least 1, not 0"),
        ({"batch_size": -3}, "batch size must be at least 1, not -3"),
        ({"classes": 0}, "classes must be at least 1, not 0"),
        ({"dtype": "float31"}, "no dtype 'float31'; did you mean 'float32' or 'float16'?"),
        ({"dtype": "int"}, "no dtype 'int'; choose one of float32, float64, bfloat16, float16"),
        (
            {"input_shape": (3, 0, 224)},
            "input shape must hold positive sizes, not (3, 0, 224); write for example (3, 224, 224)",
        ),
        ({"input_shape": (224,)}, "--input 224 is not a shape that resnet50 takes; write for example 3x224x224"),
        (
            {"input_shape": (1, 64, 64)},
            "--input 1x64x64 is not a shape that resnet50 takes; write for example 3x224x224",
        ),
        ({"weights": Path("none.pt")}, "no weights file 'none.pt'; give a .pt, .pth or .safetensors file"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        resolve("resnet50", **options)  # type: ignore[arg-type]  # the options of each case
    assert str(raised.value) == message
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet5", "no model 'resnet5' in torchvision; did you mean 'resnet50' or 'resnet152'?"),
        ("model.py", "'model.py' names a file but no factory; write model.py:FACTORY"),
        (
            "google/vit",
            "no directory 'google/vit' with a config.json; memplan downloads nothing, "
            "so name a local directory, or a model type such as hf:bert",
        ),
        (":build", "':build' needs a file or module and a factory, such as model.py:build or package.module:build"),
        (
            "torchvison:resnet18",
            "no module 'torchvison', which 'torchvison:resnet18' names; did you mean 'torchvision'?",
        ),
        (
            "no_such_package:build",
            "no module 'no_such_package', which 'no_such_package:build' names; "
            "is its directory the current one or on PYTHONPATH?",
        ),
    ],
)
def test_a_bad_spec_is_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        resolve(spec)
    assert str(raised.value) == message


def test_an_unknown_bare_name_is_compared_with_all_that_is_installed() -> None:
    with pytest.raises(UsageError, match=r"^no model 'mobilenet_v33'; did you mean 'mobilenet_v3' or '\w+'\?$"):
        resolve("mobilenet_v33")
    with pytest.raises(UsageError) as raised:
        resolve("zzzz")
    assert str(raised.value) == (
        "no model 'zzzz'; write torchvision:NAME, timm:NAME, hf:MODEL_TYPE, path/to/file.py:FACTORY "
        "or package.module:FACTORY"
    )


@pytest.mark.parametrize("package", ["torchvision", "timm", "transformers"])
def test_a_missing_package_is_named_with_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # how Python marks a module as absent
    prefix = "hf" if package == "transformers" else package
    requirement = package if package == "torchvision" else f"memplan[{package}]"
    with pytest.raises(AnalysisError) as raised:
        resolve(f"{prefix}:resnet18")
    assert str(raised.value) == f"{package} is not installed; run: pip install '{requirement}'"
    assert raised.value.exit_code == 3


def test_bare_names_pass_over_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("timm", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)  # how Python marks a module as absent
    assert resolve("resnet18").origin == "torchvision"
    with pytest.raises(UsageError, match=r"^no model 'tiny_vit_5m_224'; "):
        resolve("tiny_vit_5m_224")


def test_a_third_party_registers_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import nn

    kind = SimpleNamespace(
        resolve=lambda name, request: Source(
            request.spec, name, "zoo", lambda: nn.Linear(4, 2), args=(InputSpec((request.batch_size, 4)),)
        )
    )
    entry_point = SimpleNamespace(name="zoo", value="zoo:kind", load=lambda: kind)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group, name="zoo": [entry_point] if name == "zoo" else []
    )
    source = resolve("zoo:tiny", batch_size=3)
    assert (source.name, source.origin, source.args[0].shape) == ("tiny", "zoo", (3, 4))

    def fail() -> None:
        raise ImportError("no zoo here")

    entry_point.load = fail
    with pytest.raises(AnalysisError) as raised:
        resolve("zoo:tiny")
    assert str(raised.value) == "the source 'zoo' (zoo:kind) does not load: ImportError: no zoo here"


@pytest.mark.parametrize("text", ["3x224x224", "64", "1x3x5x7x9"])
def test_a_shape_parses_and_prints_back(text: str) -> None:
    assert format_shape(parse_shape(text)) == text


@pytest.mark.parametrize("text", ["", "x", "3x", "3x-1", "0x3", "3,224,224", "3x2.5", "3xx4", "three"])
def test_text_that_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_shape(text)
    assert str(raised.value) == (
        f"cannot read {text!r} as an input shape; write the sizes without the batch, such as 3x224x224 or 64"
    )
