"""What channel groups need of a recording: offsets of views and names of buffers, also after a journey through JSON."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from memplan.errors import AnalysisError
from memplan.graph import StepGraph, from_json, to_json
from memplan.graph.records import Buffer
from memplan.tracing.record import trace


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.norm(x).chunk(2, 1)
        return left.sigmoid() * right.sigmoid()[:, 1:].pow(2).sum()


@pytest.fixture(scope="module")
def step() -> StepGraph:
    return trace(Halves(), torch.empty(4, 6)).step


def test_two_halves_of_a_storage_differ_by_their_offset(step: StepGraph) -> None:
    left, right = next(op.outputs for op in step.ops if op.name == "aten.split.Tensor")
    assert left is not None
    assert right is not None
    assert (left.storage, left.offset) == (right.storage, 0)
    assert right.offset == 3


def test_a_view_that_autograd_kept_comes_back_with_its_offset(step: StepGraph) -> None:
    power = next(op for op in step.ops if op.name == "aten.pow.Tensor_Scalar" and op.phase == "forward")
    kept = next(power.inputs)
    assert kept.offset == 1
    seen = {view for op in step.ops if op.phase == "backward" for view in op.inputs}
    assert kept in seen


def test_buffers_by_name(step: StepGraph) -> None:
    layer = next(layer.index for layer in step.layers if layer.path == "norm")
    assert [(buffer.name, buffer.layer) for buffer in step.buffers] == [
        ("norm.running_mean", layer),
        ("norm.running_var", layer),
        ("norm.num_batches_tracked", layer),
    ]
    assert [step.storages[buffer.storage].bytes for buffer in step.buffers] == [6 * 4, 6 * 4, 8]
    assert {step.storages[buffer.storage].role for buffer in step.buffers} == {"buffer"}


def test_offsets_and_buffers_survive_json(step: StepGraph) -> None:
    assert from_json(to_json(step)) == step


def test_a_buffer_in_an_unknown_storage_is_refused(step: StepGraph) -> None:
    from dataclasses import replace

    with pytest.raises(AnalysisError, match="the buffer 'odd' lies in the unknown storage 999"):
        replace(step, buffers=(Buffer("odd", 0, 999),))
