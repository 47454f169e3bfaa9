"""Models that tell when they are built: each factory adds a line to the file that BUILDS names."""

from __future__ import annotations

import os
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
