"""Columns that leave, cells that are elided, and the numbers in them."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from memplan.reports.layout import Column, Columns, elide
from memplan.reports.sizes import count, elements, size, unit_for

TABLE = Columns(
    (
        Column("name", ("a.very.long.path.of.a.layer", "short"), right=False, elastic=True),
        Column("first", ("100.0 MB", "2.0 MB")),
        Column("second", ("1.0 MB", "2.0 MB"), leaves=2),
        Column("third", ("1.0 MB", "2.0 MB"), leaves=1),
    )
)


def text(width: int, table: Columns = TABLE) -> list[str]:
    return [line.plain for line in table.lines(width)]


def test_columns_are_aligned() -> None:
    assert text(80) == [
        "  name                            first  second   third",
        "  a.very.long.path.of.a.layer  100.0 MB  1.0 MB  1.0 MB",
        "  short                          2.0 MB  2.0 MB  2.0 MB",
    ]


@pytest.mark.parametrize(
    ("width", "headings"),
    [(50, "name first second third"), (49, "name first second"), (42, "name first second"), (41, "name first")],
)
def test_columns_leave_in_turn(width: int, headings: str) -> None:
    shown = text(width)
    assert shown[0].split() == headings.split()
    assert max(map(len, shown)) <= width


def test_the_last_resort_is_a_smaller_gap_and_a_shorter_name() -> None:
    assert text(20) == ["  name         first", "  a.v...yer 100.0 MB", "  short       2.0 MB"]


@pytest.mark.parametrize("width", range(8, 40))
def test_an_elided_text_has_the_width_and_both_ends(width: int) -> None:
    path = "features.13.block.2.fc1.activation.relu"
    shown = elide(path, width)
    assert len(shown) == min(width, len(path))
    assert shown[0] == "f"
    assert shown[-1] == "u"


def test_wide_characters_count_as_two() -> None:
    assert elide("层层层层", 8) == "层层层层"
    assert cell_len(elide("层层层层", 7)) <= 7


def test_numbers_are_said_as_people_say_them() -> None:
    assert [unit_for(value) for value in (10**6, 10**6 - 1, 999, 0)] == ["MB", "KB", "B", "B"]
    assert [size(value) for value in (64_000_000, 48_249, 12)] == ["64.0 MB", "48.2 KB", "12 B"]
    assert [elements(value) for value in (25_557_032, 12_345, 9_999)] == ["25.56 M", "12.3 k", "9,999"]
    assert [count(number, "block") for number in (0, 1, 15)] == ["0 blocks", "1 block", "15 blocks"]
