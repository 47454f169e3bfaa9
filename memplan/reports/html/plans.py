"""The page of a plan that was found, and a plan in words: what trains, what is done where, and what it bought."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from memplan.reports.html.embedded import Run, runs_to_data
from memplan.reports.html.page import page
from memplan.reports.html.sections import (
    ASSUMPTIONS,
    Figure,
    Section,
    Table,
    about_section,
    heading_of,
    layers_section,
    memory_section,
    network_section,
    remarks_of,
    sentence,
    setting_facts,
    summary_section,
    table_of,
)
from memplan.reports.plan import (
    QUANTITIES,
    gradients,
    headline,
    kept_channels,
    next_lines,
    plan_facts,
    savings_table,
    segment_table,
)
from memplan.reports.sizes import size
from memplan.results import Planned

#: Gaps below this are the solver's rounding.
_PROVEN: Final = 1e-6


def planned_page(planned: Planned, version: str) -> str:
    """Return the page of a plan, beside full fine-tuning by stock PyTorch; ``version`` is memplan's."""
    runs = runs_of(planned)
    labels = [run.label for run in runs]
    sections = (
        summary_section(headline(planned), plan_sentences(planned), plan_figures(planned), good=True),
        memory_section(labels),
        layers_section(),
        network_section(),
        plan_section(planned),
        about_section(
            setting_facts(planned.setting, version),
            assumptions=(*ASSUMPTIONS, *_search(planned)),
            remarks=remarks_of(planned.notes, (planned.plan,), (planned.footprint,)),
        ),
    )
    budget_bytes = planned.budget.bytes if planned.budget.of == "peak" else None
    data = runs_to_data(runs, planned.blocks, chosen=(0, 1), budget_bytes=budget_bytes)
    return page("Plan", heading_of(planned.setting), sections, data, version)


def runs_of(planned: Planned) -> tuple[Run, Run]:
    """Return full fine-tuning by stock PyTorch and the plan."""
    setting = planned.setting
    return (
        Run("stock full", planned.stock, setting.optimizer, setting.implementation, step=planned.stock_step),
        Run(
            f"{planned.runner} {planned.plan.label}",
            planned.footprint,
            setting.optimizer,
            planned.implementation,
            planned.plan,
            planned.step,
        ),
    )


def plan_figures(planned: Planned) -> Iterator[Figure]:
    """Yield the peak of stock PyTorch, that of the plan, and the budget with what it leaves."""
    stock, own = planned.stock.peak_bytes, planned.footprint.peak_bytes
    yield Figure("peak, stock full", stock)
    yield Figure("peak, the plan", own, f"{own / stock:.0%} of stock full" if stock else "")
    what = "" if planned.budget.of == "peak" else f", {QUANTITIES[planned.budget.of]}"
    yield Figure(f"budget{what}", planned.budget.bytes, f"{size(planned.margin_bytes)} to spare")


def plan_sentences(planned: Planned) -> Iterator[str]:
    """Yield what a plan needs and does, as a terminal has it."""
    yield from map(sentence, (*plan_facts(planned), f"gradients are {gradients(planned.plan)}"))


def plan_tables(planned: Planned) -> Iterator[Table]:
    """Yield what is done to each segment, what each saving bought, and the channels that are kept."""
    done = segment_table(planned.segments)
    caption = "What is done where: a block keeps what it is handed too, and not what it hands on"
    yield table_of(caption, done.columns, done.heading, done.texts)
    if planned.savings:
        yield table_of("What each saving bought", savings_table(planned.savings))
    pruned = kept_channels(planned.segments)
    rows = tuple((name, str(kept), str(channels)) for name, kept, channels in pruned)
    if rows:
        yield Table("Channels kept", ("", "kept", "of"), (False, True, True), rows)


def plan_section(planned: Planned) -> Section:
    """Return the section that says what a plan does where, what that buys, and what a larger budget would give."""
    more = tuple(next_lines(planned.next, planned.budget))
    return Section("plan", "The plan", {"tables": tuple(plan_tables(planned)), "more": more})


def _search(planned: Planned) -> Iterator[str]:
    search = planned.search
    proof = (
        "proven best by its model"
        if abs(search.gap) <= _PROVEN
        else f"within {search.gap:.2%} of the best, by its model"
    )
    yield f"The plan is {search.solver}'s, {proof}; the recorded step is {search.error:+.2%} off the model's bytes."
