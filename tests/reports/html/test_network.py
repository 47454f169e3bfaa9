"""The network of a page: in which segment the model's own operations stand, so that arrows go where values go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import memplan
from memplan.graph import Block
from memplan.reports.html.network import network_of
from memplan.reports.network import layer_network

BLOCKS = 3
IMAGES = torch.empty(2, 3, 8, 8)

Join = Callable[[nn.ModuleList, Tensor], Tensor]


class Net(nn.Module):
    """A stem, equal blocks that ``join`` runs and brings together by operations of the model's own, and a head.

    The result of ``join`` has ``width`` times the channels of the stem's.
    """

    head: nn.Module | None

    def __init__(self, join: Join, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.b = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(BLOCKS)
        )
        self.head = nn.Linear(4 * width, 2)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        x = self.join(self.b, self.stem(x))
        return x if self.head is None else self.head(x.mean((2, 3)))


def arrows(module: nn.Module, blocks: tuple[Block, ...] = ()) -> set[tuple[str, str]]:
    """Return the pairs of segments of which the second reads what the first has made."""
    analysis = memplan.analyze(module, IMAGES, methods=("full",))
    blocks = blocks or analysis.blocks
    (full,) = analysis.methods
    assert full.step is not None
    network = network_of(full.step, layer_network(full.step, full.footprint, blocks=blocks), blocks)
    ends = [(network.inside[source], network.inside[target]) for source, target in network.edges]
    assert all(source <= target for source, target in ends)
    return {(network.segments[source], network.segments[target]) for source, target in ends if source != target}


def beside(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    return torch.cat([block(x) for block in blocks], 1)


def summed(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    y = blocks[0](x)
    for block in blocks[1:]:
        y = y + block(x)
    return y


def added(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = x + block(x)
    return x


def added_at_the_end(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    y = x
    for block in blocks:
        y = block(y)
    return x + y


def dense(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    made = [x]
    for block in blocks:
        made.append(block(torch.stack(made).sum(0)))
    return torch.cat(made, 1)


ALONE = {("stem", f"b.{place}") for place in range(BLOCKS)}
ROW = {("stem", "b.0"), ("b.0", "b.1"), ("b.1", "b.2"), ("b.2", "head")}


@pytest.mark.parametrize(("join", "width"), [(beside, BLOCKS), (summed, 1)])
def test_branches_meet_behind_them(join: Join, width: int) -> None:
    assert arrows(Net(join, width)) == ALONE | {(f"b.{place}", "head") for place in range(BLOCKS)}


@pytest.mark.parametrize(
    ("join", "width", "around"),
    [
        (added, 1, set()),  # what goes round a block is read by two calls of its segment
        (added_at_the_end, 1, {("stem", "head")}),
        (
            dense,
            BLOCKS + 1,
            {("stem", "b.2"), ("stem", "head"), ("b.0", "b.2"), ("b.0", "head"), ("b.1", "head")},
        ),
    ],
)
def test_what_the_model_adds_has_the_arrows_of_what_it_adds(
    join: Join, width: int, around: set[tuple[str, str]]
) -> None:
    assert arrows(Net(join, width)) == ROW | around


def test_branches_that_end_the_model_meet_in_a_head() -> None:
    net = Net(beside, BLOCKS)
    blocks = memplan.analyze(net, IMAGES, methods=("full",)).blocks
    net.head = None
    assert arrows(net, blocks) == ALONE | {(f"b.{place}", "head") for place in range(BLOCKS)}
