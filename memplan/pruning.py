"""prune: a smaller network, of which no layer needs more than a target while it computes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, cast

from memplan.errors import AnalysisError, BudgetError, UsageError, known
from memplan.methods import METHODS, Plan
from memplan.methods.pruning import Importance, lost, lowest, pruned_group
from memplan.planner.counting import COUNTINGS, Counting, CountingName, counting_of, needs_of
from memplan.planner.pruning import prunable
from memplan.planner.shrink import End, Room, Shrunk, rooms_of, shrink
from memplan.planning import measured_importance
from memplan.results import Bottleneck, PruneResult, ShrunkGroup
from memplan.setting import implementation_of, setting_of
from memplan.steps import Steps
from memplan.subject import subject_of
from memplan.units import BYTES_PER_UNIT, format_bytes, parse_bytes

if TYPE_CHECKING:
    from torch import nn

    from memplan.graph.channels.records import ChannelGroup
    from memplan.graph.step_graph import StepGraph

_PERCENT: Final = re.compile(r"\s*(?P<sign>[-+]?)(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*%\s*")

#: What helps where groups end, by the kind of end.
_LEVERS: Final[dict[End, str]] = {
    "multiple": "a smaller --round-to",
    "share": "a larger --max-prune",
    "kept": "fewer layers to --keep",
}

#: Groups that an error names.
_NAMED: Final = 4


def prune(
    model: str | nn.Module,
    inputs: Any = None,
    *,
    target: int | str,
    importance: str | Callable[..., Any] = "l1",
    calibration: Any = None,
    round_to: int = 8,
    max_prune: float | None = None,
    keep: Sequence[str] = (),
    counting: str = "tinytl",
    device: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **subject: Any,
) -> PruneResult:
    """Return ``model`` without the channels that set the peak of its forward, as a plan under which everything trains.

    Channels go from the layer that needs most while it computes, until another one does, and so on.

    Args:
        model: a spec such as ``"mobilenet_v2"``, or a module, which is not changed.
        inputs: for a module, what its forward takes.
        target: bytes of the peak, text such as ``"2MB"``, or ``"-65%"`` of the present one.
        importance: which channels go: ``l1``, ``l2``, ``bn-scale``, ``taylor``, ``fisher``, ``uniform``, or a function.
        calibration: for ``taylor`` and ``fisher`` a batch ``(inputs, targets)``, or several.
        round_to: kept channels are a multiple of this.
        max_prune: the share of a group's channels that may go; by default all but one multiple.
        keep: layers that are not pruned.
        counting: ``tinytl``, by which a layer needs its input and output and peaks are of one sample, or ``real``: the
            allocator's peak of the step in which the head alone trains.
        device: where the step would run; by default where the model is, the CPU for a spec.
        progress: told what is being done.
        **subject: ``batch_size``, ``input_shape`` and so on, see :func:`memplan.subject.subject_of`.

    Raises:
        UsageError: a name, size or combination that cannot be understood; the target is not below the present peak.
        AnalysisError: the model cannot be loaded or recorded.
        BudgetError: the target cannot be reached.

    Source: Yoosefi, Mousavi, Daneshtalab et al., Activation Memory Reduction (FMEC 2023).
    """
    _check(target, importance, calibration, round_to, max_prune, counting)
    started = time.perf_counter()
    about = subject_of(model, inputs, **subject)
    progress(f"building {about.name}")
    steps = Steps(about, device)
    setting = setting_of(about, steps, "sgd", implementation_of(None, steps.model.device.type))
    progress(f"recording {about.name}: stock last")
    step, headless = _forward_of(steps, counting)
    count = counting_of(cast(CountingName, counting), step, setting.batch_size or 1, setting.implementation)
    before = count.counted(step)
    if not before.peak_bytes:
        raise AnalysisError(f"{about.name} has no layer that {counting} counts; nothing can be pruned")
    limit = _target_bytes(target, before.peak_bytes, counting)

    from memplan.graph.channels.groups import channel_groups

    progress("finding channel groups")
    groups = channel_groups(step)
    free = tuple(prunable(groups, step, keep))
    rooms = rooms_of(groups, {group.name for group in free}, round_to, max_prune)
    measured, notes = measured_importance(about, free, importance, calibration)
    entering = _Entering(count, groups)
    progress(f"shrinking {about.name}")
    proportional = counting == "tinytl"
    found = shrink(rooms, needs_of(count, step, groups), entering, measured, limit, proportional=proportional)
    if not found.reached:
        raise BudgetError(_not_enough(about.name, found, rooms, count, entering, f"{_size(limit)}{_per(counting)}"))
    plan = _plan_of(steps, step, free, found, measured)
    progress(f"recording {about.name}: pruned")
    after = count.counted(_recorded(steps, plan, step))
    if after.peak_bytes > limit:
        raise AnalysisError(
            f"{about.name} peaks at {_size(after.peak_bytes)} when pruned, not at {_size(found.peak_bytes)}; "
            "set a lower target"
        )
    share = lost(measured, plan.pruned)
    return PruneResult(
        setting=setting,
        counting=cast(CountingName, counting),
        samples=setting.batch_size or 1,
        target_bytes=limit,
        before=before,
        after=after,
        groups=tuple(
            ShrunkGroup(group.name, group.channels - len(group.dropped), group.channels, share.groups[group.name])
            for group in plan.pruned
        ),
        importance=measured.by,
        lost=share.total,
        groups_measured=len(measured.shares),
        bottlenecks=tuple(Bottleneck(count.layer(stage.place), stage.peak_bytes) for stage in found.stages),
        plan=plan,
        notes=(*headless, *notes, *_notes(measured)),
        seconds=time.perf_counter() - started,
    )


def _forward_of(steps: Steps, counting: str) -> tuple[StepGraph, tuple[str, ...]]:
    """Return the step in which the head alone trains; of a model without one, in which everything does, and a note.

    Raises:
        AnalysisError: the allocator's peak is asked for of a model without a head; or the step cannot be recorded.
    """
    _ = steps.blocks  # recorded first, so that what fails below is the choice of what trains
    try:
        steps.trained(METHODS["last"])
    except AnalysisError as error:
        if counting == "real":
            raise AnalysisError(
                f"{steps.subject.name} has no head that could train alone; use --counting tinytl"
            ) from error
        return steps.step(METHODS["full"]), ("the model has no head: all its parameters count four bytes",)
    return steps.step(METHODS["last"]), ()


class _Entering:
    """The groups that enter a place, by name."""

    def __init__(self, counting: Counting, groups: Sequence[ChannelGroup]) -> None:
        self._counting = counting
        self._groups = groups
        self._known: dict[int, frozenset[str]] = {}

    def __call__(self, place: int) -> frozenset[str]:
        if place not in self._known:
            storages = self._counting.entering(place)
            self._known[place] = frozenset(
                group.name for group in self._groups if not storages.isdisjoint(group.storages)
            )
        return self._known[place]


def _plan_of(
    steps: Steps, step: StepGraph, groups: Sequence[ChannelGroup], found: Shrunk, importance: Importance
) -> Plan:
    plan = Plan(
        method="prune",
        k=None,
        trained=tuple(parameter.name for parameter in step.parameters),
        pruned=tuple(
            pruned_group(group, lowest(importance, group, group.channels - found.kept[group.name]))
            for group in groups
            if found.kept.get(group.name, group.channels) < group.channels
        ),
    )
    return steps.named(plan)


def _recorded(steps: Steps, plan: Plan, step: StepGraph) -> StepGraph:
    """Return the step in which the head of the pruned network trains."""
    return steps.run(replace(plan, trained=tuple(each.name for each in step.parameters if each.trains)))


def _notes(importance: Importance) -> Iterator[str]:
    if importance.without_norm:
        names = ", ".join(importance.without_norm[:_NAMED])
        more = len(importance.without_norm) - _NAMED
        yield f"measured by l1, for want of a norm: {names}{f' and {more} more' if more > 0 else ''}"


def _check(
    target: int | str,
    importance: str | Callable[..., Any],
    calibration: Any,
    round_to: int,
    max_prune: float | None,
    counting: str,
) -> None:
    """Raise where a request cannot be understood, before a model is built.

    Raises:
        UsageError: it cannot.
    """
    known("counting", counting, COUNTINGS)
    _target_bytes(target, None, counting)
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise UsageError(f"channels are rounded to a number from 1 on, not {round_to}")
    if max_prune is not None and (isinstance(max_prune, bool) or not 0 < max_prune < 1):
        raise UsageError(f"max-prune is a share of a group's channels between 0 and 1, not {max_prune}")
    if importance in ("taylor", "fisher") and calibration is None:
        raise UsageError(
            f"importance {importance!r} needs data; give calibration=(inputs, targets) or --calibration FILE"
        )


def _target_bytes(target: int | str, present: int | None, counting: str) -> int:
    """Return the target in bytes; without the ``present`` peak only what can be said without it is checked.

    Raises:
        UsageError: the target cannot be read, or is no less than the present peak.
    """
    percent = _PERCENT.fullmatch(target) if isinstance(target, str) else None
    if percent is not None:
        share = Fraction(percent["number"])
        if percent["sign"] != "-" or not 0 < share < 100:
            raise UsageError(
                f"a peak falls by more than 0 and less than 100 %, not by {target!r}; write for example -65%"
            )
        return 1 if present is None else int(present * (1 - share / 100))
    if isinstance(target, str):
        try:
            limit = parse_bytes(target)
        except UsageError as error:
            raise UsageError(f"{error}, or -65% of the present peak") from error
    elif isinstance(target, bool) or not isinstance(target, int) or target < 1:
        raise UsageError(f"a target is a positive number of bytes or text such as '2MB' or '-65%', not {target!r}")
    else:
        limit = target
    if present is not None and limit >= present:
        raise UsageError(
            f"the target {target!r} is not below the present peak of {_size(present)}{_per(counting)}, so that nothing "
            "is to be pruned; set a lower one"
        )
    return limit


def _not_enough(
    name: str,
    found: Shrunk,
    rooms: Sequence[Room],
    counting: Counting,
    entering: _Entering,
    target: str,
) -> str:
    """Return what the smallest peak is, which groups stand in the way, and what would help, in one line."""
    inside = [room for room in rooms if room.name in entering(found.place)]
    # Those that may not shrink at all come first.
    inside.sort(key=lambda room: room.least < room.channels)
    ways = [f"{room.name} ({room.least} of {room.channels} channels: {room.end})" for room in inside]
    more = f" and {len(ways) - _NAMED} more" if len(ways) > _NAMED else ""
    held = f"; in the way: {', '.join(ways[:_NAMED])}{more}" if ways else ""
    levers = dict.fromkeys(_LEVERS[room.kind] for room in inside if room.kind in _LEVERS)
    where = counting.layer(found.place) or "the model itself"
    return (
        f"{name} cannot be pruned to {target}: the smallest peak is {_size(found.peak_bytes, up=True)}, "
        f"in {where}{held}; set a higher target, {', '.join((*levers, 'or a smaller input'))}"
    )


def _per(counting: str) -> str:
    return " per sample" if counting == "tinytl" else ""


def _size(size_bytes: int, *, up: bool = False) -> str:
    """Return a peak as text, rounded up where a target of this text is to be reachable."""
    unit, digits = ("MB", 3) if size_bytes >= BYTES_PER_UNIT["MB"] else ("KB", 1)
    step = BYTES_PER_UNIT[unit] // 10**digits
    return format_bytes(-(-size_bytes // step) * step if up else size_bytes, unit=unit, digits=digits)
