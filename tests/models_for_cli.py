"""Models that are small, and models that go wrong, for the tests of the command line."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn

NUMBER = 3


class Net(nn.Module):
    """Two residual blocks and a head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 32)
        self.down = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())  # type: ignore[no-any-return]


class Branch(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        return super().forward(-x if x.sum() > 0 else x)


class Fails(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.blocks[0].norm(x)
        raise ValueError("a width of 3\nis odd")


class Ints(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


class Exits(Net):
    def forward(self, x: Tensor) -> Tensor:
        sys.exit(7)


class Interrupted(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyboardInterrupt


class Chatty(Net):
    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("look out", stacklevel=1)
        print("hello")
        return super().forward(x)


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.words(x)  # type: ignore[no-any-return]


def _made(kind: type[nn.Module]) -> Any:
    return lambda batch_size=2: (kind(), torch.ones(batch_size, 8))


net, branch, fails, ints, exits, interrupted, chatty = map(
    _made, (Net, Branch, Fails, Ints, Exits, Interrupted, Chatty)
)


def integers() -> Any:
    return nn.Sequential(nn.Linear(8, 4)), torch.ones(2, 8, dtype=torch.int64)


def sparse() -> Any:
    return Sparse(), torch.ones(2, 3, dtype=torch.int64)


def odd() -> Any:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ELU(), nn.Flatten(), nn.Linear(2048, 4)), torch.ones(
        2, 3, 16, 16
    )


def uncopied() -> Any:
    model = Net()
    model.lock = threading.Lock()  # type: ignore[assignment]
    return model, torch.ones(2, 8)


def frozen() -> Any:
    model = Net()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    return model, torch.ones(2, 8)


def raises() -> Any:
    raise RuntimeError("no disk")


def square(output: Tensor) -> Tensor:
    return output.pow(2).sum()


def no_tensor(output: Tensor) -> float:
    return 3.0


class Convolutions(nn.Module):
    """A stem, three residual blocks and a head: enough for a budget to have something to choose."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual() for _ in range(3)))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(16, 32, 1)
        self.norm = nn.BatchNorm2d(32)
        self.act = nn.Hardswish()
        self.down = nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.norm(self.up(x))))  # type: ignore[no-any-return]


def convolutions(batch_size: int = 4) -> Any:
    return Convolutions(), torch.ones(batch_size, 3, 32, 32)


def more_classes(batch_size: int = 4) -> Any:
    return Convolutions(classes=5), torch.ones(batch_size, 3, 32, 32)
