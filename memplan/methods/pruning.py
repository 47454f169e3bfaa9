"""Pruned channels: which of a group go, what that drops of each tensor, and how much importance is lost with them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan.graph.channels.records import ChannelGroup

#: One index or a range of them. Seven digits are more than any axis has, and few enough to be written out.
_RANGE: Final = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7}))?")


@dataclass(frozen=True, slots=True)
class PrunedAxis:
    """What is dropped along one axis of a parameter or buffer: element indices, ascending, of ``size``."""

    tensor: str
    axis: int
    size: int
    dropped: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrunedGroup:
    """The channels that a group loses, ascending, of ``channels``, and what every tensor loses with them."""

    name: str
    channels: int
    dropped: tuple[int, ...]
    axes: tuple[PrunedAxis, ...]


@dataclass(frozen=True, slots=True)
class Importance:
    """How important the channels of groups are.

    Attributes:
        by: what measured it: ``l1``, ``taylor`` ..., or the name of the user's function.
        shares: for each group by name, each channel's share of the group's total, so that groups compare; a group of
            which all channels count nothing has equal shares.
        without_norm: the groups that no norm scales, which ``bn-scale`` measures by ``l1``.
    """

    by: str
    shares: Mapping[str, tuple[float, ...]]
    without_norm: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LostImportance:
    """The share of importance that goes with pruned channels: of each pruned group, and of all groups together."""

    groups: Mapping[str, float]
    total: float


def pruned_group(group: ChannelGroup, dropped: Sequence[int]) -> PrunedGroup:
    """Return what goes when ``group`` loses the channels ``dropped``, in whatever order they are given.

    Raises:
        UsageError: the group is pinned; an index is there twice or is no channel; no channel, or a number of them that
            the group's divisor does not divide, would be left.
    """
    kept = group.channels - len(dropped)
    if not dropped:
        return PrunedGroup(group.name, group.channels, (), ())
    if group.pinned is not None:
        raise UsageError(f"group {group.name!r} cannot be pruned: {group.pinned}; choose another group")
    if kept % group.divisor:
        raise UsageError(
            f"group {group.name!r} would keep {kept} of {group.channels} channels; keep a multiple of {group.divisor}"
        )
    faults = _index_faults(f"group {group.name!r}", sorted(dropped), group.channels)
    for fault in faults:
        raise UsageError(f"{fault}; choose other channels")
    axes: dict[tuple[str, int], tuple[int, set[int]]] = {}
    for member in group.members:
        _, elements = axes.setdefault((member.tensor, member.axis), (member.size, set()))
        elements.update(element for channel in dropped for element in member.positions[channel])
    return PrunedGroup(
        group.name,
        group.channels,
        tuple(sorted(dropped)),
        tuple(
            PrunedAxis(tensor, axis, size, tuple(sorted(elements)))
            for (tensor, axis), (size, elements) in axes.items()
            if elements
        ),
    )


def least_kept(channels: int, share: float, multiple: int) -> int:
    """Return the fewest of ``channels`` that are left, in whole multiples, when at most ``share`` of them may go."""
    return math.ceil(channels * (1 - share) / multiple - 1e-9) * multiple


def lowest(importance: Importance, group: ChannelGroup, count: int) -> tuple[int, ...]:
    """Return the ``count`` least important channels of ``group``, ascending; of equal ones those of highest index.

    Raises:
        UsageError: the group was not measured, or does not have ``count`` channels to give.
    """
    shares = importance.shares.get(group.name)
    if shares is None or len(shares) != group.channels:
        raise UsageError(
            f"group {group.name!r} of {group.channels} channels has no importance by {importance.by}; measure it first"
        )
    if not 0 <= count < group.channels:
        raise UsageError(f"group {group.name!r} has {group.channels} channels and cannot drop {count}; drop fewer")
    return tuple(sorted(sorted(range(group.channels), key=lambda channel: (shares[channel], -channel))[:count]))


def lost(importance: Importance, pruned: Sequence[PrunedGroup]) -> LostImportance:
    """Return the importance lost with ``pruned``, from 0 to 1.

    The total is the mean over all groups that were measured: those that lose nothing count as 0.

    Raises:
        UsageError: a group was not measured.
    """
    groups = {}
    for group in pruned:
        shares = importance.shares.get(group.name)
        if shares is None or len(shares) != group.channels:
            raise UsageError(f"group {group.name!r} has no importance by {importance.by}; measure it first")
        groups[group.name] = math.fsum(shares[channel] for channel in group.dropped)
    return LostImportance(groups, math.fsum(groups.values()) / max(len(importance.shares), 1))


def pruning_faults(pruned: Sequence[PrunedGroup]) -> Iterator[str]:
    """Yield, in words, what cannot be so in ``pruned``: indices that are not there or twice, axes of two sizes."""
    names: set[str] = set()
    axes: dict[tuple[str, int], tuple[int, set[int]]] = {}
    for group in pruned:
        where = f"group {group.name!r}"
        if group.name in names:
            yield f"{where} is there twice"
        names.add(group.name)
        yield from _index_faults(where, group.dropped, group.channels)
        own = [(axis.tensor, axis.axis) for axis in group.axes]
        if len(own) != len(set(own)):
            yield f"{where} has an axis twice"
        if bool(group.dropped) != bool(group.axes):
            yield f"{where} drops {len(group.dropped)} channels and elements of {len(group.axes)} axes"
        for axis in group.axes:
            where = f"axis {axis.axis} of {axis.tensor!r}"
            yield from _index_faults(where, axis.dropped, axis.size)
            if not axis.dropped or len(axis.dropped) % max(len(group.dropped), 1):
                yield f"{where} drops {len(axis.dropped)} elements for {len(group.dropped)} channels of {group.name!r}"
            size, gone = axes.setdefault((axis.tensor, axis.axis), (axis.size, set()))
            if size != axis.size:
                yield f"{where} has the size {size} in one group and {axis.size} in another"
            twice = sorted(gone & {*axis.dropped})
            if twice:
                yield f"{where} drops the elements {to_ranges(twice)} in two groups"
            gone.update(axis.dropped)
            if len(gone) >= size:
                yield f"nothing is left of {where}"


def _index_faults(where: str, dropped: Sequence[int], size: int) -> Iterator[str]:
    if any(later <= earlier for earlier, later in pairwise(dropped)):
        yield f"{where} drops an index twice or out of order"
    if dropped and not (min(dropped) >= 0 and max(dropped) < size):
        beyond = next(index for index in dropped if not 0 <= index < size)
        yield f"{where} drops the index {beyond} of {size}"
    if dropped and len(dropped) >= size:
        yield f"nothing is left of {where}"


def to_ranges(indices: Sequence[int]) -> str:
    """Return ascending indices as text.

    >>> to_ranges((0, 1, 2, 3, 7))
    '0-3,7'
    """
    ends: list[list[int]] = []
    for index in indices:
        if ends and ends[-1][1] == index - 1:
            ends[-1][1] = index
        else:
            ends.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def from_ranges(text: str) -> tuple[int, ...]:
    """Return the indices that :func:`to_ranges` wrote.

    >>> from_ranges("0-3,7")
    (0, 1, 2, 3, 7)

    Raises:
        ValueError: the text is none of its texts.
    """
    indices: list[int] = []
    for part in text.split(",") if text else ():
        found = _RANGE.fullmatch(part)
        if found is None:
            raise ValueError(f"{text!r} is no list of indices such as '0-3,7'")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or (indices and first <= indices[-1]):
            raise ValueError(f"{text!r} has an index twice or out of order")
        indices.extend(range(first, last + 1))
    return tuple(indices)
