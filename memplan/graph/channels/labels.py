"""Labels: which element of which parameter axis each index of a tensor's axes stands for.

A parameter's axes get numbers of their own, from 1 on; 0 stands for what no parameter decides. A factor names axes of a
view and has for each index along them a number; a label is all factors of a view. Views move the numbers about exactly,
so that a channel shuffle or a packed projection needs no rule of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = "NDArray[np.int64]"

FIXED = 0


class Factor(NamedTuple):
    """Numbers along some axes of a view, in ascending order of axes: ``ids`` has an axis for each of them."""

    axes: tuple[int, ...]
    ids: Ids


Label: TypeAlias = "tuple[Factor, ...]"


def shifted(label: Label, by: int) -> Label:
    """Return the label of a view with ``by`` more axes in front."""
    return tuple(Factor(tuple(axis + by for axis in axes), ids) for axes, ids in label) if by else label


def permuted(label: Label, order: Sequence[int]) -> Label:
    """Return the label of a view whose axis ``i`` was axis ``order[i]``."""
    place = {old: new for new, old in enumerate(order)}
    moved = []
    for axes, ids in label:
        new = tuple(place[axis] for axis in axes)
        if len(new) > 1 and list(new) != sorted(new):
            turn = sorted(range(len(new)), key=new.__getitem__)
            new, ids = tuple(new[i] for i in turn), ids.transpose(turn)
        moved.append(Factor(new, ids))
    return tuple(moved)


def without_axes(label: Label, dropped: Sequence[int], keep: bool = False) -> Label:
    """Return the label when ``dropped`` axes are summed up; with ``keep`` they stay, one long."""
    gone = frozenset(dropped)
    left = []
    for axes, ids in label:
        inside = [place for place, axis in enumerate(axes) if axis in gone]
        if len(inside) == len(axes):
            continue
        for place in reversed(inside):
            ids = at_first(ids, place)
        rest = tuple(axis for axis in axes if axis not in gone)
        if not keep:
            rest = tuple(axis - sum(one < axis for one in gone) for axis in rest)
        left.append(Factor(rest, ids))
    return tuple(left)


def with_axis(label: Label, at: int) -> Label:
    """Return the label of a view with an axis of length one put in at ``at``."""
    return tuple(Factor(tuple(axis + (axis >= at) for axis in axes), ids) for axes, ids in label)


def indexed(label: Label, axis: int, index: Any) -> Label:
    """Return the label when ``axis`` is sliced; where one index is left, the axis is no longer labelled."""
    found = []
    for axes, ids in label:
        if axis in axes:
            place = axes.index(axis)
            ids = ids[(slice(None),) * place + (index,)]
            if ids.shape[place] == 1:
                ids, axes = at_first(ids, place), axes[:place] + axes[place + 1 :]
        if axes:
            found.append(Factor(axes, ids))
    return tuple(found)


def reshaped(label: Label, old: tuple[int, ...], new: tuple[int, ...]) -> Label:
    """Return the label of a view of shape ``new`` of a tensor of shape ``old``."""
    if not label or old == new or 0 in old:
        return label if old == new else ()
    chunks = _chunks(old, new)
    found = []
    for factor in label:
        moved = _moved(factor, chunks, old, new)
        if moved.axes:
            found.append(moved)
    return tuple(found)


def _chunks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return the shortest stretches of axes of both shapes that have as many elements; axes of one are left out."""
    olds = [axis for axis, size in enumerate(old) if size != 1]
    news = [axis for axis, size in enumerate(new) if size != 1]
    chunks = []
    i = j = 0
    while i < len(olds):
        first, second = i, j
        left, right = old[olds[i]], new[news[j]]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * old[olds[i]], i + 1
            else:
                right, j = right * new[news[j]], j + 1
        chunks.append((olds[first:i], news[second:j]))
    return chunks


def _moved(
    factor: Factor, chunks: list[tuple[list[int], list[int]]], old: tuple[int, ...], new: tuple[int, ...]
) -> Factor:
    touched = [chunk for chunk in chunks if not frozenset(chunk[0]).isdisjoint(factor.axes)]
    if all(len(olds) == len(news) == 1 for olds, news in touched):
        place = {olds[0]: news[0] for olds, news in touched}
        return Factor(tuple(place[axis] for axis in factor.axes if axis in place), factor.ids)
    before = [axis for olds, _ in touched for axis in olds]
    after = [axis for _, news in touched for axis in news]
    spread = factor.ids.reshape([old[axis] if axis in factor.axes else 1 for axis in before])
    ids = np.broadcast_to(spread, [old[axis] for axis in before]).reshape([new[axis] for axis in after])
    return compact(tuple(after), ids)


def at_first(ids: Ids, axis: int) -> Ids:
    """Return the numbers at the first index along an axis of the array."""
    return ids[(slice(None),) * axis + (0,)]


def compact(axes: tuple[int, ...], ids: Ids) -> Factor:
    """Return the factor without the axes along which the numbers are the same."""
    for place in range(len(axes) - 1, -1, -1):
        first = ids.take([0], axis=place)
        if (ids == first).all():
            ids, axes = at_first(first, place), axes[:place] + axes[place + 1 :]
    return Factor(axes, ids)


def by_axis(label: Label) -> dict[int, Ids]:
    """Return the numbers along each labelled axis. Where they vary along several, the longest stands for them."""
    found: dict[int, Ids] = {}
    for axes, ids in label:
        if len(axes) == 1:
            found.setdefault(axes[0], ids)
        else:
            longest = longest_axis(ids)
            for place in range(len(axes) - 1, -1, -1):
                if place != longest:
                    ids = at_first(ids, place)
            found.setdefault(axes[longest], ids)
    return found


def longest_axis(ids: Ids) -> int:
    """Return the axis of an array that is the longest, the last of equals."""
    return max(range(ids.ndim), key=lambda axis: (ids.shape[axis], axis))


def single(axis: int, ids: Ids | None) -> Label:
    """Return the label of a view with numbers along one axis, if there are any."""
    return () if ids is None else (Factor((axis,), ids),)


def from_axes(numbers: dict[int, Ids]) -> Label:
    """Return the label of a view with numbers along each of some axes."""
    return tuple(Factor((axis,), ids) for axis, ids in sorted(numbers.items(), key=lambda item: item[0]))
