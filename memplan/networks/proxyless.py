"""ProxylessNAS-Mobile, the network that TinyTL, MobileTL and Rep-Net fine-tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one width: the first has the stride; kernel size and expansion are given block by block."""

    channels: int
    stride: int
    kernels: tuple[int, ...]
    expansions: tuple[int, ...]


STEM_CHANNELS: Final = 32
LAST_CHANNELS: Final = 1280
STAGES: Final = (
    Stage(16, 1, (3,), (1,)),
    Stage(32, 2, (5, 3), (3, 3)),
    Stage(40, 2, (7, 3, 5, 5), (3, 3, 3, 3)),
    Stage(80, 2, (7, 5, 5, 5), (6, 3, 3, 3)),
    Stage(96, 1, (5, 5, 5, 5), (6, 3, 3, 3)),
    Stage(192, 2, (7, 7, 7, 7), (6, 6, 3, 3)),
    Stage(320, 1, (7,), (6,)),
)

#: Source: the ``bn`` entry of the published network configuration.
NORM_EPSILON: Final = 1e-3


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; with a shortcut where the input has the output's shape."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.extend(_convolution(in_channels, hidden, 1))
        layers.extend(_convolution(hidden, hidden, kernel, stride=stride, groups=hidden))
        layers.extend(_convolution(hidden, out_channels, 1, activated=False))
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.shortcut = stride == 1 and in_channels == out_channels
        self.branch: nn.Module = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y: Tensor = self.branch(x)
        return x + y if self.shortcut else y


class ProxylessMobile(nn.Module):
    """ProxylessNAS-Mobile: 4,080,512 parameters with 1000 classes."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, STEM_CHANNELS, 3, stride=2))
        channels = STEM_CHANNELS
        blocks: list[nn.Module] = []
        for stage in STAGES:
            for place, (kernel, expansion) in enumerate(zip(stage.kernels, stage.expansions, strict=True)):
                stride = 1 if place else stage.stride
                blocks.append(InvertedResidual(channels, stage.channels, kernel, stride, expansion))
                channels = stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.mix = nn.Sequential(*_convolution(channels, LAST_CHANNELS, 1))
        self.classifier = nn.Linear(LAST_CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images of shape (N, 3, H, W)."""
        x = self.mix(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def proxyless_mobile(classes: int = 1000) -> ProxylessMobile:
    """Return ProxylessNAS-Mobile with random weights.

    Source: ProxylessNAS (ICLR 2019), the network found for phones.

    >>> sum(parameter.numel() for parameter in proxyless_mobile().parameters())
    4080512
    """
    return ProxylessMobile(classes)


def _convolution(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, activated: bool = True
) -> list[nn.Module]:
    """Return a convolution without bias that keeps the size, its norm, and ReLU6 if it is ``activated``."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=NORM_EPSILON),
    ]
    return [*layers, nn.ReLU6(inplace=True)] if activated else layers
