"""The best plan of what stock PyTorch can do: how many blocks train, by ``requires_grad`` alone."""

from __future__ import annotations

import time

from memplan.errors import BudgetError
from memplan.graph.step_graph import StepGraph
from memplan.memory import Footprint, price
from memplan.methods import METHODS, Plan
from memplan.planner.costs import quantity_of
from memplan.planner.records import Upgrade, Wanted, least_budget
from memplan.rehearsal import METHOD_NAME, Rehearsal
from memplan.results import Planned, PlannedSegment, SearchReport, Setting
from memplan.steps import Steps
from memplan.units import format_bytes, format_bytes_up


def planned_by_flags(steps: Steps, rehearsal: Rehearsal, wanted: Wanted, setting: Setting, started: float) -> Planned:
    """Return the plan that trains most and fits; depths are tried from the most down, halving what is left.

    Raises:
        BudgetError: none fits.
    """
    tried: dict[int, Footprint] = {}
    steps_of: dict[int, StepGraph] = {}

    def size(depth: int) -> int:
        if depth not in tried:
            whole = depth == rehearsal.count
            steps_of[depth] = rehearsal.stock if whole else steps.step(METHODS["top-k"], depth - 1)
            tried[depth] = price(steps_of[depth], setting.optimizer, setting.implementation)
        return quantity_of(tried[depth], wanted.budget.of)

    limit = wanted.limit
    if size(wanted.least_depth) > limit:
        raise BudgetError(
            f"nothing fits {format_bytes(wanted.budget.bytes)} by requires_grad alone: {setting.model} needs at least "
            f"{format_bytes_up(least_budget(size(wanted.least_depth)))}; plan it with --runner memplan"
        )
    low, high = wanted.least_depth, wanted.most_depth + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    chosen = rehearsal.trained(low)
    names = tuple(each.name for each in rehearsal.stock.parameters if each.name in chosen)
    plan = steps.named(Plan(METHOD_NAME, rehearsal.k_of(low), names))
    upgrades = (Upgrade(rehearsal.one_more(low + 1), size(low + 1)),) if low < wanted.most_depth else ()
    recorded = time.perf_counter()
    return Planned(
        setting=setting,
        budget=wanted.budget,
        prefer=wanted.prefer,
        runner="stock",
        plan=plan,
        implementation=setting.implementation,
        bytes=size(low),
        footprint=tried[low],
        stock=rehearsal.stock_footprint,
        blocks=rehearsal.stock.blocks,
        segments=tuple(
            PlannedSegment(*rehearsal.segment_name(index), index >= rehearsal.count - low, (), None, kept)
            for index, kept in enumerate(rehearsal.kept_by(steps_of[low]))
            if rehearsal.works(index)
        ),
        savings=(),
        search=SearchReport("bisection", (("depth", float(low)),), float(low), 0.0, 0, len(tried), 0.0),
        next=upgrades,
        seconds=(recorded - started, 0.0),
        step=steps_of[low],
        stock_step=rehearsal.stock,
    )
