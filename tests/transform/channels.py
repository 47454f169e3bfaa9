"""What the tests of pruning share: groups written by hand, and models whose dropped channels are made zero instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from memplan.graph.channels.records import ChannelGroup, Member
from memplan.methods.pruning import PrunedGroup


def member(tensor: str, axis: int, size: int, *, each: int = 1, offset: int = 0, channels: int | None = None) -> Member:
    """A member in which channel c has the ``each`` elements from ``offset + c * each`` on."""
    count = size // each if channels is None else channels
    starts = range(offset, offset + count * each, each)
    return Member(tensor, axis, size, tuple(tuple(range(start, start + each)) for start in starts))


def group(name: str, *members: Member, divisor: int = 1, pinned: str | None = None) -> ChannelGroup:
    return ChannelGroup(name, len(members[0].positions), divisor, members, (), (), pinned)


def norm(path: str, size: int) -> tuple[Member, ...]:
    """The members of a batch norm."""
    return tuple(member(f"{path}.{name}", 0, size) for name in ("weight", "bias", "running_mean", "running_var"))


def silenced(module: nn.Module, pruned: Sequence[PrunedGroup]) -> nn.Module:
    """Make what makes the dropped channels zero, in place: outputs of weights, biases, scales and shifts of norms."""
    tensors = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for axis in (axis for each in pruned for axis in each.axes):
            tensor = tensors.get(axis.tensor)
            if tensor is not None and axis.axis == 0:
                tensor[list(axis.dropped)] = 0
    return module


def kept_of(tensor: Tensor, name: str, pruned: Sequence[PrunedGroup]) -> Tensor:
    """What is left of a tensor, by one mask along each axis: groups that are concatenated share one."""
    masks: dict[int, Tensor] = {}
    for axis in (axis for each in pruned for axis in each.axes if axis.tensor == name):
        masks.setdefault(axis.axis, torch.ones(axis.size, dtype=torch.bool))[list(axis.dropped)] = False
    for along, mask in masks.items():
        tensor = tensor.movedim(along, 0)[mask].movedim(0, along)
    return tensor
