"""Bad input: one clear line, the right exit code, no traceback, and no half-written file."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from click.testing import CliRunner, Result

import memplan
from memplan.cli import main

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "tests" / "models_for_cli.py"

USAGE, ANALYSIS = 2, 3
SIZE = "write a positive number and a unit, such as 64MB or 64MiB"
SHAPE = "write the sizes without the batch, such as 3x224x224 or 64"
CHECK = "check the input's shape and dtype"

#: Command line -> exit code and line.
CASES = {
    # what is asked for
    "": (USAGE, None),
    "analyze": (USAGE, "MODEL is missing; write memplan analyze [OPTIONS] MODEL"),
    "analyze m.py:net extra": (USAGE, "got unexpected extra argument (extra); write memplan analyze [OPTIONS] MODEL"),
    "analyse m.py:net": (USAGE, "no command 'analyse'; did you mean 'analyze'?"),
    "resnet50": (USAGE, "no command 'resnet50'; to analyse a model write: memplan analyze resnet50"),
    "--verzion": (USAGE, "no option '--verzion'; did you mean '--version'?"),
    "analyze m.py:net --bugdet 64MB": (USAGE, "no option '--bugdet'; did you mean '--budget' or '--debug'?"),
    "analyze m.py:net --zzz": (USAGE, "no option '--zzz'; memplan analyze --help lists the options"),
    "analyze m.py:net --budget": (USAGE, "--budget needs a value; memplan COMMAND --help shows which"),
    "analyze m.py:net --json": (USAGE, "--json needs a value; memplan COMMAND --help shows which"),
    # budgets
    "analyze m.py:net --budget 0": (USAGE, "a size must be more than zero bytes, not '0'; write for example 64MB"),
    "analyze m.py:net --budget 0.2B": (
        USAGE,
        "a size must be more than zero bytes, not '0.2B'; write for example 64MB",
    ),
    "analyze m.py:net --budget -1": (USAGE, f"cannot read '-1' as a size; {SIZE}"),
    "analyze m.py:net --budget=-1": (USAGE, f"cannot read '-1' as a size; {SIZE}"),
    "analyze m.py:net --budget 64XB": (USAGE, f"cannot read '64XB' as a size; {SIZE}"),
    "analyze m.py:net --budget NaN": (USAGE, f"cannot read 'NaN' as a size; {SIZE}"),
    "analyze m.py:net --budget inf": (USAGE, f"cannot read 'inf' as a size; {SIZE}"),
    "analyze m.py:net --budget ''": (USAGE, f"cannot read '' as a size; {SIZE}"),
    # other values
    "analyze m.py:net --batch-size 0": (USAGE, "batch size must be at least 1, not 0"),
    "analyze m.py:net --batch-size -2": (USAGE, "batch size must be at least 1, not -2"),
    "analyze m.py:net --batch-size two": (USAGE, "--batch-size: 'two' is not a whole number; write for example 8"),
    "analyze m.py:net --classes 0": (USAGE, "classes must be at least 1, not 0"),
    "analyze m.py:net --input 3x": (USAGE, f"cannot read '3x' as an input shape; {SHAPE}"),
    "analyze m.py:net --input 0x8": (USAGE, f"cannot read '0x8' as an input shape; {SHAPE}"),
    "analyze m.py:net --method ful": (USAGE, "no method 'ful'; did you mean 'full'?"),
    "analyze m.py:net --method zz": (
        USAGE,
        "no method 'zz'; choose one of full, norm-last, bias-last, top-k, last, as-is, lossless, mobiletl, "
        "tinytl-bias, tinytl-lite, tinytl-lite-bias, tune, all",
    ),
    "verify m.py:net --method top-q": (USAGE, "no method 'top-q'; did you mean 'top-k'?"),
    "analyze m.py:net --k 3 --method full": (
        USAGE,
        "--k 3 needs a method that trains k blocks; add --method top-k or mobiletl",
    ),
    "analyze m.py:net --k 9": (USAGE, "k must be from 0 to 2, the blocks of this model, not 9"),
    "analyze m.py:net --k -1": (USAGE, "k must be from 0 to 2, the blocks of this model, not -1"),
    "analyze m.py:net --optimizer adm": (USAGE, "no optimizer 'adm'; did you mean 'adam' or 'adamw'?"),
    "analyze m.py:net --optimizer lion": (
        USAGE,
        "no optimizer 'lion'; choose one of sgd, momentum, adam, adamw",
    ),
    "analyze m.py:net --dtype float31": (USAGE, "no dtype 'float31'; did you mean 'float32' or 'float16'?"),
    "analyze m.py:net --amp bf61": (USAGE, "no autocast dtype 'bf61'; did you mean 'bf16'?"),
    "analyze m.py:net --sort sved": (USAGE, "no order 'sved'; did you mean 'saved'?"),
    "analyze m.py:net --top -1": (USAGE, "--top must be 0 or more, not -1"),
    "verify m.py:net --steps 1": (
        USAGE,
        "steps must be at least 2, not 1: the first has no optimizer state yet",
    ),
    "verify m.py:net --seed 99999999999999999999": (
        USAGE,
        "a seed is a number from 0 to 2**63 - 1, not 99999999999999999999",
    ),
    # models
    "analyze mobilenet_v33": (USAGE, "no model 'mobilenet_v33'; did you mean 'mobilenet_v3' or 'mobilenetv3'?"),
    "analyze torchvision:resnet5": (
        USAGE,
        "no model 'resnet5' in torchvision; did you mean 'resnet50' or 'resnet152'?",
    ),
    "analyze hub/model": (
        USAGE,
        "no directory 'hub/model' with a config.json; memplan downloads nothing, "
        "so name a local directory, or a model type such as hf:bert",
    ),
    "analyze resnet18 --input 224": (
        USAGE,
        "--input 224 is not a shape that resnet18 takes; write for example 3x224x224",
    ),
    "analyze m.py": (USAGE, "'m.py' names a file but no factory; write m.py:FACTORY"),
    "analyze none.py:net": (USAGE, "no file 'none.py'; write path/to/file.py:FACTORY"),
    "analyze m.py:nett": (USAGE, "no 'nett' in m.py; did you mean 'net'?"),
    "analyze m.py:Net": (
        USAGE,
        "the input of m.py:Net is not known; give --input, such as --input 3x224x224, "
        "or let the factory return (module, inputs)",
    ),
    "analyze broken.py:net": (ANALYSIS, "broken.py is not Python: '(' was never closed (broken.py, line 1)"),
    "analyze binary.py:net": (ANALYSIS, None),
    "analyze m.py:raises": (ANALYSIS, None),
    "analyze m.py:uncopied": (
        ANALYSIS,
        "cannot copy the model: TypeError: cannot pickle '_thread.lock' object; "
        "remove what cannot be deep-copied from its attributes",
    ),
    # inputs and forward
    "analyze m.py:Net --input 9": (ANALYSIS, None),
    "analyze m.py:integers": (
        ANALYSIS,
        "layer '0' (Linear) multiplies float32 by int64, which PyTorch refuses; check the dtype of the inputs",
    ),
    "analyze m.py:Net --input 8 --batch-size 999999999999999999": (
        ANALYSIS,
        "Net cannot be built with its inputs: RuntimeError: Storage size calculation overflowed with "
        "sizes=[999999999999999999, 8]; check the batch and the input's shape",
    ),
    "analyze m.py:fails": (
        ANALYSIS,
        "the model fails in its forward: ran up to the model's own forward (Fails), "
        f"then ValueError: a width of 3; {CHECK}",
    ),
    "analyze m.py:branch": (
        ANALYSIS,
        "the model's own forward (Branch) needs the values of a tensor (aten._local_scalar_dense.default), "
        "which a recording does not have; give the branch or shape as a constant, "
        "or analyse the part of the model before it",
    ),
    "analyze m.py:exits": (ANALYSIS, "the model's own code exits (7); remove its call of exit"),
    "analyze m.py:ints": (ANALYSIS, None),
    # losses
    "analyze m.py:net --loss square": (
        USAGE,
        "'square' needs a file or module and a function, such as losses.py:loss or package.module:loss",
    ),
    "analyze m.py:net --loss m.py:sqare": (USAGE, "no 'sqare' in m.py; did you mean 'square' or 'sparse'?"),
    "analyze m.py:net --loss m.py:NUMBER": (USAGE, "--loss m.py:NUMBER is of type int, not a function; name one"),
    "analyze m.py:net --loss m.py:no_tensor": (
        ANALYSIS,
        "the loss gives float, not a scalar tensor; reduce it, for example with .mean()",
    ),
    # weights
    "analyze m.py:net --weights none.pt": (
        USAGE,
        "no weights file 'none.pt'; give a .pt, .pth or .safetensors file",
    ),
    "analyze m.py:net --weights other.pt": (
        ANALYSIS,
        "weights 'other.pt' do not fit net: 14 missing, first blocks.0.norm.weight; 1 unexpected, first x; "
        "check the model's name and --classes",
    ),
    "analyze m.py:net --weights junk.pt": (ANALYSIS, None),
    # output
    "analyze m.py:net --json none/x.json": (USAGE, None),
    "analyze m.py:net --json folder": (USAGE, "cannot write 'folder': it is a directory; name a file in it"),
    "trace m.py:net --json folder": (USAGE, "cannot write 'folder': it is a directory; name a file in it"),
    "verify m.py:net --json folder": (USAGE, "cannot write 'folder': it is a directory; name a file in it"),
}

#: What the lines begin with whose ends are PyTorch's, Python's or the machine's.
BEGINNINGS = {
    "analyze binary.py:net": "binary.py is not Python: ",
    "analyze m.py:raises": "m.py:raises raised RuntimeError: no disk (m.py, line ",
    "analyze m.py:Net --input 9": "the model fails in its forward: ran up to layer 'blocks.0.norm' (LayerNorm), then ",
    "analyze m.py:ints": "the model returns ",
    "analyze m.py:net --weights junk.pt": "weights 'junk.pt' ",
    "analyze m.py:net --json none/x.json": "cannot write 'none/x.json': there is no directory '",
    "": "Usage: memplan [OPTIONS] COMMAND [ARGS]...",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import torch

    (tmp_path / "m.py").write_text(MODELS.read_text())
    (tmp_path / "broken.py").write_text("net = (\n")
    (tmp_path / "binary.py").write_bytes(b"\x00\xff\x00")
    (tmp_path / "junk.pt").write_bytes(b"hi\n")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize("command", CASES)
def test_bad_input_is_one_line_and_the_right_exit_code(command: str, folder: Path) -> None:
    files = sorted(folder.rglob("*"))
    code, line = CASES[command]
    result = invoke(*shlex.split(command))
    assert (result.exit_code, result.stdout) == (code, "")
    if line is None:
        line = BEGINNINGS[command]
        assert result.stderr.removeprefix("memplan: ").startswith(line)
    else:
        assert result.stderr == f"memplan: {line}\n"
    if command:
        assert result.stderr.startswith("memplan: ")
        assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    made = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    assert sorted(made) == files


@pytest.mark.parametrize(
    "command", [command for command in CASES if command.startswith("analyze m.py:") and "--json" not in command]
)
def test_a_failure_writes_no_json(command: str, folder: Path) -> None:
    (folder / "old.json").write_text("old")
    for name in ("new.json", "old.json"):
        assert invoke(*shlex.split(command), "--json", name).exit_code == CASES[command][0]
    assert not (folder / "new.json").exists()
    assert (folder / "old.json").read_text() == "old"


def test_every_case_says_what_its_line_is() -> None:
    assert {command for command, (_, line) in CASES.items() if line is None} == BEGINNINGS.keys()


def test_what_torch_logs_is_not_shown() -> None:
    """torch logs a traceback when a fake operator fails, through a handler that only a process of its own shows."""
    done = subprocess.run(
        [sys.executable, "-m", "memplan", "analyze", "m.py:Net", "--input", "9"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (ANALYSIS, "")
    assert done.stderr.startswith("memplan: the model fails in its forward: ")
    assert done.stderr.count("\n") == 1


def test_debug_shows_where_it_happened() -> None:
    result = invoke("analyze", "m.py:fails", "--debug")
    assert result.exit_code == ANALYSIS
    assert "Traceback (most recent call last):" in result.stderr
    assert "a width of 3\nis odd" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("memplan: the model fails in its forward: ")


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_a_missing_package_is_named_with_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # how Python marks a module as absent
    result = invoke("analyze", f"{'hf' if package == 'transformers' else package}:model")
    assert result.exit_code == ANALYSIS
    assert result.stderr == f"memplan: {package} is not installed; run: pip install 'memplan[{package}]'\n"


def test_a_full_disk_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    (folder / "x.json").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    result = invoke("analyze", "m.py:net", "--method", "full", "--json", "x.json")
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert result.stderr == "memplan: cannot write 'x.json': No space left on device; name another file\n"
    assert (folder / "x.json").read_text() == "old"
    assert not list(folder.glob(".*"))


def test_a_read_only_file_is_refused_before_anything_is_recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "x.json").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "x.json")
    result = invoke("analyze", "m.py:fails", "--json", "x.json")
    assert result.exit_code == USAGE
    assert result.stderr == "memplan: cannot write 'x.json': it is read-only; name another file\n"


def test_what_nobody_foresaw_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import memplan.analysis

    def fail(*arguments: object, **options: object) -> NoReturn:
        raise KeyError("a\nb")

    monkeypatch.setattr(memplan.analysis, "price", fail)
    result = invoke("analyze", "m.py:net")
    assert result.exit_code == ANALYSIS
    assert result.stderr == (
        "memplan: internal error: KeyError: 'a\\nb'; please report it with the output of --debug\n"
    )


def test_a_model_that_cannot_run_is_told_from_one_that_cannot_be_recorded() -> None:
    (Path("values.py")).write_text(
        "import torch\n"
        "class Net(torch.nn.Embedding):\n"
        "    pass\n"
        "def net():\n"
        "    return Net(4, 4), torch.full((2, 3), 9)\n"
    )
    assert invoke("analyze", "values.py:net", "--method", "full").exit_code == 0
    result = invoke("verify", "values.py:net")
    assert result.exit_code == ANALYSIS
    assert result.stderr == (
        "memplan: net records but does not run: IndexError: index out of range in self; "
        "check its inputs' values and this machine's memory\n"
    )


#: What is given to a check of a spec -> what is said.
VALUES: tuple[tuple[dict[str, object], str], ...] = (
    ({"dtype": torch.int64}, "no dtype 'int64'; choose one of float32, *"),
    ({"dtype": 3}, "no dtype '3'; choose one of float32, *"),
    ({"amp": True}, "no autocast dtype True; choose bf16 or fp16"),
    ({"amp": torch.float64}, "no autocast dtype torch.float64; choose bf16 or fp16"),
    ({"method": None}, "no method None; choose from full, *"),
    ({"method": 3}, "no method 3; choose from full, *"),
    ({"method": ["full"]}, "no method ['full']; choose from full, *"),
    ({"optimizer": ["adam"]}, "no optimizer ['adam']; choose one of sgd, *"),
    ({"of": {}}, "no quantity {}; choose one of peak, *"),
    ({"k": "5", "method": "top-k"}, "k is a whole number, not '5'; write for example k=5"),
    ({"batch_size": "8"}, "batch size must be at least 1, not '8'"),
    ({"batch_size": True}, "batch size must be at least 1, not True"),
    ({"batch_size": 2.5}, "batch size must be at least 1, not 2.5"),
    ({"classes": "10"}, "classes must be at least 1, not '10'"),
    (
        {"input_shape": "3x64x64"},
        "input shape must hold positive sizes, not '3x64x64'; write for example (3, 224, 224)",
    ),
    ({"input_shape": 64}, "input shape must hold positive sizes, not 64; *"),
    ({"input_shape": (3, "64", 64)}, "input shape must hold positive sizes, not (3, '64', 64); *"),
    ({"training": "no"}, "training is True or False, not 'no'; leave it out for the model's own mode"),
    ({"weights": 3}, "weights is the path of a file, not 3; give a .pt, .pth or .safetensors file"),
    ({"loss": "mse"}, "loss is a function of the model's output, not 'mse'; pass one that gives a scalar"),
)


@pytest.mark.parametrize(("options", "line"), VALUES, ids=lambda value: str(value)[:40])
def test_a_value_of_the_wrong_type_is_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(memplan.UsageError) as raised:
        memplan.check("squeezenet1_1", **options)
    said = str(raised.value)
    assert said.startswith(line[:-1]) if line.endswith("*") else said == line
    assert "\n" not in said


def test_a_class_is_no_model() -> None:
    with pytest.raises(memplan.UsageError, match="not the class Linear; pass one of its objects"):
        memplan.check(torch.nn.Linear, torch.zeros(2, 4))


def test_a_dtype_of_pytorch_is_its_name() -> None:
    net, options = torch.nn.Linear(4, 4), {"input_shape": (3, 64, 64), "batch_size": 1}
    for dtype in (torch.float16, "float16"):
        verdict = memplan.check("squeezenet1_1", dtype=dtype, **options)
        assert verdict.reading is not None
        assert verdict.reading.dtype == "float16"
    readings = [memplan.check(net, torch.zeros(2, 4), amp=amp).reading for amp in (torch.bfloat16, "bfloat16")]
    assert readings[0] == readings[1]
