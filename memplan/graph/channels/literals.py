# ruff: noqa: ARG001 - all rules share one signature
"""Numbers among an op's arguments that state sizes: groups, normalised shapes, sizes of views, strides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from memplan.graph.records import Argument, Op, TensorView

Args = tuple[Argument, ...]
Outputs = tuple[TensorView | None, ...]

#: From a view before, one of its axes and an index along it to the index with fewer channels.
Moved: TypeAlias = Callable[[TensorView, int, int], int]


def literals(packet: str, old: Op, args: Args, outputs: Outputs, moved: Moved) -> Args:
    """Return an op's arguments, in which the tensors are resized, with the numbers that go with them."""
    if packet == "slice":
        return _slice(old, args, moved)
    special = {
        "convolution": _convolution,
        "convolution_backward": _convolution_backward,
        "native_layer_norm": _layer_norm,
        "native_layer_norm_backward": _layer_norm_backward,
        "native_group_norm": _group_norm,
        "native_group_norm_backward": _group_norm_backward,
        "split": _split,
        "split_with_sizes": _split,
        "memplan.apply_mask": _apply_mask,
        "as_strided": _strided,
        "as_strided_": _strided,
        "new_empty_strided": _strided,
        "empty_strided": _strided,
    }.get(packet)
    if special is not None:
        return special(old, args, outputs)
    before, after = old.outputs[0] if old.outputs else None, outputs[0] if outputs else None
    if before is None or after is None or before.shape == after.shape:
        return args
    return tuple(_shape(value, before, after) for value in args)


def _shape(value: Argument, before: TensorView, after: TensorView) -> Argument:
    """Return a literal shape that is the result's as the result's new one; a size of -1 says nothing."""
    if not isinstance(value, tuple) or len(value) != len(before.shape) or not value:
        return value
    if any(isinstance(item, bool) or not isinstance(item, int) for item in value):
        return value
    if all(item in (-1, size) for item, size in zip(value, before.shape, strict=True)):
        return tuple(-1 if item == -1 else size for item, size in zip(value, after.shape, strict=True))
    return value


def _with(args: Args, changes: dict[int, Argument]) -> Args:
    return tuple(changes.get(place, value) for place, value in enumerate(args))


def _groups(source: Argument, weight: Argument, transposed: Argument, groups: Argument, old_channels: int) -> Argument:
    if groups == 1 or not isinstance(source, TensorView) or not isinstance(weight, TensorView):
        return groups
    if not transposed:
        return source.shape[1] // max(1, weight.shape[1])
    return weight.shape[0] if groups == old_channels else groups


def _convolution(old: Op, args: Args, outputs: Outputs) -> Args:
    channels = _size(old.args[1], 0)
    return _with(args, {8: _groups(args[0], args[1], args[6], args[8], channels)})


def _convolution_backward(old: Op, args: Args, outputs: Outputs) -> Args:
    groups = _groups(args[1], args[2], args[7], args[9], _size(old.args[2], 0))
    sizes = args[3]
    if isinstance(sizes, tuple) and len(sizes) == 1 and sizes[0] == _size(old.args[0], 1):
        sizes = (_size(args[0], 1),)
    return _with(args, {3: sizes, 9: groups})


def _size(view: Argument, axis: int) -> int:
    return view.shape[axis] if isinstance(view, TensorView) else 0


def _last(view: Argument, count: int) -> Argument:
    return view.shape[len(view.shape) - count :] if isinstance(view, TensorView) else None


def _layer_norm(old: Op, args: Args, outputs: Outputs) -> Args:
    return _with(args, {1: _last(args[0], len(args[1]))}) if isinstance(args[1], tuple) else args


def _layer_norm_backward(old: Op, args: Args, outputs: Outputs) -> Args:
    return _with(args, {2: _last(args[1], len(args[2]))}) if isinstance(args[2], tuple) else args


def _group_norm(old: Op, args: Args, outputs: Outputs) -> Args:
    channels = _size(args[0], 1)
    return _with(args, {4: channels, 6: channels if args[6] == _size(old.args[0], 1) else args[6]})


def _group_norm_backward(old: Op, args: Args, outputs: Outputs) -> Args:
    channels = _size(args[1], 1)
    return _with(args, {6: channels, 8: channels if args[8] == _size(old.args[1], 1) else args[8]})


def _split(old: Op, args: Args, outputs: Outputs) -> Args:
    rank = len(args[0].shape) if isinstance(args[0], TensorView) else 1
    axis = args[2] % rank if isinstance(args[2], int) else 0
    sizes = tuple(view.shape[axis] for view in outputs if view is not None)
    return _with(args, {1: sizes if isinstance(args[1], tuple) else sizes[0]})


def _slice(old: Op, args: Args, moved: Moved) -> Args:
    before, start, end = old.args[0], args[2], args[3]
    if not isinstance(before, TensorView) or not isinstance(args[1], int):
        return args
    axis = args[1] % len(before.shape)
    places = {2: start, 3: end}
    return _with(
        args,
        {
            place: moved(before, axis, value)
            for place, value in places.items()
            if isinstance(value, int) and 0 < value <= before.shape[axis]
        },
    )


def _strided(old: Op, args: Args, outputs: Outputs) -> Args:
    output = outputs[0]
    first = next(place for place, value in enumerate(args) if isinstance(value, tuple))
    return args if output is None else _with(args, {first: output.shape, first + 1: output.strides})


def _apply_mask(old: Op, args: Args, outputs: Outputs) -> Args:
    return args if outputs[0] is None else _with(args, {2: outputs[0].strides})
