"""The walk over a recorded step that labels every view of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TypeAlias

from memplan.graph.channels.labels import Factor, Ids, Label, by_axis, from_axes, longest_axis, reshaped, shifted
from memplan.graph.channels.ties import Ties
from memplan.graph.records import Buffer, Op, Parameter, TensorView
from memplan.graph.step_graph import StepGraph

Key: TypeAlias = "tuple[int, tuple[int, ...], tuple[int, ...], int]"

#: From an op to the labels of its outputs; it ties what the op makes go together.
Rule: TypeAlias = "Callable[[Walk, Op], Sequence[Label | None]]"


def key_of(view: TensorView) -> Key:
    """Return what tells one view from another: storage, shape, strides and offset."""
    return view.storage, view.shape, view.strides, view.offset


class Walk:
    """Labels of all views of a step, in execution order.

    Ties and pins are made in the forward. What comes later runs on the same channels, so that labels alone are passed
    on; an op without a rule then gives tensors that count as not shrinking. A label of ``None`` is open: a tensor that
    is allocated in the backward with a shape in numbers takes the label of what it first meets.
    """

    def __init__(self, graph: StepGraph) -> None:
        self.graph = graph
        self.ties = Ties()
        self.labels: dict[Key, Label | None] = {}
        self.births: dict[int, tuple[TensorView, Label | None]] = {}
        self.makers: list[tuple[Op, Ids]] = []  # in the forward, the numbers of channels that a matrix makes
        self.split: list[tuple[Ids, str]] = []  # channels that attention splits into heads, and the reason to pin them
        self.parts: list[tuple[list[Ids], str]] = []  # channels that are split into parts, and the reason to pin them
        self.packed: dict[int, TensorView] = {}  # of storages of packed masks, the tensor whose elements have a bit
        self.owners: dict[int, Buffer | Parameter] = {owner.storage: owner for owner in graph.buffers}
        self.owners.update((owner.storage, owner) for owner in graph.parameters)
        self.weights = set(self.owners)  # storages that parameters and buffers alone decide
        self.binds = True
        self.missed = 0
        self._op: Op | None = None

    # -- labels --------------------------------------------------------------------------------------------------------

    def label(self, view: TensorView) -> Label | None:
        """Return the label of a view; a parameter gets its numbers when it is first seen."""
        key = key_of(view)
        if key in self.labels:
            return self.labels[key]
        label = self._first_label(view)
        self.labels[key] = label
        return label

    def known(self, view: TensorView) -> Label:
        """Return the label of a view, an open one as none."""
        return self.label(view) or ()

    def numbers(self, view: TensorView) -> dict[int, Ids]:
        """Return the numbers along each labelled axis of a view."""
        return by_axis(self.known(view))

    def set(self, view: TensorView, label: Label | None) -> None:
        """Give a view its label; that of the first view is its storage's."""
        self.labels[key_of(view)] = label
        if view.storage not in self.births:
            self.births[view.storage] = view, label
            return
        first, known = self.births[view.storage]
        if known is None and label:
            # What was allocated with open axes has got them: the axes that this view has in full.
            label = _spread(label, view.shape, first.shape)
            self.births[view.storage] = first, label
            self.labels[key_of(first)] = label
        elif label and not known:
            self.births[view.storage] = view, label

    def _first_label(self, view: TensorView) -> Label | None:
        owner = self.owners.get(view.storage)
        if view.storage in self.births:
            first, label = self.births[view.storage]
            if label is not None and label and first.shape != view.shape:
                self.missed += 1
                same = prod(first.shape) == prod(view.shape)
                return reshaped(label, first.shape, view.shape) if same else ()
            return label
        if owner is None:
            return ()
        ids = {
            axis: self.ties.new(owner.name, axis, size, owner.layer) for axis, size in enumerate(view.shape) if size > 1
        }
        label = from_axes(ids)
        self.births[view.storage] = (view, label)
        return label

    # -- ties ----------------------------------------------------------------------------------------------------------

    @property
    def place(self) -> str:
        """The layer of the op at hand, for messages."""
        return self.graph.layers[self._op.layer].path or "(model)" if self._op else "(model)"

    def tie(self, first: Ids | None, second: Ids | None, why: str = "is as long as an axis of fixed length") -> None:
        """Let numbers of the same length go together; what meets an axis without numbers is pinned."""
        if not self.binds or first is second:
            return
        if first is not None and second is not None:
            self.ties.tie(first, second)
        else:
            ids = second if first is None else first
            if ids is not None:
                self.pin(ids, f"{why}, in {self.place}")

    def pin(self, ids: Ids, reason: str) -> None:
        """Pin numbers, in the forward."""
        if self.binds:
            self.ties.pin(ids, reason)

    def pin_all(self, label: Label | None, reason: str) -> None:
        """Pin every number of a label, in the forward."""
        for _, ids in label or ():
            self.pin(ids, reason)

    def split_up(self, label: Label) -> Label:
        """Return a label whose new factors over several axes are tied: each slice keeps the same channels."""
        if self.binds:
            for _, ids in label:
                if ids.ndim > 1:
                    self.ties.tie_along(ids, longest_axis(ids))
        return label

    def join(self, views: Sequence[TensorView], shape: tuple[int, ...]) -> Label:
        """Return the label of what is computed element by element from ``views``, which broadcast to ``shape``."""
        labelled = [(view, self.label(view)) for view in views]
        alone = [(view, label) for view, label in labelled if label]
        if len(alone) == 1 and all(prod(view.shape) == 1 for view in views if view is not alone[0][0]):
            view, label = alone[0]
            return shifted(label, len(shape) - len(view.shape))
        if len(alone) > 1 and len(set(map(_identity, alone))) == 1 and len(alone) == len(views):
            return shifted(alone[0][1], len(shape) - len(alone[0][0].shape))
        found: dict[int, Ids] = {}
        axes = [(view, len(shape) - len(view.shape), by_axis(label or ()), label is None) for view, label in labelled]
        for axis, size in enumerate(shape):
            if size == 1:
                continue
            first: Ids | None = None
            fixed = False
            for view, ahead, numbers, is_open in axes:
                if axis < ahead or view.shape[axis - ahead] == 1 or is_open:
                    continue
                ids = numbers.get(axis - ahead)
                if ids is None:
                    fixed = True
                elif first is None:
                    first = ids
                else:
                    self.tie(first, ids)
            if first is not None:
                found[axis] = first
                if fixed:
                    self.tie(first, None)
        label = from_axes(found)
        for view, _, _, is_open in axes:
            if is_open and view.shape == shape and label:
                self.set(view, label)
        return label

    # -- the walk ------------------------------------------------------------------------------------------------------

    def run(self, forward: dict[str, Rule], later: dict[str, Rule]) -> None:
        """Label the views of all ops, each by the rule of its name."""
        outputs_pinned = False
        for op in self.graph.ops:
            self.binds, self._op = op.phase == "forward", op
            if op.phase != "forward" and not outputs_pinned:
                outputs_pinned = True
                self._pin_outputs()
            packet = packet_of(op.name)
            rule = forward.get(packet) or (None if self.binds else later.get(packet))
            labels = rule(self, op) if rule is not None else self._without_rule(op)
            if self.weights.issuperset(view.storage for view in op.inputs) and packet not in FACTORIES:
                self.weights.update(view.storage for view in op.outputs if view is not None)
            for view, label in zip(op.outputs, labels, strict=False):
                if view is not None:
                    self.set(view, label)
            for view in op.outputs[len(labels) :]:
                if view is not None:
                    self.set(view, ())

    def _pin_outputs(self) -> None:
        for storage in self.graph.outputs:
            view, label = self.births.get(storage, (None, None))
            if view is not None and storage not in self.owners:
                for _, ids in label or ():
                    self.ties.pin(ids, "the model's outputs")

    def _without_rule(self, op: Op) -> Sequence[Label | None]:
        views = list(op.inputs)
        if self.binds:
            for view in views:
                self.pin_all(self.label(view), f"an op without a rule: {op.name} in {self.place}")
            return [() for _ in op.outputs]
        return [self._like(views, output) for output in op.outputs]

    def _like(self, views: Sequence[TensorView], output: TensorView | None) -> Label:
        """Return the label of the first of ``views`` that has one and the shape of ``output``."""
        for view in views:
            if output is not None and view.shape == output.shape and (label := self.label(view)):
                return label
        return ()


