"""What a terminal shows of a plan that was found: the answer first, then what is done where, and what it bought."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from memplan.memory import Footprint
from memplan.methods import Plan
from memplan.methods.treatments import TREATMENTS
from memplan.planner.records import Budget, Upgrade
from memplan.reports.bars import Bars, BlockRun
from memplan.reports.console import place
from memplan.reports.layout import Column, Columns, Hanging
from memplan.reports.picture import Picture
from memplan.reports.sentences import facts, machine, paragraph, remarks, title
from memplan.reports.sizes import count, elements, flops, size, unit_for
from memplan.results import Analysis, Planned, PlannedSegment, Saving
from memplan.units import format_bytes

#: What a budget is on, in words.
QUANTITIES = {"peak": "peak", "activations": "activations' peak", "kept": "kept for the backward"}

#: Pruned groups that are named; the plan's file has them all.
_SHOWN_GROUPS = 12


def plan_report(planned: Planned, *, bars: bool = False) -> RenderableType:
    """Return what a terminal shows of a plan; ``bars`` adds its blocks beside those of full fine-tuning by stock."""
    plan, footprint = planned.plan, planned.footprint
    recording, search = planned.seconds
    parts: list[RenderableType] = [
        facts(planned.setting),
        paragraph(
            f"optimizer {planned.setting.optimizer} ({planned.implementation}); {planned.runner} runs the step; "
            f"{machine(planned.setting)}"
        ),
        paragraph(f"recorded in {recording:.1f} s, searched in {search:.1f} s"),
        Text(),
        title(headline(planned), "bold green"),
        *(paragraph(text, indent=2) for text in plan_facts(planned)),
        picture(planned),
        Text(),
        segment_table(planned.segments),
    ]
    if bars:
        stock = BlockRun("stock full", planned.stock, planned.stock_step)
        parts += [Bars((stock, BlockRun("this plan", footprint, planned.step)), planned.blocks)]
    if pruned := list(kept_channels(planned.segments)):
        parts += [Text(), title("Channels kept"), *channel_table(pruned)]
    if planned.savings:
        parts += [Text(), title("What each saving bought"), savings_table(planned.savings)]
    parts += [Text(), *(paragraph(text) for text in next_lines(planned.next, planned.budget))]
    notes = tuple(dict.fromkeys((*planned.notes, *plan.notes)))
    parts += remarks("note", notes)
    parts += remarks("as in stock PyTorch, for want of a rule", plan.untreated)
    parts += remarks("not priced", footprint.unpriced)
    return Group(*parts)


def picture(planned: Planned) -> Picture:
    """Return the memory over the plan's step; with the budget where that is on the peak."""
    budget = planned.budget.bytes if planned.budget.of == "peak" else None
    return Picture(planned.footprint.timeline, unit_for(planned.footprint.peak_bytes), budget)


def headline(planned: Planned) -> str:
    """Return what the best plan is, in one line: what trains, and how much of the model is pruned away."""
    trains = what_trains(planned.plan.k, len(planned.blocks), planned.segments)
    gone = 1 - planned.footprint.parameters / max(planned.stock.parameters, 1) if _is_pruned(planned.plan) else 0
    pruned = f", {gone:.0%} of all parameters pruned away" if gone > 0 else ""
    return f"Best plan in {size(planned.budget.bytes)}: {trains}{pruned}"


def gradients(plan: Plan) -> str:
    """Return whether a plan's gradients are those of stock PyTorch, in words, and of which network."""
    return f"{plan.gradients} for the pruned network" if _is_pruned(plan) else plan.gradients


def _is_pruned(plan: Plan) -> bool:
    return any(group.dropped for group in plan.pruned)


def what_trains(k: int | None, blocks: int, segments: Sequence[PlannedSegment]) -> str:
    """Return which part of the model trains, in words: the last blocks and the head, or more than that."""
    if all(segment.trained for segment in segments):
        return "everything trains"
    if not k:
        return "the head alone trains"
    if k >= blocks:
        return f"all {count(blocks, 'block')} and the head train"
    return f"the last {'block' if k == 1 else k} of {count(blocks, 'block')} and the head train"


