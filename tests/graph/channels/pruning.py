"""What the tests of channel groups share: models pruned for real on fake tensors, and steps compared op by op."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from memplan.graph import Op, StepGraph, TensorView
from memplan.graph.channels import ChannelGroup
from memplan.methods.pruning import pruned_group
from memplan.steps import Steps
from memplan.transform.surgery import prune_


def some_kept(groups: Sequence[ChannelGroup], seed: int = 0) -> dict[str, int]:
    """A count for each group that may be pruned, from a third of its channels to all."""
    rng = random.Random(seed)
    return {
        group.name: max(1, rng.randint(group.channels // 3, group.channels) // group.divisor) * group.divisor
        for group in groups
        if group.pinned is None
    }


def prune(module: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, int], seed: int = 0) -> None:
    """Drop channels picked at random until each group has as many as ``kept`` says."""
    rng = random.Random(seed)
    prune_(
        module,
        [
            pruned_group(group, sorted(rng.sample(range(group.channels), group.channels - kept[group.name])))
            for group in groups
            if kept.get(group.name, group.channels) < group.channels
        ],
    )


def prune_steps(steps: Steps, groups: Sequence[ChannelGroup], kept: Mapping[str, int]) -> None:
    """Prune the fake model that ``steps`` records."""
    with steps.model.mode:
        prune(steps.model.module, groups, kept)


def differences(found: StepGraph, expected: StepGraph) -> Iterator[str]:
    """Yield what differs between two steps, numbers of storages and offsets of views aside."""
    if len(found.ops) != len(expected.ops):
        yield f"{len(found.ops)} ops, not {len(expected.ops)}"
        return
    for one, other in zip(found.ops, expected.ops, strict=True):
        if _seen(found, one) != _seen(expected, other):
            yield f"op {one.index} {one.name}: {_seen(found, one)}, not {_seen(expected, other)}"
    for first, second in zip(found.parameters, expected.parameters, strict=True):
        if (first.name, first.elements) != (second.name, second.elements):
            yield f"{first.name} has {first.elements} elements, not {second.elements}"


def _seen(graph: StepGraph, op: Op) -> tuple[object, ...]:
    made = [graph.storages[view.storage].bytes for view in op.outputs if view is not None]
    return op.name, op.flops, _plain(op.args), _plain(op.outputs), made


def _plain(value: object) -> object:
    if isinstance(value, TensorView):
        return value.shape, value.strides, value.dtype
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value
