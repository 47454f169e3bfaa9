"""The search's problem with the trained depth settled: one candidate is picked for each segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, TypeAlias

from memplan.planner.costs import SegmentCost
from memplan.planner.options import PLAIN, Option

#: What is made as small as can be, one after the other.
Aim: TypeAlias = Literal["approximations", "importance", "work", "memory"]

AIMS: Final[tuple[Aim, ...]] = ("approximations", "importance", "work", "memory")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a segment: what it costs, how many blocks it approximates, the importance it prunes.

    ``work`` is what it adds to the work of the plain segment. ``option`` and ``pruned``, the step of pruning, say which
    way it is.
    """

    cost: SegmentCost
    approximations: int = 0
    importance: float = 0.0
    work: int = 0
    option: Option = PLAIN
    pruned: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """The segments from the lowest to the highest, frozen ones too, and the candidates of each.

    ``base`` bytes are there throughout, beside what the segments add; ``after`` are alive beside these and the
    gradients while the optimizer updates. ``flops_limit`` bounds the FLOPs of all segments.
    """

    base: int
    after: int
    segments: tuple[tuple[Candidate, ...], ...]
    flops_limit: int | None = None


def peak_of(instance: Instance, picks: Sequence[int]) -> int:
    """Return the peak, in bytes, when ``picks`` gives each segment's candidate by its position."""
    costs = [candidates[pick].cost for candidates, pick in zip(instance.segments, picks, strict=True)]
    fixed = instance.base + sum(cost.constant for cost in costs)
    below = [0, *accumulate(cost.kept for cost in costs)]
    gradients = sum(cost.gradients for cost in costs)
    most = fixed + max(below[-1], gradients + instance.after)
    above = gradients
    for cost, kept in zip(costs, below, strict=False):
        above -= cost.gradients
        most = max(most, fixed + kept + cost.forward, fixed + kept + above + cost.backward)
    return most


def flops_of(instance: Instance, picks: Sequence[int]) -> int:
    """Return the FLOPs of all segments."""
    return sum(candidates[pick].cost.flops for candidates, pick in zip(instance.segments, picks, strict=True))


def score(instance: Instance, picks: Sequence[int], order: Sequence[Aim] = AIMS) -> tuple[float, ...]:
    """Return what ``picks`` scores in each aim of ``order``; of two tuples the smaller is better."""
    chosen = [candidates[pick] for candidates, pick in zip(instance.segments, picks, strict=True)]
    values: dict[Aim, float] = {
        "approximations": sum(candidate.approximations for candidate in chosen),
        "importance": sum(candidate.importance for candidate in chosen),
        "work": sum(candidate.work for candidate in chosen),
        "memory": peak_of(instance, picks),
    }
    return tuple(values[aim] for aim in order)


def undominated(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates without those that another one equals or beats in everything."""
    kept: list[Candidate] = []
    seen: list[tuple[float, ...]] = []
    for candidate in sorted(candidates, key=_sorting):
        numbers = _numbers(candidate)
        if not any(all(mine <= other for mine, other in zip(better, numbers, strict=True)) for better in seen):
            seen.append(numbers)
            kept.append(candidate)
    return tuple(kept)


def _numbers(candidate: Candidate) -> tuple[float, ...]:
    cost = candidate.cost
    return (
        candidate.approximations,
        candidate.importance,
        candidate.work,
        cost.flops,
        cost.constant,
        cost.kept,
        cost.gradients,
        cost.forward,
        cost.backward,
    )


def _sorting(candidate: Candidate) -> tuple[float, ...]:
    """Sort so that no candidate is beaten by a later one, and of equals the one with the fewest treatments is first."""
    return (*_numbers(candidate), len(candidate.option.treatments), candidate.option.price or 0.0)
