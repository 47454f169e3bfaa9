"""Models that tell when they are built: each factory adds a line to the file that BUILDS names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Chain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


def _logged(width: int) -> Callable[[int], Any]:
    def build(batch_size: int = 1) -> Any:
        descriptor = os.open(os.environ["BUILDS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"chain{width}\n".encode())
        os.close(descriptor)
        return Chain(width), torch.ones(batch_size, width)

    return build


chain1, chain2, chain3, chain4, chain5, chain6, chain7, chain8 = map(_logged, range(1, 9))


def dies(batch_size: int = 1) -> Any:
    os._exit(9)


class Late(Chain):
    """A chain whose step is recorded where all of it trains, and which ends its process where its end alone does."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.layers[0].weight.requires_grad:
            self.stop()
        return super().forward(x)

    def stop(self) -> None:
        os._exit(9)


class Slow(Late):
    def stop(self) -> None:
        time.sleep(300)


def dies_late(batch_size: int = 1) -> Any:
    return Late(2), torch.ones(batch_size, 2)


def waits_late(batch_size: int = 1) -> Any:
    return Slow(2), torch.ones(batch_size, 2)
