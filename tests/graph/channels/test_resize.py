"""A resized step is what recording the pruned network gives: views, bytes, numbers and FLOPs of every op, prices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from memplan.errors import UsageError
from memplan.graph import StepGraph
from memplan.graph.channels.groups import channel_groups
from memplan.graph.channels.resize import resized
from memplan.graph.records import Op
from memplan.memory import price
from memplan.methods import METHODS
from memplan.steps import Steps
from memplan.subject import subject_of
from memplan.tracing.record import trace
from tests.graph.channels.pruning import differences, prune, prune_steps, some_kept


class Network(nn.Module):
    """Stem, depthwise and grouped convolutions, concatenation, group norm, flatten; dropout masks and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.depthwise = nn.Conv2d(12, 24, 3, groups=12, padding=1)
        self.side = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Hardswish(inplace=True))
        self.grouped = nn.Conv2d(24, 16, 1, groups=2)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(24 * 16, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.grouped(self.depthwise(self.stem(x))), self.side(x)], 1)
        return self.head(torch.dropout(torch.relu(self.hidden(self.pool(y).flatten(1))), 0.5, True))


@pytest.mark.parametrize("seed", range(4))
def test_every_op_of_a_pruned_network(seed: int) -> None:
    module, inputs = Network(), torch.empty(4, 3, 8, 8)
    step = trace(module, inputs).step
    groups = channel_groups(step)
    kept = some_kept(groups, seed)
    assert sorted(kept) == ["grouped", "hidden", "side.0", "stem.0"]
    prune(module, groups, kept, seed)
    assert list(differences(resized(step, groups, kept), trace(module, inputs).step)) == []


def test_nothing_dropped_is_the_same_step() -> None:
    step = trace(Network(), torch.empty(4, 3, 8, 8)).step
    groups = channel_groups(step)
    assert resized(step, groups, {group.name: group.channels for group in groups}) is step


def test_an_unknown_op_in_the_backward_keeps_its_size_and_pins_nothing() -> None:
    step = trace(Network(), torch.empty(4, 3, 8, 8)).step
    odd = replace(step, ops=tuple(_renamed(op) for op in step.ops))
    groups = channel_groups(odd)
    assert [group.members for group in groups] == [group.members for group in channel_groups(step)]
    kept = some_kept(groups)
    right, upper = resized(step, groups, kept), resized(odd, groups, kept)
    sizes = list(zip(right.storages, upper.storages, strict=True))
    assert all(one.bytes <= other.bytes for one, other in sizes)
    assert any(one.bytes < other.bytes for one, other in sizes)


def _renamed(op: Op) -> Op:
    unknown = op.phase == "backward" and op.name == "aten.mm.default"
    return replace(op, name="other.thing.default") if unknown else op


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"stem.1": 4}, "no channel group 'stem.1'; did you mean 'stem.0'?"),
        ({"hidden": 0}, "group 'hidden' keeps from 1 to 20 channels, not 0"),
        ({"hidden": 21}, "group 'hidden' keeps from 1 to 20 channels, not 21"),
        ({"head": 4}, "group 'head' keeps all its 5 channels: the model's outputs"),
    ],
)
def test_counts_that_cannot_be(kept: dict[str, int], message: str) -> None:
    step = trace(Network(), torch.empty(4, 3, 8, 8)).step
    with pytest.raises(UsageError) as caught:
        resized(step, channel_groups(step), kept)
    assert str(caught.value) == message


#: Real models, and how many of their groups may be pruned.
FREE = {
    "resnet18": 12, "mobilenet_v3_small": 27, "mobilenet_v2": 25, "mobilenet_v3_large": 30, "resnet50": 37,
    "efficientnet_b0": 40, "densenet121": 120, "googlenet": 61, "shufflenet_v2_x1_0": 18, "convnext_tiny": 22,
    "vit_b_16": 12, "timm:dla34": 25, "timm:regnety_040_sgn": 71,
}  # fmt: skip
QUICK = ("resnet18", "mobilenet_v3_small")
#: Recordings that are compared: under stock PyTorch, and as memplan runs the method.
STOCK = ("full", "last")
PLANNED = ("lossless", "mobiletl")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.corpus) for name in FREE if name not in QUICK)]
)
def test_prices_of_real_models_under_every_recording(name: str) -> None:
    before, after = Steps(subject_of(name)), Steps(subject_of(name))
    groups = channel_groups(before.step(METHODS["full"]))
    kept = some_kept(groups)
    assert len(kept) == FREE[name]
    prune_steps(after, groups, kept)
    for method in (*STOCK, *PLANNED):
        whole, pruned = _recorded(before, after, method)
        found = resized(whole, groups, kept)
        assert found.saved_bytes == pruned.saved_bytes
        assert price(found, alive=0).peak_bytes == price(pruned, alive=0).peak_bytes
        assert list(differences(found, pruned)) == []


def _recorded(before: Steps, after: Steps, name: str) -> tuple[StepGraph, StepGraph]:
    """The step of the whole and of the pruned model, both by the plan of the whole."""
    method = METHODS[name]
    k = before.settled_k(method, None)
    if name in STOCK:
        return before.step(method, k), after.step(method, k)
    planned = before.planned(method, k)
    return planned.step, after.run(planned.plan)
