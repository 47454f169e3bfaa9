"""The best pick of candidates within a limit: an integer program, solved by HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from memplan.descriptors import stdout_away
from memplan.errors import AnalysisError
from memplan.planner.instance import AIMS, Aim, Candidate, Instance, flops_of, peak_of

if TYPE_CHECKING:
    import numpy

#: Sums are scaled to about this size, so that the solver's absolute tolerance of 1e-6 is a billionth of them.
_SCALE: Final = 1000.0
_OPTIMAL, _INFEASIBLE = 0, 2

#: Picks that are excluded at most for being above a limit by less than the solver's tolerance.
_MOST_EXCLUDED: Final = 50


@dataclass(frozen=True, slots=True)
class Proof:
    """Picks, and what the solver proved of the last aim: its bound, in its own scale, and the gap to it."""

    picks: list[int]
    bound: float
    gap: float


def solved_by_program(instance: Instance, limit: int | None, order: Sequence[Aim] = AIMS) -> Proof | None:
    """Return the picks whose peak is at most ``limit`` bytes with the smallest score, or ``None`` when there are none.

    The aims of ``order`` are minimised one after the other, each with those before it held at their best. With one
    variable for what the segments below keep and one for the gradients of those above, a segment's rows do not grow
    with the number of segments.
    """
    program = _Program(instance, ceiling(instance) if limit is None else limit)
    picks: list[int] | None = None
    bound = gap = 0.0
    for aim in order:
        if picks is not None and program.is_settled(aim):
            continue
        values = program.values_of(aim)
        found = program.minimum(values)
        if found is None:
            # The aims before were met by the last picks; within rounding nothing better is to be had.
            break
        picks, reached, bound, gap = found
        program.hold(values, reached)
    return None if picks is None else Proof(picks, bound, gap)


def ceiling(instance: Instance) -> int:
    """Return bytes that no pick exceeds."""
    costs = [[candidate.cost for candidate in candidates] for candidates in instance.segments]
    held = sum(max(cost.constant + cost.kept + cost.gradients for cost in ways) for ways in costs)
    running = max((max(cost.forward, cost.backward) for ways in costs for cost in ways), default=0)
    return instance.base + instance.after + held + running


class _Program:
    """Rows and columns. Columns: one for each candidate; then, for each segment, the kept bytes below it and the
    gradients above it; then the constant bytes, and the peak.
    """

    def __init__(self, instance: Instance, limit: int) -> None:
        import numpy

        self.instance = instance
        self._numpy = numpy
        self._unit = max(limit, 1) / _SCALE
        self._segments = [
            (segment, candidate) for segment, candidates in enumerate(instance.segments) for candidate in candidates
        ]
        self._count = len(self._segments)
        depth = len(instance.segments)
        self._below, self._above = self._count, self._count + depth + 1
        self._constant = self._above + depth + 1
        self._peak = self._constant + 1
        self._rows: list[tuple[dict[int, float], float, float]] = []
        self._bytes = limit
        self._limit = limit / self._unit
        self._build()

    def is_settled(self, aim: Aim) -> bool:
        """Whether all candidates of each segment are alike in this aim."""
        if aim == "memory":
            return False
        values = self.values_of(aim)
        positions: dict[int, set[float]] = {}
        for (segment, _), value in zip(self._segments, values, strict=False):
            positions.setdefault(segment, set()).add(float(value))
        return all(len(found) == 1 for found in positions.values())

    def values_of(self, aim: Aim) -> numpy.ndarray[Any, Any]:
        """Return what is minimised: a coefficient for each column."""
        values = self._numpy.zeros(self._peak + 1)
        if aim == "memory":
            values[self._peak] = 1.0
            return values
        amounts = [_amount(candidate, aim) for _, candidate in self._segments]
        most = sum(map(abs, amounts)) / _SCALE if aim != "approximations" else 1.0
        values[: self._count] = [amount / most if most else 0.0 for amount in amounts]
        return values

    def minimum(self, values: numpy.ndarray[Any, Any]) -> tuple[list[int], float, float, float] | None:
        """Return picks that make ``values`` smallest, what they reach, and the solver's bound and gap.

        The solver's tolerance lets through what is a few bytes or FLOPs above a limit; such picks are excluded one by
        one, since a lower limit might exclude what fits.
        """
        for _ in range(_MOST_EXCLUDED):
            found = self._minimum(values)
            if found is None or self._fits(found[0]):
                return found
            self._exclude(found[0])
        raise AnalysisError(
            f"the solver found {_MOST_EXCLUDED} plans that are above the budget by its rounding alone; "
            "change the budget by a thousandth"
        )

    def _fits(self, picks: Sequence[int]) -> bool:
        flops = self.instance.flops_limit
        few = flops is None or flops_of(self.instance, picks) <= flops
        return few and peak_of(self.instance, picks) <= self._bytes

    def _exclude(self, picks: Sequence[int]) -> None:
        self._rows.append((dict.fromkeys(self._columns(picks), 1.0), 0.0, len(picks) - 1.0))

    def _minimum(self, values: numpy.ndarray[Any, Any]) -> tuple[list[int], float, float, float] | None:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix

        numpy = self._numpy
        width = self._peak + 1
        columns = [column for row, _, _ in self._rows for column in row]
        data = [value for row, _, _ in self._rows for value in row.values()]
        starts = numpy.cumsum([0, *(len(row) for row, _, _ in self._rows)])
        matrix = csr_matrix((data, columns, starts), shape=(len(self._rows), width))
        low, high = (numpy.array([row[end] for row in self._rows]) for end in (1, 2))
        whole = numpy.zeros(width)
        whole[: self._count] = 1
        top = numpy.full(width, numpy.inf)
        top[: self._count] = 1
        top[self._peak] = self._limit

        def solved(*, presolve: bool) -> Any:
            with stdout_away():  # HiGHS writes there past Python, whatever its options say
                return milp(
                    values,
                    constraints=LinearConstraint(matrix, low, high),
                    integrality=whole,
                    bounds=Bounds(numpy.zeros(width), top),
                    options={"mip_rel_gap": 0.0, "presolve": presolve},
                )

        try:
            result = solved(presolve=True)
        except (ValueError, RuntimeError):  # HiGHS's presolve fails on some programs: "vector::reserve"
            result = solved(presolve=False)
        if result.status == _INFEASIBLE:
            return None
        if result.status != _OPTIMAL or result.x is None:
            raise AnalysisError(f"the solver gave up: {result.message}; please report it with the model's name")
        picks: list[int] = [0] * len(self.instance.segments)
        chosen = [-1.0] * len(picks)
        position = dict.fromkeys(range(len(picks)), 0)
        for (segment, _), value in zip(self._segments, result.x, strict=False):
            if value > chosen[segment]:
                chosen[segment], picks[segment] = value, position[segment]
            position[segment] += 1
        return picks, self._reached(values, picks), float(result.mip_dual_bound), float(result.mip_gap)

    def _reached(self, values: numpy.ndarray[Any, Any], picks: Sequence[int]) -> float:
        """Return what picks reach, without the solver's rounding."""
        peak = float(values[self._peak]) * peak_of(self.instance, picks) / self._unit
        return peak + sum(float(values[column]) for column in self._columns(picks))

    def _columns(self, picks: Sequence[int]) -> list[int]:
        starts = accumulate((len(candidates) for candidates in self.instance.segments), initial=0)
        return [start + pick for start, pick in zip(starts, picks, strict=False)]

    def hold(self, values: numpy.ndarray[Any, Any], reached: float) -> None:
        """Keep what was reached: no later aim may make it worse."""
        row = {int(column): float(values[column]) for column in self._numpy.flatnonzero(values)}
        if row:
            self._rows.append((row, -self._numpy.inf, reached + max(abs(reached), 1.0) * _HELD))

    def _build(self) -> None:
        instance, unit = self.instance, self._unit
        depth = len(instance.segments)
        infinite = self._numpy.inf
        by_segment: list[list[tuple[int, Candidate]]] = [[] for _ in range(depth)]
        for column, (segment, candidate) in enumerate(self._segments):
            by_segment[segment].append((column, candidate))
        rows = self._rows
        constant = {self._constant: -1.0}
        base = instance.base / unit
        rows.append(({self._below: 1.0}, 0.0, 0.0))
        rows.append(({self._above + depth: 1.0}, 0.0, 0.0))
        for segment, candidates in enumerate(by_segment):
            rows.append((dict.fromkeys((column for column, _ in candidates), 1.0), 1.0, 1.0))
            costs = [(column, candidate.cost) for column, candidate in candidates]
            # What is kept below the next segment, and the gradients above this one's lower neighbour.
            kept = {column: cost.kept / unit for column, cost in costs if cost.kept}
            rows.append((kept | {self._below + segment: 1.0, self._below + segment + 1: -1.0}, 0.0, 0.0))
            made = {column: cost.gradients / unit for column, cost in costs if cost.gradients}
            rows.append((made | {self._above + segment + 1: 1.0, self._above + segment: -1.0}, 0.0, 0.0))
            constant |= {column: cost.constant / unit for column, cost in costs if cost.constant}
            held = {self._constant: 1.0, self._below + segment: 1.0, self._peak: -1.0}
            running = {column: cost.forward / unit for column, cost in costs if cost.forward}
            rows.append((held | running, -infinite, -base))
            running = {column: cost.backward / unit for column, cost in costs if cost.backward}
            rows.append((held | {self._above + segment + 1: 1.0} | running, -infinite, -base))
        rows.append((constant, 0.0, 0.0))
        rows.append(({self._constant: 1.0, self._below + depth: 1.0, self._peak: -1.0}, -infinite, -base))
        update = {self._constant: 1.0, self._above: 1.0, self._peak: -1.0}
        rows.append((update, -infinite, -base - instance.after / unit))
        if instance.flops_limit is not None:
            scale = max(instance.flops_limit, 1) / _SCALE
            flops = {column: candidate.cost.flops / scale for column, (_, candidate) in enumerate(self._segments)}
            rows.append((flops, -infinite, _SCALE))


#: How much of what was reached an aim may lose to the rounding of those after it.
_HELD: Final = 1e-9


def _amount(candidate: Candidate, aim: Aim) -> float:
    if aim == "approximations":
        return float(candidate.approximations)
    return candidate.importance if aim == "importance" else float(candidate.work)
