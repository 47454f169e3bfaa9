"""What a terminal shows of a Pareto front: a table of its points, and memory against k as a plot; and its JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from memplan.reports.front_plot import Plot
from memplan.reports.layout import Column, Columns, Hanging
from memplan.reports.plan import QUANTITIES
from memplan.reports.sentences import facts, machine, paragraph, remarks, title
from memplan.reports.sizes import count, flops, size, unit_for
from memplan.results import Front, FrontPoint
from memplan.units import format_bytes

FRONT_SCHEMA: Final = "memplan.front/1"


def front_report(front: Front) -> RenderableType:
    """Return what a terminal shows of a front, the smallest memory first."""
    setting = front.setting
    return Group(
        facts(setting),
        paragraph(f"optimizer {setting.optimizer} ({setting.implementation}); {machine(setting)}"),
        Text(),
        title(f"{count(len(front.points), 'plan')} that no other plan beats in memory, k, FLOPs and gradients"),
        paragraph(
            f"memory is the step's {QUANTITIES.get(front.of, front.of)}; stock full needs {size(front.stock_bytes)}"
        ),
        Text(),
        front_table(front),
        Plot(front),
        *remarks("note", front.notes),
    )


def front_table(front: Front) -> Hanging:
    """Return one line for each point; where more than the blocks and the head trains, k is ``all``."""
    points = front.points
    unit = unit_for(front.stock_bytes)
    whole = len(front.blocks) + 2
    columns = Columns(
        (
            Column(front.of, tuple(format_bytes(point.bytes, unit=unit) for point in points)),
            Column("k", tuple("all" if point.depth >= whole else str(point.k) for point in points)),
            Column("approximate", tuple(count(point.approximations, "block") for point in points), leaves=2),
            Column("FLOPs", tuple(flops(point.flops) for point in points)),
            Column("of stock", tuple(share_of_stock(point, front) for point in points), leaves=1),
        )
    )
    return Hanging(columns, "treatments", tuple(", ".join(point.plan.treatments) or "none" for point in points))


def front_to_json(front: Front, version: str) -> dict[str, Any]:
    """Return everything that a front knows but its plans' layers, as JSON's own types; ``version`` is memplan's."""
    return {
        "schema": FRONT_SCHEMA,
        "memplan": version,
        "made_for": {**asdict(front.setting), "inputs": list(front.setting.inputs)},
        "of": front.of,
        "stock_bytes": front.stock_bytes,
        "blocks": [block.path for block in front.blocks],
        "points": [
            {
                "bytes": point.bytes,
                "k": point.k,
                "trained_segments": point.depth,
                "approximations": point.approximations,
                "flops": point.flops,
                "gradients": point.plan.gradients,
                "treatments": list(point.plan.treatments),
                "fused_update": point.plan.fused_update,
                "samples": None if point.plan.microbatch is None else point.plan.microbatch.samples,
            }
            for point in front.points
        ],
        "notes": list(front.notes),
    }


def share_of_stock(point: FrontPoint, front: Front) -> str:
    """Return the memory of a point as a share of what stock PyTorch needs for everything."""
    return f"{point.bytes / front.stock_bytes:.0%}" if front.stock_bytes else ""
