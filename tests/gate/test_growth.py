"""Growth in per cent and in bytes, in and out of text."""

from __future__ import annotations

import pytest

from memplan.errors import UsageError
from memplan.gate.growth import growth_bytes, parse_growth


@pytest.mark.parametrize(
    ("text", "before", "allowed"),
    [
        ("2%", 1_000, 20),
        ("2%", 149, 2),  # 2.98 bytes: a fraction is dropped, for a limit never grows by being read
        ("0.5 %", 10_000, 50),
        ("33.3%", 1_000, 333),
        ("0%", 10**12, 0),
        ("1MB", 5, 10**6),
        ("1 MiB", 5, 2**20),
        ("0", 5, 0),
        ("0MB", 5, 0),
        ("150%", 200, 300),
    ],
)
def test_what_is_allowed(text: str, before: int, allowed: int) -> None:
    assert parse_growth(text).of(before) == allowed


@pytest.mark.parametrize("text", ["", "%", "-1%", "2 percent", "1XB", "two%", "nan%", "1e3%"])
def test_what_is_no_growth_is_told(text: str) -> None:
    with pytest.raises(UsageError, match=r"as a growth; write a percentage or a size, such as 2% or 1MB"):
        parse_growth(text)


@pytest.mark.parametrize("text", ["2", " 2.5 ", "1_000"])
def test_a_number_may_be_meant_as_a_percentage(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_growth(text)
    number = text.strip()
    assert str(caught.value) == f"'{number}' has no unit; write {number}% or {number}B"
    assert growth_bytes("2") == 2  # which has no percentages


def test_zero_bytes_are_a_growth_and_no_budget() -> None:
    assert growth_bytes("0") == growth_bytes("0 MB") == 0
