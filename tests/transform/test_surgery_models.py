"""Real models without a third of their channels compute, in float64, what they do with these channels at zero."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memplan.graph.channels.groups import channel_groups
from memplan.graph.channels.records import ChannelGroup
from memplan.methods import METHODS
from memplan.methods.pruning import PrunedGroup, pruned_group
from memplan.steps import Steps
from memplan.subject import Subject, subject_of
from memplan.transform.importance import importances, lowest
from memplan.transform.surgery import prune_
from tests.transform.channels import kept_of, silenced

SMALL = (3, 64, 64)

#: A model, its input, how many groups it must at least have, and which of them zeros go through as zeros. What is left
#: out: LayerNorm, which normalises by all channels, and heads.
MODELS: dict[str, tuple[tuple[int, ...], int, Callable[[str], bool]]] = {
    "mobilenet_v2": (SMALL, 25, lambda name: True),
    "mobilenet_v3_small": (SMALL, 25, lambda name: True),
    "resnet18": (SMALL, 10, lambda name: True),
    "resnet50": (SMALL, 30, lambda name: True),
    "efficientnet_b0": (SMALL, 25, lambda name: True),
    "torchvision:shufflenet_v2_x0_5": (SMALL, 15, lambda name: True),
    "torchvision:regnet_y_400mf": (SMALL, 40, lambda name: True),
    "torchvision:squeezenet1_0": (SMALL, 20, lambda name: True),
    "timm:vit_tiny_patch16_224": ((3, 32, 32), 12, lambda name: ".mlp." in name),
}


@dataclass(frozen=True)
class Case:
    subject: Subject
    groups: tuple[ChannelGroup, ...]
    module: nn.Module
    args: tuple[Any, ...]


@cache
def case_of(spec: str) -> Case:
    shape, least, fits = MODELS[spec]
    subject = subject_of(spec, batch_size=2, input_shape=shape)
    found = channel_groups(Steps(subject).step(METHODS["full"]))
    groups = tuple(group for group in found if group.pinned is None and fits(group.name))
    assert len(groups) >= least
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module, args, _ = subject.built("cpu")
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, 0, 0.1)
            if isinstance(part, nn.Dropout):  # its draws depend on the shape
                part.p = 0.0
            if isinstance(part, nn.Linear):  # some heads are zero at first
                nn.init.normal_(part.weight, 0, 0.1)
            if "StochasticDepth" in type(part).__name__:
                part.p = 0.0  # type: ignore[assignment]
    return Case(subject, groups, module.double(), tuple(value.double() for value in args))


def third(groups: Sequence[ChannelGroup]) -> list[PrunedGroup]:
    draw = random.Random(5)
    return [
        pruned_group(group, draw.sample(range(group.channels), group.channels // group.divisor // 3 * group.divisor))
        for group in groups
    ]


def outputs_and_gradients(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad()
    output = module(*args)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape_as(output)).sum().backward()
    return output.detach(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def near(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-9 * scale.abs().max())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("spec", MODELS)
def test_a_pruned_model_computes_what_the_whole_one_does_without_the_channels(spec: str, training: bool) -> None:
    case = case_of(spec)
    pruned = third(case.groups)
    smaller = copy.deepcopy(case.module).train(training)
    prune_(smaller, pruned)
    zeroed = silenced(copy.deepcopy(case.module).train(training), pruned)
    shown, gradients = outputs_and_gradients(smaller, case.args)
    expected, whole = outputs_and_gradients(zeroed, case.args)
    assert shown.abs().max() > 0
    assert near(shown, expected, expected)
    # It is not the same network: without zeros the whole one says something else.
    plain = outputs_and_gradients(copy.deepcopy(case.module).train(training), case.args)[0]
    assert not near(shown, plain, expected)
    assert gradients.keys() == whole.keys()
    largest = torch.stack([gradient.abs().max() for gradient in gradients.values()]).max()
    for name, gradient in gradients.items():
        assert near(gradient, kept_of(whole[name], name, pruned), largest), name
    state = zeroed.state_dict()
    for name, tensor in smaller.state_dict().items():
        assert near(tensor, kept_of(state[name], name, pruned), state[name].double()), name


@pytest.mark.parametrize("spec", MODELS)
def test_what_layers_state_is_what_their_weights_are(spec: str) -> None:
    case = case_of(spec)
    smaller = copy.deepcopy(case.module)
    undo = prune_(smaller, third(case.groups))
    for part in smaller.modules():
        if isinstance(part, nn.Conv2d):
            assert part.weight.shape[:2] == (part.out_channels, part.in_channels // part.groups)
        elif isinstance(part, nn.BatchNorm2d):
            assert part.weight.shape == (part.num_features,)
        elif isinstance(part, nn.Linear):
            assert part.weight.shape == (part.out_features, part.in_features)
    undo()
    assert str(smaller) == str(case.module)
    assert all(torch.equal(tensor, case.module.state_dict()[name]) for name, tensor in smaller.state_dict().items())


@pytest.mark.parametrize("by", ["l1", "l2", "bn-scale", "taylor", "fisher"])
def test_channels_that_do_nothing_are_the_least_important(by: str) -> None:
    """Whatever measures them, channels whose weights are zero go first."""
    case = case_of("mobilenet_v3_small")
    pruned = third(case.groups)
    zeroed = silenced(copy.deepcopy(case.module), pruned)
    found = importances(zeroed, case.groups, by, (case.args[0], torch.tensor([3, 7])))
    assert (by == "bn-scale") == bool(found.without_norm)
    for group, gone in zip(case.groups, pruned, strict=True):
        nothing = tuple(channel for channel, share in enumerate(found.shares[group.name]) if share == 0)
        # By gradients a channel that no sample of the data wakes counts nothing either.
        assert nothing == gone.dropped or (by in ("taylor", "fisher") and {*nothing} > {*gone.dropped})
        assert {*lowest(found, group, len(gone.dropped))} <= {*nothing}
