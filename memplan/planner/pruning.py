"""Steps of pruning: at each one every segment loses a little more of the channels that are its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from memplan.errors import UsageError, did_you_mean
from memplan.graph.step_graph import StepGraph
from memplan.methods.pruning import Importance, PrunedGroup, least_kept, lowest, pruned_group
from memplan.planner.segments import Segments

if TYPE_CHECKING:
    from memplan.graph.channels.records import ChannelGroup

#: The share of its channels that a group loses at each step.
STEP: Final = 0.125


@dataclass(frozen=True)
class PruningSteps:
    """The groups whose channels no other segment sees, and how many of these are kept at each step.

    ``importance`` has measured the groups. ``most`` is the share that may go, ``round_to`` what the kept channels are a
    multiple of.
    """

    stock: StepGraph
    groups: tuple[ChannelGroup, ...]
    importance: Importance
    most: float
    round_to: int = 8

    @property
    def shares(self) -> tuple[float, ...]:
        """The share that goes at each step, from 0 for the first."""
        whole = int(self.most / STEP + 1e-9)
        steps = [STEP * step for step in range(whole + 1)]
        return (*steps, self.most) if self.most - steps[-1] > 1e-9 else tuple(steps)

    @cached_property
    def of_segment(self) -> tuple[tuple[ChannelGroup, ...], ...]:
        """The groups of each segment."""
        segments = Segments(self.stock)
        found: list[list[ChannelGroup]] = [[] for _ in range(segments.count)]
        for group in self.groups:
            places = {segments.of_layer.get(layer) for layer in group.layers}
            if len(places) == 1 and None not in places:
                (place,) = places
                assert place is not None
                found[place].append(group)
        return tuple(map(tuple, found))

    def kept(self, step: int) -> dict[str, int]:
        """Return how many channels of each group are kept when every segment is at ``step``."""
        return {
            group.name: count
            for groups in self.of_segment
            for group in groups
            if (count := self._count(group, step)) < group.channels
        }

    def pruned(self, steps: Sequence[int]) -> tuple[PrunedGroup, ...]:
        """Return what goes with each segment at a step of its own."""
        return tuple(
            pruned_group(group, lowest(self.importance, group, group.channels - self._count(group, step)))
            for groups, step in zip(self.of_segment, steps, strict=True)
            for group in groups
            if self._count(group, step) < group.channels
        )

    @cached_property
    def lost(self) -> tuple[tuple[float, ...], ...]:
        """The importance that each segment loses at each step: of each of its groups the share that goes."""
        return tuple(
            tuple(sum(self._lost(group, step) for group in groups) for step in range(len(self.shares)))
            for groups in self.of_segment
        )

    def _lost(self, group: ChannelGroup, step: int) -> float:
        gone = group.channels - self._count(group, step)
        shares = self.importance.shares[group.name]
        return sum(shares[channel] for channel in lowest(self.importance, group, gone)) if gone else 0.0

    def _count(self, group: ChannelGroup, step: int) -> int:
        multiple = math.lcm(self.round_to, group.divisor)
        kept = least_kept(group.channels, self.shares[step], multiple)
        return min(max(kept, multiple), group.channels)


def prunable(groups: Sequence[ChannelGroup], stock: StepGraph, keep: Sequence[str]) -> Iterator[ChannelGroup]:
    """Yield the groups that may be pruned: not pinned, and not of a layer that the user wants to keep.

    Raises:
        UsageError: there is no such layer.
    """
    paths = {layer.path for layer in stock.layers}
    for name in keep:
        if name not in paths:
            hint = did_you_mean(name, paths) or "; memplan trace MODEL shows the layers"
            raise UsageError(f"no layer {name!r} to keep{hint}")
    for group in groups:
        touched = [f"{stock.layers[layer].path}." for layer in group.layers]
        if group.pinned is None and not any(path.startswith(f"{name}.") for path in touched for name in keep):
            yield group
