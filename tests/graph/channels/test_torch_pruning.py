"""Groups held to those of torch-pruning, which finds them from autograd's graph and rules for each module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn
from torch.nn.modules.conv import _ConvNd

from memplan.graph.channels import ChannelGroup
from memplan.graph.channels.groups import channel_groups
from memplan.methods import METHODS
from memplan.steps import Steps
from memplan.subject import subject_of

torch_pruning = pytest.importorskip("torch_pruning")

Element = tuple[str, int, int]

#: Models, and the groups of each that torch-pruning's are compared with.
COMPARED = {
    "resnet18": 13,
    "mobilenet_v2": 26,
    "mobilenet_v3_large": 31,
    "resnet50": 38,
    "efficientnet_b0": 41,
    "densenet121": 121,
    "convnext_tiny": 23,
}
QUICK = ("resnet18", "mobilenet_v2")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.corpus) for name in COMPARED if name not in QUICK)]
)
def test_the_first_channel_of_every_group_takes_the_same_elements_along(name: str) -> None:
    groups = channel_groups(Steps(subject_of(name)).step(METHODS["full"]))
    module, args, _ = subject_of(name).built("meta")
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=args[0])
    parameters = dict(module.named_parameters())
    compared = 0
    for group in groups:
        found = {
            (member.tensor, member.axis, position)
            for member in group.members
            if member.tensor in parameters
            for position in member.positions[0]
        }
        assert found == set(_theirs(graph, module, group)), group.name
        compared += 1
    assert compared == COMPARED[name]


def _theirs(graph: Any, module: nn.Module, group: ChannelGroup) -> Iterator[Element]:
    """Yield (parameter, axis, element) of all that torch-pruning drops with the group's first channel."""
    modules = dict(module.named_modules())
    member = next(
        member
        for member in group.members
        if member.axis == 0 and isinstance(modules.get(member.tensor.rpartition(".")[0]), (_ConvNd, nn.Linear))
    )
    layer = modules[member.tensor.rpartition(".")[0]]
    prune = torch_pruning.prune_linear_out_channels
    if isinstance(layer, _ConvNd):
        prune = torch_pruning.prune_conv_out_channels
    names = {id(child): path for path, child in modules.items()}
    own = {id(parameter): name for name, parameter in module.named_parameters()}
    for dependency, indices in graph.get_pruning_group(layer, prune, idxs=[member.positions[0][0]]):
        target = dependency.target.module
        if id(target) in own:
            axis = (dependency.target.pruning_dim or 0) % target.dim()
            yield from ((own[id(target)], axis, index) for index in indices)
        elif id(target) in names:
            out = "out_channels" in dependency.handler.__name__
            yield from _elements(target, names[id(target)], out, indices)


def _elements(layer: nn.Module, path: str, out: bool, indices: list[int]) -> Iterator[Element]:
    for leaf, parameter in layer.named_parameters(recurse=False):
        name, matrix = f"{path}.{leaf}", isinstance(layer, (_ConvNd, nn.Linear))
        if matrix and not out and (leaf == "bias" or parameter.shape[1] == 1):
            continue
        axis = int(matrix and not out)
        yield from ((name, axis, index) for index in indices)
