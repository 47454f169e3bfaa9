"""An applied model is used as the model it was made from."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

import memplan
from memplan.methods.plan import plan_from_json, plan_to_json
from memplan.transform.measure import saved_on_a_real_step
from tests.applied import PLANS, Net, images, net, planned, same, state, trained

MODULE_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
ROOT = Path(__file__).parent.parent


def left_behind() -> list[Any]:
    """What forwards that end, in whatever way, must not leave."""
    hooks = [hook for name in MODULE_HOOKS for hook in getattr(nn.modules.module, name)]
    saved = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return [*range(_len_torch_function_stack()), *_get_current_dispatch_mode_stack(), *hooks, *(saved or ())]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    assert left_behind() == []
    yield
    assert left_behind() == []


@pytest.fixture(params=PLANS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- the same model ----------------------------------------------------------------------------------------------------


def test_the_users_model_is_not_touched(name: str) -> None:
    method, k, treatments = PLANS[name]
    model = net()
    calls: list[int] = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    model.stem[0].weight.requires_grad_(False)
    model.blocks[0].eval()
    model(images()).mean().backward()
    before, grads = state(model), [parameter.grad for parameter in model.parameters()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    own = [dict(module.__dict__) for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    rng = torch.get_rng_state()
    calls.clear()
    trained(memplan.apply(model, method, images(), k=k, treatments=treatments))
    assert torch.equal(torch.get_rng_state(), rng)
    assert same(before, model)
    assert [id(parameter.grad) for parameter in model.parameters()] == [id(grad) for grad in grads]
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert [dict(module.__dict__).keys() for module in model.modules()] == [each.keys() for each in own]
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    calls.clear()
    model(images())
    assert calls == [1]


def test_class_signature_and_state_are_the_originals(name: str) -> None:
    model, original = planned(name), net()
    assert type(model) is Net
    assert inspect.signature(model.forward) == inspect.signature(original.forward)
    added = {"weight_int8", "weight_scale"} if "8 bits" in name else {"lite_residual"} if "lite" in name else set()
    kept = {key: tensor for key, tensor in model.state_dict().items() if not added & {*key.split(".")}}
    gone = original.state_dict().keys() - kept.keys()
    assert gone <= ({key for key in original.state_dict() if key.endswith(".weight")} if "8 bits" in name else set())
    assert [*kept] == [key for key in original.state_dict() if key in kept]
    assert all(torch.equal(tensor, original.state_dict()[key]) for key, tensor in kept.items())


def test_arguments_reach_the_forward(name: str) -> None:
    model = planned(name)
    assert torch.allclose(model(images(), scale=2.0), 2 * model(x=images()), atol=1e-6)
    with pytest.raises(TypeError, match="unexpected keyword argument 'scle'"):
        model(images(), scle=2.0)


@pytest.mark.parametrize("grad", [True, False])
def test_eval_mode_computes_what_the_original_does(name: str, grad: bool) -> None:
    model, original = planned(name).double().eval(), net().double().eval()
    x = images(dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        shown, expected = model(x), original(x)
    if "8 bits" in name:
        assert 0 < (shown - expected).abs().max() < 0.1 * expected.abs().max()
    elif grad:
        assert torch.allclose(shown, expected, rtol=1e-10)
    else:
        assert torch.equal(shown, expected)


def test_it_is_traced_for_inference_without_anything_of_memplan(name: str) -> None:
    model = planned(name).eval()
    program = torch.export.export(model, (images(),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets
    assert all(target.startswith(("aten.", "<built-in function getitem>")) for target in targets), targets
    assert torch.allclose(program.module()(images()), model(images()), atol=1e-5)
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    assert torch.allclose(torch.export.load(saved).module()(images()), model(images()), atol=1e-5)


# -- training ----------------------------------------------------------------------------------------------------------


def test_lossless_trains_as_stock_does() -> None:
    stock, model = net().double(), planned("lossless").double()
    trained(stock), trained(model)
    for key, tensor in stock.state_dict().items():
        assert torch.allclose(model.state_dict()[key].double(), tensor.double(), rtol=1e-10, atol=1e-12), key


def test_what_trains_moves_and_nothing_else(name: str) -> None:
    model = planned(name)
    plan = memplan.plan_of(model)
    assert plan is not None
    before = state(model)
    trained(model)
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    statistics = {key for key in moved if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    own = {key for key in moved - statistics if "lite_residual" not in key}
    # The gradient of a bias before a norm by the batch's statistics is nothing but rounding.
    assert own | ({"stem.0.bias"} & {*plan.trained}) == {*plan.trained}
    assert any("lite_residual" in key for key in moved) == bool(plan.lite)
    frozen = (*plan.running, *plan.evaluated)
    norms = {path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {key.rpartition(".")[0] for key in statistics} == norms - {*frozen}
    assert frozen or name == "lossless"


def test_frozen_statistics_stay_frozen_whatever_mode_is_set() -> None:
    model = planned("mobiletl")
    before = state(model)
    for mode in (False, True, True, False, True):
        model.train(mode)
        trained(model, 1)
        assert all(module.training is mode for module in model.modules())
    frozen = [key for key in before if key.startswith(("stem.1.running", "blocks.0.bn1.running", "blocks.1.bn1.num"))]
    assert len(frozen) == 5
    assert all(torch.equal(before[key], model.state_dict()[key]) for key in frozen)
    assert int(model.state_dict()["blocks.1.bn2.num_batches_tracked"]) == 3


def test_memplans_optimizer_trains_as_any_other(name: str) -> None:
    one, other = planned(name), planned(name)
    trained(one, 3, torch.optim.SGD(memplan.trained_parameters(one), lr=0.1, momentum=0.9))
    trained(other, 3, memplan.optimizer(other, "sgd", lr=0.1, momentum=0.9))
    assert same(one, other)
    plan = memplan.plan_of(other)
    assert plan is not None
    kind = type(memplan.optimizer(other, torch.optim.Adam, lr=0.1))
    assert kind is (memplan.FusedUpdate if plan.fused_update else torch.optim.Adam)


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


# -- hooks and attributes ----------------------------------------------------------------------------------------------


def test_hooks_and_attributes_of_the_users_work(name: str) -> None:
    method, k, treatments = PLANS[name]
    original = net()
    seen: list[tuple[int, ...]] = []
    original.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    model = memplan.apply(original, method, images(), k=k, treatments=treatments)
    model.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    model.blocks[1].conv1.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    gradients: list[Tensor] = []
    model.head.register_full_backward_hook(lambda module, into, out: gradients.append(out[0]))
    seen.clear()
    model(images()).sum().backward()
    assert seen == [(4, 3, 8, 8), (4, 3, 8, 8), (4, 16, 8, 8)]
    assert [tuple(gradient.shape) for gradient in gradients] == [(4, 4)]
    assert tuple(model.blocks[0].conv1.weight.shape) == (16, 8, 1, 1)
    shifted, plain = planned(name), planned(name)
    shifted.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    assert torch.equal(shifted(images()), plain(images() + 1))


def test_a_hook_that_changes_what_a_folded_norm_takes_is_told() -> None:
    model = planned("tune")
    model.blocks[0].conv1.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(memplan.AnalysisError, match=r"'blocks.0.bn1' is folded into the convolution before it"):
        model(images())
    with torch.no_grad():
        model(images())


# -- unusual forwards --------------------------------------------------------------------------------------------------


class Failing(Net):
    error: BaseException | None = None

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        y = self.blocks[1](self.blocks[0](self.stem(x)))
        if self.error is not None:
            raise self.error
        result: Tensor = self.head(y.mean((2, 3)))
        return result


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("method", ["lossless", "mobiletl"])
def test_a_forward_that_fails_leaves_nothing_behind(method: str, error: BaseException) -> None:
    model: Any = memplan.apply(Failing(), method, images(), k=1 if method == "mobiletl" else None)
    twin = copy.deepcopy(model)
    statistics = state(model)
    model.error = error
    with pytest.raises(type(error)):
        model(images())
    assert left_behind() == []
    assert all(module.training for module in model.modules())
    with pytest.raises(RuntimeError, match="channels"):
        model.blocks(images()[:, :2])
    assert left_behind() == []
    model.error = None
    model.load_state_dict(statistics)
    assert same(trained(model), trained(twin))


def test_no_mode_is_on_between_forwards(name: str) -> None:
    model = planned(name)
    output = model(images())
    assert left_behind() == []
    output.sum().backward()
    assert left_behind() == []
    with torch.no_grad():
        assert not model(images()).requires_grad


def test_two_forwards_before_their_backwards_are_the_sum(name: str) -> None:
    model, twin = planned(name).double(), planned(name).double()
    one, other = images(dtype=torch.float64), images(dtype=torch.float64).flip(0) * 2
    (model(one).square().mean() + model(other).square().mean()).backward()
    for x in (one, other):
        twin(x).square().mean().backward()
    for (key, parameter), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad, expected.grad, rtol=1e-9, atol=1e-12), key  # type: ignore[arg-type]


def test_a_kept_graph_can_be_used_again(name: str) -> None:
    model = planned(name).double()
    loss = model(images(dtype=torch.float64)).square().mean()
    loss.backward(retain_graph=True)
    first = [parameter.grad.clone() for parameter in memplan.trained_parameters(model)]  # type: ignore[union-attr]
    loss.backward()
    for parameter, once in zip(memplan.trained_parameters(model), first, strict=True):
        assert torch.allclose(parameter.grad, 2 * once, rtol=1e-10)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_double_backward_is_refused_or_right(name: str) -> None:
    model = planned(name)
    parameters = memplan.trained_parameters(model)
    loss = model(images()).square().mean()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    penalty = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    if name == "lossless":  # recomputation alone: no function of ours is in the graph, and stock's differentiate twice
        seconds = torch.autograd.grad(penalty, parameters)
        plain = memplan.restore(model)
        loss = plain(images()).square().mean()
        gradients = torch.autograd.grad(loss, list(plain.parameters()), create_graph=True)
        penalty = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        for second, expected in zip(seconds, torch.autograd.grad(penalty, list(plain.parameters())), strict=True):
            assert torch.allclose(second, expected, rtol=1e-4, atol=1e-6)
        return
    with pytest.raises(RuntimeError, match="trying to differentiate twice"):
        penalty.backward()


def test_gradients_of_inputs_are_not_lost(name: str) -> None:
    model = planned(name).double().eval()
    plain = memplan.restore(model)
    found = []
    for each in (model, plain):
        x = images(dtype=torch.float64).requires_grad_()
        each(x).square().mean().backward()
        found.append(x.grad)
    if name != "tinytl-lite-bias" and "mobiletl" not in name:
        assert torch.allclose(found[0], found[1], rtol=1e-8)  # type: ignore[arg-type]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in found)
    train = planned(name)
    x = images().requires_grad_()
    train(x).square().mean().backward()
    assert x.grad is not None


def test_what_the_user_unfreezes_below_gets_gradients() -> None:
    model: Any = planned("mobiletl")
    model.stem[0].weight.requires_grad_(True)
    model(images()).square().mean().backward()
    assert model.stem[0].weight.grad.abs().sum() > 0


def test_a_new_head_trains(name: str) -> None:
    model: Any = planned(name)
    model.head = nn.Linear(8, 2)
    model(images()).sum().backward()
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_any_batch_can_be_trained(name: str, batch: int) -> None:
    model, twin = planned(name).double(), planned(name).double()
    x = images(batch, torch.float64)
    model(x).square().mean().backward()
    for module in twin.modules():
        vars(module).pop("forward", None)
    plan = memplan.plan_of(twin)
    assert plan is not None
    for path in (*plan.running, *plan.evaluated):
        twin.get_submodule(path).training = False
    assert torch.allclose(model(x), twin(x), rtol=1e-9)


def test_gradients_accumulate() -> None:
    for name in ("lossless", "mobiletl"):
        model = planned(name).double()
        optimizer = memplan.optimizer(model, "sgd", lr=0.1)
        plain = torch.optim.SGD(memplan.trained_parameters(twin := planned(name).double()), lr=0.1)
        for _ in range(2):
            if isinstance(optimizer, memplan.FusedUpdate):
                with optimizer.accumulating():
                    model(images(dtype=torch.float64)).square().mean().backward()
            else:
                model(images(dtype=torch.float64)).square().mean().backward()
            model(images(2, torch.float64)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            for batch in (4, 2):
                twin(images(batch, torch.float64)).square().mean().backward()
            plain.step()
            plain.zero_grad()
        for tensor, expected in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(tensor, expected, rtol=1e-10)


class Checkpointed(Net):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = checkpoint(block, y, use_reentrant=self.reentrant)
        result: Tensor = self.head(y.mean((2, 3)))
        return result


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_inside_the_model(name: str, reentrant: bool) -> None:
    if reentrant and name not in ("lossless", "tune"):
        pytest.skip("a reentrant checkpoint trains nothing whose inputs need no gradient, in stock PyTorch too")
    method, k, treatments = PLANS[name]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        original = Checkpointed(reentrant).double()
    x = images(dtype=torch.float64)
    plain = Net().double()
    plain.load_state_dict(original.state_dict())
    grads = []
    for each in (original, plain):
        torch.manual_seed(0)
        model = memplan.apply(each, method, x, k=k, treatments=treatments)
        model(x).square().mean().backward()
        grads.append([parameter.grad for parameter in memplan.trained_parameters(model)])
    for found, expected in zip(*grads, strict=True):
        assert torch.allclose(found, expected, rtol=1e-8)  # type: ignore[arg-type]


# -- company -----------------------------------------------------------------------------------------------------------


def test_two_applied_models_in_one_loop() -> None:
    models = [planned("lossless"), planned("mobiletl")]
    alone = [trained(planned("lossless")), trained(planned("mobiletl"))]
    optimizers = [torch.optim.SGD(memplan.trained_parameters(model), lr=0.01, momentum=0.9) for model in models]
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(model(images()).square().mean() for model in models).backward()  # type: ignore[union-attr]
        for optimizer in optimizers:
            optimizer.step()
    assert all(same(model, expected) for model, expected in zip(models, alone, strict=True))


def test_an_applied_model_inside_a_larger_one(name: str) -> None:
    inner = planned(name)
    larger = nn.Sequential(nn.Conv2d(3, 3, 1), inner, nn.ReLU(), nn.Linear(4, 2))
    larger(images()).sum().backward()
    assert larger[0].weight.grad is not None
    assert all(parameter.grad is not None for parameter in memplan.trained_parameters(inner))
    alone = planned(name)
    out = larger[1](larger[0](images()))
    assert torch.allclose(out, alone(larger[0](images())), atol=1e-5)


def test_a_part_that_is_called_alone_is_treated_too() -> None:
    model: Any = planned("mobiletl")
    x = torch.randn(4, 8, 8, 8)
    whole = saved_on_a_real_step(model.blocks[1], (x,), {})
    stock = saved_on_a_real_step(net().blocks[1], (x,), {})
    assert whole < 0.7 * stock
    assert torch.equal(model.blocks[0].bn1.num_batches_tracked, net().blocks[0].bn1.num_batches_tracked)


def test_threads_train_apart() -> None:
    names = ["lossless", "mobiletl", "tune", "tinytl-lite-bias"]
    expected = [trained(planned(name), 8) for name in names]
    models = [planned(name) for name in names]
    failed: list[BaseException] = []
    start = threading.Barrier(len(models))

    def train(model: nn.Module) -> None:
        try:
            start.wait()
            trained(model, 8)
            assert left_behind() == []
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=train, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert all(same(model, other) for model, other in zip(models, expected, strict=True))


def test_threads_that_share_a_model_leave_its_modes_alone() -> None:
    model = planned("mobiletl")
    failed: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(8):
                model(images()).sum().backward()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert all(module.training for module in model.modules())
    before = net().state_dict()
    assert torch.equal(model.state_dict()["blocks.1.bn1.running_mean"], before["blocks.1.bn1.running_mean"])


def test_functional_calls_see_the_tensors_that_they_are_given() -> None:
    for name in ("lossless", "mobiletl", "tune"):
        model = planned(name)
        weight = torch.zeros(4, 8, requires_grad=True)
        given = {"head.weight": weight, "head.bias": torch.ones(4)}
        output = torch.func.functional_call(model, given, (images(),))
        assert torch.equal(output, torch.ones(4, 4))
        output.sum().backward()
        assert weight.grad is not None


def test_a_write_to_what_is_kept_is_refused(name: str) -> None:
    model: Any = planned(name)
    kept: list[Tensor] = []
    model.head.register_forward_hook(lambda module, args, output: kept.append(args[0]))
    loss = model(images()).square().mean()
    kept[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


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


def test_tied_weights_and_shared_modules() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(16, 8)
            self.layer = nn.Sequential(nn.Linear(8, 8), nn.GELU())
            self.again = self.layer
            self.out = nn.Linear(8, 16, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(self.again(self.layer(self.words(x))))
            return y

    x = torch.arange(8).reshape(2, 4)
    stock = Shared().double()
    for method in ("lossless", "last", "tinytl-bias"):
        model: Any = memplan.apply(stock, method, x, treatments=("frozen-int8",) if method == "tinytl-bias" else ())
        assert model.out.weight is model.words.weight
        assert model.again is model.layer
        other = copy.deepcopy(stock)
        for (key, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=False):
            theirs.requires_grad_(mine.requires_grad or key not in dict(other.named_parameters()))
        model(x).square().mean().backward()
        plain = memplan.restore(model)
        assert plain.out.weight is plain.words.weight  # type: ignore[union-attr]


def test_a_transformer_layer() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    x = torch.randn(2, 5, 16)
    for method in ("lossless", "tinytl-bias"):
        model = memplan.apply(layer, method, x)
        for training in (True, False):
            found = []
            for each in (layer, model):
                torch.manual_seed(4)
                each.train(training)
                with torch.set_grad_enabled(training):
                    found.append(each(x))
            assert torch.equal(found[0], found[1])
        layer.train()
        trained_twice = memplan.optimizer(model, "adam", lr=0.01)
        model.train()(x).square().mean().backward()
        trained_twice.step()


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


def test_a_penalty_on_gradients_goes_through_what_is_recomputed() -> None:
    """Recomputation alone is differentiated twice, as stock PyTorch is; masks are not."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        stock = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 1)).double()
        x = torch.randn(5, 6).double()
    model = memplan.apply(stock, "lossless", x)
    plan = memplan.plan_of(model)
    assert plan is not None
    assert any(op.recomputed for op in plan.schedule)
    for each in (stock, model):
        gradients = torch.autograd.grad(each(x).square().mean(), [*each.parameters()], create_graph=True)
        torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()
    for found, expected in zip(model.parameters(), stock.parameters(), strict=True):
        assert torch.allclose(found.grad, expected.grad, rtol=1e-9)  # type: ignore[arg-type]
