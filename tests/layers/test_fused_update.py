"""FusedUpdate against the plain optimizers of torch: the same parameters to the bit, and no gradient left."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from memplan.errors import UsageError
from memplan.layers.fused_update import FusedUpdate

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW

OPTIONS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "sgd, weight decay, maximized": (SGD, {"weight_decay": 0.1, "maximize": True}),
    "momentum": (SGD, {"momentum": 0.9}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (ADAM, {}),
    "adam, amsgrad": (ADAM, {"amsgrad": True, "weight_decay": 0.01, "betas": (0.8, 0.99)}),
    "adamw": (ADAMW, {}),
    "adamw, tensor rate": (ADAMW, {"lr": torch.tensor(0.01)}),
    "adam, fused": (ADAM, {"fused": True}),
}


class Small(nn.Module):
    """Two convolutions with one weight, a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(self.stem(x))))
        return self.head(self.second(x).mean((2, 3)))


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def groups(model: Small) -> list[dict[str, Any]]:
    head = [*model.head.parameters()]
    body = [parameter for name, parameter in model.named_parameters() if not name.startswith("head")]
    return [{"params": body}, {"params": head, "lr": 0.05}]


def backward(model: nn.Module, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    loss = model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean()
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3, first: int = 0) -> None:
    for seed in range(first, first + steps):
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("case", OPTIONS)
def test_three_steps_with_groups_and_a_scheduler_are_those_of_the_plain_optimizer(case: str) -> None:
    kind, options = OPTIONS[case]
    options = {"lr": 0.01, **options}

    def trained(make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]) -> tuple[Small, torch.optim.Optimizer]:
        model = small()
        optimizer = make(groups(model))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for seed in range(3):
            train(model, optimizer, 1, seed)
            scheduler.step()
        return model, optimizer

    how = {} if options.get("fused") else {"foreach": False}
    plain, plain_optimizer = trained(lambda params: kind(params, **copy.deepcopy(options), **how))
    fused, optimizer = trained(lambda params: FusedUpdate(kind, params, **copy.deepcopy(options)))
    assert_same_bits(plain, fused)
    assert all(parameter.grad is None for parameter in fused.parameters())
    assert not torch.equal(small().stem.weight, fused.stem.weight)
    ours, theirs = optimizer.state_dict(), plain_optimizer.state_dict()
    for group in theirs["param_groups"]:
        group["foreach"] = None
    # The backward meets the last parameter first; what is keyed by number has no order.
    assert str(sorted(ours["state"].items())) == str(sorted(theirs["state"].items()))
    assert str(ours["param_groups"]) == str(theirs["param_groups"])
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("kind", [SGD, ADAM, ADAMW])
@pytest.mark.parametrize("from_plain", [True, False])
def test_either_loads_what_the_other_saved(kind: type[torch.optim.Optimizer], from_plain: bool) -> None:
    options = {"lr": 0.01} | ({"momentum": 0.9} if kind is SGD else {})
    reference, model = small(), small()
    one = kind(groups(reference), foreach=False, **options)
    train(reference, one, 4)

    def plain(model: Small) -> torch.optim.Optimizer:
        return kind(groups(model), foreach=False, **options)

    def fused(model: Small) -> torch.optim.Optimizer:
        return FusedUpdate(kind, groups(model), **options)

    before, after = (plain, fused) if from_plain else (fused, plain)
    first = before(model)
    train(model, first, 2)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    if isinstance(first, FusedUpdate):
        first.remove()
    second = after(model)
    second.load_state_dict(torch.load(saved))
    train(model, second, 2, first=2)
    assert_same_bits(reference, model)


def test_names_and_named_parameters_are_taken_as_torch_takes_them() -> None:
    model = small()
    optimizer = FusedUpdate("adamw", model.named_parameters(), lr=0.01)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    assert optimizer.defaults == ADAMW(model.parameters(), lr=0.01).defaults
    assert str(optimizer.state_dict()) == str(ADAMW(model.named_parameters(), lr=0.01).state_dict())


