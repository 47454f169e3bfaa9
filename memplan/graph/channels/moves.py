"""Rules of ops that move elements about: views, copies, slices, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from memplan.graph.channels.labels import (
    FIXED,
    Ids,
    Label,
    from_axes,
    indexed,
    permuted,
    reshaped,
    shifted,
    single,
    with_axis,
    without_axes,
)
from memplan.graph.channels.walk import Rule, Walk, factor_on
from memplan.graph.records import Argument, Op, TensorView

Labels = Sequence["Label | None"]


def first(op: Op) -> TensorView:
    """Return the first tensor among an op's arguments."""
    return next(op.inputs)


def number(value: Argument, default: int = 0) -> int:
    """Return a literal int, or the default where there is none."""
    return value if isinstance(value, int) else default


def axes_of(value: Argument, rank: int) -> list[int]:
    """Return the axes that an argument names, counted from the front; all of them for none or an empty list."""
    named = [value] if isinstance(value, int) else [one for one in value or () if isinstance(one, int)]  # type: ignore[union-attr]
    return [axis % rank for axis in named] if named and rank else list(range(rank))


def kept(walk: Walk, op: Op) -> Labels:
    """Give every output the label of the first tensor: copies and other kernels that keep each element in place."""
    label = walk.label(first(op))
    return [label] * len(op.outputs)


def view(walk: Walk, op: Op) -> Labels:
    """Give the label of a view of another shape."""
    source, output = first(op), op.outputs[0]
    label = walk.label(source)
    if not label or output is None:
        return [label]
    moved = reshaped(label, source.shape, output.shape)
    before = {id(factor.ids) for factor in label}
    if any(factor.ids.ndim > 1 and id(factor.ids) not in before for factor in moved):
        walk.split_up(moved)
    return [moved]


def permute(walk: Walk, op: Op) -> Labels:
    """input, order: the same elements with the axes in another order."""
    source = first(op)
    label = walk.label(source)
    return [label and permuted(label, axes_of(op.args[1], len(source.shape)))]


def transpose(walk: Walk, op: Op) -> Labels:
    """input, axis, axis: two axes change places; the only two of a matrix without."""
    source = first(op)
    rank = len(source.shape)
    order = list(range(rank))
    if rank > 1:
        one, other = (0, 1) if len(op.args) < 3 else (number(op.args[1]) % rank, number(op.args[2]) % rank)
        order[one], order[other] = order[other], order[one]
    label = walk.label(source)
    return [label and permuted(label, order)]


def expand(walk: Walk, op: Op) -> Labels:
    """input, sizes: axes of one are repeated, and axes put in front."""
    source, output = first(op), op.outputs[0]
    label = walk.label(source)
    return [label and shifted(label, len(output.shape) - len(source.shape) if output else 0)]


def unsqueeze(walk: Walk, op: Op) -> Labels:
    """input, axis: an axis of one is put in."""
    source = first(op)
    label = walk.label(source)
    return [label and with_axis(label, number(op.args[1]) % (len(source.shape) + 1))]


def squeeze(walk: Walk, op: Op) -> Labels:
    """input, axes: axes of one are left out."""
    source, output = first(op), op.outputs[0]
    label = walk.label(source)
    return [label and reshaped(label, source.shape, output.shape if output else ())]


def select(walk: Walk, op: Op) -> Labels:
    """input, axis, index: one index along an axis."""
    source = first(op)
    return [_selected(walk, source, number(op.args[1]) % len(source.shape), number(op.args[2]))]


def unbind(walk: Walk, op: Op) -> Labels:
    """input, axis: every index along an axis."""
    source = first(op)
    axis = number(op.args[1]) % len(source.shape)
    return [_selected(walk, source, axis, index) for index in range(len(op.outputs))]


def _selected(walk: Walk, source: TensorView, axis: int, index: int) -> Label | None:
    label = walk.label(source)
    factor = factor_on(label or (), axis)
    if factor is not None and len(factor.axes) == 1 and source.shape[axis] > 1:
        walk.pin(factor.ids, f"one of them is picked by its number, in {walk.place}")
    return label and without_axes(indexed(label, axis, slice(index, None) if index >= 0 else [index]), [axis])


