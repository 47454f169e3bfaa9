"""The lite residual branch: what TinyTL trains beside a frozen block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from memplan.methods.treatments.lite_residual import LiteShape, Norm, lite_shape, norm_groups


class LiteResidual(nn.Module):
    """Average pool, grouped convolution, norm, ReLU, 1x1 convolution, norm; upsampled to the block's output.

    The last norm starts at zero, so that a network computes what it did before. It keeps no input of the block, only
    the pooled one.
    """

    def __init__(self, shape: LiteShape) -> None:
        super().__init__()
        self.shape = shape
        self.spatial = nn.Conv2d(
            shape.in_channels,
            shape.mid_channels,
            shape.kernel,
            shape.stride,
            shape.kernel // 2,
            groups=shape.groups,
            bias=False,
        )
        self.norm = _norm(shape.mid_channels, shape.norm)
        self.activation = nn.ReLU(inplace=True)
        self.pointwise = nn.Conv2d(shape.mid_channels, shape.out_channels, 1, bias=False)
        self.last_norm = _norm(shape.out_channels, shape.norm)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolutions by He's rule for outputs and set the last norm to zero.

        Source: TinyTL's code, ``init_models`` with ``he_fout``, and ``final_bn.weight`` set to zero.
        """
        for convolution in (self.spatial, self.pointwise):
            fan_out = convolution.kernel_size[0] * convolution.kernel_size[1] * convolution.out_channels
            nn.init.normal_(convolution.weight, 0, math.sqrt(2 / fan_out))
        nn.init.zeros_(self.last_norm.weight)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return what is added to the output, of height and width ``size``, of the block whose input is ``x``."""
        # An image smaller than the branch was made for may leave no window.
        single = self.shape.pooled_to is None or min(x.shape[2:]) < 2
        y: Tensor = x.mean((2, 3), keepdim=True) if single else average_pool(x)
        y = self.activation(self.norm(self.spatial(y)))
        y = self.last_norm(self.pointwise(y))
        if single:
            return y.expand(-1, -1, *size)
        if tuple(y.shape[2:]) == tuple(size):
            return y
        return functional.interpolate(y, tuple(size), mode="bilinear", align_corners=False)


class WithLiteResidual(nn.Module):
    """A block and the branch beside it, in the block's place."""

    def __init__(self, block: nn.Module, lite: LiteResidual) -> None:
        super().__init__()
        self.block = block
        self.lite = lite

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output with the branch's added."""
        y: Tensor = self.block(x)
        added: Tensor = self.lite(x, y.shape[2:])
        return y + added


def lite_residual_between(
    input_shape: Sequence[int], output_shape: Sequence[int], *, norm: Norm = "batch"
) -> LiteResidual | None:
    """Return the branch beside a block that maps ``input_shape`` to ``output_shape``, or None where there is none.

    Batch norm is the default, as networks that have it are trained in batches; TinyTL's own network uses group norm
    with eight channels a group, which ``norm="group"`` gives.
    """
    shape = lite_shape(input_shape, output_shape, norm=norm)
    return None if shape is None else LiteResidual(shape)


def lite_residual_for(
    in_channels: int, out_channels: int, stride: int, *, size: int, norm: Norm = "batch"
) -> LiteResidual:
    """Return the branch beside a block with ``in_channels``, on an input ``size`` wide and high.

    Raises:
        ValueError: ``size`` or the channels are below 1.
    """
    reduced = (size - 1) // stride + 1
    built = lite_residual_between((2, in_channels, size, size), (2, out_channels, reduced, reduced), norm=norm)
    if built is None:
        raise ValueError(f"channels and size must be positive, not {in_channels}, {out_channels} and {size}")
    return built


def average_pool(x: Tensor) -> Tensor:
    """Return the means of 2x2 windows of ``x``; unlike PyTorch's pool it keeps no input for its backward."""
    pooled: Tensor = _AveragePool.apply(x)  # type: ignore[no-untyped-call]
    return pooled


class _AveragePool(torch.autograd.Function):
    """2x2 average pooling that remembers the input's shape, which is all that the gradient needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return functional.avg_pool2d(x, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        shares = gradient / 4
        if shares.is_contiguous():
            # A copy of a stretched view takes a quarter of upsampling's time; for other layouts upsampling is quicker.
            samples, channels, height, width = shares.shape
            stretched = shares[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
            spread = stretched.reshape(samples, channels, 2 * height, 2 * width)
        else:
            spread = functional.interpolate(shares, scale_factor=2)
        rest = [size - covered for size, covered in zip(ctx.shape[2:], spread.shape[2:], strict=True)]
        return functional.pad(spread, (0, rest[1], 0, rest[0])) if any(rest) else spread


def _norm(channels: int, norm: Norm) -> nn.BatchNorm2d | nn.GroupNorm:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(norm_groups(channels), channels)
