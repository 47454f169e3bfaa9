"""One transfer on scikit-learn's handwritten digits: the network, the images, and how each method trains.

A small network of inverted residual blocks learns the digits 0 to 4 and is then transferred to 5 to 9.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import memplan

#: How many of the six blocks train under top-k and mobiletl.
K = 3
BATCH = 32
#: Passes over the digits 0 to 4, and over the training images of 5 to 9.
PRETRAINING_EPOCHS, EPOCHS = 10, 20
PRETRAINING_RATE = 3e-3


@dataclass(frozen=True, slots=True)
class Way:
    """A method, who runs it, and whether it has a k."""

    method: str
    runner: str
    k: int | None = None

    @property
    def label(self) -> str:
        return f"{self.method}{'' if self.k is None else f' k={self.k}'} ({self.runner})"


FULL = Way("full", "stock")
TOP = Way("top-k", "stock", K)
HEAD = Way("last", "memplan")
LOSSLESS = Way("lossless", "memplan")
MOBILETL = Way("mobiletl", "memplan", K)
WAYS = (
    FULL,
    LOSSLESS,
    TOP,
    MOBILETL,
    HEAD,
    *(Way(name, "memplan") for name in ("norm-last", "bias-last")),
    *(Way(name, "memplan") for name in ("tinytl-bias", "tinytl-lite", "tinytl-lite-bias", "tune")),
)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class InvertedResidual(nn.Module):
    """MobileNetV2's block with ReLU6, or MobileNetV3's with hard-swish and squeeze-and-excite."""

    def __init__(self, into: int, out: int, *, expand: int, stride: int, version: str) -> None:
        super().__init__()
        hidden = into * expand
        self.shortcut = stride == 1 and into == out
        self.layers = nn.Sequential(
            nn.Conv2d(into, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            activation(version),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            activation(version),
            *([SqueezeExcite(hidden)] if version == "v3" else []),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.shortcut else y


class Network(nn.Module):
    """A stem, six inverted residual blocks, and a head, for images of 16x16."""

    def __init__(self, version: str, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), activation(version))
        # Channels in and out, and stride: 16x16 images shrink to 8x8 and 4x4.
        shapes = ((8, 12, 2), (12, 12, 1), (12, 16, 1), (16, 24, 2), (24, 24, 1), (24, 24, 1))
        self.blocks = nn.Sequential(
            *(InvertedResidual(into, out, expand=4, stride=stride, version=version) for into, out, stride in shapes)
        )
        self.head = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def activation(version: str) -> nn.Module:
    return nn.Hardswish(inplace=True) if version == "v3" else nn.ReLU6(inplace=True)


@dataclass(frozen=True)
class Images:
    """Images of one row of pixels each, upscaled to 16x16, and their classes from 0 to 4."""

    pixels: Tensor
    classes: Tensor

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in a random order, in batches; a rest of less than half a batch is left out."""
        for chosen in torch.randperm(len(self.classes), generator=generator).split(BATCH):
            if 2 * len(chosen) >= BATCH:
                yield self.pixels[chosen], self.classes[chosen]


@lru_cache
def digits(first: int) -> Images:
    """Return the images of five digits from ``first`` on."""
    data, classes = load_digits(return_X_y=True)
    pixels = F.interpolate(torch.from_numpy(data).float().view(-1, 1, 8, 8) / 8 - 1, size=16, mode="bilinear")
    chosen = torch.from_numpy((classes >= first) & (classes < first + 5))
    return Images(pixels[chosen], torch.from_numpy(classes)[chosen] - first)


def parts(seed: int, training: int = 200, validation: int = 200) -> tuple[Images, Images, Images]:
    """Return images of 5 to 9 for training, for validation, and the rest for the test, each class alike in each."""
    all_images = digits(5)
    places = list(range(len(all_images.classes)))
    labels = all_images.classes.numpy()
    train, others = train_test_split(places, train_size=training, stratify=labels, random_state=seed)
    valid, test = train_test_split(others, train_size=validation, stratify=labels[others], random_state=seed)
    return tuple(Images(all_images.pixels[part], all_images.classes[part]) for part in (train, valid, test))  # type: ignore[return-value]


@lru_cache
def pretrained(version: str, seed: int, epochs: int = PRETRAINING_EPOCHS) -> Network:
    """Return a network that has learnt the digits 0 to 4, with a new head of five classes."""
    torch.manual_seed(seed)
    network = Network(version)
    train(network, torch.optim.Adam(network.parameters(), lr=PRETRAINING_RATE), digits(0), epochs, seed)
    torch.manual_seed(seed)
    network.head = nn.Linear(network.head.in_features, network.head.out_features)
    return network


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    epochs: int,
    seed: int,
    steps: int | None = None,
) -> list[float]:
    """Train for some epochs, or ``steps`` of them, with a cosine schedule, and return the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(network.parameters()).dtype
    each = sum(1 for _ in images.batches(torch.Generator()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * each)
    losses: list[float] = []
    network.train()
    for _ in range(epochs):
        for pixels, classes in images.batches(generator):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(pixels.to(dtype)), classes)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) == steps:
                return losses
    return losses


def prepared(network: Network, way: Way, seed: int) -> nn.Module:
    """Return a copy of the network that trains as ``way`` says."""
    example = torch.zeros(BATCH, 1, 16, 16, dtype=network.head.weight.dtype)
    torch.manual_seed(seed)
    planned = memplan.apply(network, way.method, example, k=way.k, optimizer="adam", training=True)
    if way.runner == "memplan":
        return planned
    stock = copy.deepcopy(network)
    trained = {name for name, parameter in planned.named_parameters() if parameter.requires_grad}
    for name, parameter in stock.named_parameters():
        parameter.requires_grad_(name in trained)
    return stock


def accuracy(network: nn.Module, images: Images) -> float:
    """Return the share of the images that are recognised in eval mode."""
    network.eval()
    with torch.no_grad():
        return (network(images.pixels).argmax(1) == images.classes).float().mean().item()


@dataclass(frozen=True, slots=True)
class Run:
    """One transfer: shares of the validation and test images recognised, and the loss of the last epoch."""

    network: str
    method: str
    runner: str
    k: int | None
    rate: float
    seed: int
    validation: float
    test: float
    loss: float

    @property
    def way(self) -> Way:
        return Way(self.method, self.runner, self.k)


def transferred(version: str, way: Way, rate: float, seed: int, epochs: int = EPOCHS) -> Run:
    """Return what a transfer with one learning rate and one seed reaches."""
    training, validation, test = parts(seed)
    network = prepared(pretrained(version, seed), way, seed)
    losses = train(network, memplan.optimizer(network, "adam", lr=rate), training, epochs, seed)
    return Run(
        version, way.method, way.runner, way.k, rate, seed, accuracy(network, validation), accuracy(network, test),
        statistics.fmean(losses[-len(losses) // epochs :]),
    )  # fmt: skip
