"""Run models under a schedule, and train them side by side with stock."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from memplan.layers.recompute import Recompute
from memplan.methods.cut import FLOPS_PER_BYTE, ScheduledOp, schedule
from memplan.tracing.record import trace
from memplan.tracing.step import tensors_in
from tests.tracing.networks import forward_of

#: The default, and one at which everything is repeated that can be.
PRICES = (FLOPS_PER_BYTE, 1e9)


class Recomputed(nn.Module):
    """A model whose forward runs under a schedule."""

    def __init__(self, model: nn.Module, plan: Sequence[ScheduledOp]) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self.followed = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with Recompute(self.plan) as mode:
            output = self.model(*args, **kwargs)
        self.followed = mode.followed
        return output


def planned(model: nn.Module, inputs: Any, flops_per_byte: float = 1e9, **options: Any) -> tuple[ScheduledOp, ...]:
    return schedule(trace(model, inputs, **options).step, flops_per_byte=flops_per_byte)


def scalar(output: Any) -> Tensor:
    """Return a number on which all that is differentiable in ``output`` has its own influence."""
    terms = []
    for tensor in tensors_in(output):
        if tensor.requires_grad:
            real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            weights = torch.linspace(-1, 1, real.numel(), dtype=real.dtype).view_as(real)
            terms.append((real * weights).sum())
    return sum(terms[1:], terms[0])


def trained(model: nn.Module, args: Any, kwargs: Any, steps: int = 3) -> dict[str, Tensor]:
    """Train ``model`` for some steps; return its last gradients and its state."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        scalar(model(*args, **kwargs)).backward()
        optimizer.step()
    inner = model.model if isinstance(model, Recomputed) else model
    found = {name: tensor.detach() for name, tensor in inner.state_dict().items()}
    found.update({f"{name}.grad": p.grad for name, p in inner.named_parameters() if p.grad is not None})
    return found


def double(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.double() if t.dtype is torch.float32 else t, value)


def assert_equal_training(model: nn.Module, inputs: Any, prices: Sequence[float] = PRICES, steps: int = 3) -> list[int]:
    """Train side by side with stock; return how many results each price recomputes."""
    args, kwargs = forward_of(inputs)
    graph = trace(model, inputs).step
    expected = trained(copy.deepcopy(model), args, kwargs, steps)
    counts = []
    for flops_per_byte in prices:
        plan = schedule(graph, flops_per_byte=flops_per_byte)
        counts.append(sum(len(op.recomputed) for op in plan))
        ours = Recomputed(copy.deepcopy(model), plan)
        found = trained(ours, args, kwargs, steps)
        assert ours.followed
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name].to_dense(), tensor.to_dense()), (flops_per_byte, name)
    return counts
