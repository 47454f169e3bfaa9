"""apply and restore: a model that trains as a plan says, and the plain model back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from memplan.errors import AnalysisError, UsageError
from memplan.memory import Implementation
from memplan.memory.optimizers import optimizer_rule
from memplan.methods import Method, Plan, method_named
from memplan.methods.plan import PLAN_FILE, plan_from_json
from memplan.methods.treatments import treatment_named
from memplan.setting import check_k
from memplan.steps import PlannedStep, Steps
from memplan.subject import Subject, subject_of

if TYPE_CHECKING:
    import torch
    from torch import nn


def apply(
    model: str | nn.Module,
    method: str | Method | Plan,
    inputs: Any = None,
    *,
    k: int | None = None,
    treatments: Sequence[str] = (),
    optimizer: str = "sgd",
    **subject: Any,
) -> nn.Module:
    """Return a copy of ``model`` that trains as ``method`` says and keeps what :func:`memplan.analyze` prices for it.

    The copy has the same class, forward and parameters, so that it trains in any loop, and is saved, loaded, copied,
    moved and exported as the original; ``requires_grad`` is set. :func:`trained_parameters` gives what its optimizer
    updates, :func:`optimizer` an optimizer that fits the plan, :func:`restore` the plain model back.

    Args:
        model: a module, which is not changed, or a spec.
        method: a method's name, a :class:`memplan.methods.Method` of your own, or a plan.
        inputs: for a module and a method, what its forward takes: the plan is made on a recording.
        k: how many of the top blocks train, for methods that take it; 5 by default.
        treatments: further treatments of all layers, such as ``frozen-int8``.
        optimizer: who will update; it decides whether updates during the backward help.
        **subject: see :func:`memplan.subject.subject_of`.

    Raises:
        UsageError: a name or number that cannot be understood; a plan is applied already.
        AnalysisError: the model cannot be recorded, or the plan is for another model.
    """
    from memplan.transform.apply import apply_, check_unplanned

    if not isinstance(method, (str, Method, Plan)):
        raise UsageError(
            f"a method is a name such as 'mobiletl', a Method or a Plan, not {type(method).__name__}; pass one of these"
        )
    if isinstance(method, Plan):
        given = {"k": k, "treatments": treatments or None}
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name}={value!r} is given with a plan, which says it already; leave one of them out")
    if _is_module(model):
        check_unplanned(model)
        if isinstance(method, Plan):
            return apply_(_copied(model), method)
    about = subject_of(model, inputs, **subject)
    plan = (
        method if isinstance(method, Plan) else plan_for(about, method, k=k, treatments=treatments, optimizer=optimizer)
    )
    return apply_(about.built("cpu")[0] if about.module is None else _copied(about.module), plan)


def plan_for(
    subject: Subject,
    method: str | Method,
    *,
    k: int | None = None,
    treatments: Sequence[str] = (),
    optimizer: str = "sgd",
) -> Plan:
    """Return the plan of a method for one model.

    Raises:
        UsageError, AnalysisError: see :func:`apply`.
    """
    return planned_by(Steps(subject), method, k=k, treatments=treatments, optimizer=optimizer).plan


def planned_by(
    steps: Steps,
    method: str | Method,
    *,
    k: int | None = None,
    treatments: Sequence[str] = (),
    optimizer: str = "sgd",
    implementation: Implementation = "loop",
) -> PlannedStep:
    """Return the plan of a method for the model of ``steps``, with its fingerprint, and its step.

    Raises:
        UsageError, AnalysisError: see :func:`apply`.
    """
    optimizer_rule(optimizer)
    chosen = method if isinstance(method, Method) else method_named(method)
    if isinstance(treatments, str):
        treatments = (treatments,)
    for name in treatments:
        if not isinstance(name, str):
            raise UsageError(f"a treatment is given by its name, not as a {type(name).__name__}; write its name")
        treatment_named(name)
    if k is not None and not chosen.needs_k:
        raise UsageError(f"method {chosen.name!r} takes no k (={k}); leave it out, or use top-k or mobiletl")
    check_k(k)
    blocks = steps.settled_k(chosen, k)
    made = steps.planned(chosen, blocks, treatments=treatments, optimizer=optimizer, implementation=implementation)
    if not made.plan.trained and not made.plan.lite:
        raise AnalysisError(
            f"method {chosen.name!r} trains nothing of this {type(steps.model.module).__name__}, which is frozen or "
            "has no parameters; choose another method"
        )
    return replace(made, plan=steps.named(made.plan))


def load_plan(path: str | Path) -> Plan:
    """Return the plan in a file that ``memplan apply`` wrote, or in the directory that it wrote to.

    Raises:
        UsageError: there is no such file, or it holds no plan.
    """
    file = Path(path)
    file = file / PLAN_FILE if file.is_dir() else file
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{str(file)!r} is not text; give a {PLAN_FILE} that memplan apply wrote") from error
    except OSError as error:
        raise UsageError(
            f"cannot read {str(file)!r}: {error.strerror or error}; give a {PLAN_FILE} that memplan apply wrote"
        ) from error
    return plan_from_json(text, repr(str(file)))


def restore(model: nn.Module) -> nn.Module:
    """Return the plain copy of a planned ``model``, with the weights it has learnt.

    Weights stored in 8 bits come back as the numbers that were used; lite residual branches stay.

    Raises:
        UsageError: no plan is applied to it.
    """
    from memplan.transform.apply import plan_of, restore_

    if plan_of(model) is None:
        raise UsageError(f"no plan is applied to this {type(model).__name__}; give a model that memplan.apply returned")
    return restore_(_copied(model))


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a planned model that train, for an optimizer."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def optimizer(
    model: nn.Module, kind: str | type[torch.optim.Optimizer] = "sgd", **options: Any
) -> torch.optim.Optimizer:
    """Return an optimizer of the parameters that train, which updates during the backward where the plan says so.

    Args:
        model: a planned model, or any other.
        kind: ``sgd``, ``adam``, ``adamw``, or a class of ``torch.optim``.
        **options: the optimizer's own, such as ``lr``.

    Raises:
        UsageError: there is no such optimizer, or nothing trains.
    """
    from memplan.layers.fused_update import FusedUpdate, optimizer_class
    from memplan.transform.apply import plan_of

    trained = trained_parameters(model)
    if not trained:
        raise UsageError(f"nothing trains in this {type(model).__name__}; apply a method that trains something")
    plan = plan_of(model)
    if plan is not None and plan.fused_update:
        return FusedUpdate(kind, trained, **options)
    return optimizer_class(kind)(trained, **options)


def _is_module(model: object) -> TypeGuard[nn.Module]:
    return not isinstance(model, str) and callable(getattr(model, "named_parameters", None))


def _copied(model: nn.Module) -> nn.Module:
    from memplan.transform.apply import unwrapped

    module: nn.Module = unwrapped(model)
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise AnalysisError(
            f"cannot copy the model: {type(error).__name__}: {' '.join(str(error).split())}; "
            "remove what cannot be deep-copied from its attributes"
        ) from error
