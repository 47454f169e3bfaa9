"""An applied model is copied, stored, loaded and restored."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

import memplan
from memplan.methods.plan import plan_from_json, plan_to_json
from memplan.transform.measure import saved_on_a_real_step
from tests.applied import Net, images, net, planned, same, state, trained

ROOT = Path(__file__).parents[2]


# -- copies ------------------------------------------------------------------------------------------------------------


def test_a_copy_is_independent_and_trains_alike(name: str) -> None:
    model = planned(name)
    twin = copy.deepcopy(model)
    before = state(twin)
    trained(model)
    assert same(before, twin)
    assert not same(before, model)
    del_free = weakref.ref(model)
    expected = state(model)
    del model
    assert del_free() is None, "a planned model that nobody uses is still there"
    assert same(trained(twin), expected)
    assert memplan.plan_of(twin) is not None


def test_a_pickled_model_trains_alike(name: str) -> None:
    model = planned(name)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    assert saved_on_a_real_step(copy.deepcopy(loaded), (images(),), {}) == saved_on_a_real_step(
        copy.deepcopy(model), (images(),), {}
    )
    assert same(trained(loaded), trained(model))
    assert same(trained(memplan.restore(loaded)), trained(memplan.restore(model)))


def test_a_loaded_model_takes_hooks_in_a_new_process(tmp_path: Path) -> None:
    torch.save(planned("tinytl-lite-bias"), tmp_path / "m.pt")
    code = (
        "import torch; from tests.applied import images\n"
        f"model = torch.load({str(tmp_path / 'm.pt')!r}, weights_only=False)\n"
        "seen = []\n"
        "for module in model.modules(): module.register_forward_hook(lambda *_: seen.append(1))\n"
        "model(images()).sum().backward()\n"
        "assert len(seen) > 10, seen\n"
        "assert model.blocks[1].lite_residual.last_norm.weight.grad is not None\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_state_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = trained(planned(name))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    fresh = planned(name)
    assert fresh.load_state_dict(torch.load(tmp_path / "state.pt")).missing_keys == []
    assert same(trained(fresh), trained(model))


def test_the_originals_state_fits_where_parameters_are_the_same() -> None:
    for name in ("lossless", "mobiletl", "tune"):
        model = planned(name)
        model.load_state_dict(net(seed=3).state_dict())
        assert same(model, net(seed=3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_changes_its_dtype(name: str, dtype: torch.dtype) -> None:
    model = planned(name).to(dtype)
    before = state(model)
    trained(model)
    assert all(parameter.dtype is dtype for parameter in model.parameters())
    assert not same(before, model)
    assert model(images(dtype=dtype)).dtype is dtype


def test_half_and_meta(name: str) -> None:
    half = planned(name).half().eval()
    assert half(images(dtype=torch.float16)).dtype is torch.float16
    meta = planned(name).to("meta")
    meta(images().to("meta")).sum().backward()
    grads = [parameter.grad for parameter in memplan.trained_parameters(meta)]
    assert all(grad is not None and grad.is_meta for grad in grads)


def test_a_plan_is_stored_and_loaded(name: str, tmp_path: Path) -> None:
    model = planned(name)
    plan = memplan.plan_of(model)
    assert plan is not None
    assert plan_from_json(plan_to_json(plan)) == plan
    (tmp_path / "plan.json").write_text(plan_to_json(plan))
    for where in (tmp_path, tmp_path / "plan.json", str(tmp_path / "plan.json")):
        assert memplan.load_plan(where) == plan
    made = memplan.apply(net(), memplan.load_plan(tmp_path))
    made.load_state_dict(model.state_dict())
    assert same(trained(made), trained(model))
    assert pickle.loads(pickle.dumps(plan)) == plan


# -- restore -----------------------------------------------------------------------------------------------------------


def test_restore_gives_the_plain_model(name: str) -> None:
    model = trained(planned(name))
    plain = memplan.restore(model)
    assert memplan.plan_of(plain) is None
    assert memplan.plan_of(model) is not None
    assert all("forward" not in module.__dict__ for module in plain.modules())
    assert [parameter.requires_grad for parameter in plain.parameters()] == [True] * len([*plain.parameters()])
    keys = [key for key in plain.state_dict() if "lite_residual" not in key]
    assert keys == [*net().state_dict()]
    x = images()
    assert torch.allclose(plain.eval()(x), model.eval()(x), atol=1e-5)
    if "lite" not in name:
        stock = net()
        stock.load_state_dict(plain.state_dict())
        assert same(trained(plain.train()), trained(stock.train()))


def test_restore_puts_back_what_required_gradients_and_the_modes() -> None:
    model = net()
    model.stem.requires_grad_(False)
    model.blocks[0].bn1.eval()
    for name in ("mobiletl", "lossless"):
        applied = memplan.apply(model, name, images())
        assert all(parameter.requires_grad for parameter in applied.blocks[1].conv1.parameters())
        plain = memplan.restore(trained(applied))
        assert [parameter.requires_grad for parameter in plain.parameters()] == [
            parameter.requires_grad for parameter in model.parameters()
        ]
        assert [module.training for module in plain.modules()] == [module.training for module in model.modules()]


def test_a_restored_model_takes_another_plan() -> None:
    plain = memplan.restore(trained(planned("mobiletl")))
    assert same(trained(memplan.apply(plain, "lossless", images()), 0), plain)
    again = memplan.apply(memplan.restore(trained(planned("tinytl-lite-bias"))), "tinytl-bias", images())
    assert any("lite_residual" in key for key in again.state_dict())
    trained(again)


def test_no_garbage_is_left() -> None:
    model = planned("lossless")
    trained(model)
    here = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        plain = memplan.restore(model)
        gone = weakref.ref(plain)
        del model, plain
        assert (here(), gone()) == (None, None)
    finally:
        gc.enable()


def test_a_compiled_model_is_planned_as_the_one_it_was_compiled_from() -> None:
    compiled = torch.compile(net(), backend="eager")
    model = memplan.apply(compiled, "mobiletl", images(), k=1)
    assert type(model) is Net
    assert memplan.plan_of(torch.compile(model, backend="eager")) is memplan.plan_of(model)
    assert type(memplan.restore(torch.compile(model, backend="eager"))) is Net
