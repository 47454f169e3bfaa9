"""The table of layers: what each keeps, needs while it runs, and holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from memplan.memory import Footprint, LayerFootprint
from memplan.reports.layout import Column, Columns
from memplan.reports.sizes import unit_for
from memplan.units import format_bytes


def total_bytes(layer: LayerFootprint) -> int:
    """Return everything that a layer accounts for: what it keeps, needs while it runs, and holds."""
    return layer.saved_bytes + layer.temp_bytes + held_bytes(layer)


def held_bytes(layer: LayerFootprint) -> int:
    """Return the bytes of a layer's parameters, their gradients and their optimizer state."""
    return layer.parameter_bytes + layer.gradient_bytes + layer.state_bytes


#: What layers can be sorted by, the largest first; ``order`` leaves them as the model defines them.
SORTS: Final[dict[str, Callable[[LayerFootprint], int]]] = {
    "saved": lambda layer: layer.saved_bytes,
    "temp": lambda layer: layer.temp_bytes,
    "gradient": lambda layer: layer.gradient_bytes,
    "total": total_bytes,
    "order": lambda _: 0,
}


def layer_table(footprint: Footprint, top: int, sort: str) -> Columns:
    """Return the ``top`` layers by ``sort``, and a last row for all of them.

    Saved bytes, gradients, parameters and state add up; temp is the largest of any layer.
    """
    rows = sorted(footprint.layers, key=lambda layer: -SORTS[sort](layer))
    shown, hidden = rows[:top], rows[top:]
    unit = unit_for(max(map(total_bytes, rows), default=0))
    more = f" (...and {len(hidden):,} more)" if hidden else ""
    largest = max((layer.temp_bytes for layer in rows), default=0)

    def sizes(heading: str, quantity: Callable[[LayerFootprint], int], leaves: int = 0) -> Column:
        cells = [format_bytes(quantity(layer), unit=unit) for layer in shown]
        return Column(heading, (*cells, format_bytes(sum(map(quantity, rows)), unit=unit)), leaves=leaves)

    temps = [format_bytes(layer.temp_bytes, unit=unit) for layer in shown]
    totals = [format_bytes(total_bytes(layer), unit=unit) for layer in shown]
    return Columns(
        (
            Column("layer", (*(layer.path or "(model)" for layer in shown), f"all{more}"), right=False, elastic=True),
            Column("type", (*(layer.type for layer in shown), ""), right=False, leaves=3),
            sizes("saved", lambda layer: layer.saved_bytes),
            Column("temp", (*temps, f"max {format_bytes(largest, unit=unit)}")),
            sizes("gradient", lambda layer: layer.gradient_bytes, leaves=4),
            sizes("parameters", lambda layer: layer.parameter_bytes, leaves=2),
            sizes("state", lambda layer: layer.state_bytes, leaves=1),
            Column("total", (*totals, "")),
        )
    )
