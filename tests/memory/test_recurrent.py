"""Conformance of the LSTM layer's scratch: forward and backward run for real and are compared with their formulas."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from memplan.memory.scratch.recurrent import recurrent, recurrent_backward
from tests.memory.kernel_meter import Case, read_cases, this_machine

FORWARD = "aten.mkldnn_rnn_layer.default"
BACKWARD = "aten.mkldnn_rnn_layer_backward.default"

LSTM = 2

#: (input size, hidden size, moments, batch)
SIZES = [
    (16, 32, 6, 8),
    (20, 64, 5, 3),
    (7, 17, 5, 3),
    (256, 256, 2, 2),
    (33, 16, 3, 127),
    (16, 33, 3, 128),
    (2, 3, 1, 1),
]


def _given(width: int, hidden: int, moments: int, batch: int) -> list[torch.Tensor]:
    weights = [torch.rand(4 * hidden, size) for size in (width, hidden)]
    biases = [torch.rand(4 * hidden) for _ in range(2)]
    return [
        torch.rand(moments, batch, width),
        *weights,
        *biases,
        torch.zeros(batch, hidden),
        torch.zeros(batch, hidden),
    ]


def _forward(*sizes: int) -> list[object]:
    return [*_given(*sizes), False, [], LSTM, sizes[1], 1, True, False, False, True]


def _backward(sizes: tuple[int, ...], turned: bool, states: bool) -> list[object]:
    forward = _forward(*sizes)
    with torch.enable_grad():
        output, hidden, cell, workspace = torch.ops.aten.mkldnn_rnn_layer.default(*forward)
    gradient = torch.ones_like(output.transpose(0, 1)).transpose(0, 1) if turned else torch.ones_like(output)
    gradients = [gradient, torch.ones_like(hidden) if states else None, torch.ones_like(cell) if states else None]
    rest = [False, LSTM, sizes[1], 1, True, True, False, [], False]
    return [*forward[:7], output, hidden, cell, *gradients, *rest, workspace]


def _backward_cases() -> Iterator[Case]:
    for sizes in SIZES:
        yield Case(f"{sizes}", BACKWARD, lambda sizes=sizes: _backward(sizes, False, False))
        yield Case(f"{sizes}, turned", BACKWARD, lambda sizes=sizes: _backward(sizes, True, True))


def test_forward_scratch_is_exact() -> None:
    cases = [Case(f"{sizes}", FORWARD, lambda sizes=sizes: _forward(*sizes)) for sizes in SIZES]
    readings = read_cases(cases, gradients=True)
    for case, reading in zip(cases, readings, strict=True):
        assert recurrent(reading.args, reading.outputs, this_machine()) == reading.scratch_bytes, case.name


def test_backward_scratch_is_exact() -> None:
    cases = list(_backward_cases())
    for case, reading in zip(cases, read_cases(cases), strict=True):
        assert recurrent_backward(reading.args, reading.outputs, this_machine()) == reading.scratch_bytes, case.name
