"""Strides and offsets of views when the axes of their storage become shorter."""

from __future__ import annotations

from math import prod
from typing import TypeAlias

from memplan.graph.records import TensorView

#: The first view of a storage, and its shape and strides with fewer channels.
Base: TypeAlias = "tuple[TensorView, tuple[int, ...], tuple[int, ...]]"


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return the elements from a view's first to its last, gaps included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def dense_strides(view: TensorView, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a storage's first view at its new ``shape``, in the same order of axes.

    A stride is the product of the sizes of the axes within it; where it is not, it stays as it was.
    """
    if shape == view.shape:
        return view.strides
    return tuple(_nested(view, shape, stride) or stride for stride in view.strides)


def _nested(view: TensorView, shape: tuple[int, ...], stride: int) -> int | None:
    """Return the new value of a stride that spans whole axes of a view, or None if it does not."""
    within = [
        axis
        for axis, (size, step) in enumerate(zip(view.shape, view.strides, strict=True))
        if 0 < step < stride != 0 and size != 1
    ]
    if prod(view.shape[axis] for axis in within) != stride:
        return None
    return prod(shape[axis] for axis in within)


def view_strides(view: TensorView, shape: tuple[int, ...], base: Base) -> tuple[int, ...]:
    """Return the strides of ``view`` at its new shape on a storage whose first view is ``base``."""
    first, _, new = base
    known = dict(zip(first.strides, new, strict=True))
    strides = []
    for stride in view.strides:
        inside = known.get(stride)
        if inside is None:
            inside = _nested(view, shape, stride)
        if inside is None:
            below = max((step for step in known if 0 < step <= stride and stride % step == 0), default=None)
            inside = stride if below is None else stride // below * known[below]
        strides.append(inside)
    return tuple(strides)


def view_offset(view: TensorView, base: Base) -> int:
    """Return the offset of ``view`` in the smaller storage: by whole steps along the axes of its first view."""
    first, shape, new = base
    left, offset = view.offset - first.offset, 0
    for step, fresh, old, size in sorted(zip(first.strides, new, first.shape, shape, strict=True), reverse=True):
        if step and left >= step and old > 1:
            place = left // step
            left -= place * step
            offset += place * size // old * fresh
    return first.offset + offset + left if view.offset else 0
