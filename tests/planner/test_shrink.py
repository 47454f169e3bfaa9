"""Shrinking on needs that are written down, where every turn can be followed by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product

import pytest

from memplan.graph.channels.records import ChannelGroup, Member
from memplan.methods.pruning import Importance
from memplan.planner.shrink import Entering, Needs, Room, Shrunk, Stage, rooms_of, shrink


def room(name: str, channels: int, multiple: int = 8, least: int | None = None) -> Room:
    return Room(name, channels, multiple, multiple if least is None else least, "", "multiple")


def alike(*rooms: Room) -> Importance:
    return Importance("uniform", {room.name: (1 / room.channels,) * room.channels for room in rooms})


def net(rooms: Sequence[Room], layers: Sequence[tuple[str, ...]]) -> tuple[Needs, Entering]:
    """Layers that need the sum of the channels of some groups."""

    def needs(kept: Mapping[str, int]) -> list[int]:
        widths = {room.name: kept.get(room.name, room.channels) for room in rooms}
        return [sum(widths[name] for name in names) for names in layers]

    return needs, lambda place: layers[place]


def shrunk(rooms: Sequence[Room], layers: Sequence[tuple[str, ...]], target: int) -> Shrunk:
    return shrink(rooms, *net(rooms, layers), alike(*rooms), target)


def test_the_layer_that_needs_most_shrinks_until_the_next_one_does() -> None:
    rooms = [room("a", 16), room("b", 96), room("c", 32)]
    # a + b: 112; b: 96; c + a: 48. 8 of b cost 8/96 of its importance, 8 of a 8/16.
    found = shrunk(rooms, [("a", "b"), ("b",), ("c", "a")], 40)
    # b goes to 32, where 16 + 32 is as much as 32 + 16; the first of equals goes on: b to 24 gives 40. Then c, of which
    # 8 cost 8/32, goes to 24.
    assert found == Shrunk({"b": 24, "c": 24}, (Stage(0, 112), Stage(2, 48)), 40, 0, reached=True)


def test_the_target_itself_is_enough_and_nothing_more_goes() -> None:
    rooms = [room("a", 32)]
    assert shrunk(rooms, [("a",)], 24).kept == {"a": 24}
    assert shrunk(rooms, [("a",)], 23).kept == {"a": 16}
    assert shrunk(rooms, [("a",)], 32) == Shrunk({}, (), 32, 0, reached=True)


def test_what_matters_less_goes_first() -> None:
    rooms = [room("a", 16), room("b", 16)]
    needs, entering = net(rooms, [("a", "b")])
    first, second = (0.9, *(0.1 / 15,) * 15), (1 / 16,) * 16
    by = Importance("l1", {"a": first, "b": second})
    # Half of a is 8 * 0.1 / 15 of its importance, half of b half of it.
    assert shrink(rooms, needs, entering, by, 24).kept == {"a": 8}
    assert shrink(rooms, needs, entering, Importance("l1", {"a": second, "b": first}), 24).kept == {"b": 8}


def test_channels_that_count_nothing_go_before_all_others() -> None:
    rooms = [room("a", 16), room("b", 16)]
    needs, entering = net(rooms, [("a", "b", "b", "b")])
    by = Importance("l1", {"a": (1 / 8,) * 8 + (0.0,) * 8, "b": (1 / 16,) * 16})
    # 8 of b lower the need by 24 and 8 of a by 8, but these are free.
    assert shrink(rooms, needs, entering, by, 60).kept == {"a": 8}


def test_of_equals_the_first_goes() -> None:
    rooms = [room("a", 16), room("b", 16)]
    assert shrunk(rooms, [("a", "b")], 24).kept == {"a": 8}
    assert shrunk(rooms[::-1], [("a", "b")], 24).kept == {"b": 8}


def test_a_group_that_is_not_there_does_not_shrink_for_a_layer() -> None:
    rooms = [room("a", 16), room("free", 800)]
    # "free" would cost 1/100 a step, and lowers nothing that matters.
    assert shrunk(rooms, [("a",), ("a",)], 8).kept == {"a": 8}


def test_what_cannot_be_reached_is_told_with_the_smallest() -> None:
    rooms = [room("a", 16), room("b", 96, least=96), room("c", 64)]
    found = shrunk(rooms, [("a", "b"), ("c", "b"), ("c",)], 103)
    # a and c at 8, b stays: 8 + 96.
    assert found == Shrunk({"a": 8, "c": 8}, (), 104, 0, reached=False)
    assert shrunk(rooms, [("a", "b"), ("c", "b"), ("c",)], 104).reached


def test_all_groups_are_looked_at_where_those_of_the_layer_are_at_their_least() -> None:
    rooms = [room("a", 8), room("parameters", 64)]
    needs, _ = net(rooms, [("a", "parameters")])
    found = shrink(rooms, needs, lambda _: ("a",), alike(*rooms), 24)
    assert found.kept == {"parameters": 16}


def test_a_need_that_rises_on_the_way_does_not_stop() -> None:
    """A kernel may want more for 24 channels than for 32."""
    needs = {32: 100, 24: 120, 16: 60, 8: 50}
    found = shrink([room("a", 32)], lambda kept: [needs[kept.get("a", 32)]], lambda _: ("a",), alike(room("a", 32)), 70)
    assert (found.kept, found.peak_bytes) == ({"a": 16}, 60)


def test_the_target_is_met_whenever_it_can_be() -> None:
    """Against all kept counts of random nets: reached exactly when some reach it, and no single step is spare."""
    draw = random.Random(3)
    for _ in range(200):
        rooms = [room(name, draw.choice((8, 16, 24, 32)), 8) for name in "abc"]
        layers = [tuple(draw.sample("abc", draw.randint(1, 3))) for _ in range(4)]
        needs, entering = net(rooms, layers)
        every = [
            max(needs(dict(zip("abc", counts, strict=True))))
            for counts in product(*(range(8, each.channels + 1, 8) for each in rooms))
        ]
        target = draw.randint(8, 96)
        found = shrink(rooms, needs, entering, alike(*rooms), target)
        assert found.reached == (min(every) <= target)
        assert found.peak_bytes == max(needs(found.kept))
        if not found.reached:
            assert found.peak_bytes == min(every)


def group(channels: int, divisor: int = 1, pinned: str | None = None) -> ChannelGroup:
    member = Member("conv.weight", 0, channels, tuple((place,) for place in range(channels)))
    return ChannelGroup("conv", channels, divisor, (member,), (), (), pinned)


@pytest.mark.parametrize(
    ("made", "free", "round_to", "most", "expected"),
    [
        (group(96), True, 8, None, (8, 8, "multiple")),
        (group(4), True, 8, None, (8, 4, "multiple")),  # fewer than one multiple: all are kept
        (group(96, divisor=6), True, 8, None, (24, 24, "multiple")),  # the least common multiple
        (group(96), True, 8, 0.5, (8, 48, "share")),
        (group(96), True, 8, 0.55, (8, 48, "share")),  # 96 * 0.45 = 43.2, which 40 is less than
        (group(96), True, 8, 0.95, (8, 8, "multiple")),
        (group(96), False, 8, None, (8, 96, "kept")),
        (group(96, pinned="the model's outputs"), False, 8, None, (8, 96, "pinned")),
    ],
)
def test_how_far_a_group_may_shrink(
    made: ChannelGroup, free: bool, round_to: int, most: float | None, expected: tuple[int, int, str]
) -> None:
    (found,) = rooms_of((made,), ("conv",) if free else (), round_to, most)
    assert (found.multiple, found.least, found.kind) == expected
    assert found.end == (made.pinned or found.end)


@pytest.mark.parametrize(("kept", "fewer"), [(20, 16), (16, 8), (8, None), (9, 8)])
def test_the_next_multiple_below(kept: int, fewer: int | None) -> None:
    assert room("a", 20).below(kept) == fewer


def test_entering_is_asked_for_the_place_that_needs_most() -> None:
    asked: list[int] = []

    def entering(place: int) -> Collection[str]:
        asked.append(place)
        return ("a",)

    rooms = [room("a", 32)]
    needs: Callable[[Mapping[str, int]], Sequence[int]] = lambda kept: [kept.get("a", 32) - 1, kept.get("a", 32)]  # noqa: E731
    shrink(rooms, needs, entering, alike(*rooms), 16)
    assert set(asked) == {1}


def counted(needs: Needs, calls: list[dict[str, int]]) -> Needs:
    def asked(kept: Mapping[str, int]) -> Sequence[int]:
        calls.append(dict(kept))
        return needs(kept)

    return asked


def test_proportional_needs_are_looked_at_once_for_each_group() -> None:
    rooms = [room("a", 20), room("b", 960), room("unused", 64)]
    needs, entering = net(rooms, [("a", "b"), ("b",)])
    plain = shrink(rooms, needs, entering, alike(*rooms), 100)
    calls: list[dict[str, int]] = []
    quick = shrink(rooms, counted(needs, calls), entering, alike(*rooms), 100, proportional=True)
    assert quick == plain
    # The floor, the whole, a and b with their first multiple less, and the end.
    assert calls == [{"a": 8, "b": 8, "unused": 8}, {}, {"a": 16}, {"b": 952}, dict(plain.kept)]


def test_needs_that_are_not_proportional_are_asked_for_at_each_turn() -> None:
    """A product of two groups, and a step that is not as high as the first."""

    def squared(kept: Mapping[str, int]) -> Sequence[int]:
        return [kept.get("a", 32) * kept.get("b", 32), kept.get("a", 32) ** 2]

    rooms = [room("a", 32), room("b", 32)]
    for target in range(64, 1024, 96):
        plain = shrink(rooms, squared, lambda _: ("a", "b"), alike(*rooms), target)
        quick = shrink(rooms, squared, lambda _: ("a", "b"), alike(*rooms), target, proportional=True)
        assert quick == plain
        assert plain.peak_bytes == max(squared(plain.kept)) <= target
