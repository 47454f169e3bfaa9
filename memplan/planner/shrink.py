"""Shrink channel groups until no layer needs more than a target, at each turn those of the layer that needs most.

Source: the principle of Yoosefi, Mousavi, Daneshtalab et al., Activation Memory Reduction (FMEC 2023), of which the
abstract is public: once little is kept for the backward, what single layers need while they compute is the bottleneck,
and unimportant channels go from the layers that need most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, TypeAlias

from memplan.methods.pruning import Importance, least_kept

if TYPE_CHECKING:
    from memplan.graph.channels.records import ChannelGroup

#: From the channels that groups keep (all, where a group is not named) to the bytes needed at each place of the step.
Needs: TypeAlias = Callable[[Mapping[str, int]], Sequence[int]]

#: From a place to the names of the groups whose channels enter it.
Entering: TypeAlias = Callable[[int], Collection[str]]

#: Why a group does not shrink further: it may not at all, the user keeps it, its share or its multiple.
End: TypeAlias = Literal["pinned", "kept", "share", "multiple"]


@dataclass(frozen=True, slots=True)
class Room:
    """How far a group may shrink: from ``channels`` over multiples of ``multiple`` to ``least``.

    ``end`` says in words why not further, and ``kind`` what sort of reason that is.
    """

    name: str
    channels: int
    multiple: int
    least: int
    end: str
    kind: End

    def below(self, kept: int) -> int | None:
        """Return the next smaller number of channels, ``None`` where there is none.

        >>> room = Room("conv", 20, 8, 8, "", "multiple")
        >>> room.below(20), room.below(16), room.below(8)
        (16, 8, None)
        """
        fewer = (kept - 1) // self.multiple * self.multiple
        return fewer if fewer >= self.least else None


def rooms_of(
    groups: Sequence[ChannelGroup], free: Collection[str], round_to: int, max_prune: float | None
) -> tuple[Room, ...]:
    """Return how far each group may shrink: those not ``free`` not at all, the others over multiples of ``round_to``.

    ``max_prune`` is the share of a group's channels that may go, ``None`` for all but one multiple.
    """
    return tuple(_room(group, group.name in free, math.lcm(round_to, group.divisor), max_prune) for group in groups)


def _room(group: ChannelGroup, free: bool, multiple: int, max_prune: float | None) -> Room:
    def room(least: int, end: str, kind: End) -> Room:
        return Room(group.name, group.channels, multiple, min(least, group.channels), end, kind)

    if group.pinned is not None:
        return room(group.channels, group.pinned, "pinned")
    if not free:
        return room(group.channels, "to be kept", "kept")
    least = least_kept(group.channels, 1.0 if max_prune is None else max_prune, multiple)
    if max_prune is not None and least > multiple:
        return room(least, f"at most {max_prune:g} of them may go", "share")
    return room(multiple, f"kept in multiples of {multiple}", "multiple")


@dataclass(frozen=True, slots=True)
class Stage:
    """A place that set the peak, and the peak in bytes when it began to."""

    place: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What groups keep, where that is less than all, and the places that set the peak on the way, in order.

    ``peak_bytes`` is the largest need that is left, at ``place``. Where the target is not ``reached``, these are those
    of the groups at their least.
    """

    kept: Mapping[str, int]
    stages: tuple[Stage, ...]
    peak_bytes: int
    place: int
    reached: bool


