"""Groups of small networks, written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memplan.graph.channels import ChannelGroup
from memplan.graph.channels.groups import channel_groups
from memplan.tracing.record import trace


def groups_of(module: nn.Module, *shape: int) -> dict[str, ChannelGroup]:
    groups = channel_groups(trace(module, torch.empty(shape)).step)
    assert len({group.name for group in groups}) == len(groups)
    return {group.name: group for group in groups}


def axes(group: ChannelGroup) -> dict[tuple[str, int], int]:
    """Members by tensor and axis, with the elements of each channel."""
    return {(member.tensor, member.axis): len(member.positions[0]) for member in group.members}


def positions(group: ChannelGroup, tensor: str, axis: int) -> list[tuple[int, ...]]:
    return next(list(m.positions) for m in group.members if (m.tensor, m.axis) == (tensor, axis))


NORM = ("weight", "bias", "running_mean", "running_var")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.inner = nn.Conv2d(8, 5, 1)
        self.norm = nn.BatchNorm2d(5)
        self.outer = nn.Conv2d(5, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(F.relu(self.norm(self.inner(x))))
        return self.head(x.mean((2, 3)))


def test_a_residual_ties_the_stem_to_what_is_added() -> None:
    groups = groups_of(Residual(), 2, 3, 6, 6)
    assert list(groups) == ["stem", "inner", "head"]
    assert axes(groups["stem"]) == {
        ("stem.weight", 0): 1,
        ("stem.bias", 0): 1,
        ("inner.weight", 1): 1,
        ("outer.weight", 0): 1,
        ("outer.bias", 0): 1,
        ("head.weight", 1): 1,
    }
    assert axes(groups["inner"]) == {
        ("inner.weight", 0): 1,
        ("inner.bias", 0): 1,
        **{(f"norm.{name}", 0): 1 for name in NORM},
        ("outer.weight", 1): 1,
    }
    assert groups["inner"].pinned is None
    assert groups["head"].pinned == "the model's outputs"


def test_layers_and_storages_that_shrink() -> None:
    step = trace(Residual(), torch.empty(2, 3, 6, 6)).step
    inner = channel_groups(step)[1]
    assert {step.layers[layer].path for layer in inner.layers} == {"", "inner", "norm", "outer"}
    made = {view.storage for op in step.ops if op.phase == "forward" for view in op.outputs if view}
    assert {step.storages[index].bytes for index in made.intersection(inner.storages)} == {2 * 5 * 16 * 4, 5 * 4}


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(10, 10, 3, groups=10)
        self.head = nn.Linear(10 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(x.flatten(1))


def test_concatenation_flatten_and_depthwise() -> None:
    groups = groups_of(Concatenated(), 2, 3, 4, 4)
    assert list(groups) == ["left", "right", "head"]
    right = groups["right"]
    assert positions(right, "right.weight", 0) == [(n,) for n in range(6)]
    assert positions(right, "depthwise.weight", 0) == [(n,) for n in range(4, 10)]
    assert positions(right, "head.weight", 1) == [tuple(range(n * 4, n * 4 + 4)) for n in range(4, 10)]
    assert positions(groups["left"], "head.weight", 1) == [tuple(range(n * 4, n * 4 + 4)) for n in range(4)]


class Several(nn.Module):
    """Squeeze and excite, a grouped convolution, group norm, a multiplier in a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.down = nn.Conv2d(8, 2, 1)
        self.up = nn.Conv2d(2, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2)
        self.norm = nn.GroupNorm(3, 12)
        self.twice = nn.Conv2d(12, 24, 1, groups=12)
        self.head = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.twice(self.norm(self.grouped(x))))


def test_squeeze_and_excite_and_grouped_convolutions() -> None:
    groups = groups_of(Several(), 2, 3, 5, 5)
    assert list(groups) == ["stem", "down", "grouped", "head"]
    stem = groups["stem"]
    # Both groups of four lose the same channel.
    assert positions(stem, "stem.weight", 0) == [(n, n + 4) for n in range(4)]
    assert positions(stem, "up.weight", 0) == [(n, n + 4) for n in range(4)]
    assert positions(stem, "grouped.weight", 1) == [(n,) for n in range(4)]
    # Two groups of six and three of four: what is tied by both is n and n + 2, n + 4 ...
    grouped = groups["grouped"]
    assert positions(grouped, "grouped.weight", 0) == [(0, 2, 4, 6, 8, 10), (1, 3, 5, 7, 9, 11)]
    assert positions(grouped, "twice.weight", 0)[0] == tuple(
        place for n in (0, 2, 4, 6, 8, 10) for place in (2 * n, 2 * n + 1)
    )


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.norm = nn.LayerNorm(5)
        self.down = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.up(x).chunk(2, -1)
        return self.down(self.norm(left * F.gelu(right)))


def test_a_gated_unit_ties_its_halves() -> None:
    groups = groups_of(Gated(), 4, 7, 6)
    assert positions(groups["up"], "up.weight", 0) == [(n, n + 5) for n in range(5)]
    assert positions(groups["up"], "norm.weight", 0) == [(n,) for n in range(5)]
    assert groups["up"].pinned is None


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.one = nn.Conv2d(3, 2, 1)
        self.other = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.split(self.stem(x), 3, 1)
        return self.one(one) + self.other(other)


def test_a_split_of_stated_sizes_is_pinned() -> None:
    groups = groups_of(Split(), 2, 3, 4, 4)
    assert groups["stem"].pinned == "they are split into parts of fixed lengths, in (model)"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.qkv = nn.Linear(6, 3 * 8)
        self.proj = nn.Linear(8, 6)
        self.hidden = nn.Linear(6, 9)
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.qkv(x).reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 8)
        return self.head(F.relu(self.hidden(x + self.proj(attended))))


def test_heads_are_pinned_and_the_hidden_layer_is_not() -> None:
    groups = groups_of(Attention(), 2, 5, 3)
    assert groups["qkv"].pinned == "attention's heads are as many and as wide as the model's code says, in (model)"
    assert groups["hidden"].pinned is None
    # 6 is not the width of the heads, 8, so that no code can take the one for the other.
    assert groups["stem"].pinned is None
    assert positions(groups["qkv"], "proj.weight", 1) == [(n, n + 4) for n in range(4)]


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cummax(self.stem(x), 1).values)


def test_an_op_without_a_rule_pins_what_enters_it() -> None:
    groups = groups_of(Odd(), 4, 3)
    assert groups["stem"].pinned == "an op without a rule: aten.cummax.default in (model)"


@pytest.mark.parametrize("width", [4, 6])
def test_a_shuffle_and_back_keeps_channels_apart(width: int) -> None:
    class Shuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 2 * width, 1)
            self.head = nn.Conv2d(2 * width, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            shuffled = x.view(2, 2, -1, 4, 4).transpose(1, 2).flatten(1, 2)
            return self.head(shuffled)

    groups = groups_of(Shuffle(), 2, 3, 4, 4)
    assert groups["stem"].channels == width
    assert positions(groups["stem"], "stem.weight", 0) == [(n, n + width) for n in range(width)]
    assert positions(groups["stem"], "head.weight", 1) == [(2 * n, 2 * n + 1) for n in range(width)]
