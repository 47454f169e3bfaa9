"""Rules of ops that compute: element by element, reductions, norms, pooling, products, convolutions, attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memplan.graph.channels.labels import Ids, Label, from_axes, single, without_axes
from memplan.graph.channels.moves import axes_of, first, kept, number
from memplan.graph.channels.walk import FACTORIES, Rule, Walk, each
from memplan.graph.records import Op, TensorView

Labels = Sequence["Label | None"]

HEADS = "attention's heads are as many and as wide as the model's code says"


def pointwise(walk: Walk, op: Op) -> Labels:
    """Join the tensors: what is computed together has to stay as long as each other."""
    output = op.outputs[0]
    views = list(op.inputs)
    if output is None or not views:
        return [()]
    label = walk.join(views, output.shape)
    if not label and len(views) == 1:
        label = walk.label(views[0]) or ()
    return [label] * len(op.outputs)


def copy_(walk: Walk, op: Op) -> Labels:
    """target, source: the target keeps its label; an open one takes the source's."""
    target, source = list(op.inputs)[:2]
    label = walk.join([target, source], target.shape)
    return [walk.label(target) or label]


def factory(walk: Walk, op: Op) -> Labels:
    """Give a tensor whose shape is stated in numbers: fixed in the forward if it is filled, else open."""
    return [() if walk.binds and "empty" not in op.name else None] * len(op.outputs)


def reduction(walk: Walk, op: Op) -> Labels:
    """input, axes, keepdim: sums and their like; an output has no label on what is summed up."""
    source = first(op)
    label = walk.label(source) or ()
    labels: list[Label] = []
    for output in op.outputs:
        if output is None:
            labels.append(())
            continue
        axes = op.args[_REDUCED_BY.get(op.name, 1)] if len(op.args) > 1 else None
        named = axes if isinstance(axes, (int, tuple)) and not isinstance(axes, bool) else None
        keep = len(output.shape) == len(source.shape)
        labels.append(without_axes(label, axes_of(named, len(source.shape)), keep))
    return labels


_REDUCED_BY = {"aten.linalg_vector_norm.default": 2, "aten.norm.ScalarOpt_dim": 2}


def over_space(axes: int) -> Rule:
    """Return the rule of kernels that work on the last ``axes`` axes and on each channel alone."""

    def rule(walk: Walk, op: Op) -> Labels:
        source = first(op)
        rank = len(source.shape)
        label = walk.label(source) or ()
        inner = frozenset(range(rank - axes, rank))
        for factor in label:
            if not inner.isdisjoint(factor.axes):
                walk.pin(factor.ids, f"they lie along an axis that {op.name} works along, in {walk.place}")
        return [tuple(factor for factor in label if inner.isdisjoint(factor.axes))] * len(op.outputs)

    return rule


def batch_norm(walk: Walk, op: Op) -> Labels:
    """input, weight, bias, mean, variance, ...: all have the input's channels."""
    source = first(op)
    channels = walk.numbers(source).get(1)
    for value in op.args[1:5]:
        if isinstance(value, TensorView) and len(value.shape) == 1:
            ids = walk.numbers(value).get(0)
            if walk.label(value) is not None:
                walk.tie(channels, ids)
            channels = channels if channels is not None else ids
    label = walk.label(source)
    vectors: list[Label] = [single(0, channels) if view and view.shape != (0,) else () for view in op.outputs[1:]]
    return [label or single(1, channels), *vectors]


def layer_norm(walk: Walk, op: Op) -> Labels:
    """input, shape, weight, bias, eps: weight and bias have the last axes of the input."""
    source, shape = first(op), op.args[1]
    count = len(shape) if isinstance(shape, tuple) else 1
    views = [value for value in (source, op.args[2], op.args[3]) if isinstance(value, TensorView)]
    rank = len(source.shape)
    return [walk.join(views, source.shape), *_statistics(walk, op, range(rank - count, rank))]


def _statistics(walk: Walk, op: Op, gone: Sequence[int]) -> list[Label]:
    label = walk.known(first(op))
    return [without_axes(label, gone, keep=True) for _ in op.outputs[1:]]


def group_norm(walk: Walk, op: Op) -> Labels:
    """input, weight, bias, samples, channels, positions, groups, eps: each group loses the same channels."""
    source = first(op)
    channels, groups = walk.numbers(source).get(1), number(op.args[6], 1)
    for value in op.args[1:3]:
        if isinstance(value, TensorView):
            ids = walk.numbers(value).get(0)
            walk.tie(channels, ids)
            channels = channels if channels is not None else ids
    if channels is not None and 1 < groups < len(channels) and walk.binds:
        walk.ties.tie_along(channels.reshape(groups, -1), 1)
    return [walk.label(source) or single(1, channels), *[() for _ in op.outputs[1:]]]


