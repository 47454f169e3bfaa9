"""Pruned groups are whole, go through JSON, and nonsense in one is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from memplan.errors import UsageError
from memplan.graph.channels.records import ChannelGroup, Member
from memplan.methods.plan import Plan, plan_from_json, plan_to_json
from memplan.methods.pruning import (
    Importance,
    PrunedAxis,
    PrunedGroup,
    from_ranges,
    lost,
    lowest,
    pruned_group,
    to_ranges,
)

#: Four channels: rows 2 to 5 of a weight of 6 rows, and each two columns of a weight behind a flattening.
GROUP = ChannelGroup(
    "a",
    4,
    1,
    (
        Member("a.weight", 0, 6, ((2,), (3,), (4,), (5,))),
        Member("b.weight", 1, 8, ((0, 1), (2, 3), (4, 5), (6, 7))),
    ),
    (),
    (),
    None,
)


def plan(*groups: PrunedGroup) -> Plan:
    return Plan("full", None, ("a.weight",), "approximate", pruned=groups)


# -- groups ------------------------------------------------------------------------------------------------------------


def test_a_group_drops_the_elements_of_its_channels() -> None:
    assert pruned_group(GROUP, [3, 0]) == PrunedGroup(
        "a",
        4,
        (0, 3),
        (PrunedAxis("a.weight", 0, 6, (2, 5)), PrunedAxis("b.weight", 1, 8, (0, 1, 6, 7))),
    )


def test_members_of_one_axis_are_one_axis() -> None:
    """A tensor that is concatenated with itself meets a weight twice."""
    twice = (Member("c.weight", 1, 4, ((0,), (1,))), Member("c.weight", 1, 4, ((2,), (3,))))
    group = ChannelGroup("a", 2, 1, twice, (), (), None)
    assert pruned_group(group, [1]).axes == (PrunedAxis("c.weight", 1, 4, (1, 3)),)


def test_indices_ascend_in_whatever_order_channels_have_them() -> None:
    group = ChannelGroup("a", 3, 1, (Member("c.weight", 1, 9, ((8,), (1,), (4,))),), (), (), None)
    assert pruned_group(group, [0, 1]).axes == (PrunedAxis("c.weight", 1, 9, (1, 8)),)


def test_a_group_that_loses_nothing_is_nothing() -> None:
    empty = pruned_group(GROUP, ())
    assert (empty.dropped, empty.axes) == ((), ())
    assert plan(empty).treatments == ()
    assert plan(pruned_group(GROUP, (1,))).treatments == ("prune",)
    assert plan_from_json(plan_to_json(plan(empty))) == plan(empty)


@pytest.mark.parametrize(
    ("change", "dropped", "line"),
    [
        ({}, (1, 1), "group 'a' drops an index twice or out of order; choose other channels"),
        ({}, (4,), "group 'a' drops the index 4 of 4; choose other channels"),
        ({}, (-1,), "group 'a' drops the index -1 of 4; choose other channels"),
        ({}, (0, 1, 2, 3), "nothing is left of group 'a'; choose other channels"),
        ({"divisor": 2}, (1,), "group 'a' would keep 3 of 4 channels; keep a multiple of 2"),
        ({"pinned": "the outputs"}, (1,), "group 'a' cannot be pruned: the outputs; choose another group"),
    ],
)
def test_what_a_group_cannot_lose_is_told(change: dict[str, Any], dropped: tuple[int, ...], line: str) -> None:
    with pytest.raises(UsageError) as info:
        pruned_group(replace(GROUP, **change), dropped)
    assert str(info.value) == line


# -- importance --------------------------------------------------------------------------------------------------------

MEASURED = Importance("l1", {"a": (0.25, 0.125, 0.5, 0.125), "b": (1.0,), "c": (0.5, 0.5)})


def test_the_least_important_go_first_and_of_equal_ones_the_last() -> None:
    orders = [lowest(MEASURED, GROUP, count) for count in range(4)]
    assert orders == [(), (3,), (1, 3), (0, 1, 3)]
    assert lowest(Importance("uniform", {"a": (0.25,) * 4}), GROUP, 2) == (2, 3)


def test_what_is_lost_is_counted_by_group_and_over_all_that_were_measured() -> None:
    found = lost(MEASURED, [pruned_group(GROUP, (0, 3))])
    # 1/4 + 1/8 of one group of three
    assert found.groups == {"a": 0.375}
    assert found.total == 0.125
    assert lost(MEASURED, ()).total == 0


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda: lowest(MEASURED, GROUP, 4), "group 'a' has 4 channels and cannot drop 4; drop fewer"),
        (lambda: lowest(MEASURED, GROUP, -1), "group 'a' has 4 channels and cannot drop -1; drop fewer"),
        (
            lambda: lowest(MEASURED, replace(GROUP, name="d"), 1),
            "group 'd' of 4 channels has no importance by l1; measure it first",
        ),
        (
            lambda: lowest(MEASURED, replace(GROUP, name="c"), 1),
            "group 'c' of 4 channels has no importance by l1; measure it first",
        ),
        (
            lambda: lost(MEASURED, [replace(pruned_group(GROUP, (1,)), name="d")]),
            "group 'd' has no importance by l1; measure it first",
        ),
    ],
)
def test_what_was_not_measured_is_told(ask: Callable[[], Any], line: str) -> None:
    with pytest.raises(UsageError) as info:
        ask()
    assert str(info.value) == line


# -- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "text"),
    [((), ""), ((5,), "5"), ((0, 1, 2, 3, 7), "0-3,7"), ((1, 3, 5), "1,3,5"), ((0, 1), "0-1")],
)
def test_indices_are_written_as_ranges_and_read_back(indices: tuple[int, ...], text: str) -> None:
    assert to_ranges(indices) == text
    assert from_ranges(text) == indices


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0-3,2", "'0-3,2' has an index twice or out of order"),
        ("3-1", "'3-1' has an index twice or out of order"),
        ("1,1", "'1,1' has an index twice or out of order"),
        ("-1", "'-1' is no list of indices such as '0-3,7'"),
        ("0-", "'0-' is no list of indices such as '0-3,7'"),
        ("1, 2", "'1, 2' is no list of indices such as '0-3,7'"),
        ("a", "'a' is no list of indices such as '0-3,7'"),
        ("0-99999999999", "'0-99999999999' is no list of indices such as '0-3,7'"),
    ],
)
def test_what_is_no_list_of_ranges_is_told(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"index|list") as info:
        from_ranges(text)
    assert str(info.value) == reason


def test_a_pruned_plan_goes_through_json() -> None:
    whole = plan(pruned_group(GROUP, (1, 2)), replace(pruned_group(GROUP, (0,)), name="b", axes=other_axes()))
    text = plan_to_json(whole)
    assert plan_from_json(text) == whole
    assert json.loads(text)["pruned"][0] == {
        "name": "a",
        "channels": 4,
        "dropped": "1-2",
        "axes": [
            {"tensor": "a.weight", "axis": 0, "size": 6, "dropped": "3-4"},
            {"tensor": "b.weight", "axis": 1, "size": 8, "dropped": "2-5"},
        ],
    }


def other_axes() -> tuple[PrunedAxis, ...]:
    return (PrunedAxis("b.weight", 1, 8, (0,)), PrunedAxis("c.weight", 0, 5, (4,)))


def _set(*keys: Any, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(groups: list[dict[str, Any]]) -> None:
        place: Any = groups
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


#: What is changed by hand, and what is said of it.
CHANGED: dict[str, tuple[Callable[[list[dict[str, Any]]], None], str]] = {
    "an index beyond the channels": (_set(0, "dropped", value="1,9"), "group 'a' drops the index 9 of 4"),
    "an index beyond the axis": (
        _set(0, "axes", 0, "dropped", value="3,6"),
        "axis 0 of 'a.weight' drops the index 6 of 6",
    ),
    "indices that overlap": (_set(0, "dropped", value="1-2,2"), "'1-2,2' has an index twice or out of order"),
    "indices of two groups that overlap": (
        _set(1, "axes", 0, "dropped", value="5"),
        "axis 1 of 'b.weight' drops the elements 5 in two groups",
    ),
    "another size in each group": (
        _set(1, "axes", 0, "size", value=9),
        "axis 1 of 'b.weight' has the size 8 in one group and 9 in another",
    ),
    "all channels": (_set(0, "dropped", value="0-3"), "nothing is left of group 'a'"),
    "all elements": (_set(0, "axes", 0, "dropped", value="0-5"), "nothing is left of axis 0 of 'a.weight'"),
    "all elements between two groups": (
        _set(1, "axes", 0, "dropped", value="0-1,6-7"),
        "nothing is left of axis 1 of 'b.weight'",
    ),
    "elements that do not go with the channels": (
        _set(0, "axes", 0, "dropped", value="2-4"),
        "axis 0 of 'a.weight' drops 3 elements for 2 channels of 'a'",
    ),
    "no elements of an axis": (
        _set(0, "axes", 0, "dropped", value=""),
        "axis 0 of 'a.weight' drops 0 elements for 2 channels of 'a'",
    ),
    "no axes": (_set(0, "axes", value=[]), "group 'a' drops 2 channels and elements of 0 axes"),
    "no channels": (_set(0, "dropped", value=""), "group 'a' drops 0 channels and elements of 2 axes"),
    "a group twice": (_set(1, "name", value="a"), "group 'a' is there twice"),
    "an axis twice": (
        _set(1, "axes", 1, value={"tensor": "b.weight", "axis": 1, "size": 8, "dropped": "1"}),
        "group 'b' has an axis twice",
    ),
    "an axis below 0": (_set(0, "axes", 0, "axis", value=-1), "-1 is not a number from 0 on"),
    "a size of 0": (_set(0, "axes", 0, "size", value=0), "0 is not a number from 1 on"),
    "indices as numbers": (_set(0, "dropped", value=[1, 2]), "[1, 2] is not a text"),
    "a group that is none": (_set(0, value="a"), "'a' is not an object"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_nonsense_written_by_hand_is_told_in_one_line(case: str) -> None:
    change, reason = CHANGED[case]
    fields = json.loads(
        plan_to_json(plan(pruned_group(GROUP, (1, 2)), replace(pruned_group(GROUP, (0,)), name="b", axes=other_axes())))
    )
    change(fields["pruned"])
    with pytest.raises(UsageError) as info:
        plan_from_json(json.dumps(fields))
    assert str(info.value) == f"the plan is not a plan: {reason}; write it again with memplan apply"


def test_a_plan_that_does_not_say_what_is_pruned_is_not_whole() -> None:
    fields = json.loads(plan_to_json(plan()))
    del fields["pruned"]
    with pytest.raises(UsageError, match=r"^the plan is not a whole plan: there is no 'pruned'; write it again"):
        plan_from_json(json.dumps(fields))
