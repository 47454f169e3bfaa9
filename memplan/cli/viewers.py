"""Options that write the predicted step for the viewers of others, and what they write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from memplan.cli.output import TO_STDOUT
from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan.graph import Block, StepGraph
    from memplan.memory import Footprint, Implementation
    from memplan.methods import Plan
    from memplan.results import Analysis, Planned, Verification

#: What each option writes: a name for its file in an example, and its help.
_FILES: Final[dict[str, tuple[str, str]]] = {
    "snapshot": ("step.pickle", "Write the step for PyTorch's memory viewer."),
    "trace": ("step.json", "Write the step for Perfetto or chrome://tracing."),
    "dot": ("network.dot", "Write the network of blocks for Graphviz."),
    "graphml": ("network.graphml", "Write the network of layers for Gephi, yEd or networkx."),
    "flamegraph": ("peak.txt", "Write the bytes at the peak by module, for flamegraph.pl or speedscope."),
}

VIEWER_OPTIONS: Final = tuple(
    click.option(f"--{name}", f"{name}_file", metavar=f"FILE{Path(example).suffix}", help=text)
    for name, (example, text) in _FILES.items()
)


@dataclass(frozen=True, slots=True)
class ViewedStep:
    """The step that is written: of which row, under which plan, and against which budget, if any.

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


def check_viewers(options: dict[str, Any], others: Mapping[str, str | None] | None = None) -> dict[str, Path]:
    """Take the viewers' files out of a command's options and return them by name, so that nobody waits in vain.

    Args:
        options: of the command; those of ``VIEWER_OPTIONS`` are taken out.
        others: the files of the command's other options, such as ``--json``.

    Raises:
        UsageError: a file cannot be written, or two options name the same one.
    """
    from memplan.reports.files import check_writable

    taken = {Path(file).resolve(): name for name, file in (others or {}).items() if file not in (None, TO_STDOUT)}
    given = {name: options.pop(f"{name}_file", None) for name in _FILES}
    files = {}
    for name, file in given.items():
        if file is None:
            continue
        if file == TO_STDOUT:
            raise UsageError(f"--{name} cannot be written to standard output; name a file, such as {_FILES[name][0]}")
        path = Path(file)
        check_writable(path)
        if (other := taken.setdefault(path.resolve(), f"--{name}")) != f"--{name}":
            raise UsageError(f"{other} and --{name} name the same file {file!r}; name two")
        files[name] = path
    return files


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


def write_viewers(files: Mapping[str, Path], viewed: ViewedStep) -> list[str]:
    """Write the files that :func:`check_viewers` returned, each whole or not at all; return a line on each.

    Raises:
        UsageError: a file cannot be written.
    """
    from memplan.reports.files import write_whole

    lines = []
    for name, path in files.items():
        write_whole(path, _WRITERS[name](viewed))
        lines.append(f"wrote {path}: --{name} of {viewed.label}")
    return lines


def _snapshot(viewed: ViewedStep) -> bytes:
    from memplan.reports.snapshot import snapshot, to_pickle

    return to_pickle(snapshot(viewed.graph, viewed.optimizer, viewed.implementation))


def _trace(viewed: ViewedStep) -> str:
    from memplan.reports.trace_events import trace_events

    return trace_events(viewed.graph, viewed.optimizer, viewed.implementation, budget_bytes=viewed.budget_bytes)


def _dot(viewed: ViewedStep) -> str:
    from memplan.reports.network import block_network, to_dot

    network = block_network(
        viewed.graph, viewed.footprint, viewed.plan, optimizer=viewed.optimizer, blocks=viewed.blocks
    )
    return to_dot(network)


def _graphml(viewed: ViewedStep) -> str:
    from memplan.reports.network import layer_network, to_graphml

    network = layer_network(
        viewed.graph, viewed.footprint, viewed.plan, optimizer=viewed.optimizer, blocks=viewed.blocks
    )
    return to_graphml(network)


def _flamegraph(viewed: ViewedStep) -> str:
    from memplan.reports.flamegraph import flamegraph

    return flamegraph(viewed.graph, viewed.optimizer, viewed.implementation)


_WRITERS: Final[dict[str, Callable[[ViewedStep], str | bytes]]] = {
    "snapshot": _snapshot,
    "trace": _trace,
    "dot": _dot,
    "graphml": _graphml,
    "flamegraph": _flamegraph,
}
