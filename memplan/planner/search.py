"""The search: the best choice by the table's model, tried on a recorded step, and tightened until that one fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from memplan.memory.optimizers import Implementation
from memplan.planner.instance import AIMS, Aim, Instance, peak_of, score
from memplan.planner.options import Choice
from memplan.planner.records import ORDERS, Found, Measured, Wanted
from memplan.planner.solver import Solution, may_fit, solve
from memplan.planner.table import Table

#: How far the model may be above a recorded step: what misses the limit by less is recorded all the same.
_SLACK: Final = 0.02

#: What small gradients, which the model counts a little too long, make it be above a recorded step of any size.
_ODD_BYTES: Final = 64

#: Choices of which the recorded steps are compared when nothing fits.
_MOST_SMALLEST: Final = 3

#: Times that one depth is tightened or loosened before the search goes on with what it has.
_MOST_REPEATS: Final = 12


@dataclass(frozen=True, slots=True)
class Candidacy:
    """A choice that the model finds best at one depth, its bytes by the model, and what the solver says of it."""

    depth: int
    choice: Choice
    bytes: int
    score: dict[str, float]
    solution: Solution


class Search:
    """One search over a table.

    ``measure`` records the step of a choice. What it returns decides; the table only says where to look.
    """

    def __init__(
        self, table: Table, wanted: Wanted, measure: Callable[[Choice], Measured], implementation: Implementation
    ) -> None:
        self.table = table
        self.wanted = wanted
        self._measure = measure
        self._implementation = implementation
        self._measured: dict[Choice, Measured] = {}
        self._repeats = 0
        self._unsplit: set[int] = set()  # depths at which the model's forward does not run in parts
        self._extra: dict[tuple[int, int], int] = {}  # by depth and samples at a time

    def best(self) -> Found | None:
        """Return the best choice that fits, or ``None`` when none does."""
        best: Candidacy | None = None
        for depth, value in self._promising():
            if best is not None and value is not None and self._value(best) <= value:
                break
            candidacy = self._fitting(depth)
            if candidacy is not None and (best is None or self._value(candidacy) < self._value(best)):
                best = candidacy
            if best is not None and value is None and not self._may_be_beaten(best):
                break
        return None if best is None else self._found(best)

    def _may_be_beaten(self, best: Candidacy) -> bool:
        """Whether a lower depth may have as many blocks and something better."""
        lossy = best.score["approximations"] > 0 or best.score["importance"] > 0
        return best.depth == self.table.count and lossy and ORDERS[self.wanted.prefer][0] == "k"

    def _promising(self) -> Iterator[tuple[int, tuple[float, ...] | None]]:
        """Yield the depths at which something may fit, the best first, with what the model promises there.

        Where depth itself counts most, or k, the first that fits is the best, and nothing needs to be promised.
        """
        limit = self.wanted.limit
        depths = [
            depth
            for depth in range(self.wanted.most_depth, self.wanted.least_depth - 1, -1)
            if self._may_fit(depth, round(limit * (1 + _SLACK)))
        ]
        if ORDERS[self.wanted.prefer][0] in ("k", "depth"):
            yield from ((depth, None) for depth in depths)
            return
        promised = [(depth, self._solved(depth, limit) or self._solved(depth, None)) for depth in depths]
        values = [(depth, self._value(candidacy)) for depth, candidacy in promised if candidacy is not None]
        yield from sorted(values, key=lambda each: each[1])

    def _may_fit(self, depth: int, limit: int) -> bool:
        """Whether a bound that takes no search leaves hope for one depth."""
        samples = self._samples(depth, None, fused=True)
        return any(may_fit(self._instance(depth, samples, fused=fused), limit) for fused in self.wanted.fused)

    def smallest(self) -> tuple[Choice, int]:
        """Return the choice with the least bytes, and the bytes of its recorded step."""
        depths = range(self.wanted.least_depth, self.wanted.most_depth + 1)
        least = [self._solved(depth, None) for depth in depths]
        likely = sorted((each for each in least if each is not None), key=lambda each: each.bytes)[:_MOST_SMALLEST]
        # Where the frozen part's end is, and so what its parts are gathered in, the model knows but roughly.
        choices = [each.choice for each in likely]
        choices += [replace(choice, samples=None) for choice in choices if choice.samples is not None]
        return min(((choice, self._recorded(choice).bytes) for choice in choices), key=lambda each: each[1])

    def within(self, least_depth: int, most_depth: int) -> Search:
        """Return the same search at other depths."""
        wanted = replace(self.wanted, least_depth=least_depth, most_depth=most_depth)
        return Search(self.table, wanted, self._measure, self._implementation)

    def exactly(self) -> Search:
        """Return the same search with exact gradients and nothing pruned."""
        return Search(self.table.exact(), self.wanted, self._measure, self._implementation)

    def least_at(self, depth: int, *, recorded: bool = True) -> int | None:
        """Return the bytes of the step that needs least at one depth, recorded or by the model.

        ``None`` if the FLOPs forbid any.
        """
        least = self._solved(depth, None)
        if least is None:
            return None
        return self._recorded(least.choice).bytes if recorded else least.bytes

    # -- one depth -----------------------------------------------------------------------------------------------------

    def _fitting(self, depth: int) -> Candidacy | None:
        """Return the best choice at one depth whose recorded step fits."""
        limit = self.wanted.limit
        least = self._solved(depth, None)
        if least is None or least.bytes > limit * (1 + _SLACK):
            return None
        fits = self._improved(depth, limit, None) if least.bytes <= limit else None
        if fits is None:
            # Where the model is above the recorded step, its smallest choice may fit all the same.
            least = self._solved(depth, None, settled=True) or least
            measured = self._tried(least)
            if measured.bytes <= limit:
                fits = self._improved(depth, limit + max(least.bytes - measured.bytes, 0), least)
        return None if fits is None else self._or_just_above(depth, fits)

    def _or_just_above(self, depth: int, fits: Candidacy) -> Candidacy:
        """Return what the model has just above the limit, if it is better than what fits and fits when recorded."""
        candidacy = self._solved(depth, self.wanted.limit + _ODD_BYTES)
        if candidacy is None or self._value(candidacy) >= self._value(fits):
            return fits
        return candidacy if self._tried(candidacy).bytes <= self.wanted.limit else fits

    def _improved(self, depth: int, room: int, fits: Candidacy | None) -> Candidacy | None:
        """Return the best choice whose recorded step fits, from one that does, if any is known.

        ``room`` is what the model may use; it differs from the limit by the model's error.
        """
        limit = self.wanted.limit
        too_many: int | None = None  # the fewest bytes by the model of a choice that did not fit
        for _ in range(_MOST_REPEATS):
            candidacy = self._solved(depth, room)
            if candidacy is None or (fits is not None and self._value(candidacy) >= self._value(fits)):
                break
            measured = self._tried(candidacy)
            excess = measured.bytes - limit
            if excess <= 0:
                fits = candidacy
                room = max(room, limit + candidacy.bytes - measured.bytes)
            else:
                self._repeats += 1
                if not measured.in_prefix or candidacy.choice.samples is None:
                    too_many = min(candidacy.bytes, too_many or candidacy.bytes)
                    room = too_many - (excess if fits is None else 1)
            if too_many is not None:
                room = min(room, too_many - 1)
        return fits

    def _tried(self, candidacy: Candidacy) -> Measured:
        """Record the step of a choice, and learn from it what a part of the batch takes."""
        measured = self._recorded(candidacy.choice)
        samples = candidacy.choice.samples
        if samples is not None and not measured.split:
            self._unsplit.add(candidacy.depth)
        elif samples is not None and measured.in_prefix:
            expected = self._frozen_bytes(candidacy.depth, samples, fused=candidacy.choice.fused_update)
            self._extra[candidacy.depth, samples] = self._beyond(candidacy.depth, samples) + measured.bytes - expected
        return measured

    def _solved(self, depth: int, room: int | None, *, settled: bool = False) -> Candidacy | None:
        """Return the model's best choice at one depth within ``room`` bytes, or its smallest without a room.

        Of several smallest ones any, unless it is to be ``settled`` which is best.
        """
        if room is None:
            order: tuple[Aim, ...] = ("memory", "approximations", "importance", "work") if settled else ("memory",)
        else:
            order = tuple(aim for aim in ORDERS[self.wanted.prefer] if aim != "k" and aim != "depth")
        found = [
            candidacy
            for fused in self.wanted.fused
            if (candidacy := self._with_updates(depth, room, order, fused=fused)) is not None
        ]
        if room is None:
            return min(found, key=lambda candidacy: candidacy.bytes, default=None)
        return min(found, key=self._value, default=None)

    def _with_updates(self, depth: int, room: int | None, order: tuple[Aim, ...], *, fused: bool) -> Candidacy | None:
        samples = self._samples(depth, room, fused=fused)
        if samples == 0:
            return None
        if room is not None and order[0] == "memory" and samples > 1:
            # The smallest parts show how little there may be; then they are as large as that allows.
            smallest = self._with_updates(depth, None, ("memory",), fused=fused)
            samples = samples if smallest is None else self._samples(depth, min(room, smallest.bytes), fused=fused)
        part = None if samples == self.wanted.batch else samples
        instance = self._instance(depth, samples, fused=fused)
        solution = solve(instance, room, order)
        if solution is None:
            return None
        chosen = [segment[pick] for segment, pick in zip(instance.segments, solution.picks, strict=True)]
        pruned = tuple(candidate.pruned for candidate in chosen)
        choice = Choice(
            tuple(candidate.option for candidate in chosen[-depth:]), fused, part, pruned if any(pruned) else ()
        )
        reached = score(instance, solution.picks)
        return Candidacy(
            depth, choice, peak_of(instance, solution.picks), dict(zip(AIMS, reached, strict=True)), solution
        )

    def _samples(self, depth: int, room: int | None, *, fused: bool) -> int:
        """Return how many samples the frozen part takes at a time: as many as there is room for; 0 if none.

        Without a room it is one, or the whole batch where parts would need more to be gathered in.
        """
        batch = self.wanted.batch
        if depth == self.table.count or not self.wanted.split or batch < 2 or depth in self._unsplit:
            return batch
        if room is None:
            single, whole = (self._frozen_bytes(depth, samples, fused=fused) for samples in (1, batch))
            return 1 if single < whole else batch
        for samples in range(batch, 0, -1):
            if self._frozen_bytes(depth, samples, fused=fused) <= room:
                return samples
        return 0

    def _instance(self, depth: int, samples: int, *, fused: bool) -> Instance:
        """Return the problem at one depth, with the frozen part run ``samples`` at a time."""
        return self.table.instance(
            depth,
            self.how(fused=fused),
            share=samples / self.wanted.batch,
            extra=self._beyond(depth, samples),
            flops_limit=self.wanted.flops_limit,
        )

    def _frozen_bytes(self, depth: int, samples: int, *, fused: bool) -> int:
        """Return the most that is alive while the frozen part runs ``samples`` at a time."""
        share, extra = samples / self.wanted.batch, self._beyond(depth, samples)
        return self.table.frozen_bytes(depth, self.how(fused=fused), share, extra)

    def _beyond(self, depth: int, samples: int) -> int:
        """Return what the frozen part was found to need beyond its share of the whole batch."""
        return self._extra.get((depth, samples), 0)

    def how(self, *, fused: bool) -> Implementation:
        """Return how the optimizer updates, during the backward or after it."""
        return "in-backward" if fused else self._implementation

    def _value(self, candidacy: Candidacy) -> tuple[float, ...]:
        """Return what makes one choice better than another: the smaller tuple.

        Depth counts the other way round. Before memory, where that is last, come fewer parts of the batch, and updates
        after the backward.
        """
        choice, batch = candidacy.choice, self.wanted.batch
        k = min(candidacy.depth, self.table.count - 1)
        aims: dict[str, float] = {**candidacy.score, "k": -k, "depth": -candidacy.depth}
        order = ORDERS[self.wanted.prefer]
        ways = (-(-batch // (choice.samples or batch)), choice.fused_update)
        last = order.index("memory") if order[-1] == "memory" else len(order)
        return (*(aims[aim] for aim in order[:last]), *ways, *(aims[aim] for aim in order[last:]))

    # -- recording -----------------------------------------------------------------------------------------------------

    def _recorded(self, choice: Choice) -> Measured:
        if choice not in self._measured:
            self._measured[choice] = self._measure(choice)
        return self._measured[choice]

    def _found(self, candidacy: Candidacy) -> Found:
        measured = self._recorded(candidacy.choice)
        return Found(
            choice=candidacy.choice,
            bytes=measured.bytes,
            solver=candidacy.solution.solver,
            score=tuple((name, value) for name, value in candidacy.score.items()),
            bound=candidacy.solution.bound,
            gap=candidacy.solution.gap,
            repeats=self._repeats,
            recordings=len(self._measured),
            error=measured.bytes / candidacy.bytes - 1,
        )
