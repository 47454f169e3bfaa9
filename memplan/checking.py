"""check: what a step needs, held to limits; the same bytes on every machine, and a verdict instead of an exception."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.errors import AnalysisError, UsageError, known
from memplan.gate.consistency import check_consistent
from memplan.gate.growth import Growth, growth_bytes, parse_growth
from memplan.gate.judge import judged, unanalysed
from memplan.gate.records import INSTRUCTION_SET, THREADS, Check, Limits, Reading, Verdict
from memplan.memory.optimizers import optimizer_rule
from memplan.memory.parts import MEASURANDS, Measurand
from memplan.methods import Plan, method_named
from memplan.methods.method import RUNNERS
from memplan.reading import priced, reading_of
from memplan.remedies import remedies_for
from memplan.setting import budget_in_bytes
from memplan.steps import Steps
from memplan.subject import Subject, subject_of

if TYPE_CHECKING:
    from torch import nn


def check(
    model: str | nn.Module,
    inputs: Any = None,
    *,
    limit: int | str | None = None,
    of: Measurand = "peak",
    method: str | Plan = "full",
    k: int | None = None,
    runner: str | None = None,
    treatments: Sequence[str] = (),
    optimizer: str = "sgd",
    foreach: bool | None = None,
    max_growth: str | None = None,
    min_growth: int | str = 0,
    baseline: Reading | Verdict | None = None,
    strict: bool = False,
    suggest: bool = True,
    name: str | None = None,
    threads: int = THREADS,
    instruction_set: str = INSTRUCTION_SET,
    progress: Callable[[str], None] = lambda _: None,
    **subject: Any,
) -> Verdict:
    """Return the verdict on one training step of ``model``: whether it holds, why not, and what would help.

    A limit that is not held and a model that cannot be analysed are verdicts, not exceptions. Bytes are those of a
    named machine, so that they are the same everywhere; what is compared is the upper estimate.

    Args:
        model: a spec such as ``"mobilenet_v3"``, or a module, which is not changed.
        inputs: for a module, what its forward takes.
        limit: bytes, or text such as ``"64MB"``, that must not be exceeded.
        of: what is limited: the allocator's ``peak``, what is ``saved`` for the backward, or the most that is
            ``temp``.
        method: what trains: a method's name, or a plan.
        k: blocks that train, for methods that take it.
        runner: ``stock`` or ``memplan``; by default stock for what it can run with ``requires_grad`` alone.
        treatments: further treatments of all layers under memplan's runner.
        optimizer: ``sgd``, ``momentum``, ``adam`` or ``adamw``.
        foreach: whether the optimizer updates all parameters together; ``None`` is PyTorch's default for the device.
        max_growth: how much more than the baseline is allowed: ``"2%"`` or ``"1MB"``.
        min_growth: bytes up to which growth is let pass.
        baseline: what growth is measured from: the verdict or reading of an earlier check.
        strict: whether what could not be priced fails the check.
        suggest: whether ways back under the limit are looked for when it is exceeded.
        name: how the check is called in sentences; by default the model's name.
        threads: of the machine that the step is priced for.
        instruction_set: of that machine: ``DEFAULT``, ``AVX2``, ``AVX512`` or ``AMX``.
        progress: told what is being done.
        **subject: ``batch_size``, ``input_shape`` and so on; see :func:`memplan.subject.subject_of`.

    Raises:
        UsageError: a name, size or combination that cannot be understood.
    """
    from memplan.tracing.machine import named_machine

    limits = Limits(budget_in_bytes(limit), _growth(max_growth), _least(min_growth))
    before = _before(baseline)
    if isinstance(treatments, str):
        raise UsageError(f"treatments is {treatments!r}; write a list of names, [{treatments!r}]")
    known("quantity", of, MEASURANDS)
    if runner is not None:
        known("runner", runner, RUNNERS)
    optimizer_rule(optimizer)
    about = subject_of(model, inputs, **subject)
    asked = Check(
        name=name or about.name,
        model=model if isinstance(model, str) else about.name,
        of=of,
        limits=limits,
        method=method.method if isinstance(method, Plan) else method_named(method).name,
        k=k,
        treatments=tuple(treatments),
        runner=runner,
        optimizer=optimizer,
        foreach=foreach,
        strict=strict,
        subject=tuple(sorted(subject.items())),
    )
    check_consistent(asked, {"k"} if k is not None else set())
    try:
        with named_machine(threads, instruction_set):
            progress(f"recording {about.name}")
            steps = Steps(about)
            found = priced(steps, asked, method if isinstance(method, Plan) else None)
            verdict = replace(judged(asked, reading_of(steps, asked, found), before), step=found.step)
            return with_remedies(verdict, steps, suggest=suggest, progress=progress)
    except AnalysisError as error:
        return unanalysed(asked, str(error), before)


def subject_for(check: Check) -> Subject:
    """Return the subject that a check names.

    Raises:
        UsageError, AnalysisError: see :func:`memplan.subject.subject_of`.
    """
    options = dict(check.subject)
    if "loss" in options:
        from memplan.sources.from_python import import_function

        options["loss"] = import_function(options["loss"], "loss")
    return subject_of(check.model, **options)


def plan_for(check: Check) -> Plan | None:
    """Return the plan in the file that a check names, if it names one.

    Raises:
        UsageError: the file holds no plan; the message names where the check is written.
    """
    if check.plan is None:
        return None
    from memplan.reports.plan_file import read_plan

    try:
        return read_plan(Path(check.plan))[0]
    except UsageError as error:
        place = "" if check.place is None else f"{check.place}: "
        raise UsageError(f"{place}check {check.name!r}: {error}") from error


def with_remedies(
    verdict: Verdict, steps: Steps, *, suggest: bool = True, progress: Callable[[str], None] = lambda _: None
) -> Verdict:
    """Return a verdict with the cheapest ways back under its limit, where it fails one."""
    limit = verdict.limit_bytes
    exceeded = any(failure.kind in ("budget", "growth") for failure in verdict.failures)
    if not suggest or not exceeded or limit is None:
        return verdict
    progress(f"looking for ways back: {verdict.check.name}")
    return replace(verdict, remedies=remedies_for(steps, verdict.check, limit), sought=True)


def _before(baseline: Reading | Verdict | None) -> Reading | None:
    if baseline is not None and not isinstance(baseline, (Reading, Verdict)):
        raise UsageError(f"baseline is {baseline!r}; give the verdict that an earlier check returned, or its reading")
    return baseline.reading if isinstance(baseline, Verdict) else baseline


def _growth(text: str | None) -> Growth | None:
    if text is not None and not isinstance(text, str):
        raise UsageError(f"max_growth is text such as '2%' or '1MB', not {text!r}")
    return None if text is None else parse_growth(text)


def _least(value: int | str) -> int:
    if isinstance(value, str):
        return growth_bytes(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"min_growth is a number of bytes from 0 on or text such as '1MB', not {value!r}")
    return value
