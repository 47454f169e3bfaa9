"""signed-mask: results are stock's, gradients are g * 1[x >= 0], one bit per element is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memplan.layers.signed_mask import REPLACEMENTS
from memplan.methods.treatments.signed_mask import TREATMENT
from tests.layers.masking import Ops, Treated, kept_bytes, kept_bytes_on_fake, rule_bytes, same, special, step

_nn = torch._C._nn

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6 inplace": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "F.relu6 inplace": lambda x: F.relu6(x, inplace=True),
    "_nn.relu6_": _nn.relu6_,
    "F.hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0, 6),
    "nn.Hardswish": nn.Hardswish(),
    "nn.Hardswish inplace": nn.Hardswish(inplace=True),
    "F.hardswish": F.hardswish,
    "_nn.hardswish_": _nn.hardswish_,
    "nn.SiLU": nn.SiLU(),
    "nn.SiLU inplace": nn.SiLU(inplace=True),
    "F.silu": F.silu,
    "_nn.silu_": _nn.silu_,
    "nn.GELU": nn.GELU(),
    "nn.GELU tanh": nn.GELU("tanh"),
    "F.gelu": F.gelu,
    "_nn.gelu_": lambda x: _nn.gelu_(x, approximate="tanh"),
}
RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU inplace": nn.ReLU(inplace=True),
    "torch.relu": torch.relu,
    "Tensor.relu_": lambda x: x.relu_(),
}
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def numbers(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs around every bound, and gradients among which are infinities and NaN."""
    x = torch.cat([special(dtype, 0, 6, -3, 3), torch.randn(200).to(dtype) * 4])
    gradient = torch.randn(x.shape).to(dtype)
    gradient[::7], gradient[1::7] = float("inf"), float("nan")
    return x, gradient


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_the_gradient_passes_where_the_input_is_not_negative(name: str, dtype: torch.dtype) -> None:
    x, gradient = numbers(dtype)
    result, found = step(CALLS[name], x, gradient, Treated(REPLACEMENTS))
    assert same([result], [CALLS[name](x.clone())])
    assert same([found], [torch.where(x >= 0, gradient, 0)])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", RELUS)
def test_the_gradient_of_relu_is_exact(name: str, dtype: torch.dtype) -> None:
    x, gradient = numbers(dtype)
    assert same(step(RELUS[name], x, gradient, Treated(REPLACEMENTS)), step(RELUS[name], x, gradient))


@pytest.mark.parametrize("name", CALLS)
def test_memory_order_does_not_matter(name: str) -> None:
    shape = (2, 3, 5, 7)
    gradients = (torch.randn(()).expand(shape), torch.randn(shape[::-1]).permute(3, 2, 1, 0), torch.randn(shape))
    inputs = (
        torch.randn(shape),
        torch.randn(shape).contiguous(memory_format=torch.channels_last),
        torch.randn(2, 3, 5, 9)[..., 1:8],
    )
    for x in inputs:
        for gradient in gradients:
            result, found = step(CALLS[name], x, gradient, Treated(REPLACEMENTS))
            assert same([result], step(CALLS[name], x, gradient)[:1])
            assert same([found], [torch.where(x >= 0, gradient, 0)])


@pytest.mark.parametrize("name", [*CALLS, *RELUS])
def test_what_is_kept_is_what_the_rule_says(name: str) -> None:
    call = CALLS.get(name) or RELUS[name]
    for dtype in (torch.float32, torch.bfloat16):
        for x in (torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 9)[..., 1:8], torch.randn(()), torch.randn(64)):
            x = x.to(dtype)
            assert kept_bytes(REPLACEMENTS, call, x) == rule_bytes(TREATMENT, call, x) == -(-x.numel() // 8)
    assert kept_bytes_on_fake(REPLACEMENTS, call, torch.randn(2, 3, 5, 7)) == 27  # 210 elements, 26.25 bytes


@pytest.mark.parametrize("op", sorted(TREATMENT.saved))
def test_every_op_of_the_rule_is_one_that_stock_runs(op: str) -> None:
    seen = set()
    for call in (*CALLS.values(), *RELUS.values()):
        with Ops() as ops:
            call(torch.randn(4))
        seen |= {record.name for record in ops.ops}
    assert op in seen


def test_hardtanh_between_other_bounds_is_left_to_stock() -> None:
    x = torch.randn(10, requires_grad=True)
    with Treated(REPLACEMENTS) as mode:
        F.hardtanh(x, -1.0, 1.0)
        F.hardswish(x.detach())
    assert mode.treated == 0
    assert rule_bytes(TREATMENT, F.hardtanh, x) == 10 * 4


def test_what_is_kept_may_not_be_overwritten() -> None:
    x = torch.randn(10, requires_grad=True)
    with Treated(REPLACEMENTS):
        result = F.hardswish(x)
    result.grad_fn.saved_tensors[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_differentiating_twice_raises() -> None:
    x = torch.randn(10, requires_grad=True)
    with Treated(REPLACEMENTS):
        (gradient,) = torch.autograd.grad((F.silu(x) * x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
