"""Methods on real models: real steps need what was predicted, and lossless ones train as stock PyTorch does."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memplan
from memplan.methods import METHODS
from memplan.subject import subject_of
from memplan.tracing.step import tensors_in
from memplan.transform.apply import plan_of
from tests.test_accuracy import CORPUS, OPTIMIZERS, agrees, needs

MEMPLANS = [name for name in METHODS if name != "as-is"]

#: Every method on one model or another in each run of the tests; the corpus has all of them on all.
QUICK: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    (
        "torchvision:mobilenet_v3_small",
        {"input_shape": (3, 64, 64)},
        ("lossless", "mobiletl", "tinytl-lite-bias", "last"),
    ),
    ("torchvision:resnet18", {"input_shape": (3, 64, 64)}, ("lossless", "tune", "top-k", "norm-last")),
    ("torchvision:squeezenet1_1", {"input_shape": (3, 64, 64)}, ("mobiletl", "tinytl-lite")),
    ("timm:test_vit", {}, ("lossless", "tinytl-bias", "full")),
    ("hf:distilbert", {"input_shape": (16,)}, ("lossless", "bias-last")),
)


@pytest.mark.parametrize(
    ("spec", "options", "method"),
    [(spec, options, method) for spec, options, methods in QUICK for method in methods],
)
def test_a_planned_step_needs_what_was_predicted(spec: str, options: dict[str, Any], method: str) -> None:
    needs(spec)
    agrees(memplan.verify(spec, method=method, runner="memplan", batch_size=2, **options))


def test_default_tests_have_every_method() -> None:
    assert {method for _, _, methods in QUICK for method in methods} == set(MEMPLANS)


@pytest.mark.corpus
@pytest.mark.parametrize("method", MEMPLANS)
@pytest.mark.parametrize("spec", CORPUS)
def test_every_method_needs_what_was_predicted_on_every_model(spec: str, method: str) -> None:
    needs(spec)
    how = OPTIMIZERS[(MEMPLANS.index(method) + CORPUS.index(spec)) % len(OPTIMIZERS)]
    agrees(memplan.verify(spec, method=method, runner="memplan", batch_size=2, **how))


# -- lossless: the same training -----------------------------------------------------------------------------------------

#: With batch norms, squeeze-and-excite, dropout, dropped paths, attention, shuffled channels, inputs joined.
TRAINED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("torchvision:mobilenet_v3_small", {"input_shape": (3, 64, 64)}),
    ("torchvision:efficientnet_b0", {"input_shape": (3, 32, 32)}),
    ("torchvision:shufflenet_v2_x0_5", {"input_shape": (3, 64, 64)}),
    ("torchvision:resnet18", {"input_shape": (3, 64, 64)}),
    ("timm:test_vit", {}),
    ("hf:distilbert", {"input_shape": (16,)}),
)


@pytest.mark.parametrize(("spec", "options"), TRAINED, ids=[spec for spec, _ in TRAINED])
def test_lossless_trains_as_stock_does(spec: str, options: dict[str, Any]) -> None:
    needs(spec)
    trains_alike(spec, torch.float64, 1e-10, **options)


@pytest.mark.parametrize("spec", ["torchvision:mobilenet_v3_small"])
def test_lossless_trains_as_stock_does_in_single_precision(spec: str) -> None:
    trains_alike(spec, torch.float32, 1e-4, input_shape=(3, 64, 64))


@pytest.mark.corpus
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("spec", CORPUS)
def test_lossless_trains_every_model_as_stock_does(spec: str, dtype: torch.dtype) -> None:
    needs(spec)
    trains_alike(spec, dtype, 1e-10 if dtype == torch.float64 else 1e-4)


def trains_alike(
    spec: str, dtype: torch.dtype, tolerance: float, *, steps: int = 3, **options: Any
) -> dict[str, float]:
    """Train two copies of a model; return the largest differences, each as a share of its tensor's largest number."""
    torch.manual_seed(0)
    plain, args, kwargs = subject_of(spec, batch_size=2, **options).built("cpu")
    plain.to(dtype).train()
    args, kwargs = torch.utils._pytree.tree_map(lambda leaf: _cast(leaf, dtype), (args, kwargs))
    planned = memplan.apply(plain, "lossless", (args, kwargs) if args and kwargs else args or kwargs)
    plan = plan_of(planned)
    assert plan is not None
    assert {"recompute", "fused-update"} <= {*plan.treatments, *(note.split(" ")[0] for note in plan.notes)}

    for model in (plain, planned):
        backward(model, args, kwargs, seed=1)
    found = {"gradients": difference(gradients(plain), gradients(planned), tolerance)}
    for model in (plain, planned):
        for parameter in model.parameters():
            parameter.grad = None
    found["statistics"] = difference(floats(plain.named_buffers()), floats(planned.named_buffers()), tolerance)

    optimizers = (torch.optim.SGD(plain.parameters(), lr=0.01), memplan.optimizer(planned, "sgd", lr=0.01))
    for model, optimizer in zip((plain, planned), optimizers, strict=True):
        for number in range(steps):
            optimizer.zero_grad()
            backward(model, args, kwargs, seed=number)
            optimizer.step()
    found["parameters"] = difference(dict(plain.named_parameters()), dict(planned.named_parameters()), tolerance)
    found["statistics later"] = difference(floats(plain.named_buffers()), floats(planned.named_buffers()), tolerance)
    counters = [dict(model.named_buffers()) for model in (plain, planned)]
    assert all(
        torch.equal(counters[0][name], other) for name, other in counters[1].items() if not other.is_floating_point()
    )
    return found


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def backward(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, seed: int) -> None:
    """Gradients of a weighted sum of all that the model returns."""
    torch.manual_seed(seed)
    outputs = [tensor for tensor in tensors_in(model(*args, **kwargs)) if tensor.requires_grad]
    terms = [
        (tensor * torch.linspace(-1, 1, tensor.numel()).view(tensor.shape).to(tensor)).mean() for tensor in outputs
    ]
    torch.stack(terms).sum().backward()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def floats(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors if tensor.is_floating_point()}


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float) -> float:
    """The largest difference as a share of its tensor's largest number, where that is not itself a rounding error."""
    assert expected.keys() == found.keys()
    largest = max((float(tensor.abs().max()) for tensor in expected.values() if tensor.numel()), default=0.0)
    worst = 0.0
    for name, tensor in expected.items():
        if tensor.numel():
            # The gradient of a bias before a norm is 0 in exact arithmetic.
            scale = max(float(tensor.abs().max()), 1e-4 * largest)
            share = float((tensor.detach() - found[name].detach()).abs().max()) / scale if scale else 0.0
            assert share <= tolerance, f"{name} differs by {share:.3g} of its largest number"
            worst = max(worst, share)
    return worst