def convolution(walk: Walk, op: Op) -> Labels:
    """input, weight, bias, stride, padding, dilation, transposed, output_padding, groups."""
    source, weight = op.args[0], op.args[1]
    if not isinstance(source, TensorView) or not isinstance(weight, TensorView):
        return [()]
    transposed, groups = bool(op.args[6]), number(op.args[8], 1)
    given, matrix = walk.numbers(source), walk.numbers(weight)
    for axis, ids in given.items():
        if axis > 1:
            walk.pin(ids, f"they lie along an axis that {op.name} works along, in {walk.place}")
    made = _made_by(walk, given.get(1), matrix, weight, groups, transposed, source.shape[1])
    if isinstance(op.args[2], TensorView):
        bias = walk.numbers(op.args[2]).get(0)
        walk.tie(made, bias)
    if made is not None and walk.binds and weight.storage in walk.weights:
        walk.makers.append((op, made))
    batch = {0: given[0]} if 0 in given else {}
    return [from_axes({**batch, **({1: made} if made is not None else {})})]


def _made_by(
    walk: Walk,
    given: Ids | None,
    matrix: dict[int, Ids],
    weight: TensorView,
    groups: int,
    transposed: bool,
    channels: int,
) -> Ids | None:
    """Tie a convolution's input to its weight, and return the numbers of its result's channels."""
    if groups == 1:
        inputs, outputs = (0, 1) if transposed else (1, 0)
        if weight.shape[inputs] > 1 or given is not None:
            walk.tie(given, matrix.get(inputs))
        return matrix.get(outputs)
    first_axis, per_group = matrix.get(0), weight.shape[1]
    if transposed:
        if per_group == 1 and groups == channels:
            walk.tie(given, first_axis)
            return given if given is not None else first_axis
        walk.tie(given, first_axis)
        for ids in (given, first_axis):
            _tie_groups(walk, ids, groups)
        second = matrix.get(1)
        return None if second is None else np.tile(second, groups)
    if per_group == 1:
        each = weight.shape[0] // groups
        walk.tie(given if given is None or each == 1 else np.repeat(given, each), first_axis)
        return first_axis
    _tie_groups(walk, given, groups)
    second = matrix.get(1)
    walk.tie(None if given is None else given.reshape(groups, -1)[0], second)
    _tie_groups(walk, first_axis, groups)
    return first_axis


def _tie_groups(walk: Walk, ids: Ids | None, groups: int) -> None:
    if ids is not None and walk.binds and len(ids) > groups:
        walk.ties.tie_along(ids.reshape(groups, -1), 1)


def product(walk: Walk, op: Op) -> Labels:
    """[added,] left, right, ...: products of matrices, of batches of them, and of a matrix and a vector."""
    views = list(op.inputs)
    added = views[0] if op.name.startswith(("aten.addmm", "aten.baddbmm")) else None
    left, right = views[-2], views[-1]
    output = op.outputs[0]
    if output is None:
        return [()]
    one, other = walk.numbers(left), walk.numbers(right)
    inner = len(left.shape) - 1
    if left.storage not in walk.weights and right.storage not in walk.weights and walk.binds:
        _pin_heads(walk, left, right)
    if walk.label(left) is not None and walk.label(right) is not None:
        walk.tie(one.get(inner), other.get(max(0, len(right.shape) - 2)))
    found: dict[int, Ids] = {}
    if inner == 2:
        batch = one.get(0) if 0 in one else other.get(0)
        if batch is not None:
            walk.tie(one.get(0), other.get(0))
            found[0] = batch
    if inner - 1 in one:
        found[inner - 1] = one[inner - 1]
    if len(right.shape) > 1 and inner in other:
        found[inner] = other[inner]
    weight, made = (right, found.get(inner)) if right.storage in walk.weights else (left, found.get(inner - 1))
    if made is not None and walk.binds and weight.storage in walk.weights:
        walk.makers.append((op, made))
        _pin_stated(walk, op, made, one.get(inner))
    label = from_axes(found)
    if added is not None:
        _tie_added(walk, added, output, label)
    return [label]


#: Layers whose code states how wide their result is (and their input, where True), beside their weights.
STATED = {"MultiheadAttention": True, "Conv1D": False}


def _pin_stated(walk: Walk, op: Op, made: Ids, given: Ids | None) -> None:
    kind = walk.graph.layers[op.layer].type
    if kind not in STATED:
        return
    for ids in (made, given) if STATED[kind] else (made,):
        if ids is not None:
            walk.pin(ids, f"the code of {walk.place} ({kind}) states its width")


def _tie_added(walk: Walk, added: TensorView, output: TensorView, label: Label) -> None:
    ahead = len(output.shape) - len(added.shape)
    made = {axes[0]: ids for axes, ids in label}
    for axis, ids in walk.numbers(added).items():
        if added.shape[axis] > 1:
            walk.tie(ids, made.get(axis + ahead))


def _pin_heads(walk: Walk, left: TensorView, right: TensorView) -> None:
    """Pin what a product of two activations shares if it was split into heads: their number or width is stated."""
    for view in (left, right):
        for factor in walk.label(view) or ():
            if factor.ids.ndim > 1:
                _pin_split(walk, factor.ids)


