"""What a terminal shows of a Pareto front: a table of its points, and memory against k as a plot of characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from memplan.reports.layout import Column, Columns
from memplan.reports.plan import QUANTITIES, Hanging, facts, machine, paragraph, remarks, title
from memplan.reports.sizes import count, flops, size, unit_for
from memplan.results import Front, FrontPoint
from memplan.units import format_bytes

FRONT_SCHEMA: Final = "memplan.front/1"

#: Below this many columns there is no room for a plot.
_LEAST_WIDTH: Final = 40

_WIDEST: Final = 100

_HEIGHT: Final = 12

#: How a point is marked whose gradients are exact, and one that approximates a block's.
EXACT: Final = "o"
APPROXIMATE: Final = "~"


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
            Column("of stock", tuple(_share(point, front) for point in points), leaves=1),
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


@dataclass(frozen=True, slots=True)
class Plot:
    """Memory on the horizontal axis, trained blocks on the vertical one, one letter for each point, in ASCII.

    Where points share a place the one with exact gradients is shown.
    """

    front: Front

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the plot's lines under an empty one, nothing where the console is too narrow."""
        for place, line in enumerate(self.lines(options.max_width)):
            if place == 0:
                yield Text()
            yield Text(line, no_wrap=True, overflow="crop")

    def lines(self, width: int) -> Iterator[str]:
        """Yield the plot's lines for a screen of ``width`` columns."""
        points = self.front.points
        if width < _LEAST_WIDTH or not points:
            return
        unit = unit_for(max(point.bytes for point in points))
        low, high = (each(point.bytes for point in points) for each in (min, max))
        least, most = (each(point.k for point in points) for each in (min, max))
        margin = 2 + max(len(str(most)), len("k"))
        columns = min(width, _WIDEST) - margin - 3
        rows = min(_HEIGHT, most - least + 1)
        grid = [[" "] * columns for _ in range(rows)]
        for point in sorted(points, key=lambda point: -point.approximations):
            column = _placed(point.bytes, low, high, columns)
            row = _placed(point.k, least, most, rows)
            grid[row][column] = APPROXIMATE if point.approximations else EXACT
        yield "k".rjust(margin)
        labels = {_placed(k, least, most, rows): str(k) for k in _ticks(least, most, rows)}
        for row in reversed(range(rows)):
            yield f"{labels.get(row, '').rjust(margin)} |{''.join(grid[row])}".rstrip()
        yield f"{' ' * margin} +{'-' * columns}"
        first, last = (format_bytes(value, unit=unit) for value in (low, high))
        yield f"{' ' * (margin + 2)}{first}{last.rjust(columns - len(first)) if low != high else ''}".rstrip()
        yield f"{' ' * (margin + 2)}{EXACT} exact gradients  {APPROXIMATE} approximate in some blocks"


def _placed(value: int, low: int, high: int, places: int) -> int:
    """Return which of ``places`` between ``low`` and ``high`` is nearest to ``value``."""
    return 0 if high == low else (2 * (value - low) * (places - 1) + (high - low)) // (2 * (high - low))


def _ticks(least: int, most: int, rows: int) -> Sequence[int]:
    """Return the values of the vertical axis that are written: all where each has a row, else the ends and a middle."""
    return range(least, most + 1) if rows == most - least + 1 else (least, (least + most) // 2, most)


def _share(point: FrontPoint, front: Front) -> str:
    return f"{point.bytes / front.stock_bytes:.0%}" if front.stock_bytes else ""
