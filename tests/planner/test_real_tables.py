"""The search on recorded tables of random small networks, against every pick; and against every recorded step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Final

import pytest
import torch
from torch import Tensor, nn

from memplan.memory.optimizers import Implementation
from memplan.planner.instance import Aim, Instance, peak_of, score
from memplan.planner.options import PLAIN, Choice, Option
from memplan.planner.program import solved_by_program
from memplan.planner.records import Budget, Wanted
from memplan.planner.search import Search
from memplan.planner.solver import solve
from memplan.planner.table import Table
from memplan.rehearsal import Rehearsal
from memplan.steps import Steps
from memplan.subject import subject_of
from tests.planner.random_instances import exhaustive

#: Networks in each run of the tests, and of the corpus.
NETWORKS, MANY = 40, 300

OPTIONS: Final = (
    Option(masked=True),
    Option(0.0),
    Option(60.0),
    Option(1e6),
    Option(None, True, ("signed-mask", "shift-only")),
    Option(1e6, True, ("signed-mask", "shift-only")),
)

ORDERS: Final[tuple[tuple[Aim, ...], ...]] = (
    ("approximations", "importance", "work", "memory"),
    ("work", "approximations", "importance", "memory"),
    ("memory", "approximations", "importance", "work"),
)


class Residual(nn.Module):
    """A residual block of convolutions or linear layers."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


def network(seed: int) -> tuple[nn.Module, Tensor]:
    """Return a stem, 2 to 5 residual blocks and a head, and a batch."""
    numbers = random.Random(seed)
    width, batch = numbers.choice((4, 8)), numbers.randint(2, 5)
    blocks = range(numbers.randint(2, 5))

    def activation() -> nn.Module:
        return numbers.choice((nn.ReLU, nn.Hardswish, nn.ReLU6))(inplace=numbers.random() < 0.5)

    def norm(channels: int, kind: type[nn.Module]) -> list[nn.Module]:
        return [kind(channels)] if numbers.random() < 0.8 else []

    if numbers.random() < 0.3:
        stem = nn.Sequential(nn.Linear(6, width), *norm(width, nn.BatchNorm1d), activation())
        bodies = [
            nn.Sequential(nn.Linear(width, wide), *norm(wide, nn.BatchNorm1d), activation(), nn.Linear(wide, width))
            for wide in (width * numbers.randint(1, 6) for _ in blocks)
        ]
        return nn.Sequential(stem, *map(Residual, bodies), nn.Linear(width, 3)), torch.zeros(batch * 8, 6)
    stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *norm(width, nn.BatchNorm2d), activation())
    bodies = []
    for _ in blocks:
        wide = width * numbers.randint(1, 6)
        middle = (
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False) if numbers.random() < 0.5 else nn.Identity()
        )
        bodies.append(
            nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False),
                *norm(wide, nn.BatchNorm2d),
                activation(),
                middle,
                *norm(wide, nn.BatchNorm2d),
                nn.Conv2d(wide, width, 1),
            )
        )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    side = numbers.choice((6, 9))
    return nn.Sequential(stem, *map(Residual, bodies), head), torch.zeros(batch, 3, side, side)


def rehearsal_of(seed: int, optimizer: str = "sgd") -> Rehearsal:
    model, inputs = network(seed)
    return Rehearsal(Steps(subject_of(model, inputs)), optimizer, "loop")


def instances(table: Table, seed: int) -> list[Instance]:
    numbers = random.Random(seed)
    how: tuple[Implementation, ...] = ("loop", "in-backward")
    depths = numbers.sample(range(1, table.count + 1), 2)
    return [table.instance(depth, numbers.choice(how), share=numbers.choice((0.5, 1.0))) for depth in depths]


def agrees(problem: Instance, limit: int, order: Sequence[Aim], seed: int) -> str:
    """Check the best pick within a limit against every pick; return which solver found it."""
    best = exhaustive(problem, limit, order)
    found, proof = solve(problem, limit, order), solved_by_program(problem, limit, order)
    if best is None or found is None or proof is None:
        assert found is proof is best is None, (seed, limit, order)
        return ""
    for picks, gap in ((found.picks, found.gap), (proof.picks, proof.gap)):
        assert peak_of(problem, picks) <= limit
        assert score(problem, picks, order) == best, (seed, limit, order)
        assert gap < 1e-9
    return found.solver


