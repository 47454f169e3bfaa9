"""A recorded step with fewer channels: what recording the pruned network would give, without recording it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

import numpy as np

from memplan.errors import UsageError, did_you_mean
from memplan.graph.channels.groups import labelling
from memplan.graph.channels.labels import Label
from memplan.graph.channels.literals import literals
from memplan.graph.channels.records import ChannelGroup
from memplan.graph.channels.strides import dense_strides, extent, view_offset, view_strides
from memplan.graph.channels.walk import Key, key_of, packet_of
from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Argument, Op, Parameter, Storage, TensorView
from memplan.graph.step_graph import StepGraph


def resized(graph: StepGraph, groups: Iterable[ChannelGroup], kept: Mapping[str, int]) -> StepGraph:
    """Return the step of the network that keeps ``kept[name]`` channels of the group ``name``, all of the others.

    Bytes of storages, shapes and strides of views, elements of parameters and FLOPs are those of the pruned network.
    The groups may come from another recording of the same network. What an op without a rule makes in the backward
    keeps its size: an upper estimate.

    Raises:
        UsageError: there is no such group, it is pinned, or it cannot keep that many channels.
    """
    chosen = [(group, kept[group.name]) for group in _checked(groups, kept) if group.name in kept]
    if all(count == group.channels for group, count in chosen):
        return graph
    return _Resized(graph, chosen).graph()


def _checked(groups: Iterable[ChannelGroup], kept: Mapping[str, int]) -> tuple[ChannelGroup, ...]:
    groups = tuple(groups)
    by_name = {group.name: group for group in groups}
    for name, count in kept.items():
        group = by_name.get(name)
        if group is None:
            hint = did_you_mean(name, by_name) or "; memplan.graph.channels finds the groups of a recorded step"
            raise UsageError(f"no channel group {name!r}{hint}")
        if not 1 <= count <= group.channels:
            raise UsageError(f"group {name!r} keeps from 1 to {group.channels} channels, not {count}")
        if count % group.divisor and count != group.channels:
            raise UsageError(f"group {name!r} keeps multiples of {group.divisor} channels, not {count}")
        if group.pinned is not None and count != group.channels:
            raise UsageError(f"group {name!r} keeps all its {group.channels} channels: {group.pinned}")
    return groups


class _Resized:
    def __init__(self, graph: StepGraph, chosen: Iterable[tuple[ChannelGroup, int]]) -> None:
        self.before = graph
        found = labelling(graph)
        self.walk, self.atom_of = found.walk, found.atom_of
        self.keeps = np.ones(int(self.atom_of.max()) + 1, bool)
        axes = {(axis.tensor, axis.axis): axis for axis in self.walk.ties.axes}
        for group, count in chosen:
            for member in group.members:
                axis = axes.get((member.tensor, member.axis))
                if axis is not None and axis.size == member.size:
                    positions = [place for channel in member.positions[count:] for place in channel]
                    self.keeps[self.atom_of[axis.start + np.array(positions, np.int64)]] = False
        self._counts: dict[int, tuple[int, ...]] = {}
        self._views: dict[tuple[Key, str], TensorView] = {}
        self._bases: dict[int, tuple[TensorView, tuple[int, ...], tuple[int, ...]]] = {}

    def graph(self) -> StepGraph:
        storages = tuple(self._storage(storage) for storage in self.before.storages)
        sizes = {storage.index: storage.bytes for storage in self.before.storages}
        storages = self._with_gradients(storages, sizes)
        return replace(
            self.before,
            parameters=tuple(self._parameter(parameter) for parameter in self.before.parameters),
            storages=storages,
            ops=tuple(self._op(op) for op in self.before.ops),
        )

    # -- shapes --------------------------------------------------------------------------------------------------------

    def shape(self, shape: tuple[int, ...], label: Label | None) -> tuple[int, ...]:
        """Return the shape of what had ``shape`` and this label."""
        if not label:
            return shape
        new = list(shape)
        seen: dict[int, list[int]] = {}
        for axes, ids in label:
            if id(ids) not in self._counts:
                mask = self.keeps[self.atom_of[ids]]
                self._counts[id(ids)] = tuple(
                    int(mask.any(axis=tuple(other for other in range(ids.ndim) if other != place)).sum())
                    for place in range(ids.ndim)
                )
            for axis, count in zip(axes, self._counts[id(ids)], strict=True):
                seen.setdefault(axis, []).append(count)
        for axis, counts in seen.items():
            if len(counts) == 1:
                new[axis] = counts[0]
            else:
                masks = [self.keeps[self.atom_of[ids]] for axes, ids in label if axes == (axis,)]
                new[axis] = int(np.logical_and.reduce(masks).sum()) if masks else min(counts)
        return tuple(new)

    def moved(self, view: TensorView, axis: int, index: int) -> int:
        """Return where an index along an axis of a view, or its end, goes when channels before it are dropped."""
        ids = self.walk.numbers(view).get(axis)
        return index if ids is None else int(self.keeps[self.atom_of[ids[:index]]].sum())

    def _base(self, storage: int) -> tuple[TensorView, tuple[int, ...], tuple[int, ...]] | None:
        """Return the first view of a storage, with its new shape and strides."""
        if storage not in self._bases:
            if storage not in self.walk.births:
                return None
            view, label = self.walk.births[storage]
            shape = self.shape(view.shape, label)
            self._bases[storage] = view, shape, dense_strides(view, shape)
        return self._bases[storage]

    def view(self, view: TensorView) -> TensorView:
        """Return a view as the pruned network has it."""
        key = (key_of(view), view.dtype)
        if key not in self._views:
            self._views[key] = self._viewed(view)
        return self._views[key]

    def _viewed(self, view: TensorView) -> TensorView:
        packed = self.walk.packed.get(view.storage)
        if packed is not None:
            elements = prod(self.view(packed).shape)
            return replace(view, shape=(-(-elements // 8),)) if len(view.shape) == 1 else view
        shape = self.shape(view.shape, self.walk.labels.get(key_of(view)))
        base = self._base(view.storage)
        if base is None or (shape == view.shape and base[0].shape == base[1]):
            return view
        strides = view_strides(view, shape, base)
        return replace(view, shape=shape, strides=strides, offset=view_offset(view, base))

    # -- records -------------------------------------------------------------------------------------------------------

    def _storage(self, storage: Storage) -> Storage:
        packed = self.walk.packed.get(storage.index)
        if packed is not None:
            return replace(storage, bytes=-(-prod(self.view(packed).shape) // 8))
        base = self._base(storage.index)
        if base is None or base[0].shape == base[1]:
            return storage
        view, shape, strides = base
        if any(stride == 0 and size > 1 for stride, size in zip(view.strides, view.shape, strict=True)):
            return storage
        item = item_bytes(view.dtype)
        if extent(view.shape, view.strides) * item == storage.bytes:
            return replace(storage, bytes=extent(shape, strides) * item)
        return replace(storage, bytes=-(-storage.bytes * prod(shape) // max(1, prod(view.shape))))

    def _with_gradients(self, storages: tuple[Storage, ...], old: Mapping[int, int]) -> tuple[Storage, ...]:
        """Give parameters' gradients the bytes of their parameters, whatever made them."""
        sizes = {
            parameter.gradient: storages[parameter.storage].bytes
            for parameter in self.before.parameters
            if parameter.gradient is not None and old[parameter.gradient] == old[parameter.storage]
        }
        return tuple(
            replace(storage, bytes=sizes[storage.index]) if storage.index in sizes else storage for storage in storages
        )

    def _parameter(self, parameter: Parameter) -> Parameter:
        base = self._base(parameter.storage)
        if base is None or prod(base[0].shape) != parameter.elements:
            return parameter
        return replace(parameter, elements=prod(base[1]))

    def _op(self, op: Op) -> Op:
        args = tuple(self._argument(argument) for argument in op.args)
        outputs = tuple(None if view is None else self.view(view) for view in op.outputs)
        if args == op.args and outputs == op.outputs:
            return op
        new = replace(op, outputs=outputs, args=literals(packet_of(op.name), op, args, outputs, self.moved))
        return replace(new, flops=_flops(op, new)) if op.flops else new

    def _argument(self, value: Argument) -> Argument:
        if isinstance(value, TensorView):
            return self.view(value)
        if isinstance(value, tuple):
            return tuple(self._argument(item) for item in value)
        return value


def _flops(old: Op, new: Op) -> int:
    """Return the FLOPs of an op on smaller tensors: they are in proportion to the products it is made of."""
    before, after = _work(old), _work(new)
    return old.flops * after // before if before else old.flops


def _work(op: Op) -> int:
    packet = packet_of(op.name)
    views = list(op.inputs)
    if packet in ("convolution", "convolution_backward"):
        return prod(views[1 if packet == "convolution" else 2].shape)
    if packet in ("mm", "addmm", "bmm", "baddbmm"):
        return prod(views[-2].shape) * views[-1].shape[-1]
    if "scaled_dot_product" in packet:
        query, key, value = views[1:4] if packet.endswith("backward") else views[:3]
        return prod(query.shape[:3]) * key.shape[2] * (query.shape[3] + value.shape[3])
    return 0