def test_gradients_never_exist_all_together() -> None:
    model = small()
    optimizer = FusedUpdate(SGD, model.parameters(), lr=0.1)
    alive: list[int] = []
    for parameter in model.parameters():
        # Registered after the optimizer's own hook, so that it sees what that left.
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(other.grad is not None for other in model.parameters()))
        )
    backward(model)
    assert alive == [0] * len(list(model.parameters()))
    assert optimizer.state_dict()["state"] == {}


def test_a_shared_parameter_is_updated_once() -> None:
    model = small()
    optimizer = FusedUpdate(ADAM, model.parameters())
    backward(model)
    assert optimizer.state[model.first.weight]["step"].item() == 1


def test_step_updates_a_gradient_set_by_hand_and_leaves_it() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = FusedUpdate(SGD, [parameter], lr=0.5)
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert parameter.tolist() == [1 - 0.5 * 1] * 3
    assert parameter.grad is not None
    optimizer.zero_grad()
    assert parameter.grad is None
    optimizer.step()
    assert parameter.tolist() == [0.5] * 3


@pytest.mark.parametrize("last_inside", [True, False])
def test_accumulated_gradients_are_those_of_the_plain_optimizer(last_inside: bool) -> None:
    plain, model = small(), small()
    one = SGD(plain.parameters(), lr=0.1, momentum=0.9, foreach=False)
    optimizer = FusedUpdate(SGD, model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        one.zero_grad()
        optimizer.zero_grad()
        for seed in range(3):
            backward(plain, seed)
            if last_inside or seed < 2:
                with optimizer.accumulating():
                    backward(model, seed)
            else:
                backward(model, seed)
                assert all(parameter.grad is None for parameter in model.parameters())
        one.step()
        optimizer.step()
    assert_same_bits(plain, model)


def test_two_plain_backward_passes_are_two_updates() -> None:
    parameter = nn.Parameter(torch.tensor(1.0))
    optimizer = FusedUpdate(SGD, [parameter], lr=0.25)
    for _ in range(2):
        (2 * parameter).backward()
    assert parameter.item() == 1 - 2 * 0.25 * 2
    optimizer.step()
    assert parameter.item() == 0


def test_a_closure_runs_with_gradients_and_its_loss_is_returned() -> None:
    plain, model = small(), small()
    one, optimizer = ADAM(plain.parameters(), foreach=False), FusedUpdate(ADAM, model.parameters())

    def closure_of(model: Small, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            return backward(model)

        return closure

    with torch.no_grad():
        assert torch.equal(one.step(closure_of(plain, one)), optimizer.step(closure_of(model, optimizer)))
    assert_same_bits(plain, model)


def test_a_parameter_that_thaws_takes_part_and_a_group_that_is_added_too() -> None:
    model = small()
    model.stem.requires_grad_(False)
    optimizer = FusedUpdate(SGD, [*model.stem.parameters(), model.first.weight], lr=0.1)
    model.stem.requires_grad_(True)
    optimizer.add_param_group({"params": [*model.head.parameters()], "lr": 0.0})
    optimizer.zero_grad()
    before = copy.deepcopy(model)
    backward(model)
    left = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert left == {"first.bias", "second.bias", "norm.weight", "norm.bias"}
    assert not torch.equal(before.stem.weight, model.stem.weight)
    assert torch.equal(before.head.weight, model.head.weight)


def test_step_hooks_run_once_for_each_step() -> None:
    model = small()
    optimizer = FusedUpdate(SGD, model.parameters())
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    everywhere = register_optimizer_step_post_hook(lambda *_: called.append("everywhere"))
    try:
        train(model, optimizer, 2)
    finally:
        everywhere.remove()
    assert called == ["before", "after", "everywhere"] * 2


def test_a_scheduler_is_content_without_step() -> None:
    parameter = nn.Parameter(torch.tensor(1.0))
    optimizer = FusedUpdate(SGD, [parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        (1 * parameter).backward()
        scheduler.step()  # a warning would be an error here
    assert parameter.item() == 1 - 1 - 0.5 - 0.25


@pytest.mark.parametrize("how", ["remove", "with", "gone"])
def test_without_its_hooks_a_backward_leaves_gradients(how: str) -> None:
    plain, model = small(), small()
    optimizer: FusedUpdate | None = FusedUpdate(SGD, model.parameters(), lr=0.1)
    if how == "remove":
        optimizer.remove()
    elif how == "with":
        with optimizer:
            pass
    else:
        optimizer = None
        gc.collect()
    one = SGD(plain.parameters(), lr=0.1, foreach=False)
    backward(plain)
    backward(model)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert_same_bits(plain, model)
    if optimizer is not None:
        train(plain, one, 2)
        train(model, optimizer, 2)
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert_same_bits(plain, model)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_trains_its_own_parameters(how: str) -> None:
    model = small()
    optimizer = FusedUpdate(ADAM, model.parameters(), lr=0.01)
    train(model, optimizer, 2)
    if how == "deepcopy":
        other, copied = copy.deepcopy((model, optimizer))
    else:
        file = io.BytesIO()
        torch.save((model, optimizer), file)
        file.seek(0)
        other, copied = torch.load(file, weights_only=False)
    before = copy.deepcopy(model)
    train(other, copied, 1, first=2)
    assert_same_bits(before, model)
    assert all(parameter.grad is None for parameter in other.parameters())
    train(model, optimizer, 1, first=2)
    assert_same_bits(model, other)


def test_not_a_number_goes_where_torch_sends_it() -> None:
    plain, fused = (nn.Parameter(torch.tensor([1.0, 2.0, 3.0])) for _ in range(2))
    one, optimizer = ADAM([plain], lr=0.1, foreach=False), FusedUpdate(ADAM, [fused], lr=0.1)
    for parameter in (plain, fused):
        (parameter * torch.tensor([float("nan"), float("inf"), 1.0])).sum().backward()
    one.step()
    optimizer.step()
    assert torch.equal(plain.isnan(), fused.isnan())
    assert plain[2].item() == fused[2].item()


def test_sparse_gradients_work_where_torch_takes_them() -> None:
    tokens = torch.tensor([1, 1, 3])
    tables = [nn.Embedding(5, 2, sparse=True) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    one = SGD(tables[0].parameters(), lr=0.1, foreach=False)
    optimizer = FusedUpdate(SGD, tables[1].parameters(), lr=0.1)
    for table in tables:
        table(tokens).sum().backward()
    one.step()
    optimizer.step()
    assert torch.equal(tables[0].weight, tables[1].weight)

    adam = FusedUpdate(ADAM, tables[1].parameters())
    optimizer.remove()
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients"):
        tables[1](tokens).sum().backward()
    assert not adam.state


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda p: FusedUpdate(torch.optim.LBFGS, p), "SGD, Adam and AdamW, not LBFGS; name one"),
        (lambda p: FusedUpdate(SGD(p), p), "not SGD; name"),
        (lambda p: FusedUpdate("adamm", p), "no 'adamm'; did you mean 'adam' or 'adamw'"),
        (lambda p: FusedUpdate(ADAM, p, foreach=True), "one parameter at a time, so foreach=True"),
        (lambda p: FusedUpdate(SGD, p, differentiable=True), "so differentiable=True"),
        (lambda p: FusedUpdate(SGD, [{"params": p, "foreach": True}]), "so foreach=True"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(make: Callable[[Any], object], problem: str) -> None:
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(UsageError, match=problem) as caught:
        make([parameter])
    assert "\n" not in str(caught.value)
    parameter.sum().backward()
    assert parameter.tolist() == [1.0, 1.0]


def test_a_grad_scaler_is_refused_and_the_optimizer_works_on() -> None:
    parameter = nn.Parameter(torch.tensor(1.0))
    optimizer = FusedUpdate(SGD, [parameter], lr=0.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(parameter * 2).backward()
    with pytest.raises(UsageError, match="cannot work with GradScaler"):
        scaler.step(optimizer)
    optimizer.step()


def test_options_are_checked_by_torch() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate"):
        FusedUpdate(SGD, [nn.Parameter(torch.ones(2))], lr=-1.0)
    with pytest.raises(ValueError, match="empty parameter list"):
        FusedUpdate(SGD, [])
