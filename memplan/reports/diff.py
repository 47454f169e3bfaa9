"""What differs between two plans: what they are for, what trains, what is done where, and the bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

from rich.console import Group, RenderableType

from memplan.methods import Plan
from memplan.reports.plan_file import Account
from memplan.reports.sentences import paragraph, title
from memplan.reports.sizes import count, elements, flops, size
from memplan.results import Setting

#: What is shown of a side that has nothing there.
_NOTHING: Final = "-"

#: Fields of a plan that are compared by themselves, apart from those that have a line of their own.
_COUNTED: Final = {
    "trained": "trained tensor",
    "layers": "treated layer",
    "running": "norm on running statistics",
    "evaluated": "module in eval mode",
    "tuned": "tuned pair",
    "int8": "8-bit layer",
    "lite": "lite residual",
    "schedule": "scheduled op",
    "notes": "note",
    "untreated": "untreated kind",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that two plans do not have in common, as each has it."""

    what: str
    first: str
    second: str


def differences(first: tuple[Plan, Account | None], second: tuple[Plan, Account | None]) -> tuple[Difference, ...]:
    """Return what differs between two plans, given with the accounts of their searches where they have one."""
    (plan, account), (other, counterpart) = first, second
    found = list(_of_plans(plan, other))
    if account is not None and counterpart is not None:
        found = [
            *_of_settings(account.made_for, counterpart.made_for),
            *_of_accounts(account, counterpart),
            *found,
            *_of_segments(account, counterpart),
        ]
    elif (account is None) != (counterpart is None):
        words = ["no account of a search" if each is None else "found by a search" for each in (account, counterpart)]
        found.append(Difference("origin", *words))
    return tuple(found)


def diff_report(found: tuple[Difference, ...], names: tuple[str, str]) -> RenderableType:
    """Return what a terminal shows of the differences between the plans in two files."""
    if not found:
        return paragraph(f"{names[0]} and {names[1]} have the same plan.")
    return Group(
        title(f"{count(len(found), 'difference')} from {names[0]} to {names[1]}"),
        *(paragraph(f"{each.what}: {each.first} -> {each.second}", indent=2) for each in found),
    )


def _of_settings(first: Setting, second: Setting) -> Iterator[Difference]:
    for entry in fields(Setting):
        if entry.name != "machine":
            yield from _told(entry.name.replace("_", " "), getattr(first, entry.name), getattr(second, entry.name))
    for name in ("torch", "device", "instruction_set", "threads"):
        yield from _told(name.replace("_", " "), getattr(first.machine, name), getattr(second.machine, name))


def _of_accounts(first: Account, second: Account) -> Iterator[Difference]:
    yield from _told("budget", size(first.budget.bytes), size(second.budget.bytes))
    yield from _told("budget is on", first.budget.of, second.budget.of)
    yield from _told("preference", first.prefer, second.prefer)
    yield from _told("runner", first.runner, second.runner)
    for entry in fields(first.asked):
        name = f"--{entry.name.replace('_', '-')}" if entry.name != "spec" else "spec"
        yield from _told(name, getattr(first.asked, entry.name), getattr(second.asked, entry.name))
    for name in ("peak", "saved", "temp", "resident"):
        values = [getattr(account.predicted, f"{name}_bytes") for account in (first, second)]
        yield from _bytes(f"{name}, predicted", values[0], values[1])
    if first.budget.of == second.budget.of != "peak":
        yield from _bytes(f"{first.budget.of}, predicted", first.predicted.bytes, second.predicted.bytes)
    yield from _told("FLOPs", first.predicted.flops, second.predicted.flops, flops)
    yield from _told(
        "trained parameters", first.predicted.trained_parameters, second.predicted.trained_parameters, elements
    )


def _of_plans(first: Plan, second: Plan) -> Iterator[Difference]:
    yield from _told("method", first.method, second.method)
    yield from _told("k", first.k, second.k)
    yield from _told("gradients", first.gradients, second.gradients)
    yield from _told("treatments", first.treatments, second.treatments)
    parts = [
        each.microbatch and f"{count(each.microbatch.samples, 'sample')}, {each.microbatch.boundary}"
        for each in (first, second)
    ]
    yield from _told("frozen part at a time", *parts)
    yield from _told("update in the backward", first.fused_update, second.fused_update)
    yield from _told("for a model of", first.model and str(first.model), second.model and str(second.model))
    if first.model and second.model and str(first.model) == str(second.model):
        yield from _told("parameters' names and shapes", first.model.digest, second.model.digest)
    for name, noun in _COUNTED.items():
        values = [getattr(each, name) for each in (first, second)]
        if values[0] != values[1]:
            only = [sum(item not in values[1 - side] for item in values[side]) for side in (0, 1)]
            words = [f"{count(len(values[side]), noun)}, {only[side]} not in the other" for side in (0, 1)]
            yield Difference(noun + "s", *words)
    yield from _of_pruning(first, second)


def _of_pruning(first: Plan, second: Plan) -> Iterator[Difference]:
    groups = [{group.name: group for group in plan.pruned} for plan in (first, second)]
    for name in dict.fromkeys((*groups[0], *groups[1])):
        sides = [side.get(name) for side in groups]
        if sides[0] != sides[1]:
            words = [
                _NOTHING if group is None else f"{group.channels - len(group.dropped)} of {group.channels}"
                for group in sides
            ]
            if words[0] == words[1]:
                words[1] += ", other ones"
            yield Difference(f"channels of {name}", *words)


def _of_segments(first: Account, second: Account) -> Iterator[Difference]:
    sides = [{segment.name: segment for segment in account.segments} for account in (first, second)]
    for name in dict.fromkeys((*sides[0], *sides[1])):
        pair = [side.get(name) for side in sides]
        words = []
        for segment in pair:
            if segment is None:
                words.append(_NOTHING)
                continue
            price = "" if segment.price is None else f" at {segment.price:g}"
            does = ", ".join(segment.treatments) or "as stock"
            words.append(f"{'trains' if segment.trained else 'frozen'}, {does}{price}")
        kept = [None if segment is None else segment.kept_bytes for segment in pair]
        if words[0] != words[1] or kept[0] != kept[1]:
            shown = [_NOTHING if value is None else size(value) for value in kept]
            yield Difference(
                name, *(_NOTHING if pair[side] is None else f"{shown[side]}, {words[side]}" for side in (0, 1))
            )


def _bytes(what: str, first: int, second: int) -> Iterator[Difference]:
    if first != second:
        more = second - first
        yield Difference(what, size(first), f"{size(second)} ({'+' if more > 0 else '-'}{size(abs(more))})")


def _told(what: str, first: Any, second: Any, shown: Any = None) -> Iterator[Difference]:
    if first != second:
        words = [(shown or _words)(value) for value in (first, second)]
        if words[0] == words[1]:  # too close for how they are written
            words = [_words(value) for value in (first, second)]
        yield Difference(what, *words)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    return _NOTHING if value is None else str(value)
