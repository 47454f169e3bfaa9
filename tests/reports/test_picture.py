"""The picture of memory over a step."""

from __future__ import annotations

import pytest

from memplan.memory import Timeline
from memplan.reports.picture import Picture
from tests.reports.toy import analysis, shown

TIMELINE = analysis().methods[0].footprint.timeline


def lines(picture: Picture, width: int = 80) -> list[str]:
    return [line.plain for line in picture.lines(width)]


@pytest.mark.parametrize("width", [52, 60, 80, 119, 200])
def test_it_fits_and_names_every_phase(width: int) -> None:
    shown_lines = lines(Picture(TIMELINE, "MB", 70_000_000), width)
    assert max(map(len, shown_lines)) <= width

    assert [name.strip() for name in shown_lines[-2].split("|")[1:]] == ["forward", "loss", "backward", "optimizer"]


def test_there_is_none_where_there_is_no_room() -> None:
    assert lines(Picture(TIMELINE, "MB"), 51) == []
    assert shown(Picture(TIMELINE, "MB"), 51) == ""


def test_there_is_none_of_an_empty_step() -> None:
    assert lines(Picture(Timeline((), (), (), (), ()), "MB")) == []


def test_a_single_high_moment_is_never_averaged_away() -> None:
    low, high = 10, 100
    temp = tuple(high if moment == 617 else low for moment in range(1_000))
    timeline = Timeline(("forward",) * 1_000, (0,) * 1_000, (0,) * 1_000, temp, (0,) * 1_000)
    top = lines(Picture(timeline, "B"))[0]
    assert top.startswith("  100 B |")
    assert top.count(".") == 1


def test_the_kinds_are_stacked_in_proportion() -> None:
    timeline = Timeline(("forward",), (40,), (30,), (30,), (0,))
    columns = [line.split("|")[1] for line in lines(Picture(timeline, "B", height=10))[:10]]
    assert [column[0] for column in columns] == [*"...+++####"]


@pytest.mark.parametrize(
    ("budget", "row", "label"),
    [
        (60, 4, "60 B"),  # six tenths up: the seventh row of ten from below
        (100, 0, "100 B"),
        (200, 0, "200 B"),  # above the peak the scale grows to hold it
    ],
)
def test_the_budget_is_a_line_at_its_height(budget: int, row: int, label: str) -> None:
    timeline = Timeline(("forward",), (40,), (30,), (30,), (0,))
    shown_lines = lines(Picture(timeline, "B", budget, height=10))
    budget_rows = [place for place, line in enumerate(shown_lines[:10]) if "-" in line]
    assert budget_rows == [row - (1 if budget == 60 else 0)]
    assert shown_lines[budget_rows[0]].strip().startswith(label)


def test_a_budget_far_above_the_peak_does_not_flatten_the_picture() -> None:
    timeline = Timeline(("forward",), (40,), (30,), (30,), (0,))
    assert "budget" not in lines(Picture(timeline, "B", 201))[-1]