def slice_(walk: Walk, op: Op) -> Labels:
    """input, axis, start, end, step: a stretch along an axis."""
    source = first(op)
    axis, start, end, step = (
        number(value, default) for value, default in zip(op.args[1:5], (0, 0, _END, 1), strict=True)
    )
    axis %= len(source.shape)
    size = source.shape[axis]
    span = slice(*slice(start, end, step).indices(size))
    label = walk.label(source)
    factor = factor_on(label or (), axis)
    if factor is None or (span.start == 0 and span.stop >= size and span.step == 1):
        return [label]
    walk.pin(factor.ids, f"a slice of fixed length is taken of them, in {walk.place}")
    return [indexed(label or (), axis, span)]


_END = (1 << 63) - 1


def split(walk: Walk, op: Op) -> Labels:
    """input, size or sizes, axis: sizes are as the model's code says, unless equal parts go together all the same.

    A gated unit splits its channels by ``chunk``, which fits any length; it is recorded as a split by numbers.
    """
    source = first(op)
    axis = number(op.args[2]) % len(source.shape)
    label = walk.label(source)
    if factor_on(label or (), axis) is None:
        return [label] * len(op.outputs)
    pieces: list[Label] = []
    begin = 0
    for output in op.outputs:
        length = output.shape[axis] if output else 0
        pieces.append(indexed(label or (), axis, slice(begin, begin + length)))
        begin += length
    numbers = [factor.ids for piece in pieces if (factor := factor_on(piece, axis)) is not None]
    if walk.binds and len(pieces) > 1:
        reason = f"they are split into parts of fixed lengths, in {walk.place}"
        if isinstance(op.args[1], tuple) or len(numbers) < len(pieces):
            walk.pin_all(label, reason)
        else:
            walk.parts.append((numbers, reason))
    return pieces


def cat(walk: Walk, op: Op) -> Labels:
    """tensors, axis: one after the other along an axis, as long as each other along all others."""
    output = op.outputs[0]
    parts = [part for part in op.inputs if output and len(part.shape) == len(output.shape)]
    return [_joined(walk, parts, number(op.args[1])) if parts else ()]


def _joined(walk: Walk, parts: Sequence[TensorView], axis: int) -> Label:
    rank = len(parts[0].shape)
    axis %= rank
    numbers = [walk.numbers(part) for part in parts]
    found: dict[int, Ids] = {}
    for other in range(rank):
        ids = [one.get(other) for one in numbers]
        if all(one is None for one in ids):
            continue
        if other == axis:
            pieces = [
                np.full(part.shape[axis], FIXED, np.int64) if one is None else one
                for one, part in zip(ids, parts, strict=True)
            ]
            found[axis] = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
            continue
        known = next(one for one in ids if one is not None)
        for one, part in zip(ids, parts, strict=True):
            if walk.label(part) is not None:
                walk.tie(known, one)
        found[other] = known
    return from_axes(found)


def stack(walk: Walk, op: Op) -> Labels:
    """tensors, axis: one after the other along a new axis."""
    output = op.outputs[0]
    parts = list(op.inputs)
    if output is None or not parts:
        return [()]
    at = number(op.args[1]) % len(output.shape)
    return [with_axis(walk.join(parts, parts[0].shape), at)]


def repeat(walk: Walk, op: Op) -> Labels:
    """input, times: whole axes over and over."""
    source, output = first(op), op.outputs[0]
    if output is None:
        return [()]
    ahead = len(output.shape) - len(source.shape)
    found = {}
    for axis, ids in walk.numbers(source).items():
        times = output.shape[axis + ahead] // max(source.shape[axis], 1)
        found[axis + ahead] = ids if times == 1 else np.tile(ids, times)
    return [from_axes(found)]


def roll(walk: Walk, op: Op) -> Labels:
    """input, shifts, axes: elements go round along axes."""
    source = first(op)
    label = walk.label(source)
    for axis in axes_of(op.args[2], len(source.shape)):
        if (factor := factor_on(label or (), axis)) is not None:
            walk.pin(factor.ids, f"they are rolled, in {walk.place}")
    return [label]


def pad(walk: Walk, op: Op) -> Labels:
    """input, pads, ...: elements put in before and after, from the last axis on."""
    source = first(op)
    rank, pads = len(source.shape), op.args[1] if isinstance(op.args[1], tuple) else ()
    label = walk.label(source) or ()
    for place in range(0, len(pads), 2):
        axis = rank - 1 - place // 2
        before, after = number(pads[place]), number(pads[place + 1])
        if (before or after) and (factor := factor_on(label, axis)) is not None:
            walk.pin(factor.ids, f"they are padded to a fixed length, in {walk.place}")
            numbers = walk.numbers(source)[axis]
            if before >= 0 and after >= 0:
                numbers = np.pad(numbers, (before, after), constant_values=FIXED)
            else:
                numbers = np.full(len(numbers) + before + after, FIXED, np.int64)
            rest = tuple(factor for factor in label if axis not in factor.axes)
            label = (*rest, *single(axis, numbers))
    return [label]


