"""The best pick within a limit where segments share nothing but what they keep: an exact dynamic program.

What stays from a segment's forward to its backward adds up along the chain; everything else is a segment's own, if all
its candidates leave the same gradients and the same bytes throughout. Then of two picks for the segments below, the one
that keeps less and scores no worse is as good as the other for whatever stands above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from memplan.planner.instance import Aim, Instance

if TYPE_CHECKING:
    import numpy

    Numbers: TypeAlias = "numpy.ndarray[Any, Any]"

#: Picks for the segments below that are compared at most; beyond, an integer program is faster.
_MOST_LABELS: Final = 200_000


@dataclass(frozen=True)
class Chain:
    """An instance of which all candidates of a segment agree in constant bytes and gradients."""

    instance: Instance

    @staticmethod
    def fits(instance: Instance) -> bool:
        """Whether an instance is one; FLOPs and importance are not counted here."""
        return instance.flops_limit is None and all(
            len({(each.cost.constant, each.cost.gradients) for each in candidates}) == 1
            and not any(each.importance for each in candidates)
            for candidates in instance.segments
        )

    @cached_property
    def _needs(self) -> list[list[tuple[int, int, int]]]:
        """For each candidate of each segment: kept bytes, and the most alive in forward and backward, beside what is
        kept below; the latter two with everything that is constant, and the gradients of higher segments.
        """
        rows, fixed = self.instance.segments, self._constant
        above = sum(candidates[0].cost.gradients for candidates in rows)
        needs = []
        for candidates in rows:
            above -= candidates[0].cost.gradients
            needs.append(
                [
                    (each.cost.kept, fixed + max(each.cost.forward, above + each.cost.backward), position)
                    for position, each in enumerate(candidates)
                ]
            )
        return needs

    @cached_property
    def _floor(self) -> int:
        """Bytes of the optimizer's moments, whatever is picked."""
        gradients = sum(candidates[0].cost.gradients for candidates in self.instance.segments)
        return self._constant + gradients + self.instance.after

    @cached_property
    def _constant(self) -> int:
        """Bytes that are there throughout, whatever is picked."""
        return self.instance.base + sum(candidates[0].cost.constant for candidates in self.instance.segments)

    def least_bytes(self) -> int:
        """Return the smallest peak of all picks: the least that some limit allows, by bisection."""
        low = self._floor
        high = max(low, self._constant + sum(max(k for k, _, _ in ways) for ways in self._needs))
        high += max(need for ways in self._needs for _, need, _ in ways)
        while low < high:
            middle = (low + high) // 2
            if self.allows(middle):
                high = middle
            else:
                low = middle + 1
        return low

    def allows(self, limit: int) -> bool:
        """Whether any pick stays within ``limit`` bytes: at each segment the one that keeps least is as good as any."""
        if self._floor > limit:
            return False
        below = 0
        for ways in self._needs:
            kept = [kept for kept, need, _ in ways if below + need <= limit]
            if not kept:
                return False
            below += min(kept)
        return self._constant + below <= limit

    def best(self, limit: int, values: Sequence[Sequence[int]], bound: int | None = None) -> list[int] | None:
        """Return the pick within ``limit`` bytes with the smallest sum of ``values``, or ``None``.

        Args:
            limit: in bytes.
            values: what each candidate of each segment adds.
            bound: a sum that is not to be exceeded, where one is known.

        Raises:
            OverflowError: more picks would have to be compared than is sensible.
        """
        import numpy

        if self._floor > limit:
            return None
        rest = _least_after(values)
        least = self._least_above(limit)
        kept, value = numpy.zeros(1, numpy.int64), numpy.zeros(1, numpy.int64)
        history: list[tuple[Numbers, Numbers]] = []
        for segment, ways in enumerate(self._needs):
            parts = []
            for more, need, position in ways:
                fits = numpy.flatnonzero((kept + need <= limit) & (kept + more <= least[segment]))
                parts.append((kept[fits] + more, value[fits] + values[segment][position], fits, position))
            kept = numpy.concatenate([part[0] for part in parts])
            value = numpy.concatenate([part[1] for part in parts])
            parent = numpy.concatenate([part[2] for part in parts])
            picked = numpy.concatenate([numpy.full(len(part[2]), part[3], numpy.int16) for part in parts])
            if bound is not None:
                inside = numpy.flatnonzero(value + rest[segment] <= bound)
                kept, value, parent, picked = kept[inside], value[inside], parent[inside], picked[inside]
            order = numpy.lexsort((value, kept))
            value = value[order]
            best_before = numpy.minimum.accumulate(numpy.concatenate(([_HUGE], value[:-1])))
            order = order[value < best_before]
            kept, value = kept[order], numpy.sort(value[value < best_before])[::-1]
            if not len(kept):
                return None
            if len(kept) > _MOST_LABELS:
                raise OverflowError(f"{len(kept)} picks to compare")
            history.append((parent[order], picked[order]))
        at = int(numpy.argmin(value))
        picks: list[int] = []
        for parent, picked in reversed(history):
            picks.append(int(picked[at]))
            at = int(parent[at])
        return picks[::-1]

    def _least_above(self, limit: int) -> list[int]:
        """Return for each segment the most that may be kept up to it, so that those above still find a way."""
        room = limit - self._constant
        most = []
        for ways in reversed(self._needs):
            most.append(room)
            # With so much below, a way that needs least and then keeps no more than the next may bear.
            room = max(min(limit - need, room - kept) for kept, need, _ in ways)
        return most[::-1]


def combined(instance: Instance, order: Sequence[Aim]) -> list[list[int]] | None:
    """Return one whole number for each candidate, that orders sums as the aims of ``order`` do; ``memory`` is left out.

    ``None`` when the numbers would be too large.
    """
    rows: list[list[int]] = [[0] * len(candidates) for candidates in instance.segments]
    scale = 1
    for aim in reversed([aim for aim in order if aim in ("approximations", "work")]):
        numbers = [
            [each.approximations if aim == "approximations" else each.work for each in candidates]
            for candidates in instance.segments
        ]
        rows = [
            [value + scale * number for value, number in zip(values, more, strict=True)]
            for values, more in zip(rows, numbers, strict=True)
        ]
        scale *= 1 + sum(max(map(abs, more)) for more in numbers) * 2
    return rows if scale < _HUGE else None


_HUGE: Final = 1 << 62


def _least_after(values: Sequence[Sequence[int]]) -> list[int]:
    """Return for each segment the least that those above it add."""
    rest, total = [], 0
    for ways in reversed(values):
        rest.append(total)
        total += min(ways)
    return rest[::-1]
