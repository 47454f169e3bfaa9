"""A plan that a search found, and a front, made by hand on the chain of ``toy``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memplan.graph import Block
from memplan.memory import price
from memplan.methods import Plan
from memplan.methods.cut import ScheduledOp
from memplan.methods.plan import Fingerprint, Microbatch, TreatedLayer
from memplan.methods.pruning import PrunedAxis, PrunedGroup
from memplan.planner.records import Budget, Upgrade
from memplan.results import Front, FrontPoint, Planned, PlannedSegment, Saving, SearchReport
from tests.reports.toy import SETTING, chain

PLAN = Plan(
    method="planned",
    k=2,
    trained=("layers.1.weight", "layers.2.weight", "layers.3.weight"),
    gradients="approximate",
    layers=(TreatedLayer("layers.2", ("signed-mask", "shift-only", "bitmask")),),
    evaluated=("layers.0",),
    pruned=(
        PrunedGroup("layers.1", 32, tuple(range(8)), (PrunedAxis("layers.1.weight", 0, 32, tuple(range(8))),)),
        PrunedGroup("layers.2", 16, (), ()),
    ),
    schedule=(ScheduledOp("aten.toy.default", (0,)), ScheduledOp("aten.toy.default", ())),
    microbatch=Microbatch("layers.0", 2),
    fused_update=True,
    notes=("layers.2 is a toy",),
    untreated=("toy keeps 8.0 MB",),
    model=Fingerprint(4, 4_000_000, "0123456789abcdef"),
)

SEGMENTS = (
    PlannedSegment("stem", "", False, ("prefix-microbatch",), None, 0),
    PlannedSegment("layers.0", "layers.0", False, ("prefix-microbatch",), None, 0),
    PlannedSegment("layers.1", "layers.1", True, ("recompute",), 15.0, 8_000_000, (("layers.1", 24, 32),)),
    PlannedSegment(
        "layers.2",
        "layers.2",
        True,
        ("signed-mask", "shift-only", "bitmask", "recompute"),
        60.0,
        250_000,
        (("layers.2", 16, 16),),
    ),
    PlannedSegment("head", "", True, (), None, 8_000_000),
)


def planned(**changes: Any) -> Planned:
    """Return the plan in which two of three blocks and the head train, in a budget of 80 MB."""
    footprint = price(chain(trained=3), "momentum", "in-backward", alive=9)
    made = Planned(
        setting=SETTING,
        budget=Budget(80_000_000),
        prefer="k",
        runner="memplan",
        plan=PLAN,
        implementation="in-backward",
        bytes=footprint.peak_bytes,
        footprint=footprint,
        stock=price(chain(), "momentum", alive=9),
        blocks=tuple(Block(index, f"layers.{index}", "Linear", index, index) for index in range(3)),
        segments=SEGMENTS,
        savings=(
            Saving("signed-mask and shift-only", 7_750_000, True),
            Saving("recompute", 31_000_000, False),
            Saving("prune", 1_000_000, True),
        ),
        search=SearchReport("HiGHS", (("approximations", 1.0), ("memory", 76e6)), 76e6, 0.0, 1, 3, -0.0125),
        next=(Upgrade("one more block, layers.0", 91_500_000),),
        notes=("weights are random", "layers.2 is a toy"),
        seconds=(1.25, 0.5),
    )
    return replace(made, **changes)


def point(size: int, k: int, approximations: int = 0, *, flops: int = 10**9) -> FrontPoint:
    """Return a point of a front; its plan says no more than needed."""
    gradients = "approximate" if approximations else "exact"
    layers = (TreatedLayer("", ("signed-mask",)),) if approximations else ()
    plan = Plan("planned", k, (), gradients=gradients, layers=layers)  # type: ignore[arg-type]
    return FrontPoint(size, k, k + 1, approximations, flops, plan)


def front(*points: FrontPoint) -> Front:
    """Return a front; without points one of three, from 20 MB to 60 MB, where 80 MB is all that stock needs."""
    chosen = points or (point(20_000_000, 0), point(40_000_000, 2, 1), point(60_000_000, 3, flops=2 * 10**9))
    return Front(SETTING, "peak", 80_000_000, chain().blocks, chosen, ("a toy",))