def solves(seed: int) -> set[str]:
    rehearsal = rehearsal_of(seed)
    options = random.Random(seed).sample(OPTIONS, 3)
    table = rehearsal.with_options(rehearsal.plain, options)
    used = set()
    for problem in instances(table, seed):
        if prod(map(len, problem.segments)) > 5_000:
            continue
        least = exhaustive(problem, None, ("memory",))
        plain = exhaustive(problem, None, ("approximations", "work", "memory"))
        assert least is not None
        assert plain is not None
        low, high = int(least[0]), int(plain[-1])
        for number, limit in enumerate((low - 1, low, (low + high) // 2, high)):
            used.add(agrees(problem, limit, ORDERS[(seed + number) % len(ORDERS)], seed))
    return used


def test_no_pick_is_better_on_recorded_tables() -> None:
    used = set()
    for seed in range(NETWORKS):
        used |= solves(seed)
    assert used >= {"dynamic program", "HiGHS"}


@pytest.mark.corpus
@pytest.mark.parametrize("seed", range(NETWORKS, MANY))
def test_no_pick_is_better_on_many_recorded_tables(seed: int) -> None:
    assert solves(seed)


# -- every choice recorded ---------------------------------------------------------------------------------------------


def nothing_recorded_is_better(seed: int) -> tuple[int, float]:
    """Search at several budgets; return how many choices were recorded, and the model's largest error."""
    rehearsal = rehearsal_of(seed)
    options = (Option(1e6), Option(None, True, ("signed-mask", "shift-only")))
    table = rehearsal.with_options(rehearsal.plain, options)
    depths = range(1, min(table.count, 3) + 1)
    recorded = {
        choice: rehearsal.measure(choice).bytes
        for depth in depths
        for picked in product((PLAIN, *options), repeat=depth)
        for choice in (Choice(picked, fused_update=False),)
    }
    sizes = sorted(set(recorded.values()))
    worst = 0.0
    for limit in (sizes[0] - 1, sizes[0], sizes[len(sizes) // 3], sizes[len(sizes) // 2], sizes[-1]):
        budget = limit + limit // 49_999 + 1
        wanted = Wanted(Budget(budget), 1, depths[-1], fused=(False,), split=False)
        found = Search(table, wanted, rehearsal.measure, "loop").best()
        fitting = [value(table, choice) for choice, size in recorded.items() if size <= wanted.limit]
        if found is None:
            assert not fitting, (seed, limit)
            continue
        assert found.bytes == recorded[found.choice] <= wanted.limit
        assert value(table, found.choice) == min(fitting), (seed, limit)
        worst = max(worst, abs(found.error))
    return len(recorded), worst


def value(table: Table, choice: Choice) -> tuple[float, ...]:
    depth = len(choice.options)
    ways = [(PLAIN, 0)] * (table.count - depth) + [(option, 0) for option in choice.options]
    problem = table.fixed(depth, "loop", ways)
    return -depth, *score(problem, [0] * table.count, ("approximations", "work"))


@pytest.mark.parametrize("seed", [1, 4, 101])
def test_no_recorded_choice_that_fits_is_better(seed: int) -> None:
    count, error = nothing_recorded_is_better(seed)
    assert count == 3 + 3**2 + 3**3
    assert error < 0.02


#: A network in which recomputing a block needs 8.75 % more than the table says; what the search then turns to is not
#: the best there is.
UNDERPRICED: Final = 105


@pytest.mark.corpus
@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=pytest.mark.xfail(strict=True, raises=AssertionError)) if seed == UNDERPRICED else seed
        for seed in range(100, 130)
    ],
)
def test_no_recorded_choice_that_fits_is_better_on_many(seed: int) -> None:
    nothing_recorded_is_better(seed)