def index(walk: Walk, op: Op) -> Labels:
    """Give the label of elements picked along some axes; the other axes keep theirs."""
    source, output = first(op), op.outputs[0]
    places = op.args[1] if isinstance(op.args[1], tuple) else (op.args[1],)
    picked = [axis for axis, value in enumerate(places) if isinstance(value, TensorView)]
    label = walk.label(source)
    if not label or output is None or not picked:
        return [()]
    if any(isinstance(value, TensorView) and value.dtype == "bool" for value in places):
        walk.pin_all(label, f"an op without a rule: {op.name} in {walk.place}")
        return [()]
    for axis in picked:
        if (factor := factor_on(label, axis)) is not None:
            walk.pin(factor.ids, f"they are picked by their number, in {walk.place}")
    together = picked == list(range(picked[0], picked[-1] + 1))
    made = len(output.shape) - len(source.shape) + len(picked)
    begin = picked[0] if together else 0
    rest = [axis for axis in range(len(source.shape)) if axis not in picked]
    order = [*rest[:begin], *[-1] * made, *rest[begin:]]
    numbers = walk.numbers(source)
    return [from_axes({new: numbers[old] for new, old in enumerate(order) if old in numbers})]


def index_select(walk: Walk, op: Op) -> Labels:
    """input, axis, indices: elements picked along an axis."""
    source = first(op)
    axis = number(op.args[1]) % len(source.shape)
    label = walk.label(source)
    if (factor := factor_on(label or (), axis)) is not None:
        walk.pin(factor.ids, f"they are picked by their number, in {walk.place}")
    return [tuple(factor for factor in label or () if axis not in factor.axes)]


def as_strided(walk: Walk, op: Op) -> Labels:
    """input, sizes, strides, ...: another view of the storage."""
    source, output = first(op), op.outputs[0]
    label = walk.label(source)
    if not label or output is None or output.shape == source.shape:
        return [label]
    if prod(output.shape) == prod(source.shape):
        return [_in_memory_order(label, source, output)]
    walk.pin_all(label, f"an op without a rule: {op.name} in {walk.place}")
    return [()]


def _in_memory_order(label: Label, source: TensorView, output: TensorView) -> Label:
    """Return the label of another view of the same elements, which both lie in memory without gaps."""
    before, after = (
        sorted(range(len(view.shape)), key=lambda axis, view=view: (-view.strides[axis], axis))  # type: ignore[misc]
        for view in (source, output)
    )
    inner = reshaped(
        permuted(label, before),
        tuple(source.shape[axis] for axis in before),
        tuple(output.shape[axis] for axis in after),
    )
    return permuted(inner, sorted(range(len(after)), key=after.__getitem__))


def select_backward(walk: Walk, op: Op) -> Labels:
    """gradient, sizes, axis, index: the gradient put into zeros."""
    output = op.outputs[0]
    rank = len(output.shape) if output else 1
    return [with_axis(walk.known(first(op)), number(op.args[2]) % rank)]


def slice_backward(walk: Walk, op: Op) -> Labels:
    """gradient, sizes, axis, start, end, step: the gradient put into zeros."""
    source = first(op)
    output = op.outputs[0]
    axis = number(op.args[2]) % len(source.shape)
    label = walk.known(source)
    if output is not None and output.shape == source.shape:
        return [label]
    return [tuple(factor for factor in label if axis not in factor.axes)]


MOVES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "reshape", "unflatten", "flatten"), view),
    **dict.fromkeys(
        ("alias", "clone", "contiguous", "detach", "_to_copy", "to", "lift_fresh", "lift", "positive", "flip"), kept
    ),
    "permute": permute,
    "transpose": transpose,
    "t": transpose,
    "expand": expand,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "select": select,
    "unbind": unbind,
    "slice": slice_,
    "split": split,
    "split_with_sizes": split,
    "cat": cat,
    "stack": stack,
    "repeat": repeat,
    "roll": roll,
    "constant_pad_nd": pad,
    "reflection_pad2d": pad,
    "replication_pad2d": pad,
    "index": index,
    "index_select": index_select,
    "as_strided": as_strided,
    "as_strided_": as_strided,
}

LATER_MOVES: dict[str, Rule] = {"select_backward": select_backward, "slice_backward": slice_backward}
