"""The page of an analysis: all methods in a table, and two of them in pictures."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.reports.console import place, verdict
from memplan.reports.html.embedded import Run, runs_to_data
from memplan.reports.html.page import page
from memplan.reports.html.plans import plan_figures, plan_section, plan_sentences
from memplan.reports.html.sections import (
    ASSUMPTIONS,
    Figure,
    Section,
    about_section,
    heading_of,
    layers_section,
    memory_section,
    network_section,
    page_unit,
    remarks_of,
    setting_facts,
    summary_section,
)
from memplan.reports.plan import headline
from memplan.reports.sizes import size
from memplan.results import Analysis, MethodFootprint


def analysis_page(analysis: Analysis, version: str) -> str:
    """Return the page of an analysis; ``version`` is memplan's.

    Pictured are full fine-tuning by stock PyTorch, or else the first method, and the suggested plan, or else the method
    with the lowest peak.
    """
    runs = _runs(analysis)
    data = runs_to_data(runs, analysis.blocks, chosen=_chosen(analysis), budget_bytes=analysis.budget_bytes)
    return page(
        "Training memory", heading_of(analysis.setting), tuple(_sections(analysis, runs, version)), data, version
    )


def _sections(analysis: Analysis, runs: list[Run], version: str) -> Iterator[Section]:
    suggestion = analysis.suggestion
    yield _summary(analysis, _chosen(analysis))
    yield Section(
        "methods",
        "All methods",
        {
            "rows": analysis.methods,
            "suggestion": suggestion,
            "budget": analysis.budget_bytes,
            "unit": page_unit(run.footprint for run in runs),
            "accounted": tuple(method for method in analysis.methods if method.accounted is not None),
        },
    )
    yield memory_section([run.label for run in runs])
    yield layers_section()
    yield network_section()
    if suggestion is not None:
        yield plan_section(suggestion)
    notes = list(analysis.notes)
    if suggestion is not None:
        notes += [note for note in (*suggestion.notes, *suggestion.plan.notes) if note not in notes]
    untreated = [("as in stock PyTorch, for want of a rule", text) for text in analysis.untreated]
    footprints = [run.footprint for run in runs]
    yield about_section(
        setting_facts(analysis.setting, version),
        assumptions=ASSUMPTIONS,
        remarks=(*remarks_of(notes, (), footprints), *untreated),
    )


def _runs(analysis: Analysis) -> list[Run]:
    optimizer = analysis.setting.optimizer
    runs = [
        Run(_label(row), row.footprint, optimizer, row.implementation, row.plan, row.step) for row in analysis.methods
    ]
    if analysis.suggestion is not None:
        found = analysis.suggestion
        label = f"best plan in {size(found.budget.bytes)}"
        runs.append(Run(label, found.footprint, optimizer, found.implementation, found.plan, found.step))
    return runs


def _chosen(analysis: Analysis) -> tuple[int, ...]:
    rows = analysis.methods
    first = next((place for place, row in enumerate(rows) if (row.runner, row.name) == ("stock", "full")), 0)
    if analysis.suggestion is not None:
        return first, len(rows)
    best = min(range(len(rows)), key=lambda place: rows[place].footprint.peak_bytes, default=0)
    return (first,) if best == first else (first, best)


def _summary(analysis: Analysis, chosen: tuple[int, ...]) -> Section:
    suggestion, budget = analysis.suggestion, analysis.budget_bytes
    if suggestion is not None:
        sentences = (verdict(analysis).text.plain, *plan_sentences(suggestion))
        return summary_section(headline(suggestion), sentences, plan_figures(suggestion), good=True)
    rows = [analysis.methods[place] for place in chosen]
    figures = [Figure(f"peak, {_label(row)}", row.footprint.peak_bytes) for row in rows]
    first = f"{_label(rows[0])} peaks in {place(rows[0].footprint.peak)}."
    if budget is None:
        answer = f"{_label(rows[0])} peaks at {size(rows[0].footprint.peak_bytes)}"
        return summary_section(answer, (first,), figures)
    figures.append(Figure("budget", budget))
    reason = () if analysis.no_suggestion is None else (f"No plan: {analysis.no_suggestion}.",)
    return summary_section(verdict(analysis).text.plain, (*reason, first), figures, good=analysis.fits)


def _label(row: MethodFootprint) -> str:
    return f"{row.runner} {row.label}"
