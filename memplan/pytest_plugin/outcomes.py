"""What the check of a test comes to: the verdict, and what of it travels from xdist's workers to the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from memplan.errors import UsageError
from memplan.pytest_plugin.asking import PRICED, Asked, check_options
from memplan.pytest_plugin.finding import described, is_model, model_of, with_inputs

if TYPE_CHECKING:
    from torch import nn

    from memplan.gate.records import Reading, Verdict
    from memplan.memory import Footprint
    from memplan.pytest_plugin.settings import Settings

#: The width of a report's section where there is no terminal, as in continuous integration.
_WIDTH: Final = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of the report, in types that every process can send.

    ``word`` is empty for a footprint that a test asked for, which nothing is held to. ``reading`` is the entry of a new
    baseline as JSON, where one is written.
    """

    test: str
    model: str
    of: str
    word: str
    bytes: int | None
    limit_bytes: int | None = None
    baseline_bytes: int | None = None
    growth_limited: bool = False
    torch: str = ""
    baseline_torch: str = ""
    unpriced: tuple[str, ...] = ()
    reading: str | None = None


def verdict_on(
    test: str,
    asked: Asked,
    returned: Any,
    arguments: Mapping[str, Any],
    settings: Settings,
    baseline: Reading | None,
) -> Verdict:
    """Return the verdict on the model that a test returned or was given.

    Args:
        test: its node id.
        asked: by its markers.
        returned: by the test.
        arguments: the test's own.
        settings: of the run.
        baseline: what the test's model needed when it was last accepted.

    Raises:
        UsageError: there is no model, or the options do not suit it.
    """
    from memplan.checking import check
    from memplan.gate.records import Failure
    from memplan.sources.quiet import quietly

    model, inputs = model_of(asked, returned, arguments)
    inputs, options = with_inputs(model, inputs, asked.options)
    if settings.update:
        options["max_growth"] = None  # what is needed now is accepted
    options = {"baseline": baseline, **options}
    with quietly():
        verdict = check(model, inputs, **options)
    if verdict.analysed and verdict.baseline is None and settings.require and not settings.update:
        sentence = f"there is no entry of {test} in {settings.baseline.name}; write it with --memplan-update-baseline"
        verdict = replace(verdict, failures=(*verdict.failures, Failure("baseline", sentence)))
    return verdict


def outcome_of(test: str, verdict: Verdict, *, update: bool) -> Outcome:
    """Return what the report tells of a test's verdict."""
    reading, before = verdict.reading, verdict.baseline
    return Outcome(
        test=test,
        model=verdict.check.name,
        of=verdict.check.of,
        word=verdict.word,
        bytes=None if reading is None else reading.bytes,
        limit_bytes=verdict.limit_bytes,
        baseline_bytes=None if before is None else before.bytes,
        growth_limited=verdict.check.limits.max_growth is not None,
        torch="" if reading is None else reading.machine.torch,
        baseline_torch="" if before is None else before.machine.torch,
        unpriced=() if reading is None else reading.unpriced,
        reading=json.dumps(asdict(reading)) if update and reading is not None else None,
    )


def properties_of(outcome: Outcome) -> dict[str, int]:
    """Return the bytes that a JUnit file tells of a test case."""
    told = {
        f"memplan_{outcome.of}_bytes": outcome.bytes,
        "memplan_limit_bytes": outcome.limit_bytes,
        "memplan_baseline_bytes": outcome.baseline_bytes,
    }
    return {name: value for name, value in told.items() if value is not None}


def section_of(verdict: Verdict) -> str:
    """Return the section that a failing test's report has: the largest layers, and what changed.

    The sentences are left out, for the failure has them; where there is nothing else to tell the section is empty.
    """
    from memplan.gate.formats.console import verdict_details

    width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
    return verdict_details(replace(verdict, failures=()), width).rstrip()


def footprint_of(
    test: str, model: str | nn.Module, inputs: Any, options: Mapping[str, Any]
) -> tuple[Footprint, Outcome]:
    """Return what one training step of a model needs on the named machine, and its line of the report.

    Raises:
        UsageError, AnalysisError: see :func:`memplan.analyze`.
    """
    from memplan.analysis import analyze
    from memplan.gate.records import INSTRUCTION_SET, THREADS
    from memplan.memory.estimate import upper_estimate
    from memplan.sources.quiet import quietly
    from memplan.tracing.machine import named_machine

    check_options(options, PRICED, "training_memory")
    if not is_model(model):
        raise UsageError(f"training_memory is given {described(model)}, which is no model; pass a module or a spec")
    inputs, left = with_inputs(model, inputs, options)
    machine = left.pop("threads", THREADS), left.pop("instruction_set", INSTRUCTION_SET)
    method = left.pop("method", "full")
    if not isinstance(method, str):
        raise UsageError(f"training_memory takes a method's name, not a {type(method).__name__}; mark the test instead")
    if left.get("runner") == "both" or not isinstance(left.get("k"), int | None):
        raise UsageError("training_memory prices one step; give it one runner, stock or memplan, and one k")
    with quietly(), named_machine(*machine):
        analysis = analyze(model, inputs, methods=(method,), **left)
    footprint = analysis.methods[0].footprint
    needed = upper_estimate(max(footprint.peak_bytes, footprint.first_step_peak_bytes), "peak")
    return footprint, Outcome(
        test=test,
        model=analysis.setting.model,
        of="peak",
        word="",
        bytes=needed,
        torch=analysis.setting.machine.torch,
        unpriced=footprint.unpriced,
    )