class Proportional:
    """Needs that every group lowers on its own, in proportion to its channels: one look at each group, not each turn.

    That holds for sums of layers' inputs and outputs where no value has the channels of two groups on two axes.
    """

    def __init__(self, needs: Needs, rooms: Sequence[Room]) -> None:
        self._needs = needs
        self._rooms = {room.name: room for room in rooms}
        self._whole = needs({})
        self._slopes: dict[str, tuple[tuple[int, int], ...]] = {}

    def __call__(self, kept: Mapping[str, int]) -> Sequence[int]:
        """Return the needs in which each group's share is that of its first multiple."""
        found = list(self._whole)
        for name, count in kept.items():
            room = self._rooms[name]
            looked_at = room.channels - (room.below(room.channels) or room.least)
            for place, lowered in self._slope(room):
                found[place] -= lowered * (room.channels - count) // looked_at
        return found

    def _slope(self, room: Room) -> tuple[tuple[int, int], ...]:
        """Return by how much the needs are lower without the first multiple of a group, where they are."""
        if room.name not in self._slopes:
            fewer = self._needs({room.name: room.below(room.channels) or room.least})
            pairs = enumerate(zip(self._whole, fewer, strict=True))
            self._slopes[room.name] = tuple((place, whole - less) for place, (whole, less) in pairs if whole != less)
        return self._slopes[room.name]


def shrink(
    rooms: Sequence[Room],
    needs: Needs,
    entering: Entering,
    importance: Importance,
    target: int,
    *,
    proportional: bool = False,
) -> Shrunk:
    """Return the groups shrunk until no place needs more than ``target`` bytes.

    At each turn the place that needs most is looked at, the first of equals. Of the groups that enter it the one goes
    down by a multiple that lowers this need most for the importance that is lost; of equals the one that lowers it
    most, then the first. Where none of these can shrink, as when parameters set the peak, all groups are looked at.

    With ``proportional`` needs are taken to be so on the way; if they turn out not to be at its end, they are asked for
    at each turn.
    """
    by_name = {room.name: room for room in rooms}
    least = {room.name: room.least for room in rooms if room.least < room.channels}
    floor = needs(least)
    if max(floor) > target:
        return Shrunk(least, (), max(floor), _largest(floor), reached=False)
    if proportional:
        guess = Proportional(needs, rooms)
        found = _shrunk(by_name, guess, entering, importance, target)
        if list(guess(found.kept)) == list(needs(found.kept)):
            return found
    return _shrunk(by_name, needs, entering, importance, target)


def _shrunk(
    by_name: Mapping[str, Room], needs: Needs, entering: Entering, importance: Importance, target: int
) -> Shrunk:
    lost = {name: _lost(importance, room) for name, room in by_name.items() if room.least < room.channels}
    kept: dict[str, int] = {}
    now = needs(kept)
    stages: list[Stage] = []
    while max(now) > target:
        place = _largest(now)
        if not stages or stages[-1].place != place:
            stages.append(Stage(place, now[place]))
        entered = entering(place)
        inside = [name for name in by_name if name in entered]
        best: tuple[tuple[float, int], dict[str, int], Sequence[int]] | None = None
        for name, fewer in list(_steps(inside, by_name, kept)) or list(_steps(by_name, by_name, kept)):
            room, then = by_name[name], {**kept, name: fewer}
            after = needs(then)
            price = lost[name][room.channels - fewer] - lost[name][room.channels - kept.get(name, room.channels)]
            lowered = now[place] - after[place]
            rank = (lowered / price if price > 0 else math.inf if lowered > 0 else -math.inf), lowered
            if best is None or rank > best[0]:
                best = rank, then, after
        if best is None:  # all groups are at their least, and more of their channels need less
            break
        _, kept, now = best
    return Shrunk(kept, tuple(stages), max(now), _largest(now), reached=max(now) <= target)


def _lost(importance: Importance, room: Room) -> tuple[float, ...]:
    """Return the importance that goes with the least important channels of a group, by how many go."""
    return tuple(accumulate(sorted(importance.shares[room.name]), initial=0.0))


def _largest(needs: Sequence[int]) -> int:
    return max(range(len(needs)), key=lambda place: (needs[place], -place))


def _steps(names: Collection[str], rooms: Mapping[str, Room], kept: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    for name in names:
        fewer = rooms[name].below(kept.get(name, rooms[name].channels))
        if fewer is not None:
            yield name, fewer
