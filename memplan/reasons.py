"""Why a plan is what it is: what it does where, what each saving bought, and what more bytes would give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from memplan.planner.instance import peak_of
from memplan.planner.options import PLAIN, Choice, Option
from memplan.planner.records import Found, Upgrade, least_budget
from memplan.planner.search import Search
from memplan.planner.table import Way
from memplan.rehearsal import Rehearsal
from memplan.results import PlannedSegment, Saving
from memplan.units import format_bytes, format_bytes_up


def segments_of(search: Search, rehearsal: Rehearsal, choice: Choice) -> Iterator[PlannedSegment]:
    """Yield what a choice does to each segment, the lowest first; a segment without ops is left out."""
    table, pruning = search.table, rehearsal.pruning
    ways = ways_of(choice, table.count)
    first = table.count - len(choice.options)
    how = search.how(fused=choice.fused_update)
    instance = table.fixed(len(choice.options), how, ways)
    for index, (option, level) in enumerate(ways):
        name, path = rehearsal.segment_name(index)
        if not path and not rehearsal.works(index):
            continue
        trained = index >= first
        channels: tuple[tuple[str, int, int], ...] = ()
        if level and pruning is not None:
            kept = pruning.kept(level)
            channels = tuple(
                (group.name, kept[group.name], group.channels)
                for group in pruning.of_segment[index]
                if group.name in kept
            )
        treatments = (*(option.treatments if trained else ()), *(("prune",) if channels else ()))
        if not trained and choice.samples is not None:
            treatments = ("prefix-microbatch", *treatments)
        yield PlannedSegment(
            name=name,
            path=path,
            trained=trained,
            treatments=treatments,
            price=option.price if trained else None,
            kept_bytes=instance.segments[index][0].cost.kept,
            channels=channels,
        )


def savings_of(search: Search, choice: Choice) -> Iterator[Saving]:
    """Yield what each treatment of a choice bought, the most first: by the search's model, one taken away at a time."""
    table = search.table
    whole = _bytes(search, choice)
    used = {name for option in choice.options for name in option.treatments}
    approximate = next((option.approximate for option in choice.options if option.approximate), ())
    without: dict[str, Choice] = {}
    for name in used - set(approximate[1:]):
        options = tuple(_without(option, name, table.options) for option in choice.options)
        # Signed masks and shift-only norms come together; what one is worth without the other was not recorded.
        without[" and ".join(approximate) if name in approximate else name] = replace(choice, options=options)
    if choice.fused_update:
        without["fused-update"] = replace(choice, fused_update=False)
    if choice.samples is not None:
        without["prefix-microbatch"] = replace(choice, samples=None)
    if choice.pruned:
        without["prune"] = replace(choice, pruned=())
    lossy = {"prune", " and ".join(approximate)}
    found = [Saving(name, _bytes(search, other) - whole, name in lossy) for name, other in without.items()]
    yield from sorted(found, key=lambda saving: (-saving.bytes, saving.treatment))


def upgrades_of(search: Search, rehearsal: Rehearsal, found: Found, *, recorded: bool = True) -> Iterator[Upgrade]:
    """Yield better plans that do not fit, the one that needs least first; with the budget that each would need.

    Without ``recorded`` the search's model is believed.
    """
    choice, limit = found.choice, search.wanted.limit
    depth = len(choice.options)
    upgrades: list[Upgrade] = []
    if depth < search.wanted.most_depth:
        size = search.least_at(depth + 1, recorded=recorded)
        if size is not None:
            upgrades.append(Upgrade(rehearsal.one_more(depth + 1), size))
    lossy = any(option.approximate for option in choice.options)
    if lossy or choice.pruned:
        exact = search.exactly()
        size = exact.least_at(depth, recorded=recorded)
        if size is not None:
            what = " and ".join(
                (*(("exact gradients",) if lossy else ()), *(("nothing pruned",) if choice.pruned else ()))
            )
            upgrades.append(Upgrade(what, size))
    elif any(option.price is not None for option in choice.options):
        plain = replace(choice, options=(PLAIN,) * depth)
        upgrades.append(Upgrade("nothing recomputed", _bytes(search, plain)))
    yield from sorted((each for each in upgrades if each.bytes > limit), key=lambda each: each.bytes)


