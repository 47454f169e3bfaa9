"""The predicted step as a trace in the format of Chrome and Perfetto: operators, modules, and bytes over the step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from memplan.graph.records import Phase
from memplan.graph.step_graph import StepGraph
from memplan.memory import Implementation, Timeline, timeline
from memplan.memory.lifetimes import Moment, moments
from memplan.memory.optimizers import optimizer_rule

#: A track for each phase, in this order.
TRACKS: Final[dict[Phase, int]] = {"forward": 1, "loss": 2, "backward": 3, "optimizer": 4}

#: The one process of the trace.
_PROCESS: Final = 1


def trace_events(
    graph: StepGraph,
    optimizer: str = "sgd",
    implementation: Implementation = "loop",
    *,
    budget_bytes: int | None = None,
) -> str:
    """Return the JSON text of one step in steady state, to be opened in Perfetto or in ``chrome://tracing``.

    Every moment lasts one microsecond: the axis counts moments, it is not time. Each phase has a track on which an
    operator's slice lies in those of the modules around it; counters give the bytes that are resident, saved, temporary
    and all of them, and the budget. The largest moment is marked.

    Raises:
        UsageError: there is no such optimizer.

    Source: the Trace Event Format (catapult-project, 2016), JSON object format.
    """
    steps = timeline(graph, optimizer_rule(optimizer), implementation)
    ran = moments(graph, optimizer, implementation)
    events = [
        *_names(ran),
        *_modules(graph, ran),
        *_operators(graph, ran, steps),
        *_counters(steps, budget_bytes),
        *_peak(steps),
    ]
    lines = ",\n".join(json.dumps(event) for event in sorted(events, key=_order))
    about = json.dumps({"producer": "memplan", "duration": "one microsecond for each moment of the step"})
    return f'{{"displayTimeUnit": "ns", "otherData": {about}, "traceEvents": [\n{lines}\n]}}\n'


def _order(event: dict[str, Any]) -> tuple[int, int]:
    """Names come first; of slices that begin at once the outer one does."""
    return event.get("ts", -1), -event.get("dur", 0)


def _names(ran: Sequence[Moment]) -> Iterator[dict[str, Any]]:
    yield _named("process_name", 0, name="one training step, predicted by memplan")
    for phase in dict.fromkeys(moment.phase for moment in ran):
        yield _named("thread_name", TRACKS[phase], name=phase)
        yield _named("thread_sort_index", TRACKS[phase], sort_index=TRACKS[phase])


def _named(what: str, track: int, **arguments: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": track, "args": arguments}


def _modules(graph: StepGraph, ran: Sequence[Moment]) -> Iterator[dict[str, Any]]:
    """Yield a slice for each stretch of moments that a module runs, the outermost modules first."""
    types = {layer.path: layer.type for layer in graph.layers}
    around = [_around(moment) for moment in ran]
    for depth in range(max(map(len, around), default=0)):
        places = ((moment.phase, *paths[depth : depth + 1]) for moment, paths in zip(ran, around, strict=True))
        for (phase, *paths), run in groupby(enumerate(places), key=itemgetter(1)):
            moments_run = [moment for moment, _ in run]
            for path in paths:
                kind = types.get(path, "")
                name, first = path or kind or "(model)", moments_run[0]
                yield _slice(name, "module", phase, first, len(moments_run), {"type": kind})


def _around(moment: Moment) -> list[str]:
    """Return the paths of the model and of the modules around a moment, from the outermost inwards."""
    if moment.phase == "optimizer":
        return []
    names = moment.layer.split(".") if moment.layer else []
    return [".".join(names[:depth]) for depth in range(len(names) + 1)]


def _operators(graph: StepGraph, ran: Sequence[Moment], steps: Timeline) -> Iterator[dict[str, Any]]:
    totals = steps.totals
    for place, moment in enumerate(ran):
        arguments = {
            "layer": moment.layer,
            "resident_bytes": steps.resident[place],
            "saved_bytes": steps.saved[place],
            "temp_bytes": steps.temp[place],
            "scratch_bytes": steps.scratch[place],
            "total_bytes": totals[place],
        }
        if place < len(graph.ops):
            arguments["flops"] = graph.ops[place].flops
        yield _slice(moment.op, "op", moment.phase, place, 1, arguments)


def _slice(name: str, category: str, phase: Phase, first: int, count: int, arguments: dict[str, Any]) -> dict[str, Any]:
    track = TRACKS[phase]
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": _PROCESS,
        "tid": track,
        "ts": first,
        "dur": count,
        "args": arguments,
    }


def _counters(steps: Timeline, budget_bytes: int | None) -> Iterator[dict[str, Any]]:
    series = {"total": steps.totals, "resident": steps.resident, "saved": steps.saved, "temp": steps.temp}
    if budget_bytes is not None:
        series["budget"] = (budget_bytes,) * len(steps.phases)
    for name, sizes in series.items():
        for moment, size in enumerate(sizes):
            if moment == 0 or size != sizes[moment - 1]:
                yield {"ph": "C", "name": name, "pid": _PROCESS, "ts": moment, "args": {"bytes": size}}


def _peak(steps: Timeline) -> Iterator[dict[str, Any]]:
    totals = steps.totals
    if totals:
        peak = max(totals)
        moment = totals.index(peak)
        track = TRACKS[steps.phases[moment]]
        yield {
            "ph": "i",
            "s": "g",
            "name": "peak",
            "pid": _PROCESS,
            "tid": track,
            "ts": moment,
            "args": {"bytes": peak},
        }
