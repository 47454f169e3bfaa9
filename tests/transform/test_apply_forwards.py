"""Forwards and backwards that are not one after the other in an ordinary loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import memplan
from tests.applied import PLANS, Net, images, left_behind, planned, same, state, trained


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
