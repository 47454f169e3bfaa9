"""analyze: what each way to fine-tune a model needs, and whether it fits a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from memplan.errors import BudgetError, NothingTrainsError, UsageError, known
from memplan.memory import price
from memplan.memory.accounting import ACCOUNTINGS, account
from memplan.memory.optimizers import optimizer_rule
from memplan.methods import METHODS, Method, method_named
from memplan.methods.method import RUNNERS, runners_of
from memplan.planner.records import Budget
from memplan.planner.terms import terms_of
from memplan.planning import Request, planned_for
from memplan.results import Analysis, MethodFootprint, Planned
from memplan.setting import budget_in_bytes, check_k, implementation_of, setting_of
from memplan.steps import Steps
from memplan.subject import Subject, subject_of
from memplan.units import format_bytes

if TYPE_CHECKING:
    from torch import nn

#: Values of k that are shown where several are.
SHOWN_K: Final = (1, 3, 5)


def analyze(
    model: str | nn.Module,
    inputs: Any = None,
    *,
    methods: Sequence[str] | Literal["all"] = ("full",),
    k: int | Sequence[int] | None = None,
    optimizer: str = "sgd",
    foreach: bool | None = None,
    runner: str | None = None,
    treatments: Sequence[str] = (),
    accounting: str | None = None,
    budget: int | str | None = None,
    suggest: bool = False,
    lenient: bool = False,
    device: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **subject: Any,
) -> Analysis:
    """Return what one training step of ``model`` needs under each method, in bytes, without running it.

    The model is recorded on fake tensors, once for each method; nothing of the caller's model is changed.

    Args:
        model: a spec such as ``"mobilenet_v3"``, or a module.
        inputs: for a module, what its forward takes: a tensor, a tuple, or a dict of keyword arguments.
        methods: names of methods, or ``"all"`` for each of them under each runner.
        k: blocks that ``top-k`` and ``mobiletl`` train, counted from the output; several give a row each.
        optimizer: ``sgd``, ``momentum``, ``adam`` or ``adamw``.
        foreach: whether the optimizer updates all parameters together; ``None`` is PyTorch's default for the device.
        runner: who runs the step: ``stock`` is PyTorch as it is, ``memplan`` what :func:`memplan.apply` gives, ``both``
            a row for each. By default stock for what it can run with ``requires_grad`` alone, memplan for the rest.
        treatments: further treatments of all layers under memplan's runner, such as ``frozen-int8``.
        accounting: a published way to count beside the real bytes: ``tinytl`` or ``mobiletl``.
        budget: bytes, or text such as ``"64MB"``, that the allocator's peak must not exceed.
        suggest: whether the best plan for the budget is looked for too, as :func:`memplan.plan` does; with approximate
            gradients only where nothing else fits.
        lenient: whether a method that trains nothing of this model is left out, with a note, as ``"all"`` does.
        device: where the step would run; by default where the model is, the CPU for a spec.
        progress: told what is being done, for whoever shows it.
        **subject: ``batch_size``, ``input_shape``, ``classes``, ``dtype``, ``weights``, ``training``, ``amp``,
        ``loss``;
            see :func:`memplan.subject.subject_of`.

    Raises:
        UsageError: a name, size or combination that cannot be understood.
        AnalysisError: the model cannot be loaded or recorded.
        NothingTrainsError: a method trains nothing of this model, or each of them where that is left out.
    """
    budget_bytes = budget_in_bytes(budget)
    optimizer_rule(optimizer)
    if runner is not None:
        known("runner", runner, (*RUNNERS, "both"))
    if accounting is not None:
        known("accounting", accounting, ACCOUNTINGS)
    everything = methods == "all"
    chosen = (
        [METHODS[name] for name in METHODS if name != "as-is"] if everything else [method_named(n) for n in methods]
    )
    for count in k if isinstance(k, (tuple, list)) else (k,):
        check_k(count)
    runner = "both" if everything and runner is None else runner
    if not chosen:
        raise UsageError("no method is given; name one or more, such as full")
    about = subject_of(model, inputs, **subject)

    progress(f"building {about.name}")
    steps = Steps(about, device)
    setting = setting_of(about, steps, optimizer, implementation_of(foreach, steps.model.device.type))
    rows: list[MethodFootprint] = []
    left_out: dict[str, NothingTrainsError] = {}
    started = time.perf_counter()
    for method, blocks, who in _rows(chosen, k, runner, steps, treatments, several=everything):
        progress(f"recording {about.name}: {who} {method.name}")
        try:
            ran = steps.by_runner(
                who,
                method,
                blocks,
                treatments=treatments,
                optimizer=optimizer,
                implementation=setting.implementation,
            )
        except NothingTrainsError as error:
            if not lenient and not everything:
                raise
            left_out[method.name] = error
            continue
        plan, how = ran.plan, ran.implementation
        footprint = price(ran.step, optimizer, how, alive=len(ran.step.storages))
        fits = None if budget_bytes is None else footprint.peak_bytes <= budget_bytes
        counted = None
        if accounting is not None:
            signed = plan is not None and "signed-mask" in plan.treatments
            counted = account(steps.step(method, blocks), accounting, masked=signed)
        gradients = "exact" if plan is None else plan.gradients
        rows.append(
            MethodFootprint(
                method.name, blocks, who, footprint, fits, gradients, how, plan=plan, accounted=counted, step=ran.step
            )
        )
    seconds = time.perf_counter() - started
    if not rows:
        raise next(iter(left_out.values()))
    notes = tuple(dict.fromkeys(_notes(about, steps, rows)))
    notes += tuple(f"{name} is left out: it trains no parameter of this model" for name in left_out)
    suggestion, reason = None, None
    if suggest and budget_bytes is not None:
        request = Request(
            Budget(budget_bytes),
            terms_of(),
            optimizer=optimizer,
            foreach=foreach,
            runner="stock" if runner == "stock" else "memplan",
            brief=True,
        )
        suggestion, reason = _suggested(steps, request, progress)
    return Analysis(setting, steps.blocks, budget_bytes, tuple(rows), seconds, notes, suggestion, reason)


def _suggested(steps: Steps, request: Request, progress: Callable[[str], None]) -> tuple[Planned | None, str | None]:
    try:
        return planned_for(steps, request, progress), None
    except BudgetError as error:
        return None, str(error)


def _rows(
    methods: Sequence[Method],
    k: int | Sequence[int] | None,
    runner: str | None,
    steps: Steps,
    treatments: Sequence[str],
    *,
    several: bool,
) -> Iterator[tuple[Method, int | None, str]]:
    """Yield what is shown, stock PyTorch's rows first: a method, its k, and who runs it."""
    for who in RUNNERS:
        for method in methods:
            if who not in runners_of(method, runner, treatments):
                continue
            for blocks in _ks(method, k, steps, several=several):
                yield method, blocks, who


def _ks(method: Method, k: int | Sequence[int] | None, steps: Steps, *, several: bool) -> Iterator[int | None]:
    if not method.needs_k:
        yield None
    elif k is None and several:
        yield from sorted({min(count, len(steps.blocks)) for count in SHOWN_K})
    elif k is None or isinstance(k, int):
        yield steps.settled_k(method, k)
    else:
        yield from k


def _notes(subject: Subject, steps: Steps, rows: Sequence[MethodFootprint]) -> Iterator[str]:
    if hasattr(subject.module, "_orig_mod"):
        yield "the model is compiled; what is priced is the eager model it was compiled from"
    for row in rows:
        for note in steps.notes_on(METHODS[row.name]) if row.plan is None else row.plan.notes:
            yield f"{row.label}: {note}"
        kept = row.footprint.unhooked_bytes
        if kept:
            size = format_bytes(kept, unit="MB" if kept >= 100_000 else "KB")
            yield (
                f"{row.label} keeps {size} for its backward that autograd's hooks do not see, "
                f"made in {', '.join(row.footprint.unhooked_layers[:3])}; they count as temp"
            )
        if "backward" not in row.footprint.timeline.phases:
            yield f"{row.label} has no backward: nothing that trains reaches the output"
