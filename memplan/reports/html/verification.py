"""The page of a verification: each prediction beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.memory import Implementation
from memplan.reports.console import holding, within
from memplan.reports.html.embedded import Run, runs_to_data
from memplan.reports.html.page import page
from memplan.reports.html.sections import (
    ASSUMPTIONS,
    Figure,
    Section,
    about_section,
    heading_of,
    layers_section,
    memory_section,
    network_section,
    remarks_of,
    setting_facts,
    summary_section,
)
from memplan.reports.sizes import count, size, unit_for
from memplan.results import Verification


def verification_page(verification: Verification, version: str) -> str:
    """Return the page of a verification; ``version`` is memplan's."""
    runs = _runs(verification)
    budget = verification.budget
    budget_bytes = budget.bytes if budget is not None and budget.of == "peak" else None
    blocks = () if verification.step is None else verification.step.blocks
    data = runs_to_data(runs, blocks, chosen=tuple(range(len(runs))), budget_bytes=budget_bytes)
    sections = tuple(_sections(verification, runs, version))
    return page("Verification", heading_of(verification.setting), sections, data, version)


def _runs(verification: Verification) -> list[Run]:
    if verification.footprint is None:
        return []
    setting = verification.setting
    label = f"{verification.runner} {verification.method}"
    in_backward = "optimizer" not in verification.footprint.timeline.phases
    how: Implementation = "in-backward" if in_backward else setting.implementation
    return [Run(label, verification.footprint, setting.optimizer, how, step=verification.step)]


def _sections(verification: Verification, runs: list[Run], version: str) -> Iterator[Section]:
    steps = verification.steps
    good = verification.holds and verification.fits is not False
    figures = [
        Figure("peak, predicted", steps[-1].predicted_bytes),
        Figure("peak, measured", steps[-1].measured_bytes, f"{steps[-1].error:+.2%}"),
    ]
    if verification.budget is not None:
        figures.append(Figure("budget", verification.budget.bytes))
    yield summary_section(holding(verification), _sentences(verification), figures, good=good)
    sizes = [verification.measured_saved_bytes, *(step.measured_bytes for step in steps)]
    yield Section(
        "measured",
        "Predicted and measured",
        {"verification": verification, "steps": steps, "unit": unit_for(max(sizes))},
    )
    if runs:
        yield memory_section([run.label for run in runs])
        yield layers_section()
        yield network_section()
    yield about_section(
        setting_facts(verification.setting, version),
        assumptions=ASSUMPTIONS,
        remarks=remarks_of(verification.notes, (), (run.footprint for run in runs)),
    )


def _sentences(verification: Verification) -> Iterator[str]:
    yield (
        f"{count(len(verification.steps), 'real step')} of {verification.runner} {verification.method}; "
        f"peaks are the {verification.quantity}."
    )
    if verification.budget is not None and verification.budgeted_bytes is not None:
        yield within(verification.budget, verification.budgeted_bytes)
    if verification.rss_bytes is not None:
        before = verification.rss_before_bytes
        known = "" if before is None else f", {size(before)} before the model was built"
        yield f"RSS of the process: high-water mark {size(verification.rss_bytes)}{known}."
