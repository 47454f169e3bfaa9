"""Channel groups of a recorded step, found by following the numbers of parameter axes through its forward."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memplan.graph.channels.arithmetic import COMPUTED
from memplan.graph.channels.gradients import LATER, MEMPLAN
from memplan.graph.channels.labels import FIXED, Ids
from memplan.graph.channels.moves import MOVES
from memplan.graph.channels.records import ChannelGroup, Member
from memplan.graph.channels.ties import Axis
from memplan.graph.channels.walk import Walk
from memplan.graph.step_graph import StepGraph

_RULES = {**COMPUTED, **MOVES, **MEMPLAN}

ONE_CHANNEL = "all its channels are tied to each other"


def channel_groups(graph: StepGraph) -> tuple[ChannelGroup, ...]:
    """Return the channel groups of a step, in the order in which its forward first makes them.

    Channels are those that a convolution, a linear layer or an embedding makes. Channels with the same number of
    elements on the same axes form one group, in the order of their elements.
    """
    return labelling(graph).groups()


class Labelling:
    """A step with all its views labelled: what :func:`channel_groups` and ``resized`` both stand on."""

    def __init__(self, graph: StepGraph) -> None:
        self.graph = graph
        self.walk = Walk(graph)
        self.walk.run(_RULES, LATER)
        self._pin_widths_of_heads()
        self.atom_of, self.pinned = self.walk.ties.atoms()
        if self._pin_parts():
            self.atom_of, self.pinned = self.walk.ties.atoms()

    def _pin_widths_of_heads(self) -> None:
        """Pin the input of a projection to heads that is as wide as they are: code tends to take the one for the other.

        ``x.reshape(B, N, C)`` after attention, with the ``C`` of the layer's input, is recorded as its numbers alone.
        """
        ties = self.walk.ties
        whole: dict[tuple[str, int], Axis] = {(axis.tensor, axis.axis): axis for axis in ties.axes}
        starts = np.array([axis.start for axis in ties.axes])
        for ids, reason in list(self.walk.split):
            for place in np.unique(np.searchsorted(starts, np.unique(ids[ids != FIXED]), side="right") - 1).tolist():
                made = ties.axes[place]
                given = whole.get((made.tensor, 1 - made.axis)) if made.axis < 2 else None
                if given is not None and given.size in (made.size, made.size // 2, made.size // 3):
                    ties.pin(np.arange(given.start, given.start + given.size), reason)

    def _pin_parts(self) -> bool:
        """Pin channels that are split into parts which do not go together one by one; whether there are any."""
        found = False
        for parts, reason in self.walk.parts:
            atoms = [self.atom_of[ids] for ids in parts]
            if not all(np.array_equal(atoms[0], others) for others in atoms[1:]):
                found = True
                for ids in parts:
                    self.walk.ties.pin(ids, reason)
        return found

    @cached_property
    def _order(self) -> Ids:
        """For each atom the place of its first channel among all that matrices make; -1 where none makes it."""
        order = np.full(int(self.atom_of.max()) + 1, -1)
        made = np.concatenate([np.zeros(0, np.int64), *(ids for _, ids in self.walk.makers)])
        atoms, places = np.unique(self.atom_of[made], return_index=True)
        order[atoms] = places
        order[self.atom_of[FIXED]] = -1
        return order

    @cached_property
    def _kinds(self) -> tuple[Ids, dict[int, tuple[int, int, int]]]:
        """The kind of each atom; and for each kind another that it refines, by the axis and its elements there.

        Atoms of one kind have the same number of elements on the same axes.
        """
        kind = np.zeros(int(self.atom_of.max()) + 1, np.int64)
        made = self._order >= 0
        refined: dict[int, tuple[int, int, int]] = {}
        for place, axis in enumerate(self.walk.ties.axes):
            atoms = self.atom_of[axis.start : axis.start + axis.size]
            atoms, counts = np.unique(atoms[made[atoms]], return_counts=True)
            if not len(atoms):
                continue
            pairs, which = np.unique(kind[atoms] * (axis.size + 1) + counts, return_inverse=True)
            kind[atoms] = which + len(refined) + 1
            for pair in pairs.tolist():
                refined[len(refined) + 1] = (pair // (axis.size + 1), place, pair % (axis.size + 1))
        return kind, refined

    @cached_property
    def atom_groups(self) -> list[list[int]]:
        """The atoms of each group, in order; groups in the order of their first maker."""
        alike: dict[tuple[int, str | None], list[int]] = defaultdict(list)
        atoms = np.flatnonzero(self._order >= 0)
        atoms = atoms[np.argsort(self._order[atoms])]
        for atom, kind in zip(atoms.tolist(), self._kinds[0][atoms].tolist(), strict=True):
            alike[kind, self.pinned.get(atom)].append(atom)
        return list(alike.values())

    def groups(self) -> tuple[ChannelGroup, ...]:
        """Return the groups as records."""
        group_of = np.full(int(self.atom_of.max()) + 1, -1)
        for number, atoms in enumerate(self.atom_groups):
            group_of[atoms] = number
        touched = _Touched(self, group_of)
        makers: dict[int, int] = {}
        for op, ids in self.walk.makers:
            for number in np.unique(group_of[self.atom_of[ids]]).tolist():
                if number >= 0:
                    makers.setdefault(number, op.layer)
        names: dict[str, int] = defaultdict(int)
        found = []
        for number, atoms in enumerate(self.atom_groups):
            path = self.graph.layers[makers[number]].path or "(model)"
            names[path] += 1
            pinned = self.pinned.get(atoms[0])
            found.append(
                ChannelGroup(
                    name=path if names[path] == 1 else f"{path}#{names[path]}",
                    channels=len(atoms),
                    divisor=1,
                    members=tuple(self._members(atoms)),
                    layers=tuple(sorted(touched.layers[number])),
                    storages=tuple(sorted(touched.storages[number])),
                    pinned=pinned or (ONE_CHANNEL if len(atoms) == 1 else None),
                )
            )
        return tuple(found)

    def _members(self, atoms: list[int]) -> list[Member]:
        rank = np.full(int(self.atom_of.max()) + 1, -1)
        rank[atoms] = np.arange(len(atoms))
        members = []
        alike: dict[bytes, tuple[tuple[int, ...], ...]] = {}
        for place, count in self._axes_of(atoms[0]):
            axis = self.walk.ties.axes[place]
            channels = rank[self.atom_of[axis.start : axis.start + axis.size]]
            order = np.argsort(channels, kind="stable")[int((channels < 0).sum()) :]
            key = order.tobytes()
            if key not in alike:
                alike[key] = tuple(zip(*order.reshape(len(atoms), count).T.tolist(), strict=True))
            members.append(Member(axis.tensor, axis.axis, axis.size, alike[key]))
        return members

    def _axes_of(self, atom: int) -> list[tuple[int, int]]:
        kinds, refined = self._kinds
        found, kind = [], int(kinds[atom])
        while kind:
            kind, place, count = refined[kind]
            found.append((place, count))
        return found[::-1]


@dataclass
class _Touched:
    """Layers and storages of each group."""

    labelling: Labelling
    group_of: Ids

    def __post_init__(self) -> None:
        self.storages: dict[int, set[int]] = defaultdict(set)
        self.layers: dict[int, set[int]] = defaultdict(set)
        self._known: dict[int, frozenset[int]] = {}
        walk = self.labelling.walk
        for axis in walk.ties.axes:
            ids = self.labelling.atom_of[axis.start : axis.start + axis.size]
            for number in np.unique(self.group_of[ids]).tolist():
                self.layers[number].add(axis.layer)
        by_storage: dict[int, frozenset[int]] = {}
        packed = (
            (storage, walk.labels.get((v.storage, v.shape, v.strides, v.offset))) for storage, v in walk.packed.items()
        )
        born = [(storage, label) for storage, (_, label) in walk.births.items()]
        for storage, label in (*born, *packed):
            groups = frozenset().union(*(self._groups(factor.ids) for factor in label or ()))
            by_storage[storage] = by_storage.get(storage, frozenset()) | groups
            for number in groups:
                self.storages[number].add(storage)
        for op in self.labelling.graph.ops:
            if op.phase == "forward":
                for view in op.outputs:
                    for number in by_storage.get(view.storage, ()) if view is not None else ():
                        self.layers[number].add(op.layer)

    def _groups(self, ids: Ids) -> frozenset[int]:
        if id(ids) not in self._known:
            numbers = np.unique(self.group_of[self.labelling.atom_of[ids.ravel()]])
            self._known[id(ids)] = frozenset(numbers[numbers >= 0].tolist())
        return self._known[id(ids)]


_RECENT: dict[int, tuple[StepGraph, Labelling]] = {}
_REMEMBERED = 8


def labelling(graph: StepGraph) -> Labelling:
    """Return the labelling of a step; those of the last few steps are remembered."""
    known = _RECENT.pop(id(graph), None)
    if known is None:
        known = graph, Labelling(graph)
        while len(_RECENT) >= _REMEMBERED:
            del _RECENT[next(iter(_RECENT))]
    _RECENT[id(graph)] = known
    return known[1]
