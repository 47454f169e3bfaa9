"""The lite residual branch: what it computes, what it keeps, and where it fits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from memplan.layers.lite_residual import (
    LiteResidual,
    WithLiteResidual,
    average_pool,
    lite_residual_between,
    lite_residual_for,
)
from memplan.methods.treatments.lite_residual import TREATMENT, LiteShape, Norm, lite_kernel, lite_shape, norm_groups

#: Input and output of blocks: a plain one, a strided one, odd maps, odd channels, a growing map, maps of one position.
SHAPES = (
    ((2, 16, 12, 12), (2, 16, 12, 12)),
    ((2, 16, 12, 12), (2, 24, 6, 6)),
    ((3, 24, 7, 9), (3, 32, 4, 5)),
    ((2, 5, 8, 8), (2, 3, 8, 8)),
    ((2, 16, 6, 6), (2, 8, 12, 12)),
    ((2, 16, 1, 1), (2, 20, 1, 1)),
    ((2, 16, 2, 3), (2, 20, 1, 2)),
)


def branch(given: tuple[int, ...], made: tuple[int, ...], norm: Norm = "batch") -> LiteResidual:
    built = lite_residual_between(given, made, norm=norm)
    assert built is not None
    return built


def opened(lite: LiteResidual) -> LiteResidual:
    """Give the last norm a scale, so that the branch adds something."""
    nn.init.uniform_(lite.last_norm.weight, 0.5, 1.5)
    return lite


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("given", "made"), SHAPES)
def test_a_new_branch_changes_nothing_and_then_learns(
    given: tuple[int, ...], made: tuple[int, ...], norm: Norm
) -> None:
    torch.manual_seed(0)

    class Block(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.interpolate(x[:, : made[1]].mean(1, keepdim=True).expand(-1, made[1], -1, -1), made[2:])

    both = WithLiteResidual(Block(), branch(given, made, norm))
    x = torch.randn(given)
    before = both(x)
    assert torch.equal(before, both.block(x))
    # A sum would not do: a norm's results add up to a constant.
    (before * torch.randn_like(before)).sum().backward()
    with torch.no_grad():
        both.lite.last_norm.weight -= 0.1 * both.lite.last_norm.weight.grad
    assert not torch.equal(both(x), before)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("given", "made"), SHAPES)
def test_autograd_keeps_what_the_rule_says(given: tuple[int, ...], made: tuple[int, ...], norm: Norm) -> None:
    lite = branch(given, made, norm)
    x = torch.randn(given, requires_grad=True)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*lite.parameters(), *lite.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = lite(x, made[2:])
    assert tuple(y.shape) == tuple(made)
    assert x.untyped_storage().data_ptr() not in kept
    assert sum(kept.values()) == lite.shape.saved_bytes(given[0])
    assert sum(parameter.numel() for parameter in lite.parameters()) == lite.shape.parameters


def test_the_rule_adds_up_by_hand() -> None:
    shape = lite_shape((8, 32, 56, 56), (8, 40, 28, 28))
    assert shape == LiteShape(32, 32, 40, kernel=5, stride=2, groups=2, pooled_to=(28, 28), norm="batch")
    assert shape.inner_size == (14, 14)
    assert shape.parameters == 16 * 32 * 25 + 32 * 40 + 2 * (32 + 40)
    pooled, mid, out = 8 * 32 * 28 * 28, 8 * 32 * 14 * 14, 8 * 40 * 14 * 14
    assert shape.saved_bytes(8) == 4 * (pooled + 2 * mid + out + 2 * (32 + 40))


def test_gradients_are_exact() -> None:
    torch.manual_seed(0)
    for given, made in (((2, 4, 5, 6), (2, 4, 3, 3)), ((2, 3, 4, 4), (2, 2, 4, 4))):
        lite = opened(branch(given, made, "group")).double()
        x = torch.randn(given, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda value, lite=lite, size=made[2:]: lite(value, size), (x,), fast_mode=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 3)])
def test_the_pool_is_pytorchs_to_the_bit(
    size: tuple[int, int], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size).to(dtype).to(memory_format=layout)
    x[0, 0, 0, 0] = float("nan")
    mine, stock = x.clone().requires_grad_(), x.clone().requires_grad_()
    pooled, expected = average_pool(mine), functional.avg_pool2d(stock, 2)
    gradient = torch.randn(expected.shape).to(dtype)
    gradient[1, 2, 0, 0] = float("inf")
    pooled.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(pooled.nan_to_num(9), expected.nan_to_num(9))
    assert torch.equal(mine.grad, stock.grad)


def test_the_pool_refuses_a_second_derivative() -> None:
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    (first,) = torch.autograd.grad(average_pool(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ((2, 8, 16), (2, 8, 16)),
        ((2, 8, 4, 4), (2, 8)),
        ((2, 8, 4, 4), (4, 8, 4, 4)),
        ((2, 0, 4, 4), (2, 8, 4, 4)),
        ((1, 8, 1, 1), (1, 8, 1, 1)),
    ],
    ids=["a sequence", "to a vector", "another batch", "nothing", "one value of each channel"],
)
def test_where_there_is_no_branch(given: tuple[int, ...], made: tuple[int, ...]) -> None:
    assert lite_residual_between(given, made) is None


def test_a_group_norm_needs_no_second_value() -> None:
    lite = opened(branch((1, 8, 1, 1), (1, 8, 1, 1), "group"))
    assert lite(torch.randn(1, 8, 1, 1), (1, 1)).abs().sum() > 0


def test_sizes_by_hand() -> None:
    assert [lite_kernel(size) for size in (64, 5, 4, 3, 2, 1)] == [5, 5, 3, 3, 1, 1]
    # 20 channels: eight do not divide them, five do.
    assert [norm_groups(channels) for channels in (64, 20, 7)] == [8, 20 // 5, 1]
    with pytest.raises(ValueError, match="must be positive, not 0, 8 and 4"):
        lite_residual_for(0, 8, 1, size=4)


def test_a_branch_can_be_copied_and_runs_in_low_precision() -> None:
    lite = copy.deepcopy(opened(branch((2, 16, 8, 8), (2, 16, 8, 8), "group")))
    x = torch.randn(2, 16, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = lite(x, (8, 8))
    y.float().pow(2).sum().backward()
    torch.testing.assert_close(y.float(), lite(x, (8, 8)), rtol=0.1, atol=0.1)
    assert all(parameter.grad is not None for parameter in lite.parameters())


def test_the_treatment_names_its_twin() -> None:
    assert TREATMENT.twin == LiteResidual.__module__
    assert not TREATMENT.saved
