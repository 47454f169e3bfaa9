"""What a quantity is made of adds up to it, and is charged to the right layer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from memplan.memory import price
from memplan.memory.estimate import LOWER_SHARE, UPPER_SHARE, lower_estimate, upper_estimate
from memplan.memory.parts import MEASURANDS, parts_of
from memplan.methods import METHODS
from memplan.steps import Steps
from memplan.subject import subject_of

ACCURACY = Path(__file__).parent.parent.parent / "docs" / "accuracy.md"


def layered() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 10))


def test_saved_bytes_are_charged_to_their_layers() -> None:
    graph = Steps(subject_of(layered(), torch.empty(2, 3, 8, 8))).step(METHODS["full"])
    footprint = price(graph)
    parts = parts_of(graph, footprint, "saved")
    named = {graph.layers[index].path: size for index, size in parts.layers.items()}
    assert named == {
        "0": 4 * 2 * 3 * 8 * 8,  # the convolution's input
        "1": 4 * 2 * 4 * 8 * 8,  # ReLU's result, which the linear layer keeps too
    }
    assert parts.rest == 0
    assert parts.bytes == footprint.saved_bytes


@pytest.mark.parametrize("of", MEASURANDS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("spec", "method"), [("resnet18", "full"), ("mobilenet_v3_small", "lossless")])
def test_the_parts_add_up(spec: str, method: str, optimizer: str, of: str) -> None:
    steps = Steps(subject_of(spec, batch_size=2))
    runner = "stock" if METHODS[method].flags else "memplan"
    ran = steps.by_runner(runner, METHODS[method], optimizer=optimizer)
    footprint = price(ran.step, optimizer, ran.implementation)
    parts = parts_of(ran.step, footprint, of, ran.implementation)  # type: ignore[arg-type]
    assert sum(parts.layers.values()) + parts.rest == parts.bytes
    assert (
        parts.bytes
        == {
            "peak": footprint.peak_bytes,
            "saved": footprint.saved_bytes,
            "temp": footprint.temp_bytes,
        }[of]
    )
    assert all(size > 0 for size in parts.layers.values())
    if of != "saved" and ran.implementation == "loop":
        # The batch, the optimizer's state and its temporaries: everything else is some layer's.
        state = footprint.composition.state_bytes if of == "peak" else 0
        assert 0 <= parts.rest <= footprint.composition.input_bytes + state + 3 * footprint.composition.parameter_bytes


def test_the_estimates_are_as_wide_as_the_worst_that_was_measured() -> None:
    text = ACCURACY.read_text()
    (below,) = re.findall(r"^\| furthest below \| -([\d.]+)% \|", text, re.MULTILINE)
    (above,) = re.findall(r"^\| worst \| \+([\d.]+)% \|", text, re.MULTILINE)
    assert float(below) / 100 < UPPER_SHARE < 0.01
    assert float(above) / 100 < LOWER_SHARE < 0.03


def test_the_estimates_enclose_the_prediction_and_saved_bytes_are_exact() -> None:
    assert upper_estimate(1, "peak") == 1 + 1  # rounded outwards
    assert lower_estimate(1, "peak") == 1 - 1
    assert upper_estimate(2_000_000, "temp") == 2_000_000 + 1_000
    assert upper_estimate(7, "saved") == lower_estimate(7, "saved") == 7
