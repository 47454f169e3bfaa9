"""How much to recompute: the most that a share of the step's floating-point operations pays for."""

from __future__ import annotations

from typing import Final

from memplan.graph.step_graph import StepGraph
from memplan.methods.cut import ScheduledOp, schedule

#: FLOPs of forward and backward that recomputation may add, as a fraction. Measured: the step then takes 1.1 to 1.3
#: times as long, and more saves little (docs/speed.md).
RECOMPUTED_SHARE: Final = 0.10

#: Prices of a kept byte to choose from, in FLOPs. A 3x3 depthwise convolution repeats 4.5 for each byte of its result,
#: a 1x1 convolution half the number of its input channels.
PRICES: Final = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0, 160.0, 240.0, 320.0, 480.0, 640.0)


def bounded_schedule(graph: StepGraph, share: float = RECOMPUTED_SHARE) -> tuple[ScheduledOp, ...]:
    """Return the schedule of the highest price at which recomputing adds at most ``share`` of the step's FLOPs."""
    allowed = share * (graph.flops("forward") + graph.flops("backward"))
    forward = [op for op in graph.ops if op.phase == "forward"]
    low, high = 0, len(PRICES) - 1
    best = schedule(graph, flops_per_byte=PRICES[0])
    while low < high:
        middle = (low + high + 1) // 2
        found = schedule(graph, flops_per_byte=PRICES[middle])
        added = sum(op.flops for op, scheduled in zip(forward, found, strict=True) if scheduled.recomputed)
        if added <= allowed:
            low, best = middle, found
        else:
            high = middle - 1
    return best
