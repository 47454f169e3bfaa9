"""The plot of a front: each point is where its memory and k are, marked by its gradients, on any screen."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from memplan.reports.front import front_report, front_to_json
from memplan.reports.front_plot import Plot
from memplan.results import Front
from memplan.units import format_bytes
from tests.reports.plans import front, point
from tests.reports.toy import shown

MB = 10**6


def marks(text: str, signs: str = "o~|") -> dict[tuple[int, int], str]:
    """Return the signs of a plot by row, from below, and column."""
    exact, approximate, axis = signs
    rows = [line.partition(axis)[2] for line in text.splitlines() if axis in line][::-1]
    return {
        (row, column): sign
        for row, line in enumerate(rows)
        for column, sign in enumerate(line)
        if sign in (exact, approximate)
    }


@pytest.mark.parametrize(("width", "columns"), [(52, 46), (80, 74), (200, 94)])
def test_points_are_where_their_memory_and_k_are(width: int, columns: int) -> None:
    # A margin of three, a blank, the axis and a free column are left out of the width, which is 100 at most.
    found = marks(shown(Plot(front()), width))
    # k is 0, 2 and 3; 40 MB lies half-way from 20 MB to 60 MB.
    half = round((columns - 1) / 2 + 0.01)
    assert found == {(0, 0): "o", (2, half): "~", (3, columns - 1): "o"}


def test_a_terminal_has_the_same_points_in_its_own_signs() -> None:
    piped, drawn = (shown(Plot(front()), 80, terminal=terminal) for terminal in (False, True))
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", drawn)
    names = {"●": "o", "○": "~"}
    assert {place: names[sign] for place, sign in marks(drawn, "●○│").items()} == marks(piped)
    assert "└─" in drawn


def test_exact_and_approximate_points_differ_without_colour_and_with_it() -> None:
    coloured = shown(Plot(front()), 80, terminal=True)
    assert len(re.findall(r"\x1b\[32m●\x1b\[0m", coloured)) == 2 + 1  # two points, and what the sign means
    assert len(re.findall(r"\x1b\[33m○\x1b\[0m", coloured)) == 1 + 1
    assert shown(Plot(front())).endswith("o exact gradients  ~ approximate in some blocks\n")


def test_the_axes_are_the_jsons_figures() -> None:
    points = (point(1_234_567, 1), point(987_654_321, 9, 2), point(500_000_000, 5))
    data = front_to_json(front(*points), "0.1.0")["points"]
    text = shown(Plot(front(*points)))
    axis = next(line for line in text.splitlines() if "MB" in line)
    sizes = [format_bytes(each(row["bytes"] for row in data)) for each in (min, max)]
    assert re.findall(r"[\d,.]+ MB", axis) == sizes == ["1.2 MB", "987.7 MB"]
    ticks = [line.split("|")[0].strip() for line in text.splitlines() if "|" in line]
    assert ticks == [str(k) for k in range(max(row["k"] for row in data), min(row["k"] for row in data) - 1, -1)]


def test_many_blocks_share_rows_and_keep_their_order() -> None:
    points = tuple(point(MB * k, k) for k in range(1, 61))
    found = marks(shown(Plot(front(*points)), 200))
    rows = {row for row, _ in found}
    assert rows == set(range(12))
    by_column = sorted((column, row) for row, column in found)
    assert [row for _, row in by_column] == sorted(row for _, row in by_column)


def test_points_of_one_memory_or_one_k_are_drawn() -> None:
    assert marks(shown(Plot(front(point(MB, 3), point(MB, 1, 1))))) == {(2, 0): "o", (0, 0): "~"}
    assert marks(shown(Plot(front(point(MB, 3), point(2 * MB, 3))))) == {(0, 0): "o", (0, 73): "o"}
    assert shown(Plot(replace(front(), points=()))) == ""


def test_an_exact_point_hides_an_approximate_one_whichever_comes_first() -> None:
    two = point(MB, 1), point(MB, 1, 2)
    for points in (two, two[::-1]):
        assert marks(shown(Plot(front(*points)))) == {(0, 0): "o"}


def test_the_report_has_the_table_and_the_plot(golden: Callable[[str, str], None]) -> None:
    text = shown(front_report(many()), 100)
    data = front_to_json(many(), "0.1.0")["points"]
    assert len(marks(text)) == len(data) == 8
    rows = re.findall(r"^ +([\d.]+ MB)  +(\d+|all)  +(\d+) blocks?  ", text, re.MULTILINE)
    # With the head and what lies below it, more than three blocks are five segments or more: everything trains.
    counts = ["all" if row["trained_segments"] >= 3 + 2 else str(row["k"]) for row in data]
    approximations = [str(row["approximations"]) for row in data]
    assert rows == list(zip((format_bytes(row["bytes"]) for row in data), counts, approximations, strict=True))
    golden("front-many-100.txt", text)


def many() -> Front:
    """Return a front of eight points, two of them approximate."""
    exact = tuple(point((10 + 8 * k) * MB, k, flops=(1 + k) * 10**9) for k in range(6))
    return front(*exact, point(24 * MB, 4, 2), point(36 * MB, 9, 4))
