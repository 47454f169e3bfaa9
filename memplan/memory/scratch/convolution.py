"""Scratch of convolutions: reorders into the layouts that oneDNN wants, its scratchpads, and unrolled columns.

Source: PyTorch aten/src/ATen/native/mkldnn/Conv.cpp (what is converted, when it is released) and ideep
include/ideep/operators/conv.hpp and deconv.hpp (source, weights, destination and scratchpad live together while the
kernel runs).
"""

from __future__ import annotations

from dataclasses import replace

from memplan.graph.records import Argument, Machine, TensorView
from memplan.memory.scratch import columns, primitive_backward, primitive_channels_last, primitive_forward
from memplan.memory.scratch.geometry import (
    Convolution,
    convolution_of,
    copy_bytes,
    fresh_bytes,
    integers,
    suggests_channels_last,
    tensor,
    tensor_bytes,
)
from memplan.memory.scratch.primitive import Layout, Primitive, booked


def convolution(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """aten.convolution: input, weight, bias, stride, padding, dilation, transposed, output_padding, groups."""
    source, weight = tensor(args, 0), tensor(args, 1)
    if source is None or weight is None or outputs[0] is None:
        return 0
    transposed, groups = bool(args[6]), integers(args[8])[0]
    if not columns.uses_onednn(source, weight, args[3], args[5], groups, machine):
        return columns.forward(source, weight, outputs[0], args)
    channels_last = suggests_channels_last(source) or suggests_channels_last(weight)
    copies = copy_bytes(source, channels_last) + copy_bytes(weight, channels_last)
    bias = args[2] is not None
    if transposed:
        conv = convolution_of(outputs[0], weight, args[3:6], groups, machine)
        plan = _transposed(conv, _input_gradient(conv, channels_last), bias)
    else:
        conv = convolution_of(source, weight, args[3:6], groups, machine)
        plan = (
            primitive_channels_last.forward_primitive(conv)
            if channels_last
            else primitive_forward.forward_primitive(conv, bias)
        )
    if channels_last:
        return copies + plan.scratchpad + plan.weights
    running = plan.scratchpad + _reordered(plan.source_layout, plan.source) + plan.destination
    running += _reordered(plan.weights_layout, plan.weights)
    leaving = _to_dense(plan.destination_layout, plan.destination, tensor_bytes(outputs[0]))
    return copies + max(running, leaving) - fresh_bytes(args, outputs)


def convolution_backward(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """aten.convolution_backward: grad_output, input, weight, bias_sizes, then as forward, then output_mask."""
    gradient, source, weight = tensor(args, 0), tensor(args, 1), tensor(args, 2)
    if gradient is None or source is None or weight is None or not isinstance(args[10], tuple):
        return 0
    transposed, groups = bool(args[7]), integers(args[9])[0]
    wanted = [bool(flag) for flag in args[10]]
    if not columns.uses_onednn(source, weight, args[4], args[6], groups, machine):
        return columns.backward(gradient, source, weight, args, outputs) if wanted[0] or wanted[1] else 0
    channels_last = suggests_channels_last(source) or suggests_channels_last(weight)
    copies = sum(copy_bytes(view, channels_last) for view in (gradient, source, weight))
    whole = gradient if transposed else source
    conv = convolution_of(whole, weight, args[4:7], groups, machine)
    peak = held = 0
    if wanted[0]:
        held = tensor_bytes(source)
        if transposed:
            peak = _forward_peak(_nested(_forward(conv, channels_last)), channels_last, held)
        else:
            peak = _input_gradient_peak(_input_gradient(conv, channels_last), channels_last, held)
    if wanted[1] or wanted[2]:
        bias = 4 * _bias_elements(weight, groups, transposed) if wanted[2] else 0
        fused = wanted[2] and not transposed
        plan = (
            primitive_channels_last.weight_gradient_primitive(conv, fused)
            if channels_last
            else primitive_backward.weight_gradient_primitive(conv, fused)
        )
        plan = _nested(plan) if transposed else plan
        peak = max(peak, held + _weight_gradient_peak(plan, channels_last, tensor_bytes(weight), bias))
    return copies + peak - fresh_bytes(args, outputs)


def _bias_elements(weight: TensorView, groups: int, transposed: bool) -> int:
    """Elements of the bias gradient."""
    return weight.shape[1] * groups if transposed else weight.shape[0]


def _forward(conv: Convolution, channels_last: bool) -> Primitive:
    if channels_last:
        return primitive_channels_last.forward_primitive(conv)
    return primitive_forward.forward_primitive(conv, bias=False)


def _input_gradient(conv: Convolution, channels_last: bool) -> Primitive:
    if channels_last:
        return primitive_channels_last.input_gradient_primitive(conv)
    return primitive_backward.input_gradient_primitive(conv)


def _transposed(conv: Convolution, plan: Primitive, bias: bool) -> Primitive:
    """A transposed convolution runs the input gradient's kernel; a bias is added in a copy of the result.

    Source: oneDNN src/cpu/ref_deconvolution.hpp, ``init_convolution``. Only brgconv_strided adds the bias itself, and
    not where a stride leaves a rest.
    """
    uneven = any(size % step for size, step in zip(conv.source, conv.stride, strict=True))
    added = bias and (uneven or not conv.strided or plan.source_layout != "channels_last")
    return Primitive(
        plan.destination_layout,
        plan.destination,
        plan.source_layout,
        plan.source,
        plan.weights_layout,
        plan.weights,
        booked(plan.scratchpad) + (booked(plan.source) if added else 0),
    )


def _nested(plan: Primitive) -> Primitive:
    """A primitive that another one runs: its scratchpad is booked once more."""
    return replace(plan, scratchpad=booked(plan.scratchpad))


def _reordered(layout: Layout, size: int) -> int:
    return 0 if layout == "plain" else size


def _to_dense(layout: Layout, size: int, dense: int) -> int:
    """Bytes while a result leaves oneDNN: a channels-last one is copied out as it is, then made contiguous."""
    return size + dense * (2 if layout == "channels_last" else 1)


def _forward_peak(plan: Primitive, channels_last: bool, dense: int) -> int:
    entering = _reordered(plan.source_layout, plan.source)
    return _activation_peak(plan, entering, plan.destination_layout, plan.destination, channels_last, dense)


def _input_gradient_peak(plan: Primitive, channels_last: bool, dense: int) -> int:
    entering = _reordered(plan.destination_layout, plan.destination)
    return _activation_peak(plan, entering, plan.source_layout, plan.source, channels_last, dense)


def _activation_peak(
    plan: Primitive, entering: int, layout: Layout, leaving: int, channels_last: bool, dense: int
) -> int:
    """Peak of a kernel that makes an activation, or its gradient, of ``leaving`` bytes in ``layout`` from another."""
    weights = _reordered(plan.weights_layout, plan.weights) + plan.scratchpad
    if channels_last:
        return weights + dense
    return max(weights + entering + leaving, _to_dense(layout, leaving, dense))


def _weight_gradient_peak(plan: Primitive, channels_last: bool, dense: int, bias: int) -> int:
    running = plan.weights + plan.scratchpad + bias
    if channels_last:
        return max(running, plan.weights + 2 * bias + 2 * dense)
    running += _reordered(plan.destination_layout, plan.destination) + _reordered(plan.source_layout, plan.source)
    return max(running, plan.weights + 2 * bias + dense)