def not_enough(search: Search, rehearsal: Rehearsal, model: str) -> str:
    """Return one line that says what the least budget is, and what would lower it most."""
    wanted = search.wanted
    choice, floor = search.smallest()
    levers = sorted(_levers(search, rehearsal, choice, floor), key=lambda lever: -lever[1])[:3]
    what = {"peak": "", "activations": " of activations", "kept": " kept for the backward"}[wanted.budget.of]
    told = ", ".join(f"{name} (about {_shown(min(size, floor))} less)" for name, size in levers if size > 0)
    fixed = search.table.constant_bytes(len(choice.options), search.how(fused=choice.fused_update))
    alone = f", of which {_shown(fixed)} stay from step to step" if wanted.budget.of == "peak" else ""
    help_ = f"; what lowers it most: {told}" if told else "; give a larger budget"
    least = least_budget(floor)
    needed = format_bytes_up(least, unit=_unit(least))
    return f"nothing fits {_shown(wanted.budget.bytes)}: {model} needs at least {needed}{what}{alone}{help_}"


def _levers(search: Search, rehearsal: Rehearsal, choice: Choice, floor: int) -> Iterator[tuple[str, int]]:
    """Yield what would lower the least budget, and by about how many bytes."""
    wanted, table = search.wanted, search.table
    depth = len(choice.options)
    how = search.how(fused=choice.fused_update)
    fixed = table.constant_bytes(depth, how)
    if wanted.batch > 1:
        yield "--batch-size 1", round((floor - fixed) * (1 - 1 / wanted.batch))
    if wanted.least_depth > rehearsal.least_depth:
        lower = search.within(rehearsal.least_depth, wanted.least_depth - 1).smallest()[1]
        yield "fewer trained blocks", floor - lower
    if not rehearsal.int8:
        yield "--allow frozen-int8", rehearsal.frozen_weight_bytes(depth) * 3 // 4
    state = table.state_bytes(depth)
    if state:
        yield "--optimizer sgd", state
    if rehearsal.is_single_precision:
        yield "--dtype bfloat16", floor // 2


def ways_of(choice: Choice, count: int) -> tuple[Way, ...]:
    """Return the way of each segment, frozen ones plain."""
    frozen = count - len(choice.options)
    options = (*[PLAIN] * frozen, *choice.options)
    levels = choice.pruned or (0,) * count
    return tuple(zip(options, levels, strict=True))


def _bytes(search: Search, choice: Choice) -> int:
    """Return the bytes of a choice by the search's model."""
    depth = len(choice.options)
    how = search.how(fused=choice.fused_update)
    share = 1.0 if choice.samples is None else choice.samples / search.wanted.batch
    instance = search.table.fixed(depth, how, ways_of(choice, search.table.count), share=share)
    return peak_of(instance, [0] * search.table.count)


def _without(option: Option, name: str, known: Sequence[Option]) -> Option:
    """Return an option of the table that is ``option`` without one treatment, as near as there is one."""
    if name == "recompute":
        bare = replace(option, price=None)
        return bare if bare in known else replace(bare, masked=False) if replace(bare, masked=False) in known else PLAIN
    if name == "bitmask":
        bare = replace(option, masked=False)
        return bare if bare in known else option
    if name not in option.approximate:
        return option
    if option.price is None:
        return PLAIN
    exact = [other for other in known if not other.approximate and other.price is not None]
    lower = [other for other in exact if other.price is not None and other.price <= option.price]
    return max(lower or exact or [PLAIN], key=lambda other: other.price or 0.0)


def _shown(size: int) -> str:
    return format_bytes(size, unit=_unit(size))


def _unit(size: int) -> str:
    return "MB" if size >= 100_000 else "KB" if size >= 1000 else "B"
