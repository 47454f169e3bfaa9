"""The best pick of candidates within a limit, by whichever exact way is quicker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memplan.planner.chain import Chain, combined
from memplan.planner.instance import AIMS, Aim, Instance, peak_of, score
from memplan.planner.program import ceiling, solved_by_program


@dataclass(frozen=True, slots=True)
class Solution:
    """The best picks and their score in each aim; who proved it, the bound for the last aim, and the gap to it."""

    picks: tuple[int, ...]
    score: tuple[float, ...]
    solver: str
    bound: float
    gap: float


def solve(instance: Instance, limit: int | None, order: Sequence[Aim] = AIMS) -> Solution | None:
    """Return the picks whose peak is at most ``limit`` bytes with the smallest score, or ``None`` when there are none.

    The aims of ``order`` are minimised one after the other, each with those before it held at their best.
    """
    if Chain.fits(instance):
        values = combined(instance, order)
        if values is not None:
            try:
                picks = _along(Chain(instance), limit, order, values)
            except OverflowError:
                pass
            else:
                if picks is None:
                    return None
                reached = score(instance, picks, order)
                return Solution(tuple(picks), reached, "dynamic program", reached[-1], 0.0)
    found = solved_by_program(instance, limit, order)
    if found is None:
        return None
    return Solution(tuple(found.picks), score(instance, found.picks, order), "HiGHS", found.bound, found.gap)


def may_fit(instance: Instance, limit: int) -> bool:
    """Whether a bound allows any pick within ``limit`` bytes: each number of a segment at its least."""
    relaxed = [
        tuple(
            replace(
                each,
                cost=replace(
                    each.cost,
                    constant=min(other.cost.constant for other in candidates),
                    gradients=min(other.cost.gradients for other in candidates),
                ),
            )
            for each in candidates
        )
        for candidates in instance.segments
    ]
    return Chain(replace(instance, segments=tuple(relaxed))).allows(limit)


def _along(chain: Chain, limit: int | None, order: Sequence[Aim], values: Sequence[Sequence[int]]) -> list[int] | None:
    """Solve a chain. Memory is the first of the aims, or the last: among equals the least limit that allows one."""
    least = chain.least_bytes()
    if limit is not None and least > limit:
        return None
    if order[0] == "memory":
        return chain.best(least, values)
    limit = ceiling(chain.instance) if limit is None else limit
    picks = chain.best(limit, values)
    if picks is None or "memory" not in order:
        return picks
    reached = sum(ways[pick] for ways, pick in zip(values, picks, strict=True))
    low, high = least, peak_of(chain.instance, picks)
    while low < high:
        middle = (low + high) // 2
        found = chain.best(middle, values, reached)
        if found is None:
            low = middle + 1
        else:
            high, picks = peak_of(chain.instance, found), found
    return picks
