"""A Pareto front as a picture, SVG or PNG, drawn by matplotlib where that is installed."""

from __future__ import annotations

import io
from importlib import import_module
from typing import Any, Final, Literal

from memplan.errors import UsageError
from memplan.reports.plan import QUANTITIES
from memplan.reports.sizes import unit_for
from memplan.results import Front
from memplan.units import BYTES_PER_UNIT

INSTALL: Final = "pip install 'memplan[pictures]'"

#: Inches, and dots per inch.
_SIZE: Final = (7.0, 4.2)
_DENSITY: Final = 150

#: What makes an SVG the same each time: no random ids, no outlines that depend on fonts.
_STYLE: Final[dict[str, Any]] = {"svg.hashsalt": "memplan", "svg.fonttype": "none", "font.family": "DejaVu Sans"}


def check_pictures() -> None:
    """Raise where no picture can be drawn.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise UsageError(f"a picture needs matplotlib, which is not installed; {INSTALL}") from error


def front_picture(front: Front, kind: Literal["svg", "png"]) -> bytes:
    """Return the picture of a front, the same bytes for the same front and matplotlib.

    Raises:
        UsageError: matplotlib is not installed.
    """
    check_pictures()
    matplotlib: Any = import_module("matplotlib")
    figures: Any = import_module("matplotlib.figure")
    unit = unit_for(front.stock_bytes)
    scale = BYTES_PER_UNIT[unit]
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=_SIZE, dpi=_DENSITY, layout="tight")
        axes = figure.add_subplot()
        for approximate, label, marker, colour in (
            (False, "exact gradients", "o", "#1f5fa8"),
            (True, "approximate in some blocks", "^", "#c8641e"),
        ):
            points = [point for point in front.points if bool(point.approximations) is approximate]
            if points:
                memory, depth = [point.bytes / scale for point in points], [point.k for point in points]
                axes.scatter(memory, depth, marker=marker, color=colour, label=label, zorder=3)
        axes.axvline(front.stock_bytes / scale, color="#888888", linestyle="--", label="stock full")
        axes.set_xlabel(f"{QUANTITIES.get(front.of, front.of)} of one training step, {unit}")
        axes.set_ylabel("trained blocks (k)")
        axes.set_title(f"{front.setting.model}, batch {front.setting.batch_size}, {front.setting.optimizer}")
        axes.set_xlim(left=0)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        drawn = io.BytesIO()
        figure.savefig(drawn, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return drawn.getvalue()