def segment_table(segments: Sequence[PlannedSegment]) -> Hanging:
    """Return what is done to each segment, from the input to the output; frozen ones in a row are one line."""
    rows = list(_rows(segments))
    unit = unit_for(max((row.kept_bytes for row in rows), default=0))
    columns = Columns(
        (
            Column("segment", tuple(row.name for row in rows), right=False, elastic=True),
            Column("trains", tuple("yes" if row.trained else "no" for row in rows), right=False),
            Column("keeps", tuple(format_bytes(row.kept_bytes, unit=unit) for row in rows)),
            Column("repeats", tuple(_price(row) for row in rows), right=False, leaves=1),
        )
    )
    return Hanging(columns, "treatments", tuple(", ".join(row.treatments) for row in rows))


def kept_channels(segments: Iterable[PlannedSegment]) -> Iterator[tuple[str, int, int]]:
    """Yield what is pruned, each group once: its name, the channels kept, and all of them."""
    seen: dict[str, tuple[str, int, int]] = {}
    for segment in segments:
        for entry in segment.channels:
            seen.setdefault(entry[0], entry)
    yield from (entry for entry in seen.values() if entry[1] != entry[2])


def channel_table(groups: Sequence[tuple[str, int, int]]) -> Iterator[RenderableType]:
    """Yield the table of pruned groups, and how many more there are."""
    shown = groups[:_SHOWN_GROUPS] if len(groups) > _SHOWN_GROUPS + 1 else groups
    yield Columns(
        (
            Column("", tuple(name for name, _, _ in shown), right=False, elastic=True),
            Column("kept", tuple(str(kept) for _, kept, _ in shown)),
            Column("of", tuple(str(channels) for _, _, channels in shown)),
        )
    )
    if len(shown) < len(groups):
        yield paragraph(f"...and {len(groups) - len(shown)} more", indent=2)


def savings_table(savings: Sequence[Saving]) -> Columns:
    """Return what each treatment bought, the largest first, and whether gradients are other ones for it."""
    rows = sorted(savings, key=lambda saving: -saving.bytes)
    return Columns(
        (
            Column("", tuple(saving.treatment for saving in rows), right=False),
            Column("without it", tuple(f"{'+' if s.bytes >= 0 else '-'}{size(abs(s.bytes))}" for s in rows)),
            Column("gradients", tuple("change" if s.changes_gradients else "unchanged" for s in rows), right=False),
        ),
        styles=(("change", "yellow"),),
    )


def next_lines(upgrades: Sequence[Upgrade], budget: Budget) -> Iterator[str]:
    """Yield, for each better plan, what it is and how many more bytes the budget would need."""
    for upgrade in upgrades:
        more = upgrade.bytes - budget.bytes
        if more > 0:
            yield f"Next: {upgrade.what}: {size(more)} more, a budget of {size(upgrade.bytes)}."
        else:
            yield f"Next: {upgrade.what}: needs {size(upgrade.bytes)}."
    if not upgrades:
        yield "Next: a larger budget gives no more blocks."


def changes(savings: Iterable[Saving], plan: Plan) -> tuple[str, str]:
    """Return the treatments that leave the gradients as they are, and those that change them, in words."""
    changing = {name for name in plan.treatments if name in TREATMENTS and not TREATMENTS[name].lossless}
    for saving in savings:
        if saving.changes_gradients:
            changing.update(saving.treatment.split(" and "))
    exact = [name for name in plan.treatments if name not in changing]
    other = [name for name in plan.treatments if name in changing]
    return ", ".join(exact) or "none", ", ".join(other) or "none"


