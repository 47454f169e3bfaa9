"""A convolution that has taken in the norm behind it, against the pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memplan.layers import tune
from memplan.layers.tune import tuned_convolution
from memplan.methods.treatments.tune import TREATMENT
from tests.layers.frozen_cases import CASES, Case, faked_bytes, gradients, real_bytes, ruled_bytes

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def norm(channels: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    torch.manual_seed(11)
    names = ("running_mean", "running_var", "gamma", "beta")
    found = {name: torch.rand(channels).add_(0.3).to(dtype) for name in names}
    return {**found, "eps": 1e-3}


def pair(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None, about: dict[str, Any]) -> Tensor:
    y = case.run(case.function, x, weight, bias)
    batch = y if y.ndim == weight.ndim else y[None]
    y = F.batch_norm(
        batch, about["running_mean"], about["running_var"], about["gamma"], about["beta"], eps=about["eps"]
    )
    return y if batch.shape[0] != 1 or case.input[0] == 1 else y[0]


def tuned(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None, about: dict[str, Any]) -> Tensor:
    return tuned_convolution(case.function, x, weight, bias, *case.positional, **case.how, **about)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_pair_s_numbers(case: Case, bias: bool) -> None:
    tensors = case.tensors(torch.float64, bias=bias)
    about = norm(case.channels)
    leaves = [*tensors, about["gamma"], about["beta"]]
    for leaf in leaves:
        if leaf is not None:
            leaf.requires_grad_()
    expected, found = pair(case, *tensors, about), tuned(case, *tensors, about)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    expected, found = gradients(expected, *leaves), gradients(found, *leaves)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["3x3", "transposed, grouped"])
@pytest.mark.parametrize("trained", ["x", "weight", "bias", "gamma", "beta", "x bias", "x gamma"])
def test_any_of_them_trains(name: str, trained: str) -> None:
    case = CASES[name]
    tensors = case.tensors(torch.float64)
    about = norm(case.channels)
    leaves = dict(zip(("x", "weight", "bias"), tensors, strict=True), gamma=about["gamma"], beta=about["beta"])
    for key in trained.split():
        leaves[key].requires_grad_()
    expected = gradients(pair(case, *tensors, about), *leaves.values())
    found = gradients(tuned(case, *tensors, about), *leaves.values())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_norm_without_scale_and_shift() -> None:
    case = CASES["3x3"]
    tensors = case.tensors(torch.float64)
    for tensor in tensors:
        tensor.requires_grad_()
    about = norm(case.channels) | {"gamma": None, "beta": None}
    expected, found = pair(case, *tensors, about), tuned(case, *tensors, about)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(found, *tensors), gradients(expected, *tensors), rtol=1e-10, atol=1e-10)


class Pair(nn.Module):
    """A convolution and a norm, as stock runs them or as one."""

    def __init__(self, as_one: bool, *, weights_train: bool = True, padding: str | int = 1, kernel: int = 3) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.norm, self.as_one = nn.Conv2d(3, 8, kernel, padding=padding), nn.BatchNorm2d(8).eval(), as_one
        for parameter in (self.conv.weight, self.norm.weight):
            parameter.requires_grad_(weights_train)

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        if not self.as_one:
            return norm(conv(x))
        return tuned_convolution(
            torch.conv2d, x, conv.weight, conv.bias, padding=conv.padding,
            running_mean=norm.running_mean, running_var=norm.running_var, gamma=norm.weight, beta=norm.bias,
            eps=norm.eps,
        )  # fmt: skip


@pytest.mark.parametrize(("padding", "kernel", "padded"), [(1, 3, 9 * 9), ("same", 4, 10 * 10)])
@pytest.mark.parametrize(("amp", "item"), [(None, 4), (torch.bfloat16, 2)], ids=str)
def test_the_input_is_all_that_is_kept(
    amp: torch.dtype | None, item: int, padding: int | str, kernel: int, padded: int
) -> None:
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    stock, treated = (Pair(as_one, padding=padding, kernel=kernel) for as_one in (False, True))
    expected = item * 2 * 3 * padded
    assert ruled_bytes(TREATMENT, stock, x, amp=amp) == expected
    assert real_bytes(treated, x, amp=amp) == faked_bytes(treated, x, amp=amp) == expected
    assert real_bytes(stock, x, amp=amp) >= expected + item * 2 * 8 * 9 * 9


def test_not_even_the_input_when_no_weight_trains() -> None:
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    treated = Pair(True, weights_train=False)
    assert real_bytes(treated, x) == faked_bytes(treated, x) == 0


def test_autocast() -> None:
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    stock, treated = Pair(False), Pair(True)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = stock(x), treated(x)
    assert found.dtype is expected.dtype is torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    found, expected = gradients(found, x, *treated.parameters()), gradients(expected, x, *stock.parameters())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is other.dtype is torch.float32
        assert (one - other).norm() <= 2e-2 * other.norm() + 1e-3


@pytest.mark.parametrize("weights_train", [True, False])
def test_channels_last(weights_train: bool) -> None:
    x = torch.randn(2, 3, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    stock, treated = Pair(False, weights_train=weights_train), Pair(True, weights_train=weights_train)
    expected, found = stock(x), treated(x)
    assert found.stride() == expected.stride() == (8 * 81, 1, 72, 8)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    of_x = [gradients(output, x)[0] for output in (found, expected)]
    assert of_x[0].stride() == of_x[1].stride()
    torch.testing.assert_close(*of_x, rtol=1e-5, atol=1e-5)


def test_an_overwritten_input_is_noticed_and_second_derivatives_refused() -> None:
    treated = Pair(True)
    x = torch.randn(2, 3, 9, 9)
    output = treated(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    x.requires_grad_()
    (of_x,) = torch.autograd.grad((treated(x) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        of_x.sum().backward()


def test_statistics_are_read_only_and_no_gradient_is_no_graph() -> None:
    treated = Pair(True)
    state = {key: value.clone() for key, value in treated.state_dict().items()}
    with torch.no_grad():
        assert not treated(torch.randn(2, 3, 9, 9)).requires_grad
    treated(torch.randn(2, 3, 9, 9)).sum().backward()
    assert all(torch.equal(value, state[key]) for key, value in treated.state_dict().items())


def test_what_cannot_be_folded() -> None:
    x, weight = torch.randn(2, 3, 9, 9, dtype=torch.complex64), torch.randn(4, 3, 3, 3, dtype=torch.complex64)
    assert tuned_convolution(torch.conv2d, x, weight, **norm(4)) is NotImplemented
    assert tune.REPLACEMENTS == {}
