"""Records as Markdown for pull requests: the table and the verdict, details folded; the same text for the same bytes.

Nothing of one run is in it, such as seconds, so that a comment changes only when something did.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from memplan.reports.bars import BlockRun
from memplan.reports.console import compared_runs, holding, verdict, within
from memplan.reports.front import share_of_stock
from memplan.reports.markdown_signs import code, prose
from memplan.reports.markdown_tables import (
    ROWS,
    Cells,
    accounted_details,
    block_details,
    channel_details,
    folded,
    footprint_columns,
    layer_details,
    more_lines,
    named_treatments,
    peak_details,
    remark_lines,
    saving_details,
    segment_details,
    table_lines,
)
from memplan.reports.plan import (
    QUANTITIES,
    changes,
    gradients,
    headline,
    kept_channels,
    next_lines,
    plan_facts,
    step_lines,
)
from memplan.reports.sentences import facts, machine
from memplan.reports.sizes import count, elements, flops, size, unit_for
from memplan.results import Analysis, Front, Planned, Setting, Verification
from memplan.units import format_bytes

#: What finds the comment of the last run of a command again.
MARK: Final = "<!-- memplan {command} -->"

_FITS: Final = {True: "yes", False: "no", None: ""}


def analysis_markdown(analysis: Analysis, version: str) -> str:
    """Return an analysis as Markdown; ``version`` is memplan's."""
    budget, methods = analysis.budget_bytes, analysis.methods
    blocks = count(len(analysis.blocks), "block") if analysis.blocks else "no blocks"
    parameters = methods[0].footprint.parameters if methods else 0
    lines = [f"{_facts(analysis.setting)}; {elements(parameters)} parameters, {blocks}", "", *_methods(analysis), ""]
    if budget is not None:
        lines += [f"**{prose(verdict(analysis).text.plain)}**", ""]
    lines += _suggestion(analysis)
    if accounted := [(method, method.accounted) for method in methods if method.accounted is not None]:
        lines += accounted_details(accounted)
    if methods:
        runs = compared_runs(analysis)
        lines += [*peak_details(runs[0]), *block_details(runs, analysis.blocks), *layer_details(runs[0])]
    lines += remark_lines("", analysis.notes)
    lines += remark_lines("not priced: ", analysis.unpriced)
    lines += remark_lines("as in stock PyTorch, for want of a rule: ", analysis.untreated)
    return _document("analyze", analysis.setting, lines, version)


def planned_markdown(planned: Planned, version: str) -> str:
    """Return a plan as Markdown; ``version`` is memplan's."""
    plan, segments = planned.plan, planned.segments
    stock = BlockRun("stock full", planned.stock, planned.stock_step)
    own = BlockRun(f"{planned.runner} {plan.label}", planned.footprint, planned.step)
    table = table_lines(
        Cells("", [prose(run.label) for run in (stock, own)], right=False),
        *footprint_columns([stock.footprint, own.footprint]),
        Cells("gradients", ["exact", gradients(plan)], right=False),
    )
    lines = [
        _facts(planned.setting),
        "",
        f"**{headline(planned)}**",
        "",
        *table,
        "",
        *(f"- {prose(text)}" for text in plan_facts(planned)),
        *(f"- {prose(text)}" for text in next_lines(planned.next, planned.budget)),
        "",
        *segment_details(segments),
        *channel_details(list(kept_channels(segments))),
        *saving_details(planned.savings),
        *block_details((stock, own), planned.blocks),
        *peak_details(own),
        *remark_lines("", tuple(dict.fromkeys((*planned.notes, *plan.notes)))),
        *remark_lines("as in stock PyTorch, for want of a rule: ", plan.untreated),
        *remark_lines("not priced: ", planned.footprint.unpriced),
    ]
    return _document("plan", replace(planned.setting, implementation=planned.implementation), lines, version)


