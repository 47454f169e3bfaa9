"""Which numbers go together, and which may not be dropped."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from memplan.graph.channels.labels import FIXED, Ids


class Axis(NamedTuple):
    """The numbers of one axis of a parameter or buffer: ``size`` of them from ``start``."""

    tensor: str
    axis: int
    start: int
    size: int
    layer: int


class Ties:
    """Numbers of all parameter axes, ties between them, and reasons why some are pinned."""

    def __init__(self) -> None:
        self.count = 1
        self.axes: list[Axis] = []
        self._pairs: list[tuple[Ids, Ids]] = []
        self._tied: set[tuple[int, int]] = set()
        self._pins: list[tuple[Ids, str]] = []
        self._kept: list[Ids] = []  # arrays known by identity have to live

    def new(self, tensor: str, axis: int, size: int, layer: int) -> Ids:
        """Return fresh numbers for one axis of a tensor."""
        self.axes.append(Axis(tensor, axis, self.count, size, layer))
        ids = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return ids

    def tie(self, first: Ids, second: Ids) -> None:
        """Let the numbers at the same places go together; the arrays broadcast."""
        if first is second or (id(first), id(second)) in self._tied:
            return
        self._tied.add((id(first), id(second)))
        self._pairs.append((first, second))

    def tie_along(self, ids: Ids, axis: int) -> None:
        """Let all numbers with the same index along ``axis`` of the array go together."""
        keep = ids.take([0], axis=axis) if ids.ndim == 1 else ids
        for place in range(ids.ndim):
            if place != axis:
                keep = keep.take([0], axis=place)
        self._pairs.append((keep, ids))
        self._kept.append(ids)

    def pin(self, ids: Ids, reason: str) -> None:
        """Let nobody drop these numbers."""
        self._pins.append((ids, reason))

    def atoms(self) -> tuple[Ids, dict[int, str]]:
        """Return the atom of each number, what goes together being one, and why atoms are pinned."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        pairs = [np.broadcast_arrays(first, second) for first, second in self._pairs]
        first = np.concatenate([np.zeros(0, np.int64), *(pair[0].ravel() for pair in pairs)])
        second = np.concatenate([np.zeros(0, np.int64), *(pair[1].ravel() for pair in pairs)])
        free = (first != FIXED) & (second != FIXED)
        ends = first[free], second[free]
        edges = coo_array((np.ones(len(ends[0]), np.int32), ends), shape=(self.count, self.count))
        atom_of = connected_components(edges, directed=False)[1].astype(np.int64)
        pinned: dict[int, str] = {}
        fixed = np.concatenate([first[~free], second[~free]])
        for ids, reason in (*self._pins, (fixed, "the channels it is joined with are fixed")):
            for atom in np.unique(atom_of[ids.ravel()]).tolist():
                pinned.setdefault(atom, reason)
        pinned[int(atom_of[FIXED])] = "fixed"
        return atom_of, pinned
