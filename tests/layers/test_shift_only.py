"""Norms that train their shift alone: by running statistics in every mode, and nothing kept."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memplan.layers.shift_only import REPLACEMENTS
from memplan.methods.treatments import shift_only
from tests.layers.frozen_cases import Replaced, Treated, faked_bytes, gradients, real_bytes, ruled_bytes

TREATMENT = shift_only.TREATMENT

NORMS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (nn.BatchNorm1d(3), (4, 3)),
    "2d": (nn.BatchNorm2d(3), (2, 3, 5, 4)),
    "2d, cumulative": (nn.BatchNorm2d(3, momentum=None), (2, 3, 5, 4)),
    "3d": (nn.BatchNorm3d(3), (2, 3, 4, 2, 3)),
}


def example(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    module, shape = NORMS[name]
    torch.manual_seed(5)
    module = copy.deepcopy(module).to(dtype)
    with torch.no_grad():
        for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
            tensor.copy_(torch.rand(3) + 0.5)
    module.weight.requires_grad_(False)
    return module, torch.randn(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_the_norm_is_that_of_eval_mode(name: str, training: bool) -> None:
    module, x = example(name, torch.float64)
    stock = copy.deepcopy(module).eval()(x)
    mean, variance = module.running_mean.clone(), module.running_var.clone()
    with Replaced(REPLACEMENTS) as mode:
        treated = module.train(training)(x)
    assert mode.applied == 1
    assert torch.equal(treated, stock)
    assert torch.equal(module.running_mean, mean)
    assert torch.equal(module.running_var, variance)
    weights = torch.randn_like(x)
    of_x, of_shift = torch.autograd.grad(treated, (x, module.bias), weights)
    spread = (1, 3) + (1,) * (x.ndim - 2)
    scale = module.weight / (variance + module.eps).sqrt()
    torch.testing.assert_close(of_x, weights * scale.view(spread), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(of_shift, weights.transpose(0, 1).flatten(1).sum(1), rtol=1e-10, atol=1e-10)


def test_a_scale_that_asks_for_a_gradient_gets_none() -> None:
    module, x = example("2d")
    module.weight.requires_grad_()
    with Replaced(REPLACEMENTS):
        module(x).sum().backward()
    assert module.weight.grad is None
    assert module.bias.grad.tolist() == [2 * 5 * 4] * 3


def test_it_computes_the_same_when_nothing_needs_a_gradient() -> None:
    module, x = example("2d")
    module.bias.requires_grad_(False)
    with Replaced(REPLACEMENTS) as mode:
        output = module(x.detach())
    assert mode.applied == 1
    assert not output.requires_grad
    assert torch.equal(output, module.eval()(x))


def test_both_spellings() -> None:
    x, bias = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    mean, variance = torch.randn(3), torch.rand(3) + 1
    stock = F.batch_norm(x, mean, variance, None, bias, eps=0.5)
    functional = REPLACEMENTS[F.batch_norm](x, mean, variance, None, bias, training=True, eps=0.5)
    plain = REPLACEMENTS[torch.batch_norm](x, None, bias, mean, variance, True, 0.1, 0.5, True)
    expected = gradients(stock, x, bias)
    for found in (functional, plain):
        assert torch.equal(found, stock)
        torch.testing.assert_close(gradients(found, x, bias), expected)


def test_without_running_statistics_stock_runs() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    assert REPLACEMENTS[F.batch_norm](x, None, None, training=True) is NotImplemented
    module = nn.BatchNorm2d(3, track_running_stats=False)
    module.weight.requires_grad_(False)
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    expected = 4 * 2 * 3 * 5 * 4 + 2 * 4 * 3  # the input, and the mean and deviation of the batch
    assert ruled_bytes(TREATMENT, module, x) == real_bytes(Treated(module, REPLACEMENTS), x) == expected


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=str)
def test_nothing_is_kept(training: bool, amp: torch.dtype | None) -> None:
    module, x = example("2d")
    module = nn.Sequential(nn.Conv2d(3, 3, 1).requires_grad_(False), module).train(training)
    treated = Treated(module[1], REPLACEMENTS)
    assert ruled_bytes(TREATMENT, module[1], x, amp=amp) == 0
    assert real_bytes(treated, x, amp=amp) == faked_bytes(treated, x, amp=amp) == 0
    whole = Treated(module, REPLACEMENTS)
    stock, item = real_bytes(module, x, amp=amp), 4 if amp is None else 2
    statistics = 2 * 4 * 3 if training else 0
    assert stock - real_bytes(whole, x, amp=amp) == item * 2 * 3 * 5 * 4 + statistics