def front_markdown(front: Front, version: str) -> str:
    """Return a front as Markdown; ``version`` is memplan's."""
    points = front.points[:ROWS]
    unit = unit_for(front.stock_bytes)
    whole = len(front.blocks) + 2
    table = table_lines(
        Cells(front.of, [format_bytes(point.bytes, unit=unit) for point in points]),
        Cells("k", ["all" if point.depth >= whole else str(point.k) for point in points]),
        Cells("approximate", [count(point.approximations, "block") for point in points]),
        Cells("FLOPs", [flops(point.flops) for point in points]),
        Cells("of stock", [share_of_stock(point, front) for point in points]),
        Cells("treatments", [named_treatments(point.plan.treatments, "none") for point in points], right=False),
    )
    quantity = QUANTITIES.get(front.of, front.of)
    lines = [
        _facts(front.setting),
        "",
        f"**{count(len(front.points), 'plan')} that no other plan beats in memory, k, FLOPs and gradients**",
        "",
        f"Memory is the step's {quantity}; stock full needs {size(front.stock_bytes)}.",
        "",
        *table,
        *more_lines(len(front.points) - len(points), "plan"),
        "",
        *remark_lines("", front.notes),
    ]
    return _document("pareto", front.setting, lines, version)


def verification_markdown(verification: Verification, version: str) -> str:
    """Return a verification as Markdown; ``version`` is memplan's. What the process held is left out."""
    steps = verification.steps
    rows = [("saved", verification.predicted_saved_bytes, verification.measured_saved_bytes)]
    rows += [(f"peak, step {step.number}", step.predicted_bytes, step.measured_bytes) for step in steps]
    unit = unit_for(max(measured for _, _, measured in rows))
    difference = verification.predicted_saved_bytes - verification.measured_saved_bytes
    table = table_lines(
        Cells("", [name for name, _, _ in rows], right=False),
        Cells("predicted", [format_bytes(predicted, unit=unit) for _, predicted, _ in rows]),
        Cells("measured", [format_bytes(measured, unit=unit) for _, _, measured in rows]),
        Cells("error", [f"{difference:+,} B" if difference else "equal", *(f"{step.error:+.2%}" for step in steps)]),
    )
    lines = [
        f"{_facts(verification.setting)}; {prose(f'{verification.runner} {verification.method}')}",
        "",
        *table,
        "",
        f"**{holding(verification)}**",
        "",
    ]
    if verification.budget is not None and verification.budgeted_bytes is not None:
        lines += [f"**{within(verification.budget, verification.budgeted_bytes)}**", ""]
    lines += [f"Measured peaks are the {prose(verification.quantity)}.", "", *remark_lines("", verification.notes)]
    return _document("verify", verification.setting, lines, version)


def _document(command: str, setting: Setting, lines: Iterable[str], version: str) -> str:
    head = [MARK.format(command=command), f"### memplan {command}: {code(setting.model)}", ""]
    body = "\n".join([*head, *lines]).rstrip("\n")
    where = f"optimizer {setting.optimizer} ({setting.implementation}); {machine(setting)}"
    peaks = "" if command == "verify" else "peaks are the allocator's, in the steady state (second step on); "
    return f"{body}\n\n<sub>{peaks}{prose(where)}; memplan {prose(version)}</sub>\n"


def _facts(setting: Setting) -> str:
    return prose(facts(setting).text.plain.replace("  ", ", "))


def _methods(analysis: Analysis) -> Sequence[str]:
    rows = analysis.methods
    columns = [
        Cells("runner", [method.runner for method in rows], right=False),
        Cells("method", [prose(method.label) for method in rows], right=False),
        *footprint_columns([method.footprint for method in rows]),
        Cells("gradients", [method.gradients for method in rows], right=False),
    ]
    if analysis.budget_bytes is not None:
        columns.append(Cells(size(analysis.budget_bytes), [_FITS[method.fits] for method in rows]))
    return table_lines(*columns)


def _suggestion(analysis: Analysis) -> Sequence[str]:
    planned = analysis.suggestion
    if planned is None:
        return [] if analysis.no_suggestion is None else [f"No plan: {prose(analysis.no_suggestion)}", ""]
    plan = planned.plan
    exact, other = changes(planned.savings, plan)
    sentences = [
        f"savings with unchanged gradients: {exact}",
        f"savings that change gradients: {other}",
        *step_lines(plan),
        *next_lines(planned.next, planned.budget),
    ]
    return [
        f"**{headline(planned)}**; predicted peak {size(planned.bytes)}, gradients {gradients(plan)}",
        "",
        *folded("What the plan does", [f"- {prose(sentence)}" for sentence in sentences]),
    ]
