"""What cannot be applied, restored or loaded is told in one line: what happened, the user's value, the next step."""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import memplan
from memplan.cli import main
from memplan.methods.plan import TreatedLayer, plan_to_json
from tests.applied import Net, images, net, planned

USAGE, ANALYSIS = memplan.UsageError, memplan.AnalysisError
MODELS = Path(__file__).parent / "models_for_cli.py"


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))


def frozen() -> nn.Module:
    return net().requires_grad_(False)


def plan() -> memplan.Plan:
    found = memplan.plan_of(planned("mobiletl"))
    assert found is not None
    return found


def with_locks() -> nn.Module:
    import threading

    model = net()
    model.lock = threading.Lock()  # type: ignore[assignment]
    return model


#: What is done -> error and line.
CASES: dict[str, tuple[Callable[[], Any], type[memplan.MemplanError], str]] = {
    "too many blocks": (
        lambda: memplan.apply(net(), "mobiletl", images(), k=3),
        USAGE,
        "k must be from 0 to 2, the blocks of this model, not 3",
    ),
    "negative blocks": (
        lambda: memplan.apply(net(), "mobiletl", images(), k=-1),
        USAGE,
        "k must be from 0 to 2, the blocks of this model, not -1",
    ),
    "half a block": (
        lambda: memplan.apply(net(), "mobiletl", images(), k=1.5),  # type: ignore[arg-type]
        USAGE,
        "k is a whole number, not 1.5; write for example k=5",
    ),
    "a method without k": (
        lambda: memplan.apply(net(), "lossless", images(), k=2),
        USAGE,
        "method 'lossless' takes no k (=2); leave it out, or use top-k or mobiletl",
    ),
    "an unknown method": (
        lambda: memplan.apply(net(), "mobiltl", images()),
        USAGE,
        "no method 'mobiltl'; did you mean 'mobiletl'?",
    ),
    "no method": (
        lambda: memplan.apply(net(), 3, images()),  # type: ignore[arg-type]
        USAGE,
        "a method is a name such as 'mobiletl', a Method or a Plan, not int; pass one of these",
    ),
    "an unknown treatment": (
        lambda: memplan.apply(net(), "last", images(), treatments=["frozen-int4"]),
        USAGE,
        "no treatment 'frozen-int4'; did you mean 'frozen-int8'?",
    ),
    "a treatment of whole models": (
        lambda: memplan.apply(net(), "last", images(), treatments=["recompute"]),
        USAGE,
        "recompute is no treatment of single layers; choose a method that has it",
    ),
    "a treatment that is no name": (
        lambda: memplan.apply(net(), "last", images(), treatments=[3]),  # type: ignore[list-item]
        USAGE,
        "a treatment is given by its name, not as a int; write its name",
    ),
    "an unknown optimizer": (
        lambda: memplan.apply(net(), "last", images(), optimizer="adm"),
        USAGE,
        "no optimizer 'adm'; did you mean 'adam' or 'adamw'?",
    ),
    "no inputs": (
        lambda: memplan.apply(net(), "last"),
        USAGE,
        "Net is given without inputs; pass a tensor, a tuple or a dict of them",
    ),
    "no module": (
        lambda: memplan.apply(torch.nn, "last", images()),  # type: ignore[arg-type]
        USAGE,
        "a model is a spec or a torch.nn.Module, not module; pass one of these",
    ),
    "no module, with a plan": (
        lambda: memplan.apply(42, plan()),  # type: ignore[arg-type]
        USAGE,
        "a model is a spec or a torch.nn.Module, not int; pass one of these",
    ),
    "an input of another shape": (
        lambda: memplan.apply(net(), "last", torch.zeros(2, 5, 8, 8)),
        ANALYSIS,
        "the model fails in its forward: ran up to layer 'stem.0' (Conv2d), then RuntimeError: ",
    ),
    "a model that cannot be copied": (
        lambda: memplan.apply(with_locks(), plan()),
        ANALYSIS,
        "cannot copy the model: TypeError: cannot pickle '_thread.lock' object; "
        "remove what cannot be deep-copied from its attributes",
    ),
    "a second plan": (
        lambda: memplan.apply(planned("lossless"), "mobiletl", images()),
        USAGE,
        "a plan is applied to this Net already; memplan.restore it first",
    ),
    "a second plan around the first": (
        lambda: memplan.apply(nn.Sequential(planned("lossless"), nn.Linear(4, 4)), "full", images()),
        USAGE,
        "a plan is applied to '0' in this Sequential already; memplan.restore it first",
    ),
    "k beside a plan": (
        lambda: memplan.apply(net(), plan(), k=2),
        USAGE,
        "k=2 is given with a plan, which says it already; leave one of them out",
    ),
    "restore a plain model": (
        lambda: memplan.restore(net()),
        USAGE,
        "no plan is applied to this Net; give a model that memplan.apply returned",
    ),
    "restore no model": (
        lambda: memplan.restore("resnet18"),  # type: ignore[arg-type]
        USAGE,
        "no plan is applied to this str; give a model that memplan.apply returned",
    ),
    "a plan of another model": (
        lambda: memplan.apply(dense(), plan()),
        ANALYSIS,
        "the plan is for another model than this Sequential with 4 parameters of 20 numbers: it has 18 parameters of ",
    ),
    "a plan of a model with other classes": (
        lambda: memplan.apply(Net(classes=5), plan()),
        ANALYSIS,
        "the plan is for another model than this Net with 18 parameters of ",
    ),
    "a plan without a fingerprint, of another model": (
        lambda: memplan.apply(dense(), replace(plan(), model=None)),
        ANALYSIS,
        "the plan is for another model: this Sequential has no module 'blocks.1'; make another plan",
    ),
    "a plan with an unknown treatment": (
        lambda: memplan.apply(net(), replace(plan(), layers=(TreatedLayer("", ("bitmusk",)),))),
        USAGE,
        "no treatment 'bitmusk'; did you mean 'bitmask'?",
    ),
    "a plan that stores a norm in 8 bits": (
        lambda: memplan.apply(net(), replace(plan(), int8=("stem.1",))),
        ANALYSIS,
        "'stem.1' cannot be stored in 8 bits: no 8-bit form of BatchNorm2d; ",
    ),
    "nothing to choose": (
        lambda: memplan.apply(nn.ReLU(), "bias-last", images()),
        ANALYSIS,
        "method 'bias-last' trains no parameter of this model; use full or as-is",
    ),
    "nothing trains as it is": (
        lambda: memplan.apply(frozen(), "as-is", images()),
        ANALYSIS,
        "method 'as-is' trains nothing of this Net, which is frozen or has no parameters; choose another method",
    ),
    "an optimizer of nothing": (
        lambda: memplan.optimizer(frozen()),
        USAGE,
        "nothing trains in this Net; apply a method that trains something",
    ),
    "an optimizer that is not known": (
        lambda: memplan.optimizer(planned("lossless"), "lion"),
        USAGE,
        "FusedUpdate has no 'lion'; choose sgd, adam or adamw",
    ),
    "no plan file": (
        lambda: memplan.load_plan("none.json"),
        USAGE,
        "cannot read 'none.json': No such file or directory; give a plan.json that memplan apply wrote",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_is_told_in_one_line(case: str) -> None:
    do, kind, line = CASES[case]
    with pytest.raises(memplan.MemplanError) as raised:
        do()
    assert isinstance(raised.value, kind)
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", ["tinytl-lite", "tune", "mobiletl"])
def test_a_method_of_which_nothing_matches_says_so(method: str) -> None:
    made = memplan.plan_of(memplan.apply(dense(), method, torch.zeros(4, 3)))
    assert made is not None
    assert any(" does not apply: " in note for note in made.notes) or made.k == 0


def test_a_model_that_the_user_froze_trains_what_the_method_says() -> None:
    model = memplan.apply(frozen(), "mobiletl", images(), k=1)
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in memplan.restore(model).parameters())


def test_a_batch_of_one_fails_as_in_stock_pytorch() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())
    x = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as stock:
        model(x)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as ours:
        memplan.apply(model, "lossless", torch.zeros(4, 3))(x)
    assert str(ours.value) == str(stock.value)


