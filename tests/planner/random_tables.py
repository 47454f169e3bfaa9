"""Random tables of costs for the search, small enough that every choice can be tried."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from memplan.memory.optimizers import OPTIMIZERS, Implementation
from memplan.planner.costs import SegmentCost, StepCosts
from memplan.planner.instance import peak_of, score
from memplan.planner.options import PLAIN, Choice, Option
from memplan.planner.table import Table

EXACT = Option(15.0)
APPROXIMATE = Option(None, True, ("signed-mask", "shift-only"))
BATCH = 4


def table(seed: int) -> Table:
    """Return the costs of 2 to 4 segments, plain, recomputed and approximated; each keeps less and repeats more."""
    numbers = random.Random(seed)
    count = numbers.randint(2, 4)
    plain = [
        SegmentCost(
            constant=numbers.randint(1_000, 9_000),
            kept=numbers.randint(5_000, 60_000),
            gradients=numbers.randint(1_000, 9_000),
            forward=numbers.randint(20_000, 90_000),
            backward=numbers.randint(40_000, 120_000),
            flops=1_000,
            work=numbers.randint(10_000, 90_000),
        )
        for _ in range(count)
    ]
    exact = [
        replace(cost, kept=int(cost.kept * numbers.uniform(0.3, 0.9)), work=cost.work + numbers.randint(1, 9_000))
        for cost in plain
    ]
    approximate = [replace(cost, kept=int(cost.kept * numbers.uniform(0.1, 0.6))) for cost in plain]
    frozen = [replace(cost, kept=0, gradients=0, forward=numbers.randint(20_000, 150_000)) for cost in plain]
    sizes = tuple((cost.gradients,) for cost in plain)

    def costs(rows: list[SegmentCost]) -> dict[Implementation, StepCosts]:
        late = tuple(replace(row, lowest=row.backward * 7 // 8) for row in rows)
        early = tuple(replace(row, gradients=0) for row in late)
        return {
            "loop": StepCosts(late, 2_000, 500, sizes),
            "in-backward": StepCosts(early, 2_000, 0, sizes),
        }

    return Table(
        rule=OPTIMIZERS["sgd"],
        trained={(PLAIN, 0): costs(plain), (EXACT, 0): costs(exact), (APPROXIMATE, 0): costs(approximate)},
        frozen={0: StepCosts(tuple(frozen), 2_000, 0, sizes)},
        handed=tuple(numbers.randint(2_000, 8_000) for _ in plain),
        approximated=tuple(0 < index < count - 1 for index in range(count)),
    )


@dataclass(frozen=True)
class Valued:
    """A choice, its bytes by the table, and what makes it better than another: smaller numbers, and more blocks.

    The highest segment, which always trains, is counted as a block here; the lowest, the stem, is none.
    """

    choice: Choice
    bytes: int
    frozen_bytes: int
    approximations: int
    work: int
    blocks: int


def valued(costs: Table, choice: Choice) -> Valued:
    depth = len(choice.options)
    how: Implementation = "in-backward" if choice.fused_update else "loop"
    ways = [(PLAIN, 0)] * (costs.count - depth) + [(option, 0) for option in choice.options]
    share = (choice.samples or BATCH) / BATCH
    problem = costs.fixed(depth, how, ways, share=share)
    picks = [0] * costs.count
    approximations, work = score(problem, picks, ("approximations", "work"))
    prefix = costs.frozen_bytes(depth, how, share)
    return Valued(choice, peak_of(problem, picks), prefix, int(approximations), int(work), min(depth, costs.count - 1))


def choices(costs: Table) -> Iterator[Valued]:
    """Yield every choice there is."""
    for depth in range(1, costs.count + 1):
        parts = (None, 1, 2, 3) if depth < costs.count else (None,)
        for options in product((PLAIN, EXACT, APPROXIMATE), repeat=depth):
            for fused, samples in product((False, True), parts):
                yield valued(costs, Choice(options, fused, samples))
