"""verify: run real training steps and compare what they needed with what was predicted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from memplan.errors import AnalysisError, UsageError, known
from memplan.memory import Footprint, Implementation, price
from memplan.memory.optimizers import optimizer_rule
from memplan.methods import Plan, method_named
from memplan.methods.method import RUNNERS, runners_of
from memplan.planner.costs import Quantity, quantity_of
from memplan.planner.records import Budget
from memplan.results import MeasuredStep, Verification
from memplan.setting import budget_in_bytes, implementation_of, setting_of
from memplan.steps import RunnerStep, Steps, choose_trained
from memplan.subject import AMP_DTYPES, subject_of

if TYPE_CHECKING:
    from torch import nn

    from memplan.transform.measure import Measurement

#: A peak may be promised at most 1 % too small and 3 % too large.
TOLERANCE: Final = (-0.01, 0.03)


def verify(
    model: str | nn.Module,
    inputs: Any = None,
    *,
    method: str | Plan = "full",
    k: int | None = None,
    runner: str | None = None,
    treatments: Sequence[str] = (),
    optimizer: str = "sgd",
    foreach: bool | None = None,
    budget: int | str | None = None,
    budget_of: Quantity = "peak",
    steps: int = 2,
    rss: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
    **subject: Any,
) -> Verification:
    """Return predicted against measured bytes of real training steps, on the CPU or where the model is.

    A copy of the model runs with random data where none is given; the caller's model is not changed.

    Args:
        model: a spec, or a module with ``inputs``; as for :func:`memplan.analyze`.
        method: what trains: a method's name, or a plan.
        k: blocks that train, for methods that take it.
        runner: ``stock`` or ``memplan``; by default stock for what it can run with ``requires_grad`` alone.
        treatments: further treatments of all layers under memplan's runner.
        budget: bytes, or text such as ``"64MB"``, that no step may exceed.
        budget_of: what the budget is on: the ``peak``, the ``activations`` or what is ``kept``; see
            :func:`memplan.plan`. No allocator tells activations apart: of these the predicted bytes count, and what the
            measured peak is above the predicted one.
        steps: real steps to run, at least 2: the second has gradients' and optimizer state's true company.
        rss: measure the process's high-water mark too.
        seed: for the random weights and inputs; the caller's random state is put back.

    Raises:
        UsageError, AnalysisError: as :func:`memplan.analyze`; or the model cannot run on the CPU.
    """
    # The profiler's library logs each start and stop to stderr; it reads its level when torch is first imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from memplan.tracing.step import gradients_on
    from memplan.transform.apply import apply_
    from memplan.transform.measure import high_water_mark, measure, reset_high_water_mark

    if steps < 2:
        raise UsageError(f"steps must be at least 2, not {steps}: the first has no optimizer state yet")
    if not 0 <= seed < 2**63:
        raise UsageError(f"a seed is a number from 0 to 2**63 - 1, not {seed}")
    if isinstance(method, Plan):
        _check_plan(method, runner=runner, k=k, treatments=treatments)
    optimizer_rule(optimizer)
    limit = budget_in_bytes(budget)
    about = subject_of(model, inputs, **subject)
    progress(f"recording {about.name}: {method.label if isinstance(method, Plan) else method}")
    recorded = Steps(about)
    device = recorded.model.device.type
    how = implementation_of(foreach, device)
    if isinstance(method, Plan):
        ran, who, label = _with_plan(recorded, method, how), runner or "memplan", method.label
        trained = frozenset(method.trained)
    else:
        chosen = method_named(method)
        blocks = recorded.settled_k(chosen, k)
        (who,) = runners_of(chosen, runner, treatments)
        ran = recorded.by_runner(who, chosen, blocks, treatments=treatments, optimizer=optimizer, implementation=how)
        label = chosen.name if blocks is None else f"{chosen.name} k={blocks}"
        trained = recorded.trained(chosen, blocks)
    plan, implementation = ran.plan, ran.implementation
    footprint = price(ran.step, optimizer, implementation)
    setting = setting_of(about, recorded, optimizer, implementation)

    progress(f"running {steps} real steps of {about.name}")
    reset_high_water_mark()
    before = high_water_mark() if rss else None
    with torch.random.fork_rng(devices=[]), gradients_on():
        torch.manual_seed(seed)
        module, args, kwargs = about.built("cpu")
        if plan is None or who == "stock":
            choose_trained(module, trained)
        else:
            apply_(module, plan)
        try:
            measured = measure(
                module,
                args,
                kwargs,
                optimizer=optimizer,
                implementation=implementation,
                steps=steps,
                loss=about.loss,
                amp=None if about.amp is None else getattr(torch, AMP_DTYPES[about.amp]),
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            raise AnalysisError(
                f"{about.name} records but does not run: {type(error).__name__}: {reason}; "
                "check its inputs' values and this machine's memory"
            ) from error
    predicted = [footprint.first_step_peak_bytes] + [footprint.peak_bytes] * (steps - 1)
    return Verification(
        setting=setting,
        method=label,
        predicted_saved_bytes=footprint.saved_bytes,
        measured_saved_bytes=measured.saved_bytes,
        steps=tuple(
            MeasuredStep(number, promised, seen)
            for number, (promised, seen) in enumerate(zip(predicted, measured.peak_bytes, strict=True), start=1)
        ),
        quantity="allocator peak (CPU profiler)" if device == "cpu" else "allocator peak (max_memory_allocated)",
        tolerance=TOLERANCE,
        rss_bytes=high_water_mark() if rss else None,
        rss_before_bytes=before,
        runner=who,
        notes=() if plan is None else plan.notes,
        budget=None if limit is None else Budget(limit, budget_of),
        budgeted_bytes=None if limit is None else _budgeted(footprint, measured, budget_of),
        footprint=footprint,
        step=ran.step,
        plan=plan,
    )


def _check_plan(plan: Plan, *, runner: str | None, k: int | None, treatments: Sequence[str]) -> None:
    """Raise where something is given beside a plan that the plan says itself."""
    for name, value in (("k", k), ("treatments", treatments or None)):
        if value is not None:
            raise UsageError(f"{name}={value!r} is given with a plan, which says it already; leave one of them out")
    if runner is not None:
        known("runner", runner, RUNNERS)
    if runner == "stock" and plan.treatments:
        raise UsageError(f"stock PyTorch cannot run a plan with {plan.treatments[0]}; leave out the runner")


def _with_plan(steps: Steps, plan: Plan, how: Implementation) -> RunnerStep:
    return RunnerStep(steps.run(plan), "in-backward" if plan.fused_update else how, plan)


def _budgeted(footprint: Footprint, measured: Measurement, quantity: Quantity) -> int:
    """Return what was measured of that which a budget is on."""
    if quantity == "kept":
        return measured.saved_bytes
    highest = max(measured.peak_bytes)
    if quantity == "peak":
        return highest
    return quantity_of(footprint, quantity) + max(highest - footprint.peak_bytes, 0)
