"""The page of a Pareto front: its points as a picture, and the plan of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from memplan.reports.front import front_table, share_of_stock
from memplan.reports.html.embedded import PAGE_SCHEMA
from memplan.reports.html.page import page
from memplan.reports.html.sections import (
    ASSUMPTIONS,
    Figure,
    Section,
    about_section,
    heading_of,
    remarks_of,
    sentence,
    setting_facts,
    summary_section,
    table_of,
)
from memplan.reports.plan import QUANTITIES, step_lines
from memplan.reports.sizes import count, flops, size
from memplan.results import Front, FrontPoint


def front_page(front: Front, version: str) -> str:
    """Return the page of a front; ``version`` is memplan's."""
    points = front.points
    what = QUANTITIES.get(front.of, front.of)
    table = front_table(front)
    sections = (
        summary_section(
            f"{count(len(points), 'plan')} that no other plan beats in memory, k, FLOPs and gradients",
            (f"Memory is the step's {what}; stock full needs {size(front.stock_bytes)}.",),
            _figures(front),
        ),
        Section(
            "front",
            "Memory against trained blocks",
            {
                "table": table_of("Plans, the smallest memory first", table.columns, table.heading, table.texts),
                "plans": tuple(
                    {
                        "sentences": tuple(_sentences(front, point)),
                        "segments": tuple(_segments(front, point)),
                        "notes": point.plan.notes,
                    }
                    for point in points
                ),
            },
        ),
        about_section(
            setting_facts(front.setting, version), assumptions=ASSUMPTIONS, remarks=remarks_of(front.notes, (), ())
        ),
    )
    return page("Pareto front", heading_of(front.setting), sections, _data(front), version)


def _data(front: Front) -> dict[str, Any]:
    return {
        "schema": PAGE_SCHEMA,
        "front": {
            "of": QUANTITIES.get(front.of, front.of),
            "stock_bytes": front.stock_bytes,
            "bytes": [point.bytes for point in front.points],
            "k": [point.k for point in front.points],
            "depth": [point.depth for point in front.points],
            "approximations": [point.approximations for point in front.points],
            "flops": [point.flops for point in front.points],
            "told": [flops(point.flops) for point in front.points],
        },
    }


def _figures(front: Front) -> Iterator[Figure]:
    yield Figure("stock full", front.stock_bytes)
    if front.points:
        for label, point in (("the smallest plan", front.points[0]), ("the largest plan", front.points[-1])):
            yield Figure(label, point.bytes, f"{share_of_stock(point, front)} of stock full, k {point.k}")


def _sentences(front: Front, point: FrontPoint) -> Iterator[str]:
    plan = point.plan
    blocks = len(front.blocks)
    depth = "everything trains" if point.depth >= blocks + 2 else f"{point.k} of {count(blocks, 'block')} train"
    yield f"{size(point.bytes)}: {depth}, {count(len(plan.trained), 'tensor')}; {flops(point.flops)}FLOPs a step."
    approximate = f" in {count(point.approximations, 'block')}" if point.approximations else ""
    yield f"Gradients are {plan.gradients}{approximate}."
    yield f"Treatments: {', '.join(plan.treatments) or 'none'}."
    yield from map(sentence, step_lines(plan))
    given = Counter(name for layer in plan.layers if layer.path for name in layer.treatments)
    if given:
        yield f"Places: {', '.join(f'{name} in {number:,}' for name, number in given.items())}."
    repeated = sum(bool(op.recomputed) for op in plan.schedule)
    if repeated:
        yield f"Results of {count(repeated, 'operator')} are recomputed."


def _segments(front: Front, point: FrontPoint) -> Iterator[tuple[str, bool]]:
    """Yield each block's path and whether anything in it trains."""
    for block in front.blocks:
        yield block.path, any(name.startswith(f"{block.path}.") for name in point.plan.trained)
