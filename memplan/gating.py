"""gate: every check of a configuration, held to its limits and to the baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from memplan import __version__
from memplan.checking import plan_for, subject_for, with_remedies
from memplan.errors import MemplanError
from memplan.gate.baseline import Baseline, read_baseline, write_baseline
from memplan.gate.config import Configuration
from memplan.gate.judge import judged, unanalysed
from memplan.gate.records import Check, GateResult, Reading, Verdict
from memplan.methods import Plan
from memplan.processes import Died
from memplan.reading import priced, reading_of
from memplan.steps import Steps
from memplan.workers import run_all

_UPDATE: Final = "write it with memplan gate --update-baseline"

#: What helps with a revision, into which nothing can be written.
_COMMIT: Final = "commit one there, or name another revision"


@dataclass(frozen=True, slots=True)
class _Task:
    """Checks of one model and batch, which share recordings, the plan and what the baseline says of each."""

    checks: tuple[Check, ...]
    plans: tuple[Plan | None, ...]
    baselines: tuple[Reading | None, ...]
    threads: int
    instruction_set: str
    require_baseline: bool
    accept_growth: bool
    suggest: bool
    with_steps: bool


def gate(
    configuration: Configuration,
    *,
    update_baseline: bool = False,
    baseline_ref: str | None = None,
    suggest: bool = True,
    with_steps: bool = False,
    warn_only: bool = False,
    exit_zero: bool = False,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> GateResult:
    """Return the verdicts on all checks of a configuration, in its order.

    Args:
        configuration: see :func:`memplan.gate.config.read_configuration`.
        update_baseline: write what every check needs now as the new baseline; growth fails nothing then.
        baseline_ref: the git revision that the baseline is read from.
        suggest: whether ways back under an exceeded limit are looked for.
        with_steps: whether verdicts have their steps, and those of the ways back, which pages draw.
        warn_only: whether limits that fail are warnings.
        exit_zero: whether the exit code leaves them out.
        progress: told how many checks are done, of how many, and the last one's name.

    Raises:
        UsageError: a plan or the baseline cannot be read, or the baseline not be written.
    """
    started = time.perf_counter()
    before = read_baseline(configuration.baseline, baseline_ref)
    origin = Baseline(origin=str(configuration.baseline)) if before is None else before
    tasks = tuple(_tasks(configuration, origin, update_baseline, suggest, with_steps))
    verdicts: dict[str, Verdict] = {}
    for index, outcome in run_all(judge_group, tasks, jobs=configuration.jobs):
        task = tasks[index]
        told = (
            [unanalysed(check, f"{check.name}: {outcome.reason}") for check in task.checks]
            if isinstance(outcome, Died)
            else outcome
        )
        verdicts.update({verdict.check.name: verdict for verdict in told})
        progress(len(verdicts), len(configuration.checks), task.checks[-1].name)
    ordered = tuple(verdicts[check.name] for check in configuration.checks)
    stale = tuple(name for name in origin.checks if name not in configuration.names)
    read = any(verdict.analysed for verdict in ordered)
    if update_baseline and read:
        write_baseline(configuration.baseline, _updated(configuration, origin, ordered), __version__)
    return GateResult(
        verdicts=ordered,
        config=str(configuration.file),
        baseline=origin.origin if before is not None or update_baseline else None,
        notes=tuple(_notes(configuration, before, baseline_ref, ordered, update_baseline)),
        stale=() if update_baseline and _is_whole(configuration) else stale,
        warn_only=warn_only,
        exit_zero=exit_zero,
        seconds=time.perf_counter() - started,
    )


def judge_group(task: _Task) -> tuple[Verdict, ...]:
    """Return the verdicts on the checks of one model; what one check meets, no other one does."""
    from memplan.sources.quiet import contained, quietly
    from memplan.tracing.machine import named_machine

    with quietly(), contained(), named_machine(task.threads, task.instruction_set):
        made: dict[str, Steps] = {}
        return tuple(
            _judged(task, check, plan, baseline, made)
            for check, plan, baseline in zip(task.checks, task.plans, task.baselines, strict=True)
        )


def _judged(task: _Task, check: Check, plan: Plan | None, baseline: Reading | None, made: dict[str, Steps]) -> Verdict:
    try:
        if not made:
            made["steps"] = Steps(subject_for(check))
        steps = made["steps"]
        found = priced(steps, check, plan)
        verdict = judged(
            check,
            reading_of(steps, check, found),
            baseline,
            require_baseline=task.require_baseline,
            accept_growth=task.accept_growth,
        )
        verdict = with_remedies(replace(verdict, step=found.step), steps, suggest=task.suggest)
        return verdict if task.with_steps else _without_steps(verdict)
    except MemplanError as error:
        return unanalysed(check, f"{check.name}: {error}", baseline)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        return unanalysed(check, f"{check.name}: {type(error).__name__}: {reason}; correct the model", baseline)


def _without_steps(verdict: Verdict) -> Verdict:
    """Return a verdict that is small: it comes from another process, and stands beside many."""
    return replace(verdict, step=None, remedies=tuple(replace(each, step=None) for each in verdict.remedies))


def _tasks(
    configuration: Configuration, baseline: Baseline, update: bool, suggest: bool, with_steps: bool
) -> Iterator[_Task]:
    groups: dict[tuple[object, ...], list[Check]] = {}
    for check in configuration.checks:
        groups.setdefault((check.model, check.subject), []).append(check)
    for checks in groups.values():
        yield _Task(
            checks=tuple(checks),
            plans=tuple(plan_for(check) for check in checks),
            baselines=tuple(baseline.checks.get(check.name) for check in checks),
            threads=configuration.threads,
            instruction_set=configuration.instruction_set,
            require_baseline=configuration.require_baseline and not update,
            accept_growth=update,
            suggest=suggest,
            with_steps=with_steps,
        )


def _is_whole(configuration: Configuration) -> bool:
    return len(configuration.checks) == len(configuration.names)


def _updated(configuration: Configuration, before: Baseline, verdicts: Sequence[Verdict]) -> Baseline:
    """Return the baseline with what was read now; a check that was not, or could not be read, keeps its entry."""
    kept: Mapping[str, Reading] = {name: each for name, each in before.checks.items() if name in configuration.names}
    read = {verdict.check.name: verdict.reading for verdict in verdicts if verdict.reading is not None}
    torch = next((reading.machine.torch for reading in read.values()), before.torch)
    whole = kept if _is_whole(configuration) else before.checks
    return replace(before, checks={**whole, **read}, torch=torch)


def _notes(
    configuration: Configuration,
    before: Baseline | None,
    ref: str | None,
    verdicts: Sequence[Verdict],
    update: bool,
) -> Iterator[str]:
    where, helps = f"{configuration.baseline} at {ref}", _COMMIT
    if ref is None:
        where, helps = str(configuration.baseline), _UPDATE
    if update and not any(verdict.analysed for verdict in verdicts):
        yield f"{configuration.baseline} is left as it was: no model could be analysed"
        return
    if update:
        left = [verdict.check.name for verdict in verdicts if not verdict.analysed]
        but = f", but for {', '.join(left)}" if left else ""
        yield f"{configuration.baseline} is written: what is needed now is accepted{but}"
        return
    wanted = any(check.limits.max_growth is not None for check in configuration.checks)
    if before is None and (wanted or ref is not None):
        yield f"there is no baseline {where}: growth is not checked, budgets are; {helps}"
    pairs = [
        (each.baseline, each.reading) for each in verdicts if each.baseline is not None and each.reading is not None
    ]
    older = {then.machine.torch for then, now in pairs if then.machine.torch != now.machine.torch}
    if older:
        (now,) = {now.machine.torch for _, now in pairs}
        yield (
            f"the baseline {where} is of torch {', '.join(sorted(older))}, this is torch {now}: "
            f"bytes may differ for that alone; {helps}"
        )
