"""verify: run real training steps and compare what they needed with what was predicted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from memplan.analysis import implementation_of, runners_of, setting_of
from memplan.errors import AnalysisError, UsageError
from memplan.memory import price
from memplan.memory.optimizers import optimizer_rule
from memplan.methods import method_named
from memplan.results import MeasuredStep, Verification
from memplan.steps import Steps, choose_trained
from memplan.subject import AMP_DTYPES, subject_of

if TYPE_CHECKING:
    from torch import nn

#: A peak may be promised at most 1 % too small and 3 % too large.
TOLERANCE: Final = (-0.01, 0.03)


def verify(
    model: str | nn.Module,
    inputs: Any = None,
    *,
    method: str = "full",
    k: int | None = None,
    runner: str | None = None,
    treatments: Sequence[str] = (),
    optimizer: str = "sgd",
    foreach: bool | None = None,
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
        method: what trains.
        k: blocks that train, for methods that take it.
        runner: ``stock`` or ``memplan``; by default stock for what it can run with ``requires_grad`` alone.
        treatments: further treatments of all layers under memplan's runner.
        steps: real steps to run, at least 2: the second has gradients' and optimizer state's true company.
        rss: measure the process's high-water mark too.
        seed: for the random weights and inputs; the caller's random state is put back.

    Raises:
        UsageError, AnalysisError: as :func:`memplan.analyze`; or the model cannot run on the CPU.
    """
    # The profiler's library logs each start and stop to stderr; it reads its level when torch is first imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from memplan.transform.apply import apply_
    from memplan.transform.measure import high_water_mark, measure, reset_high_water_mark

    if steps < 2:
        raise UsageError(f"steps must be at least 2, not {steps}: the first has no optimizer state yet")
    if not 0 <= seed < 2**63:
        raise UsageError(f"a seed is a number from 0 to 2**63 - 1, not {seed}")
    optimizer_rule(optimizer)
    chosen = method_named(method)
    about = subject_of(model, inputs, **subject)
    progress(f"recording {about.name}: {method}")
    recorded = Steps(about)
    blocks = recorded.settled_k(chosen, k)
    device = recorded.model.device.type
    (who,) = runners_of(chosen, runner)
    ran = recorded.by_runner(
        who,
        chosen,
        blocks,
        treatments=treatments,
        optimizer=optimizer,
        implementation=implementation_of(foreach, device),
    )
    plan, implementation = ran.plan, ran.implementation
    footprint = price(ran.step, optimizer, implementation)
    trained = recorded.trained(chosen, blocks)
    setting = setting_of(about, recorded, optimizer, implementation)

    progress(f"running {steps} real steps of {about.name}")
    reset_high_water_mark()
    before = high_water_mark() if rss else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, args, kwargs = about.built("cpu")
        if plan is None:
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
        method=chosen.name if blocks is None else f"{chosen.name} k={blocks}",
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
    )
