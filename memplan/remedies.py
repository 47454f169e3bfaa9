"""Ways back under a limit that a step exceeds, the cheapest first; each was recorded."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from memplan.errors import MemplanError
from memplan.gate.records import Check, PricedStep, Remedy
from memplan.graph import Machine
from memplan.memory import Footprint
from memplan.memory.estimate import UPPER_SHARE, upper_estimate
from memplan.memory.parts import Measurand
from memplan.methods import method_named
from memplan.methods.method import runners_of
from memplan.planner.costs import Quantity
from memplan.planner.records import Budget
from memplan.planner.terms import terms_of
from memplan.planning import Request, planned_for
from memplan.reading import Priced, priced
from memplan.reports.sizes import count
from memplan.shapes import format_shape
from memplan.steps import Steps
from memplan.subject import first_batch, subject_of

#: How many ways are told.
SHOWN: Final = 3

#: What the planner calls the quantities of a gate; it has no word for what is temporary.
_QUANTITIES: Final[dict[Measurand, Quantity]] = {"peak": "peak", "saved": "kept"}


@dataclass(frozen=True, slots=True)
class _Way:
    """A remedy, and what it costs: approximate gradients first, then less that trains, a smaller batch, more FLOPs."""

    remedy: Remedy
    cost: tuple[float, ...]


def remedies_for(steps: Steps, check: Check, limit_bytes: int) -> tuple[Remedy, ...]:
    """Return at most three ways to bring the step of a check under ``limit_bytes``, its upper estimate that is."""
    ways: list[_Way] = []
    for look in (_by_runner, _by_plan, _by_batch):
        ways.extend(_found(look, steps, check, limit_bytes))
    ways.sort(key=lambda way: way.cost)
    remedies = tuple(way.remedy for way in ways[:SHOWN])
    # A module has no name that a command could be given.
    return remedies if steps.subject.source is not None else tuple(replace(each, command=None) for each in remedies)


def _found(
    look: Callable[[Steps, Check, int], Iterator[_Way]], steps: Steps, check: Check, limit_bytes: int
) -> Iterator[_Way]:
    """Yield what one kind of way gives; where it does not work for a model, whatever the reason, it is none.

    The verdict is already known: that a way back fails must not hide it.
    """
    with contextlib.suppress(Exception):
        yield from look(steps, check, limit_bytes)


def _by_runner(steps: Steps, check: Check, limit_bytes: int) -> Iterator[_Way]:
    """Yield the same training as memplan runs it, and with everything that leaves gradients as they are."""
    if check.plan is not None or _runner(check) == "memplan":
        return
    names = [check.method, "lossless"] if check.method == "full" else [check.method]
    for name in names:
        found = priced(steps, replace(check, method=name, runner="memplan"))
        if _size(found, check) <= limit_bytes:
            told = f"apply {name} with memplan: what trains and its gradients stay"
            command = f"memplan apply {shlex.quote(check.model)} --method {name}{_words(check)} --out DIR"
            yield _Way(_remedy(told, found, check, command), (0.0, 0.0, 0.0, float(_flops(found.step.footprint))))
            return


def _by_plan(steps: Steps, check: Check, limit_bytes: int) -> Iterator[_Way]:
    """Yield the best plan of the planner."""
    quantity = _QUANTITIES.get(check.of)
    if quantity is None:
        return
    share = 0.0 if check.of == "saved" else UPPER_SHARE
    budget = int(limit_bytes / (1 + share))
    request = Request(
        Budget(budget, quantity), terms_of(), optimizer=check.optimizer, foreach=check.foreach, brief=True
    )
    planned = planned_for(steps, request)
    plan, blocks = planned.plan, len(planned.blocks)
    depth = blocks if plan.k is None else plan.k
    if depth == blocks:
        what = "train all of it by a plan"
    else:
        what = f"train the last {count(depth, 'block')} of {blocks} and the head" if depth else "train the head alone"
    less = max(0, _trained_blocks(steps, check) - depth)
    asked = f"--budget {budget}B{_of(quantity)}{_words(replace(check, k=None, treatments=()))}"
    command = f"memplan plan {shlex.quote(check.model)} {asked}{_machine(planned.setting.machine)} --out plan.json"
    told = f"{what}: {', '.join(plan.treatments) or 'flags alone'}"
    cost = (float(plan.gradients != "exact"), float(less), 0.0, float(_flops(planned.footprint)))
    assert planned.step is not None
    label = f"{planned.runner} {plan.label}"
    step = PricedStep(label, planned.step, planned.footprint, planned.implementation, plan)
    yield _Way(Remedy(told, upper_estimate(planned.bytes, check.of), plan.gradients, command, step), cost)


def _by_batch(steps: Steps, check: Check, limit_bytes: int) -> Iterator[_Way]:
    """Yield the largest batch at which the step fits as it is: found by interpolation, and recorded."""
    subject = steps.subject
    batch = first_batch(steps.model.args, steps.model.kwargs) or 1
    if subject.source is None or batch < 2 or check.plan is not None:
        return

    def priced_at(samples: int) -> Priced:
        options = {**dict(check.subject), "batch_size": samples, "loss": subject.loss}
        return priced(Steps(subject_of(check.model, **options)), check)

    low, fitting = _smallest(priced_at, batch)
    if _size(fitting, check) > limit_bytes:
        return
    low_bytes, high, high_bytes = _size(fitting, check), batch, _size(priced(steps, check), check)
    halve = False
    while high - low > 1:
        # The size is nearly a line in the batch, so that a guess on it is seldom off by more than one; where it has a
        # knee, halving every second time keeps the recordings few.
        share = 0.5 if halve else (limit_bytes - low_bytes) / max(high_bytes - low_bytes, 1)
        halve = not halve
        guess = min(max(low + int((high - low) * share), low + 1), high - 1)
        found = priced_at(guess)
        size = _size(found, check)
        if size <= limit_bytes:
            low, low_bytes, fitting = guess, size, found
        else:
            high, high_bytes = guess, size
    smaller = replace(fitting, step=replace(fitting.step, label=f"{fitting.step.label}, batch {low}"))
    remedy = _remedy(f"a batch of {low} instead of {batch}", smaller, check)
    yield _Way(remedy, (0.0, 0.0, float(batch - low), 0.0))


def _smallest(priced_at: Callable[[int], Priced], batch: int) -> tuple[int, Priced]:
    """Return the smallest batch that can be recorded, and its step: a norm over one value needs two samples.

    Raises:
        MemplanError: neither one sample nor two can be recorded.
    """
    try:
        return 1, priced_at(1)
    except MemplanError:
        if batch < 3:
            raise
        return 2, priced_at(2)


def _remedy(what: str, found: Priced, check: Check, command: str | None = None) -> Remedy:
    plan = found.step.plan
    return Remedy(what, _size(found, check), "exact" if plan is None else plan.gradients, command, found.step)


def _size(found: Priced, check: Check) -> int:
    """Return the upper estimate of a check's quantity."""
    return upper_estimate(found.predicted_bytes, check.of)


