"""What each kind of file holds of a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memplan import __version__
from memplan.cli.files import Contents

if TYPE_CHECKING:
    from memplan.graph import Block, StepGraph
    from memplan.memory import Footprint, Implementation
    from memplan.methods import Plan
    from memplan.reports.plan_file import Asked
    from memplan.results import Analysis, Front, Planned, PruneResult, Verification


@dataclass(frozen=True, slots=True)
class ViewedStep:
    """The step that viewers show: of which row, under which plan, and against which budget, if any.

    ``blocks`` are those of the model, which the recording of a plan is without.
    """

    label: str
    graph: StepGraph
    footprint: Footprint
    plan: Plan | None
    optimizer: str
    implementation: Implementation
    blocks: tuple[Block, ...] = ()
    budget_bytes: int | None = None


def of_analysis(analysis: Analysis) -> Contents:
    """Return the files of an analysis."""

    def markdown() -> str:
        from memplan.reports.markdown import analysis_markdown

        return analysis_markdown(analysis, __version__)

    def html() -> str:
        from memplan.reports.html import analysis_page

        return analysis_page(analysis, __version__)

    def json() -> str:
        from memplan.reports.machine import analysis_to_json

        return _json(analysis_to_json(analysis, __version__))

    return {"json": json, "markdown": markdown, "html": html, **of_step(viewed_analysis(analysis))}


def of_plan(planned: Planned, asked: Asked) -> Contents:
    """Return the files of a plan, which was ``asked`` for so."""

    def markdown() -> str:
        from memplan.reports.markdown import planned_markdown

        return planned_markdown(planned, __version__)

    def html() -> str:
        from memplan.reports.html import planned_page

        return planned_page(planned, __version__)

    def json() -> str:
        from memplan.reports.plan_file import planned_to_json

        return _json(planned_to_json(planned, asked, __version__))

    return {"json": json, "markdown": markdown, "html": html, **of_step(viewed_plan(planned))}


def of_front(front: Front) -> Contents:
    """Return the files of a Pareto front."""

    def markdown() -> str:
        from memplan.reports.markdown import front_markdown

        return front_markdown(front, __version__)

    def html() -> str:
        from memplan.reports.html import front_page

        return front_page(front, __version__)

    def json() -> str:
        from memplan.reports.front import front_to_json

        return _json(front_to_json(front, __version__))

    def svg() -> bytes:
        from memplan.reports.front_picture import front_picture

        return front_picture(front, "svg")

    def png() -> bytes:
        from memplan.reports.front_picture import front_picture

        return front_picture(front, "png")

    return {"json": json, "markdown": markdown, "html": html, "svg": svg, "png": png}


def of_pruning(pruned: PruneResult) -> Contents:
    """Return the files of a pruned network."""

    def json() -> str:
        from memplan.reports.pruned import pruned_to_json

        return _json(pruned_to_json(pruned, __version__))

    return {"json": json}


def of_verification(verification: Verification) -> Contents:
    """Return the files of a verification."""

    def markdown() -> str:
        from memplan.reports.markdown import verification_markdown

        return verification_markdown(verification, __version__)

    def html() -> str:
        from memplan.reports.html import verification_page

        return verification_page(verification, __version__)

    def json() -> str:
        from memplan.reports.machine import verification_to_json

        return _json(verification_to_json(verification, __version__))

    return {"json": json, "markdown": markdown, "html": html, **of_step(viewed_verification(verification))}


def of_step(viewed: ViewedStep) -> Contents:
    """Return the files that viewers of others show."""
    about = viewed.graph, viewed.optimizer, viewed.implementation
    network = viewed.graph, viewed.footprint, viewed.plan

    def snapshot() -> bytes:
        from memplan.reports.snapshot import snapshot, to_pickle

        return to_pickle(snapshot(*about))

    def trace() -> str:
        from memplan.reports.trace_events import trace_events

        return trace_events(*about, budget_bytes=viewed.budget_bytes)

    def dot() -> str:
        from memplan.reports.network import block_network, to_dot

        return to_dot(block_network(*network, optimizer=viewed.optimizer, blocks=viewed.blocks))

    def graphml() -> str:
        from memplan.reports.network import layer_network, to_graphml

        return to_graphml(layer_network(*network, optimizer=viewed.optimizer, blocks=viewed.blocks))

    def flamegraph() -> str:
        from memplan.reports.flamegraph import flamegraph

        return flamegraph(*about)

    return {"snapshot": snapshot, "trace": trace, "dot": dot, "graphml": graphml, "flamegraph": flamegraph}


def viewed_analysis(analysis: Analysis) -> ViewedStep:
    """Return the step of an analysis: the suggested plan's if there is one, else that of the first row."""
    if analysis.suggestion is not None:
        return viewed_plan(analysis.suggestion)
    row = analysis.methods[0]
    return ViewedStep(
        f"{row.runner} {row.label}",
        _recorded(row.step),
        row.footprint,
        row.plan,
        analysis.setting.optimizer,
        row.implementation,
        analysis.blocks,
        analysis.budget_bytes,
    )


def viewed_plan(planned: Planned) -> ViewedStep:
    """Return the step of a plan; its budget where that is on the peak."""
    return ViewedStep(
        f"the plan for k={planned.plan.k}",
        _recorded(planned.step),
        planned.footprint,
        planned.plan,
        planned.setting.optimizer,
        planned.implementation,
        planned.blocks,
        planned.budget.bytes if planned.budget.of == "peak" else None,
    )


def viewed_verification(verification: Verification) -> ViewedStep:
    """Return the predicted step of a verification."""
    assert verification.footprint is not None  # a verification that was just made has its prediction
    budget = verification.budget
    return ViewedStep(
        f"{verification.runner} {verification.method}",
        _recorded(verification.step),
        verification.footprint,
        verification.plan,
        verification.setting.optimizer,
        verification.setting.implementation,
        budget_bytes=budget.bytes if budget is not None and budget.of == "peak" else None,
    )


def _recorded(step: StepGraph | None) -> StepGraph:
    assert step is not None  # a result that was just made has its recording
    return step


def _json(values: dict[str, Any]) -> str:
    from memplan.reports.machine import to_text

    return to_text(values)