def test_a_forward_that_was_replaced_is_told() -> None:
    model: Any = planned("lossless")
    model.forward = lambda x: x
    with pytest.raises(USAGE, match=r"^the forward of this Net was replaced after memplan.apply; put that one back"):
        memplan.restore(model)


def broken(change: Callable[[dict[str, Any]], Any]) -> str:
    fields = json.loads(plan_to_json(plan()))
    change(fields)
    return json.dumps(fields)


#: The text of a file -> what is said of it.
FILES: dict[str, tuple[Callable[[], str | bytes], str]] = {
    "half": (lambda: plan_to_json(plan())[:200], "is not JSON: "),
    "empty": (lambda: "", "is not JSON: "),
    "binary": (lambda: b"\xff\xfe\x00", "is not text; give a plan.json"),
    "a list": (lambda: "[]", "has the schema None, not 'memplan.plan/2'; write it again with memplan apply"),
    "another schema": (
        lambda: broken(lambda fields: fields.update(schema="memplan.plan/9")),
        "was written by a newer memplan (schema memplan.plan/9); upgrade memplan",
    ),
    "a field is missing": (
        lambda: broken(lambda fields: fields.pop("running")),
        "is not a whole plan: there is no 'running'; write it again with memplan apply",
    ),
    "a text for a list": (
        lambda: broken(lambda fields: fields.update(trained="head.weight")),
        "is not a plan: 'trained' is 'head.weight', not a list; write it again with memplan apply",
    ),
    "no parts": (
        lambda: broken(lambda fields: fields["microbatch"].update(samples=0)),
        "is not a plan: 0 is not a number from 1 on; write it again with memplan apply",
    ),
    "other gradients": (
        lambda: broken(lambda fields: fields.update(gradients="good")),
        "is not a plan: gradients are exact or approximate, not 'good'; write it again with memplan apply",
    ),
    "a layer that is a number": (
        lambda: broken(lambda fields: fields.update(layers=[3])),
        "is not a plan: 3 is not an object; write it again with memplan apply",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_plan_that_cannot_be_read_is_told(name: str, tmp_path: Path) -> None:
    content, line = FILES[name]
    path, data = tmp_path / "plan.json", content()
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(USAGE) as raised:
        memplan.load_plan(path)
    assert str(raised.value).startswith(f"{str(path)!r} {line}")
    assert "\n" not in str(raised.value)


# -- the command -------------------------------------------------------------------------------------------------------

#: Command line -> exit code and line.
COMMANDS = {
    "apply": (2, "MODEL is missing; write memplan apply [OPTIONS] MODEL"),
    "apply m.py:net": (
        2,
        "no --out is given; name a directory for the plan and the weights, such as --out plan",
    ),
    "apply m.py:net --out": (2, "--out needs a value; memplan COMMAND --help shows which"),
    "apply m.py:net --out m.py": (2, "cannot write to 'm.py': it is a file; name a directory"),
    "apply m.py:net --out none/plan": (2, "cannot write 'none/plan': there is no directory '"),
    "apply m.py:net --out made": (2, "'made' has a plan.json already; name another directory, or add --force"),
    "apply m.py:net --out p --method mobiltl": (2, "no method 'mobiltl'; did you mean 'mobiletl'?"),
    "apply m.py:net --out p --treatment frozen": (
        2,
        "no treatment 'frozen'; did you mean 'lean-frozen' or 'frozen-int8'?",
    ),
    "apply m.py:net --out p --k 1": (2, "--k 1 needs a method that trains k blocks; add --method top-k or mobiletl"),
    "apply m.py:net --out p --method mobiletl --k 9": (2, "k must be from 0 to 2, the blocks of this model, not 9"),
    "apply m.py:net --out p --seed -1": (2, "a seed is a number from 0 to 2**63 - 1, not -1"),
    "apply m.py:net --out p --weights none.pt": (2, "no weights file 'none.pt'; give a .pt, .pth or .safetensors file"),
    "apply m.py:net --out p --weights other.pt": (3, "weights 'other.pt' do not fit net: "),
    "apply m.py:fails --out p": (3, "the model fails in its forward: "),
    "apply m.py:frozen --out p --method as-is --treatment recompute": (
        2,
        "recompute is no treatment of single layers; choose a method that has it",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "m.py").write_text(MODELS.read_text())
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "plan.json").write_text("old")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, list(arguments))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_cannot_be_run_is_one_line_and_writes_nothing(command: str, folder: Path) -> None:
    before = files(folder)
    code, line = COMMANDS[command]
    result = invoke(*shlex.split(command))
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"memplan: {line}")
    assert result.stderr.count("\n") == 1
    assert files(folder) == before
    assert (folder / "made" / "plan.json").read_text() == "old"


