"""bitmask against stock: results and gradients bit for bit, and the bytes that the rule promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memplan.layers.bitmask import REPLACEMENTS
from memplan.methods.treatments.bitmask import TREATMENT
from tests.layers.masking import Treated, kept_bytes, kept_bytes_on_fake, rule_bytes, same, special, step

_nn = torch._C._nn
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

#: Spelling -> (call, bounds around which exactness is hard).
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Any], tuple[float, ...]]] = {
    "nn.ReLU": (nn.ReLU(), (0,)),
    "nn.ReLU inplace": (nn.ReLU(inplace=True), (0,)),
    "F.relu": (F.relu, (0,)),
    "F.relu_": (F.relu_, (0,)),
    "torch.relu": (torch.relu, (0,)),
    "torch.relu_": (torch.relu_, (0,)),
    "Tensor.relu": (lambda x: x.relu(), (0,)),
    "Tensor.relu_": (lambda x: x.relu_(), (0,)),
    "nn.ReLU6": (nn.ReLU6(), (0, 6)),
    "nn.ReLU6 inplace": (nn.ReLU6(inplace=True), (0, 6)),
    "F.relu6": (F.relu6, (0, 6)),
    "F.relu6 inplace": (lambda x: F.relu6(x, inplace=True), (0, 6)),
    "_nn.relu6": (_nn.relu6, (0, 6)),
    "_nn.relu6_": (_nn.relu6_, (0, 6)),
    "nn.Hardtanh": (nn.Hardtanh(), (-1, 1)),
    "nn.Hardtanh inplace": (nn.Hardtanh(-0.1, 0.7, inplace=True), (-0.1, 0.7)),
    "F.hardtanh": (lambda x: F.hardtanh(x, -0.1, 0.7), (-0.1, 0.7)),
    "F.hardtanh_": (lambda x: F.hardtanh_(x, -2.0, 2.0), (-2, 2)),
    "nn.LeakyReLU": (nn.LeakyReLU(0.2), (0,)),
    "nn.LeakyReLU inplace": (nn.LeakyReLU(0.2, inplace=True), (0,)),
    "F.leaky_relu": (F.leaky_relu, (0,)),
    "F.leaky_relu negative": (lambda x: F.leaky_relu(x, -0.3), (0,)),
    "F.leaky_relu zero": (lambda x: F.leaky_relu(x, 0.0), (0,)),
    "F.leaky_relu_": (lambda x: F.leaky_relu_(x, 0.3), (0,)),
    "nn.Threshold": (nn.Threshold(0.3, -1.0), (0.3,)),
    "nn.Threshold inplace": (nn.Threshold(0.3, -1.0, inplace=True), (0.3,)),
    "torch.threshold": (lambda x: torch.threshold(x, 0, 0), (0,)),
    "F.threshold_": (lambda x: F.threshold_(x, 0, 2), (0,)),
    "nn.Hardsigmoid": (nn.Hardsigmoid(), (-3, 3)),
    "nn.Hardsigmoid inplace": (nn.Hardsigmoid(inplace=True), (-3, 3)),
    "torch.clamp": (lambda x: torch.clamp(x, min=0), (0,)),
    "torch.clip": (lambda x: torch.clip(x, 0.1, 0.7), (0.1, 0.7)),
    "Tensor.clamp": (lambda x: x.clamp(0, 6), (0, 6)),
    "Tensor.clamp_": (lambda x: x.clamp_(max=0.3), (0.3,)),
    "Tensor.clip": (lambda x: x.clip(0), (0,)),
    "Tensor.clip_": (lambda x: x.clip_(0), (0,)),
    "torch.clamp_": (lambda x: torch.clamp_(x, -1, 1), (-1, 1)),
    "torch.clamp_min": (lambda x: torch.clamp_min(x, 0), (0,)),
    "Tensor.clamp_min_": (lambda x: x.clamp_min_(0.1), (0.1,)),
    "torch.clamp_max": (lambda x: torch.clamp_max(x, 6), (6,)),
    "Tensor.clamp_max_": (lambda x: x.clamp_max_(6), (6,)),
}

DROPOUTS: dict[str, Callable[[Tensor], Any]] = {
    "nn.Dropout": nn.Dropout(0.3),
    "nn.Dropout inplace": nn.Dropout(0.3, inplace=True),
    "F.dropout": lambda x: F.dropout(x, 0.1),
    "torch.dropout": lambda x: torch.dropout(x, 0.7, True),
    "torch.dropout_": lambda x: torch.dropout_(x, 0.7, True),
    "nn.Dropout2d": nn.Dropout2d(0.3),
    "nn.Dropout2d inplace": nn.Dropout2d(0.3, inplace=True),
    "torch.feature_dropout": lambda x: torch.feature_dropout(x, 0.4, True),
    "torch.feature_dropout_": lambda x: torch.feature_dropout_(x, 0.4, True),
}

POOLS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Any]]] = {
    "nn.MaxPool2d": ((2, 3, 9, 8), nn.MaxPool2d(3, 2, 1)),
    "nn.MaxPool2d ceil": ((2, 3, 9, 8), nn.MaxPool2d(2, ceil_mode=True)),
    "nn.MaxPool2d dilated": ((3, 11, 12), nn.MaxPool2d((3, 2), (1, 2), (1, 0), (2, 3))),
    "nn.MaxPool2d indices": ((2, 3, 9, 8), nn.MaxPool2d(3, 2, 1, return_indices=True)),
    "nn.MaxPool2d wider than its input": ((2, 3, 2, 2), nn.MaxPool2d(3, 1, 1)),
    "F.max_pool2d": ((2, 3, 8, 8), lambda x: F.max_pool2d(x, 2)),
    "F.max_pool2d 256 places": ((1, 2, 40, 20), lambda x: F.max_pool2d(x, 16, 4)),
    "F.max_pool2d 272 places": ((1, 2, 40, 20), lambda x: F.max_pool2d(x, (17, 16), 4)),
    "torch.max_pool2d": ((2, 3, 8, 8), lambda x: torch.max_pool2d(x, [2])),
    "_nn.max_pool2d_with_indices": ((2, 3, 8, 8), lambda x: _nn.max_pool2d_with_indices(x, [2, 2])),
    "nn.MaxPool1d": ((2, 3, 17), nn.MaxPool1d(3, 2, 1)),
    "nn.MaxPool1d indices": ((3, 17), nn.MaxPool1d(3, 2, 1, return_indices=True)),
    "torch.max_pool1d": ((2, 3, 17), lambda x: torch.max_pool1d(x, 2)),
    "nn.MaxPool3d": ((2, 3, 5, 6, 7), nn.MaxPool3d(3, 2, 1)),
    "nn.MaxPool3d indices": ((3, 5, 6, 7), nn.MaxPool3d(2, return_indices=True)),
    "torch.max_pool3d": ((2, 3, 5, 6, 7), lambda x: torch.max_pool3d(x, 2)),
    "nn.AdaptiveMaxPool1d": ((2, 3, 17), nn.AdaptiveMaxPool1d(5)),
    "torch.adaptive_max_pool1d": ((2, 3, 17), lambda x: torch.adaptive_max_pool1d(x, 4)),
    "nn.AdaptiveMaxPool2d": ((2, 3, 9, 8), nn.AdaptiveMaxPool2d((4, None))),
    "nn.AdaptiveMaxPool2d indices": ((2, 3, 9, 8), nn.AdaptiveMaxPool2d(3, return_indices=True)),
    "F.adaptive_max_pool2d 17 x 17 places": ((2, 3, 17, 17), lambda x: F.adaptive_max_pool2d(x, 1)),
    "nn.AdaptiveMaxPool3d": ((2, 3, 5, 6, 7), nn.AdaptiveMaxPool3d((2, 4, 3))),
}


def layouts(dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors whose elements are no multiple of eight, in every order that a kernel may meet."""
    x = torch.randn(2, 3, 5, 7).to(dtype)
    return {
        "contiguous": x,
        "channels-last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(1, 3),
        "with gaps": torch.randn(2, 3, 5, 9).to(dtype)[..., 1:8],
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_and_its_gradient_are_stock_s_at_and_around_its_bounds(name: str, dtype: torch.dtype) -> None:
    call, bounds = ACTIVATIONS[name]
    x = torch.cat([special(dtype, *bounds), torch.randn(300).to(dtype) * 4])
    gradient = torch.randn(x.shape).to(dtype)
    gradient[::7] = float("inf")
    gradient[1::7] = float("nan")
    for shift in (0, 1, 2):  # so that each special number meets each special gradient
        rolled = gradient.roll(shift)
        assert same(step(call, x, rolled, Treated(REPLACEMENTS)), step(call, x, rolled))


@pytest.mark.parametrize("name", [*ACTIVATIONS, *DROPOUTS])
def test_memory_order_changes_neither_results_nor_gradients(name: str) -> None:
    call = ACTIVATIONS[name][0] if name in ACTIVATIONS else DROPOUTS[name]
    for layout, x in layouts(torch.float32).items():
        shape = x.shape
        gradients = {
            "summed": torch.randn(()).expand(shape),
            "transposed": torch.randn(shape[::-1]).permute(3, 2, 1, 0),
            "channels-last": torch.randn(shape).contiguous(memory_format=torch.channels_last),
        }
        for order, gradient in gradients.items():
            treated, stock = step(call, x, gradient, Treated(REPLACEMENTS)), step(call, x, gradient)
            assert same(treated, stock), (layout, order)
            assert treated[0].stride() == stock[0].stride(), layout


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_draws_as_stock_does(name: str, dtype: torch.dtype) -> None:
    x = torch.cat([special(dtype, 1), torch.randn(350).to(dtype)]).view(3, 15, 2, 4)
    gradient = torch.randn(x.shape).to(dtype)
    gradient.view(-1)[::7] = float("inf")
    treated = step(DROPOUTS[name], x, gradient, Treated(REPLACEMENTS))
    after = torch.rand(())
    assert same(treated, step(DROPOUTS[name], x, gradient))
    assert torch.equal(after, torch.rand(()))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_without_chance_is_left_to_stock(p: float) -> None:
    x = torch.ones(3, requires_grad=True)
    with Treated(REPLACEMENTS) as mode:
        F.dropout(x, p)
        F.dropout(x, 0.5, training=False)
    assert mode.treated == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_pooling_is_stock_s(name: str, dtype: torch.dtype) -> None:
    shape, call = POOLS[name]
    # Few distinct values, so that many windows hold their maximum twice.
    x = torch.randint(-3, 3, shape).to(dtype)
    x.view(-1)[::11] = float("nan")
    forms = [x]
    if len(shape) == 4 and "3d" not in name:
        forms.append(x.contiguous(memory_format=torch.channels_last))
    if len(shape) == 5:
        forms.append(x.contiguous(memory_format=torch.channels_last_3d))
    forms.append(x.transpose(-1, -2).contiguous().transpose(-1, -2))
    for form in forms:
        stock = step(call, form)
        for gradient in (torch.randn(stock[0].shape).to(dtype), torch.ones((), dtype=dtype).expand(stock[0].shape)):
            treated, stock = step(call, form, gradient, Treated(REPLACEMENTS)), step(call, form, gradient)
            assert same(treated, stock)
            assert [tensor.stride() for tensor in treated] == [tensor.stride() for tensor in stock]


CALLS = {
    **{name: ((2, 3, 5, 7), call) for name, (call, _) in ACTIVATIONS.items()},
    **{name: ((2, 3, 5, 7), call) for name, call in DROPOUTS.items()},
    **POOLS,
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_kept_is_what_the_rule_says(name: str) -> None:
    shape, call = CALLS[name]
    for dtype in (torch.float32, torch.bfloat16):
        forms = {"contiguous": torch.randn(shape).to(dtype), "more": torch.randn(5, *shape[1:]).to(dtype)}
        if shape == (2, 3, 5, 7):
            forms.update(layouts(dtype))
        for form, x in forms.items():
            expected = rule_bytes(TREATMENT, call, x)
            assert expected > 0
            assert kept_bytes(REPLACEMENTS, call, x) == expected, (form, dtype)
    assert kept_bytes_on_fake(REPLACEMENTS, call, x) == expected


def test_kept_bytes_by_hand() -> None:
    x = torch.randn(2, 3, 5, 7)
    assert kept_bytes(REPLACEMENTS, F.relu, x) == 27  # 210 elements, 26.25 bytes
    assert kept_bytes(REPLACEMENTS, F.dropout, x) == 27
    assert kept_bytes(REPLACEMENTS, F.dropout2d, x) == 1  # 2 samples * 3 channels = 6 bits
    assert kept_bytes(REPLACEMENTS, lambda x: F.max_pool2d(x, 2), x) == 2 * 3 * 2 * 3
    assert kept_bytes(REPLACEMENTS, lambda x: F.max_pool2d(x, (17, 16)), torch.randn(1, 2, 17, 32)) == 1 * 2 * 1 * 2 * 8
    assert kept_bytes(REPLACEMENTS, F.relu, torch.randn(())) == 1
    assert kept_bytes(REPLACEMENTS, F.relu, torch.randn(0, 4)) == 0


@pytest.mark.parametrize("call", [F.relu, F.dropout, lambda x: F.max_pool2d(x, 2)], ids=["relu", "dropout", "pool"])
def test_what_is_kept_may_not_be_overwritten(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with Treated(REPLACEMENTS):
        result = call(x)
    result.grad_fn.saved_tensors[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_an_in_place_call_is_seen_by_the_version_check() -> None:
    weight = torch.randn(40, requires_grad=True)
    squared = weight * 1
    product = squared * squared  # keeps its argument
    with Treated(REPLACEMENTS):
        F.relu_(squared)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_a_view_written_in_place_has_stock_s_gradient() -> None:
    def call(x: Tensor) -> Tensor:
        whole = x * 2
        F.relu_(whole[:, 1:])
        return whole

    x = torch.randn(4, 6)
    assert same(step(call, x, None, Treated(REPLACEMENTS)), step(call, x))


def test_a_leaf_is_not_written_in_place() -> None:
    x = torch.full((3,), -1.0, requires_grad=True)
    with Treated(REPLACEMENTS), pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        F.relu_(x)
    assert x.tolist() == [-1.0] * 3


@pytest.mark.parametrize(
    "call",
    [lambda x: F.relu(x) * x, lambda x: F.dropout(x) * x, lambda x: F.max_pool2d(x, 2).square()],
    ids=["relu", "dropout", "pool"],
)
def test_differentiating_twice_raises(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with Treated(REPLACEMENTS):
        (gradient,) = torch.autograd.grad(call(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_what_needs_no_gradient_is_left_to_stock() -> None:
    with Treated(REPLACEMENTS) as mode:
        for name, (shape, call) in CALLS.items():
            if "nplace" not in name:
                call(torch.randn(shape))
        torch.clamp(torch.randn(3, requires_grad=True), min=torch.zeros(3))
    assert mode.treated == 0


@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing(name: str) -> None:
    shape, call = CALLS[name]

    def cast(x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return call(x)

    x = torch.randn(shape).bfloat16()
    results = step(cast, x)
    gradient = torch.randn(results[0].shape).to(results[0].dtype)
    assert same(step(cast, x, gradient, Treated(REPLACEMENTS)), step(cast, x, gradient))
