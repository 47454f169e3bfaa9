"""Peaks and scores of picks, added up by hand; and which candidates nobody needs."""

from __future__ import annotations

from dataclasses import replace

from memplan.planner.costs import SegmentCost
from memplan.planner.instance import Candidate, Instance, flops_of, peak_of, score, undominated
from memplan.planner.options import Option
from tests.planner import random_instances

LOW = SegmentCost(constant=1_000, kept=100, gradients=10, forward=300, backward=400, flops=7, work=0)
HIGH = SegmentCost(constant=2_000, kept=200, gradients=20, forward=500, backward=350, flops=8, work=0)


def two(low: SegmentCost = LOW, high: SegmentCost = HIGH, after: int = 0) -> Instance:
    return Instance(5, after, ((Candidate(low),), (Candidate(high),)))


def test_the_peak_is_the_forward_of_the_upper_segment() -> None:
    assert peak_of(two(), [0, 0]) == 5 + 1_000 + 2_000 + 100 + 500


def test_or_the_backward_of_the_lower_one_beside_the_gradients_above() -> None:
    assert peak_of(two(replace(LOW, backward=900)), [0, 0]) == 5 + 3_000 + 20 + 900


def test_or_that_of_the_upper_one_beside_what_is_kept_below() -> None:
    assert peak_of(two(high=replace(HIGH, backward=800)), [0, 0]) == 5 + 3_000 + 100 + 800


def test_or_the_update_beside_all_gradients() -> None:
    assert peak_of(two(after=1_000), [0, 0]) == 5 + 3_000 + (10 + 20) + 1_000


def test_or_what_all_keep() -> None:
    assert peak_of(two(replace(LOW, kept=4_000)), [0, 0]) == 5 + 3_000 + 4_000 + max(200, 500)
    assert peak_of(two(high=replace(HIGH, kept=900)), [0, 0]) == 5 + 3_000 + 100 + 900


def test_scores_follow_the_order_of_the_aims() -> None:
    cheap = Candidate(LOW, approximations=1, importance=0.25, work=3)
    problem = Instance(0, 0, ((Candidate(LOW, work=50), cheap), (Candidate(HIGH), replace(cheap, cost=HIGH))))
    assert score(problem, [1, 1], ("approximations", "importance", "work")) == (2, 0.5, 6)
    assert score(problem, [0, 1], ("work", "approximations")) == (53, 1)
    assert score(problem, [0, 0], ("memory",)) == (3_000 + 100 + 500,)
    assert flops_of(problem, [0, 0]) == 7 + 8


def test_a_candidate_that_is_nowhere_better_goes() -> None:
    plain = Candidate(LOW)
    worse = Candidate(replace(LOW, backward=401))
    dearer = Candidate(replace(LOW, kept=99), work=1)
    assert undominated([worse, dearer, plain]) == (plain, dearer)


def test_of_equals_the_one_with_the_fewest_treatments_stays() -> None:
    masked = Candidate(LOW, option=Option(masked=True))
    assert undominated([Candidate(LOW, option=Option(15.0, masked=True)), masked]) == (masked,)
    assert undominated([Candidate(LOW, option=Option(15.0)), Candidate(LOW, option=Option(0.0))])[0].option.price == 0.0


def test_leaving_out_what_is_beaten_changes_no_best_score() -> None:
    for seed in range(60):
        problem = random_instances.instance(seed, alike=False)
        lean = replace(problem, segments=tuple(undominated(row) for row in problem.segments))
        for limit in random_instances.limits_of(problem, seed)[:4]:
            order = random_instances.ORDERS[seed % len(random_instances.ORDERS)]
            best = random_instances.exhaustive(problem, limit, order)
            assert best == random_instances.exhaustive(lean, limit, order)
