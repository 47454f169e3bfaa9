"""What terminals show of plans: the numbers are the records', every line fits, and everything asked for is there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from rich.console import RenderableType

from memplan.errors import UsageError
from memplan.methods import Plan
from memplan.methods.cut import ScheduledOp
from memplan.methods.plan import Fingerprint, LiteBranch, Microbatch, TreatedLayer, TunedPair
from memplan.methods.treatments.lite_residual import LiteShape
from memplan.planner.records import Budget, Upgrade
from memplan.reports.diff import diff_report, differences
from memplan.reports.explain import explain_report
from memplan.reports.front import Plot, front_report, front_to_json
from memplan.reports.front_picture import front_picture
from memplan.reports.picture import Picture
from memplan.reports.plan import plan_report, segment_table, suggestion_report
from memplan.reports.plan_file import Account, Asked, account_of
from memplan.results import PlannedSegment, SearchReport
from tests.reports.plans import PLAN, SEGMENTS, front, planned, point
from tests.reports.toy import analysis, shown

ACCOUNT = account_of(planned(), Asked(spec="toy.py:chain"))


def changed_report() -> RenderableType:
    fewer = replace(PLAN.pruned[0], dropped=tuple(range(16)))
    plan = replace(PLAN, k=1, pruned=(fewer,), fused_update=False, schedule=PLAN.schedule[:1])
    other = replace(
        ACCOUNT,
        plan=plan,
        made_for=replace(ACCOUNT.made_for, batch_size=4, inputs=("4x250000 float32",)),
        predicted=replace(ACCOUNT.predicted, peak_bytes=70_000_000, saved_bytes=20_000_000),
        segments=(*SEGMENTS[1:3], replace(SEGMENTS[3], trained=False, treatments=(), kept_bytes=0), SEGMENTS[4]),
    )
    return diff_report(differences((PLAN, ACCOUNT), (other.plan, other)), ("a.json", "b.json"))


REPORTS: dict[str, Callable[[], RenderableType]] = {
    "plan": lambda: plan_report(planned()),
    "explain": lambda: explain_report(ACCOUNT),
    "front": lambda: front_report(front()),
    "diff": changed_report,
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_at_80_columns(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"{name}-80.txt", shown(REPORTS[name]()))


@pytest.mark.parametrize("width", [50, 60, 80, 200])
@pytest.mark.parametrize("name", REPORTS)
def test_every_line_fits_and_is_ascii(name: str, width: int) -> None:
    text = shown(REPORTS[name](), width)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= width
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def words(report: RenderableType) -> str:
    return " ".join(shown(report, 200).split())


def test_a_plan_says_what_it_needs_and_what_is_left() -> None:
    # Input and values 8 MB each, weights 4 MB; in the backward of layers.3, whose gradient of 4 MB is just made, there
    # are 4 weights with 3 momenta, the input, the values behind layers 0 to 2, and the gradient that comes, and what
    # the update of it takes.
    size = planned().bytes
    text = words(plan_report(planned()))
    assert f"predicted peak {size / 1e6:.1f} MB of 80.0 MB, {(80_000_000 - size) / 1e6:.1f} MB to spare" in text
    assert "Best plan in 80.0 MB: the last 2 of 3 blocks and the head train" in text
    assert "savings with unchanged gradients: bitmask, recompute, prefix-microbatch, fused-update" in text
    assert "savings that change gradients: signed-mask, shift-only, prune" in text
    assert "the frozen part, up to layers.0, runs 2 samples at a time" in text
    assert "trains 3.00 M of 4.00 M parameters" in text
    assert "Next: one more block, layers.0: 11.5 MB more, a budget of 91.5 MB." in text  # 91.5 - 80


def test_the_plan_s_step_is_drawn_beneath_its_budget() -> None:
    found = planned()
    drawn = shown(Picture(found.footprint.timeline, "MB", 80_000_000))
    assert drawn.startswith("\n  80.0 MB |---")
    suggested = replace(analysis(budget_bytes=80_000_000), suggestion=found)
    for report in (plan_report(found), suggestion_report(suggested, "toy.py:chain")):
        assert drawn in shown(report)


@pytest.mark.parametrize("of", ["activations", "kept"])
def test_a_budget_on_less_than_the_peak_is_no_height_in_the_picture(of: Any) -> None:
    found = planned(budget=Budget(80_000_000, of))
    text = shown(plan_report(found))
    assert shown(Picture(found.footprint.timeline, "MB")) in text
    assert "- budget" not in text


def test_savings_come_with_their_gradients_the_largest_first() -> None:
    rows = re.findall(r"^  (\S.*?) +\+([0-9.]+) MB  (\w+)$", shown(plan_report(planned())), re.MULTILINE)
    assert rows == [
        ("recompute", "31.0", "unchanged"),
        ("signed-mask and shift-only", "7.8", "change"),
        ("prune", "1.0", "change"),
    ]


def test_channels_are_listed_for_what_is_pruned() -> None:
    text = shown(plan_report(planned()))
    assert re.findall(r"^  (layers\.\d) +(\d+) +(\d+)$", text, re.MULTILINE) == [("layers.1", "24", "32")]


def test_a_note_of_both_the_plan_and_the_search_is_said_once() -> None:
    assert shown(plan_report(planned())).count("layers.2 is a toy") == 1


@pytest.mark.parametrize(
    ("k", "trained", "said"),
    [
        (0, (False, False, False, False, True), "the head alone trains"),
        (1, (False, False, False, True, True), "the last block of 3 blocks and the head train"),
        (3, (False, True, True, True, True), "all 3 blocks and the head train"),
        (3, (True, True, True, True, True), "everything trains"),
    ],
)
def test_what_trains_is_said(k: int, trained: tuple[bool, ...], said: str) -> None:
    segments = tuple(replace(each, trained=one) for each, one in zip(SEGMENTS, trained, strict=True))
    assert f"80.0 MB: {said}" in words(plan_report(planned(plan=replace(PLAN, k=k), segments=segments)))


def test_what_is_pruned_away_is_said_before_all_else_and_gradients_are_of_the_rest() -> None:
    found = planned()
    smaller = replace(found, footprint=replace(found.footprint, parameters=3_000_000))  # of stock's 4,000,000
    suggested = replace(analysis(budget_bytes=80_000_000), suggestion=smaller)
    said = "Best plan in 80.0 MB: the last 2 of 3 blocks and the head train, 25% of all parameters pruned away"
    for report in (plan_report(smaller), suggestion_report(suggested, "chain")):
        assert said in words(report)
    assert "gradients approximate for the pruned network" in words(suggestion_report(suggested, "chain"))
    whole = replace(found, plan=replace(PLAN, pruned=()))
    assert "pruned" not in words(suggestion_report(replace(suggested, suggestion=whole), "chain"))


def test_savings_that_change_gradients_are_told_by_the_treatments_themselves() -> None:
    text = words(plan_report(planned(savings=())))
    assert "savings that change gradients: signed-mask, shift-only, prune" in text


@pytest.mark.parametrize("width", [40, 60, 80])
def test_treatments_are_never_cut(width: int) -> None:
    lines = shown(segment_table(SEGMENTS), width).splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()).count("recompute") == 2
    for name in ("signed-mask,", "shift-only,", "bitmask,", "prefix-microbatch"):
        assert sum(name in line for line in lines) == 1


def test_frozen_segments_in_a_row_are_one_line() -> None:
    lines = shown(plan_report(planned())).splitlines()
    assert [line.split()[0] for line in lines if re.search(r"  (yes|no)  ", line)] == [
        "stem",
        "layers.1",
        "layers.2",
        "head",
    ]
    assert any(line.startswith("  stem to layers.0  no") for line in lines)


def test_an_explanation_says_what_binds_and_what_the_next_block_would_need() -> None:
    text = words(explain_report(ACCOUNT))
    peak = ACCOUNT.predicted.peak
    assert f"What binds: the peak, in {peak.phase} of {peak.layer}, toy" in text
    assert "one more block, layers.0 would need 91.5 MB, 11.5 MB more than the budget" in text
    assert "Why k is 2" in text
    assert "recorded in" not in text  # seconds are of one run and not of the plan


def test_an_explanation_says_which_other_bound_binds() -> None:
    account = replace(ACCOUNT, next=(Upgrade("one more block", 70_000_000),), asked=Asked(k=2, max_flops="1.1x"))
    text = words(explain_report(account))
    assert "--k 2 asks for it" in text
    assert "one more block would need 70.0 MB, within the budget: another bound binds" in text
    assert "at most 1.1x FLOPs (--max-flops)" in text
    kept = replace(ACCOUNT, budget=Budget(80_000_000, "kept"))
    assert "What binds: what is kept for the backward, 24.0 MB" in words(explain_report(kept))  # 3 values of 8 MB


def test_the_front_is_listed_with_its_share_of_stock() -> None:
    rows = re.findall(r"^ +([0-9.]+) MB +(\d) +(\d+) blocks? +([0-9.]+) G +(\d+)% ", shown(front_report(front())), re.M)
    # 20, 40 and 60 of 80 MB
    assert rows == [("20.0", "0", "0", "1.0", "25"), ("40.0", "2", "1", "1.0", "50"), ("60.0", "3", "0", "2.0", "75")]


def test_points_are_where_their_memory_and_k_are() -> None:
    lines = list(Plot(front()).lines(80))
    # 80 columns less a margin of 3 and " |" with one to spare leave 74; k from 0 to 3 takes four rows below the title.
    inside = [line[5:] for line in lines[1:5]]
    found = {
        (3 - row, column): mark for row, line in enumerate(inside) for column, mark in enumerate(line) if mark != " "
    }
    assert found == {(0, 0): "o", (2, 37): "~", (3, 73): "o"}
    assert [line[:5] for line in lines[1:5]] == ["  3 |", "  2 |", "  1 |", "  0 |"]
    assert lines[6].split() == ["20.0", "MB", "60.0", "MB"]


def test_a_plot_of_one_point_or_of_many_blocks_is_drawn() -> None:
    (single,) = [line for line in Plot(front(point(5, 1))).lines(80) if "|" in line]
    assert single == "  1 |o"
    tall = list(Plot(front(*(point(10**6 * k, k) for k in range(40)))).lines(80))
    assert len(tall) == 1 + 12 + 3
    assert [line.split()[0] for line in tall if line[:4].strip().isdigit()] == ["39", "19", "0"]
    assert not list(Plot(front()).lines(30))


def test_an_exact_point_hides_an_approximate_one_at_its_place() -> None:
    marks = "".join(Plot(front(point(10**6, 1, 0), point(10**6, 1, 2))).lines(80))
    assert marks.count("|o") == 1


def test_the_front_as_json_has_bytes_and_treatments() -> None:
    data = front_to_json(front(), "0.1.0")
    assert [(row["bytes"], row["k"], row["treatments"]) for row in data["points"]] == [
        (20_000_000, 0, []),
        (40_000_000, 2, ["signed-mask"]),
        (60_000_000, 3, []),
    ]


def test_a_picture_without_matplotlib_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"^a picture needs matplotlib, .*; pip install 'memplan\[pictures\]'$"):
        front_picture(front(), "svg")


def test_a_picture_is_the_same_each_time() -> None:
    pytest.importorskip("matplotlib")
    first, second = (front_picture(front(), "svg") for _ in range(2))
    assert first == second
    text = first.decode()
    assert text.startswith("<?xml")
    assert ">trained blocks (k)</text>" in text
    assert front_picture(front(point(1, 2)), "svg") != first
    assert front_picture(front(), "png")[:4] == b"\x89PNG"


def test_equal_plans_do_not_differ() -> None:
    same = account_of(planned(), Asked(spec="toy.py:chain"))
    assert differences((PLAN, ACCOUNT), (same.plan, same)) == ()
    assert words(diff_report((), ("a.json", "b.json"))) == "a.json and b.json have the same plan."


#: For each field of a plan another value.
OTHER: dict[str, Any] = {
    "method": "own",
    "k": 1,
    "trained": (),
    "gradients": "exact",
    "layers": (TreatedLayer("layers.1", ("bitmask",)),),
    "running": ("layers.3",),
    "evaluated": (),
    "tuned": (TunedPair("layers.1", "layers.2"),),
    "int8": ("layers.0",),
    "lite": (LiteBranch("layers.1", LiteShape(8, 8, 8, 3, 1, 1, None, "batch")),),
    "pruned": (),
    "schedule": (ScheduledOp("aten.toy.default", (1,)),),
    "microbatch": Microbatch("layers.0", 1),
    "fused_update": False,
    "notes": (),
    "untreated": (),
    "model": Fingerprint(4, 4_000_000, "fedcba9876543210"),
}


@pytest.mark.parametrize("name", [entry.name for entry in fields(Plan)])
def test_no_difference_between_plans_is_missed(name: str) -> None:
    other = replace(PLAN, **{name: OTHER[name]})
    assert differences((PLAN, None), (other, None))
    assert differences((PLAN, ACCOUNT), (other, replace(ACCOUNT, plan=other)))


#: For each part of an account that is no matter of the search another value.
OTHER_PARTS: dict[str, Any] = {
    "made_for": replace(ACCOUNT.made_for, batch_size=4),
    "asked": Asked(spec="toy.py:chain", lossless=True),
    "budget": Budget(81_000_000),
    "prefer": "speed",
    "runner": "stock",
    "predicted": replace(ACCOUNT.predicted, peak_bytes=1),
    "segments": (*SEGMENTS[:-1], PlannedSegment("head", "", True, ("recompute",), 0.0, 8_000_000)),
}


@pytest.mark.parametrize("name", OTHER_PARTS)
def test_a_difference_in_the_account_is_shown(name: str) -> None:
    (found,) = differences((PLAN, ACCOUNT), (PLAN, replace(ACCOUNT, **{name: OTHER_PARTS[name]})))
    assert found.first != found.second


def test_how_a_plan_was_found_is_no_difference() -> None:
    assert {entry.name for entry in fields(Account)} - OTHER_PARTS.keys() == {
        "plan",
        "stock",
        "blocks",
        "savings",
        "search",
        "next",
        "remarks",
    }
    slower = replace(ACCOUNT, search=SearchReport("another", (), 0.0, 0.5, 9, 9, 0.1))
    assert differences((PLAN, ACCOUNT), (PLAN, slower)) == ()


def test_bytes_channels_and_segments_are_shown_side_by_side() -> None:
    fewer = replace(PLAN, pruned=(replace(PLAN.pruned[0], dropped=tuple(range(16))),))
    larger = replace(ACCOUNT.predicted, peak_bytes=ACCOUNT.predicted.peak_bytes + 2_000_000)
    other = replace(ACCOUNT, plan=fewer, predicted=larger)
    found = {each.what: (each.first, each.second) for each in differences((PLAN, ACCOUNT), (fewer, other))}
    assert found["channels of layers.1"] == ("24 of 32", "16 of 32")
    assert found["channels of layers.2"] == ("16 of 16", "-")
    assert found["peak, predicted"][1].endswith(" (+2.0 MB)")


def test_a_plan_of_a_method_differs_from_one_that_was_found() -> None:
    (found,) = differences((PLAN, ACCOUNT), (PLAN, None))
    assert (found.first, found.second) == ("found by a search", "no account of a search")
