"""Predicted equals measured on real models: saved bytes exactly, peaks within the promise."""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.results import Verification
from memplan.sources.packages import is_installed
from tests.corpus import CORPUS

METHODS = ("full", "norm-last", "bias-last", "top-k", "last")
OPTIMIZERS: tuple[dict[str, Any], ...] = (
    {"optimizer": "sgd"},
    {"optimizer": "momentum", "foreach": True},
    {"optimizer": "adam"},
    {"optimizer": "adam", "foreach": True},
    {"optimizer": "adamw"},
)

#: Families of different kinds, small enough for every run; the input keeps every layer's kernel busy.
QUICK = (
    ("mobilenet_v3", {"input_shape": (3, 96, 96), "batch_size": 2}),
    ("mobilenet_v2", {"input_shape": (3, 64, 64), "batch_size": 1}),
    ("resnet18", {"input_shape": (3, 64, 64), "batch_size": 4}),
    ("torchvision:shufflenet_v2_x0_5", {"input_shape": (3, 64, 64), "batch_size": 3}),
    ("torchvision:googlenet", {"input_shape": (3, 96, 96), "batch_size": 2}),
    ("timm:test_vit", {"batch_size": 2}),
    ("timm:efficientvit_m0", {"batch_size": 2}),
    ("hf:distilbert", {"input_shape": (16,), "batch_size": 2}),
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("spec", "options"), QUICK, ids=[spec for spec, _ in QUICK])
def test_a_real_step_needs_what_was_predicted(spec: str, options: dict[str, Any], method: str) -> None:
    needs(spec)
    how = OPTIMIZERS[(METHODS.index(method) + [name for name, _ in QUICK].index(spec)) % len(OPTIMIZERS)]
    agrees(memplan.verify(spec, method=method, **options, **how))


@pytest.mark.corpus
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spec", CORPUS)
def test_every_model_of_the_corpus_needs_what_was_predicted(spec: str, method: str) -> None:
    needs(spec)
    how = OPTIMIZERS[(METHODS.index(method) + CORPUS.index(spec)) % len(OPTIMIZERS)]
    agrees(memplan.verify(spec, method=method, batch_size=2, **how))


def test_low_precision_is_predicted_too() -> None:
    agrees(memplan.verify("mobilenet_v3", batch_size=2, input_shape=(3, 96, 96), amp="bf16"))


def test_evaluation_mode_is_predicted_too() -> None:
    agrees(memplan.verify("mobilenet_v2", batch_size=2, input_shape=(3, 96, 96), training=False, optimizer="adam"))


def test_a_model_frozen_by_its_user_is_predicted_as_is() -> None:
    import torch

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 36, 5),
    )
    model[:3].requires_grad_(False)
    result = memplan.verify(model, torch.randn(4, 3, 8, 8), method="as-is", optimizer="adam")
    agrees(result)
    # The head's input is all that is kept: four samples of 16 channels, 6 by 6.
    assert result.measured_saved_bytes == 4 * 16 * 36 * 4
    assert not model[0].weight.requires_grad
    assert model[4].weight.grad is None


def agrees(result: Verification) -> None:
    assert result.predicted_saved_bytes == result.measured_saved_bytes
    assert len(result.steps) == 2
    low, high = -0.01, 0.03
    assert low <= result.steady_error <= high
    assert low <= result.steps[0].error <= high
    assert result.holds


def needs(spec: str) -> None:
    package = {"timm": "timm", "hf": "transformers"}.get(spec.partition(":")[0])
    if package and not is_installed(package):
        pytest.skip(f"{package} is not installed")