def test_apply_writes_what_python_loads(folder: Path) -> None:
    weights = folder / "in.pt"
    scope: dict[str, Any] = {}
    exec((folder / "m.py").read_text(), scope)
    original = scope["Net"]()
    torch.save(original.state_dict(), weights)
    options = ["--method", "mobiletl", "--k", "1", "--treatment", "frozen-int8", "--weights", "in.pt"]
    result = invoke(
        "apply", "m.py:net", *options, "--out", "a_plan_in_a_directory_with_a_name_too_long_for_a_narrow_screen"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert sorted(
        path.name for path in (folder / "a_plan_in_a_directory_with_a_name_too_long_for_a_narrow_screen").iterdir()
    ) == ["model.pt", "plan.json"]
    assert "mobiletl k=1" in result.stdout
    assert "shift-only does not apply" in result.stdout
    assert "frozen-int8" in result.stdout
    assert "stock full" in result.stdout
    lines = [line.strip() for line in result.stdout.split("In Python:\n")[1].splitlines()]
    assert len(lines) == 3
    done: dict[str, Any] = {"torch": torch, "memplan": memplan}
    exec("\n".join(lines), done)
    model = done["model"]
    assert memplan.plan_of(model) == memplan.load_plan("a_plan_in_a_directory_with_a_name_too_long_for_a_narrow_screen")
    assert torch.equal(model.blocks[1].up.weight, original.blocks[1].up.weight)
    error = (model.blocks[0].up.weight - original.blocks[0].up.weight).abs().max()
    assert 0 < error < original.blocks[0].up.weight.abs().max() / 127
    model(torch.ones(2, 8)).sum().backward()
    done["optimizer"].step()


def test_apply_replaces_files_only_when_told(folder: Path) -> None:
    (folder / "made" / "other.txt").write_text("kept")
    result = invoke("apply", "m.py:net", "--method", "last", "--out", "made", "--force")
    assert result.exit_code == 0
    assert "random (--seed 0)" in result.stdout
    assert sorted(path.name for path in (folder / "made").iterdir()) == ["model.pt", "other.txt", "plan.json"]
    first = (folder / "made" / "plan.json").read_text()
    assert first.startswith('{\n  "schema": "memplan.plan/2"')
    state = torch.load(folder / "made" / "model.pt")
    assert invoke("apply", "m.py:net", "--method", "last", "--out", "made").exit_code == 2
    assert invoke("apply", "m.py:net", "--method", "last", "--out", "again").exit_code == 0
    again = torch.load(folder / "again" / "model.pt")
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert (folder / "again").stat().st_mode == (folder / "made").stat().st_mode


@pytest.mark.parametrize("out", ["made", "new"])
def test_a_full_disk_leaves_what_was_there(out: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = files(folder)
    monkeypatch.setattr(os if out == "made" else torch, "replace" if out == "made" else "save", full)
    result = invoke("apply", "m.py:net", "--method", "last", "--out", out, "--force")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"memplan: cannot write to {out!r}: No space left on device; name another one\n"
    assert files(folder) == before
    assert (folder / "made" / "plan.json").read_text() == "old"
