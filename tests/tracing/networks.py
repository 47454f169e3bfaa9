"""Small networks, one for each thing that real models do and recorders get wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class OneReluForAll(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.relu(norm(conv(x)))
        return x


class LoopOverOneLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(5):
            x = torch.tanh(self.linear(x))
        return x


class TiedEmbedding(nn.Module):
    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(500, 32, sparse=sparse)
        self.mix = nn.Linear(32, 32)
        self.head = nn.Linear(32, 500, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(F.gelu(self.mix(self.embedding(tokens))))


class Residuals(nn.Module):
    """Gradients meet at every join, in place or not as the engine decides."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + F.relu(conv(x)) * torch.sigmoid(x)
        return x


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.linear(x).chunk(3, dim=-1)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return torch.cat([mixed, mixed], dim=-1).view(x.shape[0], -1)[:, ::2].permute(1, 0)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 8, 3, 3))
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, padding=1)
        y = F.batch_norm(y, None, None, training=True)
        y = F.hardswish(y * self.scale[:, None, None]).relu_()
        return F.adaptive_avg_pool2d(F.max_pool2d(F.dropout(y, 0.3, self.training), 2), 3)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts[0](x)
        for part in self.parts[1:]:
            x = checkpoint(part, x, use_reentrant=self.reentrant)
        return x


class NoGradInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.body(x)
        return self.head(x.mean((2, 3)))


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(1, 16, 9, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.filter)


class ManyInputsAndOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 32), nn.Linear(8, 32)
        self.unused = nn.Linear(1000, 100)

    def forward(self, left: Tensor, *, right: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        total = self.left(left) * self.right(right)
        if mask is not None:
            total = total.masked_fill(mask, 0.0)
        return {"sum": total, "parts": (self.left(left).relu(), None), "count": total.shape[0]}


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


class GivesDataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Answer:
        hidden = self.linear(x).sigmoid()
        return Answer(hidden.exp(), hidden)


class KeepsOnContext(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.hidden = x.exp()  # invisible to hooks, alive all the same
        ctx.save_for_backward(x)
        return x * ctx.hidden

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (ctx.hidden + x * ctx.hidden)


class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(KeepsOnContext.apply(self.first(x)))


class PlainAttribute(nn.Module):
    """A tensor that is neither parameter nor buffer, and a buffer that is written."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(64, 64)
        self.linear = nn.Linear(64, 64)
        self.register_buffer("count", torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(x.detach().mean(0))
        return self.linear(x) @ self.table * torch.tensor([2.0])


class MovesInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y += 1
        y[:, :4] = 0
        z = torch.zeros_like(y)
        z[:, ::2] = y[:, ::2].exp()
        return z.index_select(1, torch.tensor([0, 2, 5])).cumsum(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 32)
        for moment in range(x.shape[1]):
            state = self.cell(x[:, moment], state)
        return state


def _transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)


def _frozen_prefix() -> nn.Module:
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(4)))
    model[:2].requires_grad_(False)
    return model


def _frozen_norms() -> nn.Module:
    model = OneReluForAll(inplace=True)
    model.norms.requires_grad_(False)
    return model.eval()


def _weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(32, 48)), nn.GELU(), nn.Linear(48, 4))


def _image(channels: int = 8, size: int = 64) -> tuple[Tensor]:
    return (torch.randn(4, channels, size, size),)


def _tokens() -> tuple[Tensor]:
    return (torch.randint(0, 500, (4, 12)),)


#: name -> (how to make the network, how to make its inputs)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "one relu object, in place": (lambda: OneReluForAll(True), _image),
    "one relu object": (lambda: OneReluForAll(False), _image),
    "loop over one linear": (LoopOverOneLinear, lambda: (torch.randn(32, 64),)),
    "tied embedding": (TiedEmbedding, _tokens),
    "residual joins": (Residuals, _image),
    "views": (Views, lambda: (torch.randn(4, 10, 32),)),
    "functional calls": (Functional, _image),
    "functional calls, eval": (lambda: Functional().eval(), _image),
    "checkpoint": (lambda: Checkpointed(False), _image),
    "checkpoint, reentrant": (lambda: Checkpointed(True), _image),
    "no_grad inside": (NoGradInside, lambda: _image(3)),
    "complex": (Complex, lambda: (torch.randn(4, 16, 16),)),
    "many inputs and outputs": (
        ManyInputsAndOutputs,
        lambda: {"left": torch.randn(9, 16), "right": torch.randn(9, 8), "mask": torch.rand(9, 32) > 0.5},
    ),
    "dataclass output": (GivesDataclass, lambda: (torch.randn(9, 16),)),
    "context attribute": (CustomFunction, lambda: (torch.randn(32, 64),)),
    "plain tensor attribute": (PlainAttribute, lambda: (torch.randn(32, 64),)),
    "in-place writes": (MovesInPlace, lambda: (torch.randn(32, 32),)),
    "recurrent": (Recurrent, lambda: (torch.randn(8, 6, 16),)),
    "lstm": (lambda: _First(nn.LSTM(16, 32, 2, batch_first=True)), lambda: (torch.randn(8, 6, 16),)),
    "transformer layer": (_transformer, lambda: (torch.randn(4, 20, 32),)),
    "frozen prefix": (_frozen_prefix, _image),
    "frozen norms in eval": (_frozen_norms, _image),
    "weight norm": (_weight_norm, lambda: (torch.randn(16, 32),)),
    "input requires grad": (
        lambda: nn.Linear(32, 32).requires_grad_(False),
        lambda: (torch.randn(8, 32).requires_grad_(),),
    ),
    "nothing trains": (lambda: nn.Linear(32, 32).requires_grad_(False), lambda: (torch.randn(8, 32),)),
    "1d and 3d convolutions": (
        lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.Unflatten(2, (2, 5, 3)), nn.Conv3d(8, 4, (1, 3, 2))),
        lambda: (torch.randn(2, 4, 32),),
    ),
    "transposed convolution": (
        lambda: nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.PReLU(), nn.ConvTranspose2d(16, 8, 3, stride=2)),
        _image,
    ),
}


class _First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def forward_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), inputs) if isinstance(inputs, dict) else (inputs, {})
