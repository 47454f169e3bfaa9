"""The solver against exhaustive search: each of its ways alone, and the choice between them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
from scipy import optimize

from memplan.planner import program
from memplan.planner.chain import Chain
from memplan.planner.instance import Instance, flops_of, peak_of, score
from memplan.planner.program import solved_by_program
from memplan.planner.solver import may_fit, solve
from tests.planner.random_instances import ORDERS, exhaustive, instance, limits_of

#: Random problems in each run of the tests, in parts that each take about a second.
PARTS, PART = 8, 25


def within(problem: Instance, limit: int | None, picks: Sequence[int]) -> bool:
    fits = limit is None or peak_of(problem, picks) <= limit
    return fits and (problem.flops_limit is None or flops_of(problem, picks) <= problem.flops_limit)


def same(found: Sequence[float], best: Sequence[float]) -> bool:
    """Whether two scores agree; shares of importance are sums of floats."""
    return list(found) == pytest.approx(list(best), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("alike", [True, False], ids=["a chain", "an integer program"])
def test_no_pick_is_better(part: int, alike: bool) -> None:
    ways = set()
    for seed in range(part * PART, (part + 1) * PART):
        problem = instance(seed, alike=alike)
        order = ORDERS[seed % len(ORDERS)]
        for limit in limits_of(problem, seed):
            best = exhaustive(problem, limit, order)
            found = solve(problem, limit, order)
            if best is None or found is None:
                assert found is best is None, (seed, limit, order)
                continue
            assert within(problem, limit, found.picks)
            assert same(found.score, best), (seed, limit, order)
            assert found.score == score(problem, found.picks, order)
            assert found.gap < 1e-9
            ways.add(found.solver)
    assert ways == {"dynamic program"} if alike else "HiGHS" in ways


@pytest.mark.parametrize("part", range(PARTS))
def test_the_integer_program_finds_what_the_chain_finds(part: int) -> None:
    for seed in range(part * PART, (part + 1) * PART, 2):
        problem = instance(seed, alike=True)
        order = ORDERS[seed % len(ORDERS)]
        assert Chain.fits(problem)
        for limit in limits_of(problem, seed):
            best = exhaustive(problem, limit, order)
            proof = solved_by_program(problem, limit, order)
            if best is None or proof is None:
                assert proof is best is None, (seed, limit, order)
                continue
            assert within(problem, limit, proof.picks)
            assert same(score(problem, proof.picks, order), best), (seed, limit, order)
            assert proof.gap < 1e-9


def test_hope_is_given_up_only_where_there_is_none() -> None:
    given_up = 0
    for seed in range(150):
        problem = instance(seed, alike=False)
        for limit in limits_of(problem, seed):
            if limit is not None and not may_fit(problem, limit):
                given_up += 1
                assert exhaustive(problem, limit, ("memory",)) is None, (seed, limit)
    assert given_up > 10


def test_a_chain_too_long_to_compare_is_left_to_the_integer_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memplan.planner.chain._MOST_LABELS", 2)
    solvers = set()
    for seed in range(20):
        problem = instance(seed, alike=True)
        for limit in limits_of(problem, seed):
            found, best = solve(problem, limit), exhaustive(problem, limit, ORDERS[0])
            assert (found.score if found else None) == best
            solvers.add(found.solver if found else "")
    assert solvers == {"dynamic program", "HiGHS", ""}


def test_what_the_solver_s_rounding_lets_through_is_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = instance(68, alike=True)
    limit = 130_000_000
    seen: list[list[int]] = []
    real = program._Program._exclude
    monkeypatch.setattr(program._Program, "_exclude", lambda self, picks: (seen.append(picks), real(self, picks)))
    proof = solved_by_program(problem, limit, ORDERS[3])
    assert proof is not None
    assert all(limit < peak_of(problem, picks) < limit * (1 + 1e-6) for picks in seen)
    assert seen, "another problem is needed: here the solver's rounding lets nothing through"
    assert score(problem, proof.picks, ORDERS[3]) == exhaustive(problem, limit, ORDERS[3])


def test_stdout_stays_clean(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = optimize.milp

    def chatty(*args: Any, **kwargs: Any) -> Any:
        os.write(1, b"past Python\n")
        return real(*args, **kwargs)

    monkeypatch.setattr(optimize, "milp", chatty)
    print("before")
    for seed in range(20):
        solved_by_program(instance(seed, alike=False), None)
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_a_program_that_breaks_the_presolve_is_solved_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = optimize.milp
    tried: list[bool] = []

    def breaking(*args: Any, options: dict[str, Any], **kwargs: Any) -> Any:
        tried.append(options["presolve"])
        if options["presolve"]:
            raise ValueError("vector::reserve")
        return real(*args, options=options, **kwargs)

    monkeypatch.setattr(optimize, "milp", breaking)
    for seed in range(10):
        problem = instance(seed, alike=False)
        proof = solved_by_program(problem, None)
        best = exhaustive(problem, None, ORDERS[0])
        assert (proof is None) == (best is None)
        assert proof is None or best is None or same(score(problem, proof.picks), best)
    assert {True, False} == {*tried}
