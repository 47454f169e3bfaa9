"""A plan's file on the command line: what it settles, and what is said where something else is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from memplan.errors import AnalysisError, MemplanError, UsageError

if TYPE_CHECKING:
    from memplan.methods import Plan
    from memplan.reports.plan_file import Account
    from memplan.results import Setting
    from memplan.subject import Subject

#: Options that a plan says itself.
_SAID: Final = {"method": "--method", "k": "--k", "treatments": "--treatment", "runner": "--runner"}

_NAMES: Final = {"input_shape": "--input", "foreach": "--foreach", "training": "--train"}


@dataclass(frozen=True, slots=True)
class PlanGiven:
    """A plan from a file: its text, the account of its search if it has one, and what is to be said."""

    plan: Plan
    account: Account | None
    text: str
    notes: tuple[str, ...] = ()


def plan_given(path: str, options: dict[str, Any]) -> PlanGiven:
    """Return the plan in a file; ``options`` that the command line leaves open are set to what it was made for.

    Raises:
        UsageError: the file holds no plan, or an option is given that a plan says itself.
    """
    from memplan.reports.plan_file import read_plan

    for name, option in _SAID.items():
        if _is_given(name):
            raise UsageError(f"{option} is given with the plan {path!r}, which says it already; leave one of them out")
    plan, account, text = read_plan(path)
    notes = () if account is None else tuple(_settle(account, options))
    return PlanGiven(plan, account, text, notes)


def _settle(account: Account, options: dict[str, Any]) -> Iterator[str]:
    made, asked = account.made_for, account.asked
    settled = {
        "batch_size": made.batch_size,
        "input_shape": None if asked.input_shape is None else "x".join(map(str, asked.input_shape)),
        "classes": asked.classes,
        "dtype": asked.dtype,
        "weights": asked.weights,
        "loss": asked.loss,
        "training": made.training,
        "amp": made.amp,
        "optimizer": made.optimizer,
        "foreach": made.implementation == "foreach",
    }
    for name, value in settled.items():
        if not _is_given(name):
            if name != "batch_size" or value is not None:
                options[name] = value
        elif options[name] != value:
            option = _NAMES.get(name, f"--{name.replace('_', '-')}")
            what = {True: option, False: option.replace("--", "--no-").replace("--no-train", "--eval")}
            given = what.get(options[name], "") if isinstance(options[name], bool) else f"{option} {options[name]}"
            yield f"{given} is given; the plan was made {_for(name, value)}"


def _for(name: str, value: Any) -> str:
    if name == "training":
        return f"in {'train' if value else 'eval'} mode"
    if name == "foreach":
        return f"{'with' if value else 'without'} it"
    return f"for {value}" if value is not None else "without it"


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def check_model(given: PlanGiven, subject: Subject) -> None:
    """Raise where a plan was made for another model than the one that is given, and say what differs.

    Raises:
        AnalysisError: it was.
    """
    from memplan.transform.apply import fingerprint

    plan, account = given.plan, given.account
    if plan.model is None or account is None:
        return
    try:
        own = fingerprint(subject.built("meta")[0])
    except MemplanError:
        raise
    except Exception:
        return  # recording it fails too, and tells why
    if own == plan.model:
        return
    made = account.made_for
    differ = (
        "names or shapes of parameters differ"
        if (own.parameters, own.numbers) == (plan.model.parameters, plan.model.numbers)
        else f"that one has {plan.model}"
    )
    classes = "" if account.asked.classes is None else f" with {account.asked.classes} classes"
    raise AnalysisError(
        f"the plan was made for {made.model} ({made.origin}){classes}, not for {subject.name} ({subject.origin}), "
        f"which has {own}: {differ}; name the model that it was made for, or make another plan"
    )


def notes_on(account: Account | None, setting: Setting) -> Iterator[str]:
    """Yield what else is not as it was when a plan was made: the model's name, its inputs, and the machine."""
    if account is None:
        return
    made = account.made_for
    pairs = {
        "model": (made.model, setting.model),
        "inputs": (", ".join(made.inputs), ", ".join(setting.inputs)),
        "torch": (made.machine.torch, setting.machine.torch),
        "device": (made.machine.device, setting.machine.device),
        "instruction set": (made.machine.instruction_set, setting.machine.instruction_set),
        "threads": (str(made.machine.threads), str(setting.machine.threads)),
    }
    for name, (then, now) in pairs.items():
        if then != now and not (name == "inputs" and made.batch_size != setting.batch_size):
            yield f"{name}: the plan was made for {then}, this is {now}"
