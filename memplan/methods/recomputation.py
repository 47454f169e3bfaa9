"""How much to recompute: the most that a share of the step's floating-point operations pays for."""

from __future__ import annotations

from typing import Final

from memplan.graph.records import Op
from memplan.graph.step_graph import StepGraph
from memplan.methods.cut import ScheduledOp, schedule, touched_bytes

#: FLOPs of forward and backward that recomputation may add, as a fraction.
RECOMPUTED_SHARE: Final = 0.10

#: The same of the step's work: bytes read and written, and FLOPs, of which ten take as long as a byte. Small networks
#: are bound by memory, and their norms and activations take time without FLOPs. Measured: with both bounds a step
#: takes at most 1.3 times as long (docs/step-time.md).
WORK_FOR_SHARE: Final = 2.3
FLOPS_IN_THE_TIME_OF_A_BYTE: Final = 10

#: Prices of a kept byte to choose from, in FLOPs. A 3x3 depthwise convolution repeats 4.5 for each byte of its result,
#: a 1x1 convolution half the number of its input channels.
PRICES: Final = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 100.0, 120.0, 140.0, 160.0, 240.0, 320.0, 640.0)


def bounded_schedule(graph: StepGraph, share: float = RECOMPUTED_SHARE) -> tuple[ScheduledOp, ...]:
    """Return the schedule of the highest price at which recomputing adds little to the step.

    That is at most ``share`` of its FLOPs, and of its work, bytes moved counted in, at most ``share * WORK_FOR_SHARE``.
    """
    allowed_flops = share * sum(op.flops for op in graph.ops)
    allowed_work = share * WORK_FOR_SHARE * sum(map(op_work, graph.ops))
    forward = [op for op in graph.ops if op.phase == "forward"]
    low, high = 0, len(PRICES) - 1
    best = schedule(graph, flops_per_byte=PRICES[0])
    while low < high:
        middle = (low + high + 1) // 2
        found = schedule(graph, flops_per_byte=PRICES[middle])
        added = [op for op, scheduled in zip(forward, found, strict=True) if scheduled.recomputed]
        if sum(op.flops for op in added) <= allowed_flops and sum(map(op_work, added)) <= allowed_work:
            low, best = middle, found
        else:
            high = middle - 1
    return best


def op_work(op: Op) -> int:
    """Return what an op takes of a step's time, in FLOPs: small networks are bound by the bytes they move."""
    return op.flops + FLOPS_IN_THE_TIME_OF_A_BYTE * touched_bytes(op)
