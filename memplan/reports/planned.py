"""What a terminal shows of a plan that was applied and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from memplan.methods import Plan
from memplan.methods.treatments import treatment_named
from memplan.reports.layout import Column, Columns, Paragraph
from memplan.reports.sentences import paragraph
from memplan.reports.sizes import count, elements, unit_for
from memplan.results import MethodFootprint, Setting
from memplan.units import format_bytes


def planned_report(setting: Setting, rows: tuple[MethodFootprint, MethodFootprint], weights: str) -> RenderableType:
    """Return what was planned: what trains, what is done to the layers, and the bytes beside stock PyTorch's.

    ``rows`` are stock PyTorch and what was planned; ``weights`` says where they are from.
    """
    planned, plan = rows[1], rows[1].plan
    assert plan is not None
    unit = unit_for(max(row.footprint.peak_bytes for row in rows))
    table = Columns(
        (
            Column("", tuple(f"{row.runner} {row.label}" for row in rows), right=False),
            Column("saved", tuple(format_bytes(row.footprint.saved_bytes, unit=unit) for row in rows)),
            Column("peak", tuple(format_bytes(row.footprint.peak_bytes, unit=unit) for row in rows)),
            Column("gradients", tuple(row.gradients for row in rows), right=False, leaves=1),
        )
    )
    facts = Text(plan.label, style="bold").append(f" for {setting.model} ({setting.origin})", style="not bold")
    batch = "" if setting.batch_size is None else f"  batch {setting.batch_size}"
    facts.append(f"{batch}  {', '.join(setting.inputs)}", style="not bold")
    return Group(
        Paragraph(facts),
        paragraph(f"weights: {weights}"),
        paragraph(f"trains: {_trained(plan, planned)}"),
        *(paragraph(f"treatment: {text}") for text in _treatments(plan)),
        *(paragraph(f"note: {note}") for note in plan.notes),
        *(paragraph(f"as in stock PyTorch, for want of a rule: {text}") for text in plan.untreated),
        Text(),
        table,
    )


def _trained(plan: Plan, planned: MethodFootprint) -> str:
    footprint = planned.footprint
    share = f"{elements(footprint.trained_parameters)} of {elements(footprint.parameters)} parameters"
    tensors = count(len(plan.trained), "tensor")
    branches = f" and {count(len(plan.lite), 'lite residual')}" if plan.lite else ""
    return f"{share}, in {tensors}{branches}"


def _treatments(plan: Plan) -> Iterator[str]:
    given = Counter(name for layer in plan.layers for name in layer.treatments)
    places = {
        "tune": len(plan.tuned),
        "frozen-int8": len(plan.int8),
        "lite-residual": len(plan.lite),
        "prune": sum(bool(group.dropped) for group in plan.pruned),
        "recompute": sum(bool(op.recomputed) for op in plan.schedule),
    }
    for name in plan.treatments:
        number = places.get(name, given[name])
        where = "the whole model" if any(not layer.path and name in layer.treatments for layer in plan.layers) else ""
        if name == "prefix-microbatch" and plan.microbatch is not None:
            where = f"up to {plan.microbatch.boundary}, {count(plan.microbatch.samples, 'sample')} at a time"
        elif name == "fused-update":
            where = "all that trains"
        elif name == "prune":
            where = f"{count(number, 'group')} of channels"
        elif name == "recompute":
            where = count(number, "op")
        yield f"{name}, {where or count(number, 'place')}: {treatment_named(name).summary.rstrip('.')}"