#: Ops that allocate tensors of a shape in numbers.
FACTORIES = frozenset(
    {"empty", "zeros", "ones", "full", "new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "arange"}
    | {"empty_strided", "scalar_tensor", "rand", "randn", "randperm", "linspace", "eye"}
)


def each(names: str, rule: Rule) -> dict[str, Rule]:
    """Return a table that gives one rule to all of ``names``, which stand apart by spaces."""
    return dict.fromkeys(names.split(), rule)


def packet_of(name: str) -> str:
    """Return an op's name without its overload and, for ATen, its namespace."""
    parts = name.split(".")
    return parts[1] if parts[0] == "aten" else ".".join(parts[:2])


def _identity(pair: tuple[TensorView, Label]) -> tuple[object, ...]:
    view, label = pair
    return view.shape, tuple((factor.axes, id(factor.ids)) for factor in label)


def _spread(label: Label, part: tuple[int, ...], whole: tuple[int, ...]) -> Label:
    """Return the label of a tensor of which a view of shape ``part`` has this one."""
    if len(part) == len(whole):
        full = {axis for axis, size in enumerate(whole) if size == part[axis]}
        return tuple(factor for factor in label if full.issuperset(factor.axes))
    return reshaped(label, part, whole) if prod(part) == prod(whole) else ()


def factor_on(label: Label, axis: int) -> Factor | None:
    """Return the factor of a label that varies along an axis."""
    return next((factor for factor in label if axis in factor.axes), None)
