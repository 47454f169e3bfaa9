"""A step trains, whatever modes surround the call that prices it: no fixture's no_grad lowers the bytes of a limit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

import memplan

MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "detect_anomaly": torch.autograd.detect_anomaly,
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16 * 16, 10)
    )


def priced(model: nn.Module, image: torch.Tensor) -> tuple[int, ...]:
    """Return every number that a user gets: of the gate, of methods by both runners, of real steps, and of a plan."""
    verdict = memplan.check(model, image, limit="1GB")
    assert verdict.reading is not None
    rows = memplan.analyze(model, image, methods=("full", "lossless")).methods
    verified = memplan.verify(model, image)
    assert verified.holds
    return (
        verdict.reading.bytes,
        *(row.footprint.peak_bytes for row in rows),
        *(row.footprint.saved_bytes for row in rows),
        verified.measured_saved_bytes,
        *(step.measured_bytes for step in verified.steps),
        memplan.plan(model, image, budget="1GB").bytes,
    )


@pytest.mark.parametrize("name", MODES)
def test_bytes_are_those_of_a_training_step(name: str) -> None:
    model, image = net(), torch.randn(2, 3, 16, 16)
    expected = priced(model, image)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection")
        with MODES[name]():
            assert priced(model, image) == expected


def test_a_user_s_own_modes_inside_the_forward_are_kept() -> None:
    class HalfFrozen(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = self[0](x)
            return super().forward(x)

    layers = [nn.Linear(64, 64), nn.Linear(64, 64)]
    frozen = memplan.analyze(HalfFrozen(*layers), torch.randn(8, 64)).methods[0].footprint
    with torch.no_grad():
        again = memplan.analyze(HalfFrozen(*layers), torch.randn(8, 64)).methods[0].footprint
    assert again.saved_bytes == frozen.saved_bytes
