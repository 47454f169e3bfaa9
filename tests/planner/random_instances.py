"""Random problems for the search, small enough that every pick can be tried."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final

from memplan.planner.costs import SegmentCost
from memplan.planner.instance import Aim, Candidate, Instance, flops_of, peak_of, score

#: Picks that are tried at most.
MOST_PICKS: Final = 3000

#: Orders of the aims that the search uses, and two shorter ones.
ORDERS: Final[tuple[tuple[Aim, ...], ...]] = (
    ("approximations", "importance", "work", "memory"),
    ("work", "approximations", "importance", "memory"),
    ("memory", "approximations", "importance", "work"),
    ("approximations", "importance", "work"),
    ("memory",),
)


def instance(seed: int, *, alike: bool) -> Instance:
    """Return a problem of 1 to 7 segments with 1 to 5 candidates each.

    ``alike`` gives all candidates of a segment the same constant bytes and gradients, and leaves out importance and a
    limit of FLOPs; without it they differ.
    """
    numbers = random.Random(seed)
    scale = numbers.choice((1, 7, 1_000, 1_000_000))
    rows: list[tuple[Candidate, ...]] = []
    picks = 1
    for _ in range(numbers.randint(1, 7)):
        count = max(1, min(numbers.randint(1, 5), MOST_PICKS // picks))
        picks *= count
        shared = numbers.randint(0, 20) * scale, numbers.randint(0, 20) * scale
        rows.append(tuple(_candidate(numbers, scale, shared if alike else None) for _ in range(count)))
    made = Instance(numbers.randint(0, 9) * scale, numbers.randint(0, 30) * scale, tuple(rows))
    if alike or numbers.random() < 0.5:
        return made
    least = sum(min(each.cost.flops for each in row) for row in rows)
    most = sum(max(each.cost.flops for each in row) for row in rows)
    return Instance(made.base, made.after, made.segments, numbers.randint(least, most + 1))


def _candidate(numbers: random.Random, scale: int, shared: tuple[int, int] | None) -> Candidate:
    constant, gradients = shared or (numbers.randint(0, 20) * scale, numbers.randint(0, 20) * scale)
    # Bytes that are no multiples of the scale: limits are held to the byte.
    kept, forward, backward = (numbers.randint(0, 40) * scale + numbers.randint(0, 3) for _ in range(3))
    cost = SegmentCost(constant, kept, gradients, forward, backward, numbers.randint(0, 50), 0)
    return Candidate(
        cost,
        approximations=numbers.choice((0, 0, 1)),
        importance=0.0 if shared else numbers.choice((0.0, 0.0, 0.125, 0.3, 0.7)),
        work=numbers.randint(-3, 30) * scale,
    )


def picks_of(problem: Instance) -> Iterator[tuple[int, ...]]:
    return product(*(range(len(row)) for row in problem.segments))


def limits_of(problem: Instance, seed: int) -> list[int | None]:
    """Return no limit, the peaks of some picks, just below the least, and one between."""
    peaks = sorted({peak_of(problem, picks) for picks in picks_of(problem)})
    some = random.Random(seed).sample(peaks, min(3, len(peaks)))
    return [None, peaks[0] - 1, peaks[0], (peaks[0] + peaks[-1]) // 2, *some]


def exhaustive(problem: Instance, limit: int | None, order: Sequence[Aim]) -> tuple[float, ...] | None:
    """Return the best score of all picks within the limits, or ``None`` if none is."""
    allowed = (
        picks
        for picks in picks_of(problem)
        if (limit is None or peak_of(problem, picks) <= limit)
        and (problem.flops_limit is None or flops_of(problem, picks) <= problem.flops_limit)
    )
    return min((score(problem, picks, order) for picks in allowed), default=None)
