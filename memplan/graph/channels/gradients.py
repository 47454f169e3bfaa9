"""Rules of ops that only backward passes run, and of memplan's own, which run in both."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.graph.channels.labels import Label, from_axes, single
from memplan.graph.channels.moves import LATER_MOVES, first, kept
from memplan.graph.channels.walk import Rule, Walk, each
from memplan.graph.records import Op

Labels = Sequence["Label | None"]


def convolution_backward(walk: Walk, op: Op) -> Labels:
    """gradient, input, weight, ...: the gradients of input, weight and bias."""
    gradient, source, weight = list(op.inputs)[:3]
    channels = walk.numbers(gradient).get(1)
    matrix = walk.numbers(weight)
    made = matrix.get(1 if op.args[7] else 0)
    label = walk.label(source)
    if label is None:  # a stand-in for the input, of which the kernel reads the shape
        grouped = op.args[9] != 1 and not op.args[7]
        given = matrix.get(0 if grouped or op.args[7] else 1)
        label = single(1, given if given is not None and len(given) == source.shape[1] else None)
        walk.set(source, label)
    return [
        label,
        walk.label(weight),
        single(0, channels if channels is not None else made),
    ]


def batch_norm_backward(walk: Walk, op: Op) -> Labels:
    """gradient, input, ...: the gradients of input, scale and shift."""
    label = walk.label(list(op.inputs)[1])
    channels = single(0, walk.numbers(list(op.inputs)[1]).get(1))
    return [label, channels, channels]


def layer_norm_backward(walk: Walk, op: Op) -> Labels:
    """gradient, input, shape, ...: the gradients of input, scale and shift."""
    source, shape = list(op.inputs)[1], op.args[2]
    count = len(shape) if isinstance(shape, tuple) else 1
    ahead = len(source.shape) - count
    scale = from_axes({axis - ahead: ids for axis, ids in walk.numbers(source).items() if axis >= ahead})
    return [walk.label(source), scale, scale]


def like_second(walk: Walk, op: Op) -> Labels:
    """gradient, input, ...: the gradient of the input."""
    gradient, source = list(op.inputs)[:2]
    label = walk.label(source)
    if not label:
        inner = {axis: ids for axis, ids in walk.numbers(gradient).items() if axis < len(source.shape) - 2}
        label = from_axes(inner)
        if walk.label(source) is None:
            walk.set(source, label)
    return [label]


def resized_backward(walk: Walk, op: Op) -> Labels:
    """gradient, ...: the gradient of what was interpolated, which has the same channels."""
    rank = len(first(op).shape)
    return [tuple(factor for factor in walk.known(first(op)) if all(axis < min(2, rank) for axis in factor.axes))]


def attention_backward(walk: Walk, op: Op) -> Labels:
    """gradient, query, key, value, ...: the gradients of query, key and value."""
    return [walk.label(view) for view in list(op.inputs)[1:4]]


def embedding_backward(walk: Walk, op: Op) -> Labels:
    """gradient, indices, ...: the gradient of the rows."""
    gradient = first(op)
    return [single(1, walk.numbers(gradient).get(len(gradient.shape) - 1))]


def pack_mask(walk: Walk, op: Op) -> Labels:
    """tensor, ...: a bit for each of its elements."""
    output = op.outputs[0]
    if output is not None:
        walk.packed[output.storage] = first(op)
    return [()]


LATER: dict[str, Rule] = {
    **LATER_MOVES,
    "convolution_backward": convolution_backward,
    "native_batch_norm_backward": batch_norm_backward,
    "native_layer_norm_backward": layer_norm_backward,
    "native_group_norm_backward": batch_norm_backward,
    **each(
        """max_pool2d_with_indices_backward avg_pool2d_backward _adaptive_avg_pool2d_backward
        adaptive_max_pool2d_backward reflection_pad2d_backward replication_pad2d_backward""",
        like_second,
    ),
    **each(
        """upsample_nearest2d_backward upsample_bilinear2d_backward upsample_bicubic2d_backward
        _upsample_nearest_exact2d_backward _upsample_bilinear2d_aa_backward
        _upsample_bicubic2d_aa_backward""",
        resized_backward,
    ),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu_backward",
            "_scaled_dot_product_flash_attention_backward",
            "_scaled_dot_product_efficient_attention_backward",
        ),
        attention_backward,
    ),
    "embedding_dense_backward": embedding_backward,
}

MEMPLAN: dict[str, Rule] = {
    "memplan.pack_mask": pack_mask,
    "memplan.apply_mask": kept,
    "memplan.pack_window": kept,
    "memplan.unpack_window": kept,
}
