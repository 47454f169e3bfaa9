"""sweep: a row for each of many models, batches, inputs, methods, runners, optimizers and budgets, by many workers."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from memplan import __version__
from memplan.cases import PLAN, Case, cases_for
from memplan.errors import BudgetError, MemplanError
from memplan.memory import Footprint, Implementation, price
from memplan.methods import METHODS, Plan
from memplan.planner.records import Budget
from memplan.planner.terms import terms_of
from memplan.planning import Request, planned_for
from memplan.processes import Died
from memplan.reports.row_files import Row, RowFile, Value, check_row_file
from memplan.setting import implementation_of, setting_of
from memplan.shapes import parse_shape
from memplan.steps import Steps
from memplan.subject import subject_of
from memplan.workers import check_backend, stream_all

#: The columns of a row: what was asked, then what was found. Where ``error`` says why not, what was found is missing.
COLUMNS: Final[dict[str, type]] = {
    "model": str,
    "batch_size": int,
    "input": str,
    "classes": int,
    "dtype": str,
    "amp": str,
    "mode": str,
    "optimizer": str,
    "method": str,
    "k": int,
    "runner": str,
    "budget_bytes": int,
    "name": str,
    "origin": str,
    "inputs": str,
    "peak_bytes": int,
    "saved_bytes": int,
    "temp_bytes": int,
    "resident_bytes": int,
    "first_step_peak_bytes": int,
    "fits": bool,
    "gradients": str,
    "trained_blocks": int,
    "blocks": int,
    "trained_parameters": int,
    "parameters": int,
    "flops_forward": int,
    "flops_backward": int,
    "treatments": str,
    "implementation": str,
    "notes": str,
    "seconds": float,
    "error": str,
    "device": str,
    "instruction_set": str,
    "threads": int,
    "torch": str,
    "memplan": str,
}

_ASKED: Final = tuple(field.name for field in fields(Case))
_SHARED: Final = _ASKED.index("method")

#: What a model's own code may raise, and a row tells; an interrupt is not among them.
_FAILURES: Final = (Exception, SystemExit)


def sweep(
    models: str | Sequence[str],
    *,
    batch_sizes: int | Sequence[int] = 8,
    inputs: str | Sequence[str] = (),
    methods: str | Sequence[str] = "full",
    k: int | Sequence[int] = (),
    budgets: int | str | Sequence[int | str] = (),
    runner: str | None = None,
    optimizers: str | Sequence[str] = "sgd",
    classes: int | None = None,
    dtype: str | None = None,
    amp: str | None = None,
    training: bool = True,
    out: str | Path | None = None,
    force: bool = False,
    jobs: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Iterator[Row]:
    """Return an iterator over the rows of a product of models and settings, each as it is finished.

    A model that fails gives rows that say why. With ``out`` the rows are in that file too, on the disk before they are
    given; rows that are there already come first, and are not made again.

    Args:
        models: specs such as ``"mobilenet_v3"``.
        batch_sizes: samples in a batch.
        inputs: shapes without the batch, such as ``"3x224x224"``; by default each model's own.
        methods: names of methods, or ``"plan"`` for the best plan for each budget.
        k: blocks that train, for methods that take it; by default 5, or all of a model that has fewer.
        budgets: bytes, or text such as ``"64MB"``, that the allocator's peak must not exceed: a row for each.
        runner: ``stock``, ``memplan`` or ``both``; by default stock for what ``requires_grad`` alone can do.
        optimizers: ``sgd``, ``momentum``, ``adam`` or ``adamw``.
        classes: classes of the head.
        dtype: of parameters, buffers and inputs.
        amp: dtype of autocast.
        training: whether models are in train mode.
        out: a ``.jsonl``, ``.csv`` or ``.parquet`` file.
        force: start ``out`` anew.
        jobs: processes of this machine, or workers of a Ray cluster; with one, models are recorded in this process.
        backend: where workers are: ``loky`` for this machine, ``dask`` or ``ray``.
        scheduler: the address of Dask's scheduler.
        progress: told how many rows are done, of how many, and the last one's model; first of those in ``out``.

    Raises:
        UsageError: a name, size, file or combination that cannot be understood, or a cluster that does not answer.
    """
    cases = cases_for(
        models,
        batch_sizes=batch_sizes,
        inputs=inputs,
        methods=methods,
        k=k,
        budgets=budgets,
        runner=runner,
        optimizers=optimizers,
        classes=classes,
        dtype=dtype,
        amp=amp,
        training=training,
    )
    check_backend(backend, scheduler)
    if out is not None:
        check_row_file(Path(out))
    file = None if out is None else Path(out)
    return _swept(cases, file, force, (jobs, backend, scheduler), progress)


def _swept(
    cases: Sequence[Case],
    out: Path | None,
    force: bool,
    workers: tuple[int, str, str | None],
    progress: Callable[[int, int, str], None],
) -> Iterator[Row]:
    with contextlib.ExitStack() as stack:
        file = None if out is None else stack.enter_context(RowFile(out, COLUMNS, replace=force))
        there = {_key(row): row for row in ([] if file is None else file.rows)}
        done = [there[astuple(case)] for case in cases if astuple(case) in there]
        jobs, backend, scheduler = workers
        tasks = tasks_of([case for case in cases if astuple(case) not in there], anywhere=backend != "loky")
        function = analysed if jobs == 1 and backend == "loky" else analysed_apart
        results = stream_all(function, tasks, jobs=jobs, backend=backend, scheduler=scheduler)
        if file is not None:
            file.begin()
        count = len(done)
        progress(count, len(cases), "")
        yield from done
        made = [0] * len(tasks)
        for index, result in results:
            left = tasks[index].cases[made[index] :]
            rows = [_row(case, error=result.reason) for case in left] if isinstance(result, Died) else result
            if file is not None:
                file.add(rows)
            made[index] += len(rows)
            count += len(rows)
            progress(count, len(cases), left[0].model)
            yield from rows
        if file is not None:
            file.finish()


def tasks_of(cases: Sequence[Case], *, anywhere: bool = False) -> tuple[Task, ...]:
    """Return the cases in tasks: those of one model, batch, input and optimizer share their recordings.

    Tasks that run ``anywhere``, in other folders and on other machines, find the models' files and are priced as here.
    Their rows come when they end, so a plan, whose search is long, is a task of its own.
    """
    machine = None
    if anywhere:
        import torch

        machine = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    groups: dict[tuple[Value, ...], list[Case]] = {}
    for case in cases:
        alone = _recorded_together(case) if anywhere and case.method == PLAN else ()
        groups.setdefault(_subject(case) + alone, []).append(case)
    return tuple(
        Task(tuple(shared), _found_anywhere(shared[0].model) if anywhere else shared[0].model, machine)
        for shared in groups.values()
    )


@dataclass(frozen=True, slots=True)
class Task:
    """Cases that share their recordings, the model as a worker finds it, and the machine that they are priced for."""

    cases: tuple[Case, ...]
    model: str
    machine: tuple[int, str] | None = None


def analysed(task: Task) -> Iterator[list[Row]]:
    """Yield the rows of each recording of a task, in the order of its cases; what fails is a row that says why."""
    from memplan.sources.quiet import contained, quietly

    recordings = _analysed(task)
    while True:
        # Between two recordings the caller's own code runs.
        with quietly(), contained(), _machine(task):
            rows = next(recordings, None)
        if rows is None:
            break
        yield rows
    if not gc.isenabled():
        # Recorded graphs are circles, and would stay; what is left are imports, not to be walked again each time.
        gc.collect()
        gc.freeze()


def analysed_apart(task: Task) -> Iterator[list[Row]]:
    """Yield what :func:`analysed` does, in a process for it alone: the collector has its turn between tasks."""
    gc.disable()
    try:
        yield from analysed(task)
    finally:
        gc.enable()


def _analysed(task: Task) -> Iterator[list[Row]]:
    asked = task.cases[0]
    about = _machine_columns()
    try:
        subject = subject_of(
            task.model,
            batch_size=asked.batch_size,
            input_shape=None if asked.input is None else parse_shape(asked.input),
            classes=asked.classes,
            dtype=asked.dtype,
            amp=asked.amp,
            training=asked.mode == "train",
        )
        steps = Steps(subject)
        setting = setting_of(subject, steps, asked.optimizer, implementation_of(None, steps.model.device.type))
    except _FAILURES as error:
        yield [_row(case, **about, error=_reason(error)) for case in task.cases]
        return
    about |= {"name": setting.model, "origin": setting.origin, "inputs": ", ".join(setting.inputs)}
    for _, several in groupby(task.cases, key=_recorded_together):
        cases = tuple(several)
        started = time.perf_counter()
        try:
            found = _found(steps, cases[0], setting.implementation)
        except BudgetError as error:
            found = {"fits": False, "notes": _reason(error)}
        except _FAILURES as error:
            found = {"error": _reason(error)}
        found["seconds"] = round(time.perf_counter() - started, 3)
        yield [_row(case, **about, **found) for case in cases]


def _found(steps: Steps, case: Case, implementation: Implementation) -> dict[str, Any]:
    """Return what is found of a case, but for whether it fits a budget.

    Raises:
        MemplanError: the step cannot be recorded, or no plan fits.
    """
    if case.method == PLAN:
        assert case.budget_bytes is not None
        request = Request(Budget(case.budget_bytes), terms_of(), optimizer=case.optimizer, runner=case.runner)
        planned = planned_for(steps, request)
        return _columns(planned.footprint, planned.implementation, planned.plan, planned.notes, steps)
    method = METHODS[case.method]
    ran = steps.by_runner(
        case.runner,
        method,
        steps.settled_k(method, case.k),
        optimizer=case.optimizer,
        implementation=implementation,
    )
    footprint = price(ran.step, case.optimizer, ran.implementation, alive=0)
    notes = steps.notes_on(method) if ran.plan is None else ran.plan.notes
    found = _columns(footprint, ran.implementation, ran.plan, notes, steps)
    return {**found, "trained_blocks": steps.settled_k(method, case.k)}


def _columns(
    footprint: Footprint, implementation: Implementation, plan: Plan | None, notes: Sequence[str], steps: Steps
) -> dict[str, Any]:
    names = [field.name for field in fields(footprint) if field.name in COLUMNS]
    return {
        **{name: getattr(footprint, name) for name in names},
        "gradients": "exact" if plan is None else plan.gradients,
        "trained_blocks": None if plan is None else plan.k,
        "blocks": len(steps.blocks),
        "treatments": None if plan is None else ",".join(plan.treatments) or None,
        "implementation": implementation,
        "notes": "; ".join(dict.fromkeys(notes)) or None,
    }


def _row(case: Case, **found: Any) -> Row:
    """Return a row with all columns, in their order."""
    peak, budget = found.get("peak_bytes"), case.budget_bytes
    if peak is not None and budget is not None:
        found["fits"] = peak <= budget
    return {**dict.fromkeys(COLUMNS), **asdict(case), **found, "memplan": __version__}


def _machine_columns() -> dict[str, Any]:
    import torch

    from memplan.tracing.machine import machine_of

    return asdict(machine_of(torch.device("cpu")))


def _machine(task: Task) -> contextlib.AbstractContextManager[None]:
    if task.machine is None:
        return contextlib.nullcontext()
    from memplan.tracing.machine import named_machine

    return named_machine(*task.machine)


def _found_anywhere(model: str) -> str:
    """Return a spec with the file or folder that it names, if any, in full."""
    place, _, name = model.rpartition(":")
    if place.endswith(".py"):
        return f"{Path(place).resolve()}:{name}"
    return str(Path(model).resolve()) if Path(model, "config.json").is_file() else model


def _reason(error: BaseException) -> str:
    """Return why a case failed, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        return f"the model's own code exits ({text}); remove its call of exit"
    return text if isinstance(error, MemplanError) else f"{type(error).__name__}: {text}"


def _key(row: Row) -> tuple[Value, ...]:
    return tuple(row[name] for name in _ASKED)


def _subject(case: Case) -> tuple[Value, ...]:
    """Return what cases of one task have in common: all but the method, k, runner and budget."""
    return astuple(case)[:_SHARED]


def _recorded_together(case: Case) -> tuple[Value, ...]:
    """Return what cases of one recording have in common: a plan is for a budget, other methods are for any."""
    return case.method, case.k, case.runner, case.budget_bytes if case.method == PLAN else None
