# ruff: noqa: ARG001 - all formulas share one signature
"""Scratch of a float32 LSTM layer as oneDNN trains it: the sum of its biases, padded weights, its scratchpad.

The workspace, which autograd keeps, is a result of the layer and not counted here. A layer whose forward runs without
gradients takes another kernel, whose scratchpad is a few pages larger or smaller.

Source: oneDNN 3.12 src/cpu/rnn/rnn_utils.hpp ``set_conf``, ``init_conf`` and ``set_workspace_sizes``, rnn_utils.cpp
``set_good_strides``, ref_rnn.cpp ``init_scratchpad``; PyTorch aten/src/ATen/native/mkldnn/RNN.cpp.
"""

from __future__ import annotations

from memplan.graph.records import Argument, Machine, TensorView
from memplan.memory.scratch.geometry import copy_bytes, round_up, tensor, tensor_bytes
from memplan.memory.scratch.primitive import FLOAT, PAGE, booked

_GATES = 4
_LINE = 64 // FLOAT
_POINTER = 8

#: Batches from here on multiply the input of each moment by itself.
_LARGE_BATCH = 128


def recurrent(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """mkldnn_rnn_layer: the sum of the biases, both weights with padded rows, and the gates of all moments at once."""
    source, recurring = tensor(args, 0), tensor(args, 2)
    if source is None or recurring is None:
        return 0
    (moments, batch, width), hidden = source.shape, recurring.shape[1]
    at_once = moments if batch < _LARGE_BATCH else 1
    return _bias(hidden) + _weights(width, hidden) + _scratchpad(at_once, batch, hidden)


def recurrent_backward(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """mkldnn_rnn_layer_backward: as forward, with padded weights and weight gradients, and dense incoming gradients.

    One of the two equal bias gradients is made when all this is gone.
    """
    source, recurring = tensor(args, 0), tensor(args, 2)
    if source is None or recurring is None:
        return 0
    (moments, batch, width), hidden = source.shape, recurring.shape[1]
    given = sum(_dense_copy(args, result, gradient) for result, gradient in ((7, 10), (8, 11), (9, 12)))
    rows = _GATES * hidden
    turned = sum(rows * _padded(length) * FLOAT for length in (width, hidden) if _padded(length) != length)
    first, second = outputs[3:5]
    later = _bias(hidden) if first is not None and second is not None and first.storage != second.storage else 0
    gradients = _weights(width, hidden) + _bias(hidden)
    return given + _bias(hidden) + turned + gradients + _scratchpad(moments, batch, hidden) - later


def _dense_copy(args: tuple[Argument, ...], result: int, gradient: int) -> int:
    """Bytes of one incoming gradient if it is not dense as given: zeros where there is none."""
    view = tensor(args, gradient)
    return tensor_bytes(tensor(args, result)) if view is None else copy_bytes(view)


def _bias(hidden: int) -> int:
    return _GATES * hidden * FLOAT


def _weights(width: int, hidden: int) -> int:
    return (width + hidden) * _padded(_GATES * hidden) * FLOAT


def _scratchpad(moments: int, batch: int, hidden: int) -> int:
    gates = round_up(moments * batch * _padded(_GATES * hidden) * FLOAT, PAGE)
    states = round_up(batch * _padded(hidden) * FLOAT, PAGE)
    pointers = 3 * booked(_POINTER) + booked(_POINTER * FLOAT)
    return booked(gates + 2 * states, PAGE) + pointers


def _padded(elements: int) -> int:
    """Elements of a row: whole cache lines, and one more where rows would alias in the cache."""
    length = round_up(elements, _LINE)
    return length + _LINE if length % 256 == 0 else length
