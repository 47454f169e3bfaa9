"""Lite residual: a small trained branch on a pooled map beside a frozen block (TinyTL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from memplan.methods.treatments.record import Treatment

Norm: TypeAlias = Literal["batch", "group"]

MAX_KERNEL: Final = 5
CHANNEL_MULTIPLE: Final = 8
CHANNELS_PER_GROUP: Final = 8


@dataclass(frozen=True, slots=True)
class LiteShape:
    """The sizes of one lite residual branch, from a block's input (N, Cin, H, W) to its output (N, Cout, H', W').

    Without ``pooled_to`` the map is averaged to one position and the branch's result is broadcast.
    """

    in_channels: int
    mid_channels: int
    out_channels: int
    kernel: int
    stride: int
    groups: int
    pooled_to: tuple[int, int] | None
    norm: Norm

    @property
    def inner_size(self) -> tuple[int, int]:
        """The height and width that the branch's convolutions give."""
        if self.pooled_to is None:
            return 1, 1
        height, width = ((size - 1) // self.stride + 1 for size in self.pooled_to)
        return height, width

    @property
    def parameters(self) -> int:
        """The numbers that train: two convolutions without bias, two norms with scale and shift."""
        spatial = self.in_channels // self.groups * self.mid_channels * self.kernel**2
        return spatial + self.mid_channels * self.out_channels + 2 * (self.mid_channels + self.out_channels)

    def saved_bytes(self, samples: int, element_bytes: int = 4) -> int:
        """Bytes that autograd keeps from the branch alone when all of it trains; the block's input is not among them.

        The inputs of both convolutions and both norms, and each norm's mean and deviation. The ReLU, in place, keeps
        the second convolution's input again; pooling and upsampling keep nothing.
        """
        pooled = 1 if self.pooled_to is None else self.pooled_to[0] * self.pooled_to[1]
        height, width = self.inner_size
        inner = height * width * (2 * self.mid_channels + self.out_channels)
        if self.norm == "batch":
            statistics = 2 * (self.mid_channels + self.out_channels)
        else:
            statistics = 2 * samples * (norm_groups(self.mid_channels) + norm_groups(self.out_channels))
        return element_bytes * (samples * (self.in_channels * pooled + inner) + statistics)


def norm_groups(channels: int) -> int:
    """Return the groups of a group norm: eight channels each, or the next smaller number that divides ``channels``.

    >>> norm_groups(32), norm_groups(20)
    (4, 4)
    """
    size = next(size for size in range(min(CHANNELS_PER_GROUP, channels), 0, -1) if channels % size == 0)
    return channels // size


def rounded_channels(channels: int) -> int:
    """Return ``channels`` rounded to a multiple of eight, at least eight and never more than a tenth below.

    >>> rounded_channels(32), rounded_channels(44), rounded_channels(3), rounded_channels(11)
    (32, 48, 8, 16)
    """
    rounded = max(CHANNEL_MULTIPLE, int(channels + CHANNEL_MULTIPLE / 2) // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE)
    return rounded + CHANNEL_MULTIPLE if rounded < 0.9 * channels else rounded


def lite_kernel(pooled: int) -> int:
    """Return the kernel size for a pooled map ``pooled`` wide: 5, less 2 while the map is smaller than it.

    >>> [lite_kernel(pooled) for pooled in (14, 5, 4, 3, 2, 1)]
    [5, 5, 3, 3, 1, 1]
    """
    kernel = MAX_KERNEL
    while kernel > max(pooled, 1):
        kernel -= 2
    return kernel


def lite_shape(input_shape: Sequence[int], output_shape: Sequence[int], *, norm: Norm = "batch") -> LiteShape | None:
    """Return the branch beside a block that maps ``input_shape`` to ``output_shape``, or None where there is none.

    There is one for every block from images (N, Cin, H, W) to images (N, Cout, H', W') of as many samples, except that
    a batch norm needs more than one value of each channel, which one sample of one position does not give.

    >>> shape = lite_shape((8, 32, 56, 56), (8, 40, 28, 28))
    >>> shape.mid_channels, shape.kernel, shape.stride, shape.groups, shape.inner_size
    (32, 5, 2, 2, (14, 14))
    """
    if len(input_shape) != 4 or len(output_shape) != 4 or input_shape[0] != output_shape[0]:
        return None
    if 0 in (*input_shape, *output_shape):
        return None
    samples, in_channels, height, width = input_shape
    pooled = (height // 2, width // 2)
    single = min(pooled) < 2
    found = LiteShape(
        in_channels=in_channels,
        mid_channels=rounded_channels(in_channels),
        out_channels=output_shape[1],
        kernel=1 if single else lite_kernel(min(pooled)),
        stride=1 if single else max(1, round(height / output_shape[2])),
        groups=1 if in_channels % 2 else 2,
        pooled_to=None if single else pooled,
        norm=norm,
    )
    if norm == "batch" and samples * found.inner_size[0] * found.inner_size[1] == 1:
        return None
    return found


TREATMENT: Final = Treatment(
    name="lite-residual",
    lossless=False,
    summary="a small trained branch on a pooled map is added to a frozen block's output",
    gradients="exact, of a network that has the branches; it computes what the plain one does until they are trained",
    formula="the branch's convolution and norm inputs: 4 * (|pool(x)| + 2 * |mid| + |out|), and the norms' statistics",
    source="TinyTL (NeurIPS 2020), lite residual learning; LiteResidualModule of its code",
    twin="memplan.layers.lite_residual",
)
