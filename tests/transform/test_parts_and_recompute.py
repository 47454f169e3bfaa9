"""A frozen part that runs in parts, below blocks that recompute: whatever the batch, the blocks recompute."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import memplan
from memplan.methods.plan import Plan
from memplan.planner.options import Choice, Option
from memplan.rehearsal import Rehearsal
from memplan.steps import Steps
from memplan.subject import subject_of
from memplan.transform.measure import saved_on_a_real_step


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.norm(self.conv(x)))


class Net(nn.Module):
    """Its own forward runs ops beside the modules', before and after the boundary."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(8) for _ in range(4)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(x * 2))
        return self.head(x.mean((2, 3)) * 3)


def planned(samples: int | None) -> tuple[Net, Plan]:
    torch.manual_seed(0)
    net = Net()
    steps = Steps(subject_of(net, torch.empty(8, 3, 10, 10)))
    rehearsal = Rehearsal(steps, "sgd", "loop")
    assert rehearsal.count == 6
    return net, rehearsal.rehearsed(Choice((Option(1e6),) * 3, samples=samples)).plan


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 11])
def test_saved_bytes_are_the_same_in_parts_as_in_one_batch(batch: int) -> None:
    # Two blocks keep their input, the 8 scales' statistics twice; the head its input.
    image = batch * 8 * 10 * 10 * 4
    expected = 2 * (image + 2 * 8 * 4) + batch * 8 * 4
    for samples in (None, 3):
        net, plan = planned(samples)
        assert (plan.microbatch is None) == (samples is None)
        applied = memplan.apply(net, plan)
        assert saved_on_a_real_step(applied, (torch.randn(batch, 3, 10, 10),), {}) == expected


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_gradients_are_those_of_the_plain_model_with_its_frozen_part_in_eval_mode(batch: int) -> None:
    net, plan = planned(3)
    net.double()
    x = torch.randn(batch, 3, 10, 10, dtype=torch.float64)
    applied = memplan.apply(net, plan)
    applied(x).square().sum().backward()

    plain = copy.deepcopy(net)
    plain.blocks[:2].eval()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name in plan.trained)
    plain(x).square().sum().backward()
    compared = 0
    own = dict(applied.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(own[name].grad, parameter.grad), name
            compared += 1
    assert compared == 2 * 3 + 2
    for name, buffer in plain.named_buffers():
        assert torch.equal(dict(applied.named_buffers())[name], buffer), name


def test_ops_of_the_models_own_forward_are_the_models_after_parts_too() -> None:
    net, plan = planned(3)
    step = Steps(subject_of(net, torch.empty(8, 3, 10, 10))).run(plan)
    layers = [(op.name, step.layers[op.layer].path) for op in step.ops if op.phase == "forward"]
    assert layers[-1][1] == "head"
    after = layers[-4:]
    assert after == [
        ("aten.mean.dim", ""),
        ("aten.mul.Tensor", ""),
        ("aten.t.default", "head"),
        ("aten.addmm.default", "head"),
    ]
    # Three parts of at most three samples run the stem, and one batch the trained blocks.
    runs = [path for name, path in layers if name == "aten.convolution.default" or "convolution" in name]
    assert [runs.count(path) for path in ("stem", "blocks.1.conv", "blocks.2.conv")] == [3, 3, 1]