def _pin_split(walk: Walk, ids: Ids) -> None:
    reason = f"{HEADS}, in {walk.place}"
    walk.pin(ids, reason)
    walk.split.append((ids, reason))


def attention(walk: Walk, op: Op) -> Labels:
    """query, key, value, ...: scaled dot-product attention, its result and the logarithms of its sums."""
    query, key, value = list(op.inputs)[:3]
    for view in (query, key, value):
        for factor in walk.label(view) or ():
            if factor.axes != (2,):
                _pin_split(walk, factor.ids)
    q, k, v = (walk.numbers(view) for view in (query, key, value))
    result = {axis: ids for axis, ids in q.items() if axis < 3}
    if 3 in v:
        result[3] = v[3]
    walk.tie(q.get(3), k.get(3))
    sums = from_axes({axis: ids for axis, ids in q.items() if axis < 3})
    return [from_axes(result), sums, *[() for _ in op.outputs[2:]]]


def embedding(walk: Walk, op: Op) -> Labels:
    """weight, indices, ...: a row of the weight for each index."""
    weight, output = first(op), op.outputs[0]
    ids = walk.numbers(weight).get(1)
    if ids is None or output is None:
        return [()]
    if walk.binds:
        walk.makers.append((op, ids))
    return [single(len(output.shape) - 1, ids)]


def unfold_windows(walk: Walk, op: Op) -> Labels:
    """im2col: each channel of the input becomes as many as a window has elements."""
    source, output = first(op), op.outputs[0]
    numbers = walk.numbers(source)
    if output is None or len(source.shape) != 4 or not numbers:
        return [()]
    for axis in (2, 3):
        if axis in numbers:
            walk.pin(numbers[axis], f"they lie along an axis that {op.name} works along, in {walk.place}")
    return [single(1, np.repeat(numbers[1], output.shape[1] // source.shape[1]) if 1 in numbers else None)]


def fold_windows(walk: Walk, op: Op) -> Labels:
    """col2im: the elements of a window become one channel again."""
    source, output = first(op), op.outputs[0]
    numbers = walk.numbers(source)
    if output is None or 1 not in numbers:
        return [()]
    windows = numbers[1].reshape(output.shape[1], -1)
    if walk.binds:
        walk.ties.tie_along(windows, 0)
    return [single(1, windows[:, 0])]


COMPUTED: dict[str, Rule] = {
    **each(
        """add add_ sub sub_ mul mul_ div div_ pow pow_ where maximum minimum fmax fmin atan2 lerp lerp_ addcmul
        addcmul_ addcdiv remainder fmod eq ne lt le gt ge logical_and logical_or logical_xor
        bitwise_and bitwise_or bitwise_xor
        masked_fill masked_fill_ _prelu_kernel rsub floor_divide clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_
        heaviside mse_loss smooth_l1_loss huber_loss binary_cross_entropy_with_logits binary_cross_entropy
        threshold_backward hardtanh_backward hardswish_backward hardsigmoid_backward sigmoid_backward tanh_backward
        gelu_backward silu_backward elu_backward leaky_relu_backward softplus_backward mish_backward
        _softmax_backward_data _log_softmax_backward_data native_dropout_backward copysign""",
        pointwise,
    ),
    **each(
        """relu relu_ relu6 hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ sigmoid sigmoid_ tanh tanh_
        gelu gelu_ silu silu_ mish mish_ elu elu_ leaky_relu leaky_relu_ softplus exp exp_ log log1p sqrt rsqrt neg neg_
        abs sin cos erf floor ceil round reciprocal sign square logical_not bitwise_not isnan isinf log_sigmoid_forward
        _softmax _log_softmax _safe_softmax cumsum native_dropout bernoulli bernoulli_ uniform_ normal_ exponential_
        fill fill_ zero_ empty_like ones_like zeros_like full_like rand_like randn_like tril triu sort
        nan_to_num expm1 threshold softshrink hardshrink celu log2 sinh cosh asin acos trunc erfinv""",
        kept,
    ),
    **each(
        """mean sum amax amin var_mean var std max min argmax argmin prod any all logsumexp
        linalg_vector_norm norm""",
        reduction,
    ),
    **each(
        """max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d
        upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        grid_sampler_2d reflection_pad2d replication_pad2d""",
        over_space(2),
    ),
    **each(
        """max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d upsample_nearest3d
        upsample_trilinear3d""",
        over_space(3),
    ),
    **each("""upsample_linear1d upsample_nearest1d reflection_pad1d replication_pad1d""", over_space(1)),
    **dict.fromkeys(FACTORIES, factory),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "dot"), product),
    "copy_": copy_,
    "native_batch_norm": batch_norm,
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "convolution": convolution,
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_scaled_dot_product_flash_attention": attention,
    "_scaled_dot_product_efficient_attention": attention,
    "embedding": embedding,
    "im2col": unfold_windows,
    "col2im": fold_windows,
}
