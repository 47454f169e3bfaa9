"""Recomputing serves autograd in all its ways, and lets go of all it kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from memplan.methods.cut import FLOPS_PER_BYTE, ScheduledOp
from tests.layers.recomputing import Recomputed, planned


class Smooth(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(F.softplus(self.first(x)) * torch.sigmoid(x)))


def smooth() -> tuple[Smooth, Tensor, tuple[ScheduledOp, ...]]:
    torch.manual_seed(0)
    model, x = Smooth().double(), torch.randn(5, 8).double().requires_grad_()
    plan = planned(model, (x,))
    assert sum(len(op.recomputed) for op in plan) >= 3
    return model, x, plan


def gradients(model: nn.Module, inputs: Sequence[Tensor], compute: Callable[[], Tensor]) -> list[Tensor]:
    wanted = [*model.parameters(), *inputs]
    return [g for g in torch.autograd.grad(compute(), wanted, allow_unused=True) if g is not None]


def equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) > 0 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_gradient_can_be_differentiated_again() -> None:
    model, x, plan = smooth()

    def penalty(run: nn.Module) -> Tensor:
        (slope,) = torch.autograd.grad(run(x).sum(), x, create_graph=True)
        return slope.pow(2).sum()

    assert equal(
        gradients(model, [x], lambda: penalty(Recomputed(model, plan))), gradients(model, [x], lambda: penalty(model))
    )


def test_backward_can_run_twice_over_a_retained_graph() -> None:
    model, x, plan = smooth()
    loss = Recomputed(model, plan)(x).sum()
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert equal(first, torch.autograd.grad(loss, parameters))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, parameters)


def test_two_forwards_before_their_backward_are_apart() -> None:
    model, x, plan = smooth()
    other = torch.randn_like(x)
    run = Recomputed(model, plan)
    assert equal(
        gradients(model, [x], lambda: (run(x) * run(other)).sum()),
        gradients(model, [x], lambda: (model(x) * model(other)).sum()),
    )


def test_a_gradient_inside_the_forward_leaves_the_schedule_in_step() -> None:
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Smooth().double()

        def forward(self, x: Tensor) -> Tensor:
            energy = self.inner(x)
            (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
            return (energy * force.tanh().sigmoid()).sum()

    torch.manual_seed(0)
    model, x = Energy(), torch.randn(5, 8).double().requires_grad_()
    run = Recomputed(model, planned(model, (x,)))
    assert equal(gradients(model, [x], lambda: run(x)), gradients(model, [x], lambda: model(x)))
    assert run.followed


def test_hooks_set_outside_see_what_is_kept() -> None:
    model, x, plan = smooth()
    expected = gradients(model, [x], lambda: model(x).sum())
    run = Recomputed(model, plan)
    with torch.autograd.graph.save_on_cpu():
        assert equal(gradients(model, [x], lambda: run(x).sum()), expected)
    assert run.followed


def test_checkpoint_may_wrap_it() -> None:
    model, x, plan = smooth()
    run = Recomputed(model, plan)
    found = gradients(model, [x], lambda: torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False).sum())
    assert equal(found, gradients(model, [x], lambda: model(x).sum()))


def test_writing_to_what_is_kept_is_an_error() -> None:
    class Exposed(Smooth):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.first(x)
            return hidden, self.last(F.silu(hidden))

    model, x = Exposed().double(), torch.randn(5, 8).double()
    hidden, output = Recomputed(model, planned(model, (x,), FLOPS_PER_BYTE))(x)
    with torch.no_grad():
        hidden.add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*\(5, 8\) is at version 1; expected"):
        output.sum().backward()


def test_another_forward_than_the_schedules_keeps_everything() -> None:
    _, x, plan = smooth()
    other = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).double()
    run = Recomputed(other, plan[3:])
    assert equal(gradients(other, [x], lambda: run(x).sum()), gradients(other, [x], lambda: other(x).sum()))
    assert not run.followed


def test_an_exception_leaves_no_mode_and_no_hooks_behind() -> None:
    model, x, plan = smooth()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Recomputed(model, plan)(x[:, :3])
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    assert torch._C._len_torch_dispatch_stack() == 0


def test_everything_is_released_without_the_collector() -> None:
    model, x, plan = smooth()
    gc.collect()
    gc.disable()
    try:
        made: list[weakref.ref[Any]] = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                made.extend(
                    weakref.ref(t.untyped_storage()) for t in pytree.tree_leaves(result) if isinstance(t, Tensor)
                )
                return result

        with Watch():
            loss = Recomputed(model, plan)(x).sum()
            torch.autograd.grad(loss, [x])
        del loss
        assert len(made) > 10
        own = {p.untyped_storage()._cdata for p in (*model.parameters(), x)}
        assert not [s for reference in made if (s := reference()) is not None and s._cdata not in own]
        made.clear()
        with Watch():
            Recomputed(model, plan)(x)  # and where no backward follows
        assert not [s for reference in made if (s := reference()) is not None and s._cdata not in own]
    finally:
        gc.enable()


def test_sparse_and_inference_tensors_pass_through() -> None:
    class Odd(Smooth):
        def __init__(self) -> None:
            super().__init__()
            with torch.inference_mode():
                self.shift = torch.ones(8)
            self.adjacency = torch.eye(5).to_sparse()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.sparse.mm(self.adjacency, x + self.shift))

    model, x = Odd(), torch.randn(5, 8)
    run = Recomputed(model, planned(Smooth(), (x,)))
    names = [op.name for op in run.plan]
    run.plan = [ScheduledOp("aten.add.Tensor", (0,)), ScheduledOp("aten._sparse_mm.default", ()), *run.plan]
    assert names
    assert equal(gradients(model, [], lambda: run(x).sum()), gradients(model, [], lambda: model(x).sum()))
