"""Records on a terminal. The first screen answers the question; columns leave and lines wrap where it is narrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from memplan.memory import AliveStorage, Footprint, Peak
from memplan.methods import METHODS
from memplan.planner.records import Budget
from memplan.reports.bars import Bars, BlockRun
from memplan.reports.layers import layer_table
from memplan.reports.layout import Column, Columns, Paragraph
from memplan.reports.picture import Picture
from memplan.reports.sentences import facts, machine, paragraph, remarks, title
from memplan.reports.sizes import count, elements, flops, size, unit_for
from memplan.results import Analysis, MethodFootprint, Setting, Verification
from memplan.units import format_bytes

#: Storages that are named at the peak when no number is asked for.
DEFAULT_ALIVE = 4

_FITS = {True: "yes", False: "no", None: ""}


def analysis_report(
    analysis: Analysis, *, top: int | None = None, sort: str = "saved", bars: bool = False
) -> RenderableType:
    """Return what a terminal shows of an analysis.

    The peak, the picture and the layers are those of the first method. ``top`` adds the table of that many layers,
    ``sort`` says which come first; ``bars`` adds the blocks, of the best plan too or else of the lowest peak.
    """
    parts: list[RenderableType] = [*_heading(analysis), Text(), _methods(analysis)]
    if analysis.budget_bytes is not None:
        parts += [Text(), verdict(analysis)]
    if any(method.accounted is not None for method in analysis.methods):
        parts += [Text(), *_accounted(analysis)]
    for method in analysis.methods[:1]:
        unit = unit_for(method.footprint.peak_bytes)
        parts += [Text(), *_peak(method, unit, DEFAULT_ALIVE if top is None else top)]
        parts += [Picture(method.footprint.timeline, unit, analysis.budget_bytes)]
        if bars:
            parts += [Bars(compared_runs(analysis), analysis.blocks)]
        if top:
            parts += [Text(), title(f"Layers of {method.runner} {method.label}, by {sort}")]
            parts += [layer_table(method.footprint, top, sort)]
    return Group(*parts, *remarks("note", analysis.notes), *remarks("not priced", analysis.unpriced))


def compared_runs(analysis: Analysis) -> tuple[BlockRun, ...]:
    """Return the first method, and beside it the suggested plan, or else the method with the lowest peak."""
    first, *others = (
        BlockRun(f"{method.runner} {method.label}", method.footprint, method.step) for method in analysis.methods
    )
    plan = analysis.suggestion
    if plan is not None:
        return first, BlockRun(f"best plan in {size(plan.budget.bytes)}", plan.footprint, plan.step)
    best = min((first, *others), key=lambda run: run.footprint.peak_bytes)
    return (first,) if best is first else (first, best)


def verification_report(verification: Verification) -> RenderableType:
    """Return what a terminal shows of a verification: each prediction beside what was measured."""
    setting, steps = verification.setting, verification.steps
    unit = unit_for(max(verification.measured_saved_bytes, *(step.measured_bytes for step in steps)))
    difference = verification.predicted_saved_bytes - verification.measured_saved_bytes
    names = ["saved", *(f"peak, step {step.number}" for step in steps)]
    predicted = [verification.predicted_saved_bytes, *(step.predicted_bytes for step in steps)]
    measured = [verification.measured_saved_bytes, *(step.measured_bytes for step in steps)]
    errors = ["equal" if not difference else f"{difference:+,} B", *(f"{step.error:+.2%}" for step in steps)]
    beside = ["byte for byte", *("steady state" if step.number > 1 else "no optimizer state yet" for step in steps)]
    table = Columns(
        (
            Column("", tuple(names), right=False),
            Column("predicted", tuple(format_bytes(value, unit=unit) for value in predicted)),
            Column("measured", tuple(format_bytes(value, unit=unit) for value in measured)),
            Column("error", tuple(errors)),
            Column("", tuple(beside), right=False, leaves=1),
        )
    )
    parts: list[RenderableType] = [
        facts(setting),
        paragraph(f"method {verification.runner} {verification.method}; optimizer {_optimizer(setting)}"),
        paragraph(f"{machine(setting)}; {count(len(steps), 'real step')}, peaks are the {verification.quantity}"),
        Text(),
        table,
        Text(),
        paragraph(holding(verification), style=f"bold {'green' if verification.holds else 'red'}"),
    ]
    if verification.budget is not None and verification.budgeted_bytes is not None:
        fitting = within(verification.budget, verification.budgeted_bytes)
        parts.append(paragraph(fitting, style=f"bold {'green' if verification.fits else 'red'}"))
    if verification.rss_bytes is not None:
        before = verification.rss_before_bytes
        known = "" if before is None else f", {size(before)} before the model was built"
        parts.append(paragraph(f"RSS of this process: high-water mark {size(verification.rss_bytes)}{known}"))
    return Group(*parts, *remarks("note", verification.notes))


def holding(verification: Verification) -> str:
    """Return the answer to whether a prediction holds, as one sentence."""
    low, high = verification.tolerance
    bounds = f"peaks from step 2 within {low:+.0%} and {high:+.0%}"
    if verification.holds:
        return f"Holds: saved bytes equal, {bounds} of what was measured."
    saved = "saved bytes equal" if verification.saved_equal else "saved bytes differ"
    worst = max((step.error for step in verification.steps[1:]), key=abs, default=0.0)
    return f"Does not hold: {saved}, worst peak {worst:+.2%}; allowed are {bounds}."


def within(budget: Budget, measured_bytes: int) -> str:
    """Return the answer to whether what was measured fits the budget, as one sentence."""
    quantity = {"peak": "highest peak", "activations": "activations' peak", "kept": "what is kept"}[budget.of]
    spare = budget.bytes - measured_bytes
    if spare >= 0:
        return f"Fits in {size(budget.bytes)}: the {quantity} is {size(measured_bytes)}, {size(spare)} to spare."
    return f"Does not fit in {size(budget.bytes)}: the {quantity} is {size(measured_bytes)}, {size(-spare)} more."


def methods_report() -> RenderableType:
    """Return all methods: what trains, who runs them, what changes in the gradients, what they need, the source."""
    parts: list[RenderableType] = []
    for method in METHODS.values():
        runners = "stock and memplan" if method.flags else "memplan"
        told = (
            ("trains", method.summary),
            ("runner", runners),
            ("gradients", method.gradients if method.changes == "nothing" else f"{method.gradients}: {method.changes}"),
            ("needs", method.needs),
            ("source", method.source),
        )
        parts += [title(method.name), *(paragraph(f"{name}: {fact}", indent=2) for name, fact in told)]
    return Group(*parts)


def verdict(analysis: Analysis) -> Paragraph:
    """Return the answer to whether something fits the budget: what does, or by how much the nearest does not."""
    assert analysis.budget_bytes is not None
    budget = size(analysis.budget_bytes)
    fitting = [method for method in analysis.methods if method.fits]
    if fitting:
        listed = ", ".join(
            f"{method.runner} {method.label} ({size(method.footprint.peak_bytes)})" for method in fitting
        )
        return paragraph(f"Fits in {budget}: {listed}", style="bold green")
    nearest = min(analysis.methods, key=lambda method: method.footprint.peak_bytes)
    peak_bytes = nearest.footprint.peak_bytes
    return paragraph(
        f"Nothing listed fits in {budget}: the nearest, {nearest.runner} {nearest.label}, needs {size(peak_bytes)}, "
        f"{size(peak_bytes - analysis.budget_bytes)} more.",
        style="bold red",
    )


def _heading(analysis: Analysis) -> Iterator[Paragraph]:
    setting = analysis.setting
    yield facts(setting)
    parameters = analysis.methods[0].footprint.parameters if analysis.methods else 0
    kind = f" in {setting.dtype}" if setting.dtype else ""
    blocks = count(len(analysis.blocks), "block") if analysis.blocks else "no blocks"
    yield paragraph(f"{elements(parameters)} parameters{kind}, {blocks}; optimizer {_optimizer(setting)}")
    steps = count(len(analysis.methods), "step")
    yield paragraph(f"{machine(setting)}; {steps} recorded in {analysis.seconds:.1f} s")
    yield paragraph("peaks are the allocator's, in the steady state (second step on)")


def _optimizer(setting: Setting) -> str:
    return f"{setting.optimizer} ({setting.implementation})"


def _methods(analysis: Analysis) -> Columns:
    rows = analysis.methods
    prints = [method.footprint for method in rows]
    unit = unit_for(max((footprint.peak_bytes for footprint in prints), default=0))

    def sizes(heading: str, values: Iterable[int], leaves: int = 0) -> Column:
        return Column(heading, tuple(format_bytes(value, unit=unit) for value in values), leaves=leaves)

    columns = [
        Column("", tuple(method.runner for method in rows), right=False, leaves=5),
        Column("", tuple(method.label for method in rows), right=False),
        sizes("saved", (footprint.saved_bytes for footprint in prints)),
        sizes("temp", (footprint.temp_bytes for footprint in prints), leaves=4),
        sizes("resident", (footprint.resident_bytes for footprint in prints), leaves=3),
        sizes("peak", (footprint.peak_bytes for footprint in prints)),
        Column("trains", tuple(elements(footprint.trained_parameters) for footprint in prints), leaves=2),
        Column("FLOPs", tuple(flops(each.flops_forward + each.flops_backward) for each in prints), leaves=1),
        Column("gradients", tuple(method.gradients for method in rows), right=False, leaves=6),
    ]
    if analysis.budget_bytes is not None:
        columns.append(Column(size(analysis.budget_bytes), tuple(_FITS[method.fits] for method in rows)))
    return Columns(tuple(columns), styles=(("yes", "green"), ("no", "red")))


def _accounted(analysis: Analysis) -> Iterator[RenderableType]:
    rows = [(method, method.accounted) for method in analysis.methods if method.accounted is not None]
    name = rows[0][1].accounting
    unit = unit_for(max(account.total_bytes for _, account in rows))
    columns = (
        ("kept", "kept_bytes"),
        ("peak", "peak_bytes"),
        ("parameters", "parameter_bytes"),
        ("total", "total_bytes"),
    )
    yield title(f"By the accounting of {name}, which is not what PyTorch needs")
    yield Columns(
        (
            Column("", tuple(f"{method.runner} {method.label}" for method, _ in rows), right=False),
            *(
                Column(heading, tuple(format_bytes(getattr(account, key), unit=unit) for _, account in rows))
                for heading, key in columns
            ),
        )
    )
    for note in dict.fromkeys(note for _, account in rows for note in account.notes):
        yield paragraph(note, indent=2)


def _peak(method: MethodFootprint, unit: str, shown: int) -> Iterator[RenderableType]:
    footprint, peak = method.footprint, method.footprint.peak
    yield title(f"Where {method.runner} {method.label} peaks: {place(peak)}")
    yield paragraph(alive(peak, unit), indent=2)
    rows = at_peak(footprint)
    if not shown:
        return
    named, rest = rows[:shown], rows[shown:]
    if len(rest) == 1:
        named, rest = rows, []
    cells = [format_bytes(storage.bytes, unit=unit) for storage in named]
    kinds_shown = [storage.kind for storage in named]
    makers = [made_by(storage) for storage in named]
    if rest:
        cells.append(format_bytes(sum(storage.bytes for storage in rest), unit=unit))
        kinds_shown.append("")
        makers.append(f"...and {len(rest):,} more")
    yield Columns(
        (
            Column("", tuple(cells)),
            Column("", tuple(kinds_shown), right=False),
            Column("", tuple(makers), right=False, elastic=True),
        ),
        indent=4,
    )


def place(peak: Peak) -> str:
    """Return where in the step a peak is, in words."""
    if peak.phase == "optimizer":
        return "the optimizer's update"
    return f"{peak.phase} of {peak.layer or '(model)'}, {short_op(peak.op)}"


def alive(peak: Peak, unit: str) -> str:
    """Return how much is alive at a peak, and of which kinds, in words."""
    scratch = f" (kernel scratch {format_bytes(peak.scratch_bytes, unit=unit)})" if peak.scratch_bytes else ""
    kinds = {"resident": peak.resident_bytes, "saved": peak.saved_bytes, "temp": peak.temp_bytes}
    parts = [f"{kind} {format_bytes(value, unit=unit)}" for kind, value in kinds.items()]
    return f"{format_bytes(peak.bytes, unit=unit)} alive: {', '.join(parts)}{scratch}"


def at_peak(footprint: Footprint) -> list[AliveStorage]:
    """Return what is alive at the peak, the largest first: storages, and what is none in the record.

    That is the scratch of the kernel that runs, the optimizer's state, and what its update allocates on the way.
    """
    peak, state_bytes = footprint.peak, footprint.composition.state_bytes
    known = sum(storage.bytes for storage in peak.alive) + peak.scratch_bytes + state_bytes
    others = (
        AliveStorage(peak.scratch_bytes, "scratch", peak.layer, peak.op),
        AliveStorage(state_bytes, "state", "the optimizer's", ""),
        AliveStorage(peak.bytes - known, "temp", "the optimizer's update", ""),
    )
    rows = [*peak.alive, *(storage for storage in others if storage.bytes > 0)]
    return sorted(rows, key=lambda storage: -storage.bytes)


def made_by(storage: AliveStorage) -> str:
    """Return who made a storage, in words: a layer and its op, or the parameter that it is."""
    owner = storage.layer or ("(model)" if storage.op else "the model's input")
    return f"{owner}, {short_op(storage.op)}" if storage.op else owner


def short_op(op: str) -> str:
    """Return an operator's name as people say it: ``aten.convolution.default`` is ``convolution``."""
    return op.removeprefix("aten.").removesuffix(".default")