def suggestion_report(analysis: Analysis, spec: str) -> RenderableType:
    """Return what stands under an analysis with a budget: the best plan in a few lines, or why there is none."""
    planned = analysis.suggestion
    if planned is None:
        assert analysis.no_suggestion is not None
        return Group(Text(), paragraph(f"No plan: {analysis.no_suggestion}"))
    budget = size(planned.budget.bytes)
    exact, other = changes(planned.savings, planned.plan)
    return Group(
        Text(),
        title(headline(planned), "bold green"),
        paragraph(f"predicted peak {size(planned.bytes)} of {budget}; gradients {gradients(planned.plan)}", indent=2),
        paragraph(f"savings with unchanged gradients: {exact}", indent=2),
        paragraph(f"savings that change gradients: {other}", indent=2),
        *(paragraph(text, indent=2) for text in step_lines(planned.plan)),
        picture(planned),
        Text(),
        *(paragraph(text) for text in next_lines(planned.next, planned.budget)),
        paragraph(f"Next: memplan plan {shlex.quote(spec)} --budget {_typed(planned.budget.bytes)} --out plan.json"),
    )


def _typed(size_bytes: int) -> str:
    """Return a size as one would type it."""
    for unit, scale in (("MiB", 2**20), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if not size_bytes % scale:
            return f"{size_bytes // scale}{unit}"
    return str(size_bytes)


def notes_report(notes: Iterable[str]) -> RenderableType:
    """Return notes as they stand under a report; nothing where there is none."""
    return Group(*remarks("note", notes))


def plan_facts(planned: Planned) -> Iterator[str]:
    """Yield what a plan needs and does, one sentence each."""
    plan, footprint, stock = planned.plan, planned.footprint, planned.stock
    quantity, budget = QUANTITIES[planned.budget.of], planned.budget.bytes
    yield f"predicted {quantity} {size(planned.bytes)} of {size(budget)}, {size(planned.margin_bytes)} to spare"
    peaks = "the peak is" if planned.budget.of == "peak" else f"the step peaks at {size(footprint.peak_bytes)},"
    yield f"{peaks} in {place(footprint.peak)}; stock full peaks at {size(stock.peak_bytes)}"
    exact, other = changes(planned.savings, plan)
    yield f"savings with unchanged gradients: {exact}"
    yield f"savings that change gradients: {other}"
    yield from step_lines(plan)
    share = f"{elements(footprint.trained_parameters)} of {elements(footprint.parameters)} parameters"
    yield f"trains {share}; {_flops(footprint, stock)}"


def step_lines(plan: Plan) -> Iterator[str]:
    """Yield what is done to the step as a whole."""
    if plan.microbatch is not None:
        samples = count(plan.microbatch.samples, "sample")
        yield f"the frozen part, up to {plan.microbatch.boundary}, runs {samples} at a time"
    if plan.fused_update:
        yield "the optimizer updates during the backward"


def _flops(footprint: Footprint, stock: Footprint) -> str:
    own, full = (each.flops_forward + each.flops_backward for each in (footprint, stock))
    share = f", {own / full:.2f} times stock full's" if full else ""
    return f"{flops(own)}FLOPs a step{share}"


def _price(row: PlannedSegment) -> str:
    if row.price is None:
        return ""
    return "norms, activations" if row.price == 0 else f"<= {row.price:g} FLOPs/B" if row.price < 1e6 else "all"


def _rows(segments: Sequence[PlannedSegment]) -> Iterator[PlannedSegment]:
    """Yield the segments, with runs of equally treated frozen ones as one."""
    run: list[PlannedSegment] = []
    for segment in segments:
        if run and (segment.trained or segment.treatments != run[0].treatments):
            yield _joined(run)
            run = []
        if segment.trained:
            yield segment
        else:
            run.append(segment)
    if run:
        yield _joined(run)


def _joined(run: Sequence[PlannedSegment]) -> PlannedSegment:
    first = run[0]
    if len(run) == 1:
        return first
    name = f"{first.name} to {run[-1].name}"
    return PlannedSegment(name, "", False, first.treatments, None, sum(each.kept_bytes for each in run))
