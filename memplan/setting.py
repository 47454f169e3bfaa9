"""What is asked of a step: the budget, who runs it, how its optimizer updates; and the record of it all."""

from __future__ import annotations

from memplan.errors import UsageError
from memplan.memory import Implementation
from memplan.results import Setting
from memplan.steps import Steps
from memplan.subject import Subject, first_batch, shapes
from memplan.units import parse_bytes


def implementation_of(foreach: bool | None, device: str) -> Implementation:
    """Return how PyTorch's optimizers update by default on ``device``, or as ``foreach`` asks."""
    if foreach is None:
        return "loop" if device == "cpu" else "foreach"
    return "foreach" if foreach else "loop"


def setting_of(subject: Subject, steps: Steps, optimizer: str, implementation: Implementation) -> Setting:
    """Return the record of what is analysed and how its step runs."""
    from memplan.tracing.machine import machine_of

    module, args, kwargs = steps.model.module, steps.model.args, steps.model.kwargs
    floats = [tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()]
    return Setting(
        model=subject.name,
        origin=subject.origin,
        batch_size=first_batch(args, kwargs),
        inputs=shapes(args, kwargs),
        dtype=str(floats[0]).removeprefix("torch.") if floats else "",
        amp=subject.amp,
        training=module.training,
        optimizer=optimizer,
        implementation=implementation,
        machine=machine_of(steps.model.device),
    )


def check_k(k: object) -> None:
    """Raise where ``k`` is given and counts nothing.

    Raises:
        UsageError: it is no whole number.
    """
    if k is not None and (not isinstance(k, int) or isinstance(k, bool)):
        raise UsageError(f"k is a whole number, not {k!r}; write for example k=5")


def budget_in_bytes(budget: int | str | None) -> int | None:
    """Return a budget given as text or as a number of bytes.

    Raises:
        UsageError: it is neither.
    """
    if budget is None or isinstance(budget, str):
        return None if budget is None else parse_bytes(budget)
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise UsageError(f"a budget is a positive number of bytes or text such as '64MB', not {budget!r}")
    return budget