def _flops(footprint: Footprint) -> int:
    return footprint.flops_forward + footprint.flops_backward


def _runner(check: Check) -> str:
    return runners_of(method_named(check.method), check.runner, check.treatments)[0]


def _trained_blocks(steps: Steps, check: Check) -> int:
    """Return how many blocks a check trains, all but where its method takes a k or is ``last``."""
    method = method_named(check.method)
    settled = steps.settled_k(method, check.k)
    if settled is not None:
        return settled
    return 0 if method.name == "last" else len(steps.blocks)


def _of(quantity: Quantity) -> str:
    return "" if quantity == "peak" else f" --budget-of {quantity}"


def _words(check: Check) -> str:
    """Return the options that ask a command for the step of a check, but for its method."""
    words: list[str] = [] if check.k is None else ["--k", str(check.k)]
    for name in check.treatments:
        words += ["--treatment", name]
    for name, option in _OPTIONS.items():
        value = dict(check.subject).get(name)
        if name == "input_shape" and value is not None:
            value = format_shape(tuple(value))
        if isinstance(value, (int, str)):
            words += [option, str(value)]
    training = dict(check.subject).get("training")
    if training is not None:
        words.append("--train" if training else "--eval")
    if check.optimizer != "sgd":
        words += ["--optimizer", check.optimizer]
    if check.foreach is not None:
        words.append("--foreach" if check.foreach else "--no-foreach")
    return "".join(f" {shlex.quote(word)}" for word in words)


def _machine(machine: Machine) -> str:
    """Return the options that ask for the machine of a check: on another one the plan may need more."""
    kernels = f" --instruction-set {machine.instruction_set}" if machine.instruction_set else ""
    return f" --threads {machine.threads}{kernels}"


#: The options of arguments of a subject.
_OPTIONS: Final = {
    "batch_size": "--batch-size",
    "input_shape": "--input",
    "classes": "--classes",
    "dtype": "--dtype",
    "weights": "--weights",
    "amp": "--amp",
    "loss": "--loss",
}
