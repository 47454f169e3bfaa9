"""An applied model is used as the model it was made from, and trains what its plan says."""

from __future__ import annotations

import inspect
import io

import pytest
import torch
from torch import Tensor, nn

import memplan
from tests.applied import PLANS, Net, images, net, planned, same, state, trained

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
