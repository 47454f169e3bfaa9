"""What the tests of applied models share: small models, their plans, a training loop, and what it must not leave."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import memplan
from memplan.methods.plan import Microbatch

#: A method, its k, and further treatments: together every treatment there is.
PLANS: dict[str, tuple[str, int | None, tuple[str, ...]]] = {
    "lossless": ("lossless", None, ()),
    "mobiletl": ("mobiletl", 1, ()),
    "mobiletl in 8 bits": ("mobiletl", 1, ("frozen-int8",)),
    "tune": ("tune", None, ()),
    "tinytl-bias": ("tinytl-bias", None, ()),
    "tinytl-lite-bias": ("tinytl-lite-bias", None, ()),
}

MODULE_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * channels)
        self.act = nn.Hardswish()
        self.conv2 = nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return x + y


class Net(nn.Module):
    """A stem, two residual blocks and a head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return y * scale


def images(batch: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def net(seed: int = 0) -> Net:
    """A net whose norms have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                nn.init.uniform_(module.weight, 0.5, 2)
    return model


@functools.cache
def _planned(name: str) -> nn.Module:
    method, k, treatments = PLANS[name]
    plan = memplan.plan_of(memplan.apply(net(), method, images(), k=k, treatments=treatments))
    assert plan is not None
    if method == "mobiletl":  # a real planner does so where the prefix sets the peak
        plan = replace(plan, microbatch=Microbatch("blocks.0", 2))
    return memplan.apply(net(), plan)


def planned(name: str) -> nn.Module:
    """Return a net to which a plan is applied, which nobody else has."""
    return copy.deepcopy(_planned(name))


def trained(model: nn.Module, steps: int = 2, optimizer: Any = None, batch: int = 4) -> nn.Module:
    """Train ``model`` in an ordinary loop, and return it."""
    optimizer = optimizer or torch.optim.SGD(memplan.trained_parameters(model), lr=0.01, momentum=0.9)
    dtype = next(parameter.dtype for parameter in model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(images(batch, dtype)).square().mean().backward()
        optimizer.step()
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: nn.Module | dict[str, Tensor], other: nn.Module | dict[str, Tensor]) -> bool:
    """Whether two models, or their states, are bit for bit the same."""
    first, second = (each if isinstance(each, dict) else each.state_dict() for each in (one, other))
    return [*first] == [*second] and all(torch.equal(first[name], second[name]) for name in first)


def left_behind() -> list[Any]:
    """What forwards that end, in whatever way, must not leave."""
    hooks = [hook for name in MODULE_HOOKS for hook in getattr(nn.modules.module, name)]
    saved = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return [*range(_len_torch_function_stack()), *_get_current_dispatch_mode_stack(), *hooks, *(saved or ())]
