"""The trace for Perfetto and Chrome: held to the format's own rules, and added up. No torch but for a real network."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from typing import Any, get_args

import pytest

from memplan.memory import OPTIMIZERS, Implementation, price, timeline
from memplan.reports.trace_events import TRACKS, trace_events
from tests.memory.test_lifetimes import random_step
from tests.planner.toy import FLOPS, step
from tests.reports.toy import chain

#: For each kind of event what it must have and may have beside ``ph``, ``name`` and ``pid``.
#: Source: Trace Event Format, "Complete Events", "Counter Events", "Instant Events", "Metadata Events".
FIELDS = {
    "X": ({"tid", "ts", "dur"}, {"cat", "args", "cname", "tdur", "tts"}),
    "C": ({"ts", "args"}, {"cat", "id", "tid", "cname"}),
    "i": ({"tid", "ts", "s"}, {"cat", "args", "cname"}),
    "M": ({"args"}, {"tid", "cat", "ts"}),
}

#: What the metadata events of each name carry.
METADATA = {
    "process_name": ("name", str),
    "thread_name": ("name", str),
    "process_labels": ("labels", str),
    "process_sort_index": ("sort_index", int),
    "thread_sort_index": ("sort_index", int),
}


def valid(text: str) -> list[dict[str, Any]]:
    """Return the events of a trace in JSON object format; nothing that the format does not have may be in it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    trace = json.loads(text, object_pairs_hook=unique)
    assert trace.keys() <= {"traceEvents", "displayTimeUnit", "systemTraceEvents", "otherData", "stackFrames"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    assert all(isinstance(value, str) for value in trace["otherData"].values())
    for event in trace["traceEvents"]:
        must, may = FIELDS[event["ph"]]
        keys = event.keys() - {"ph", "name", "pid"}
        assert must <= keys <= must | may, event
        assert isinstance(event["name"], str)
        assert event["name"]
        for number in ("pid", "tid", "ts", "dur"):
            assert isinstance(event.get(number, 0), int)
            assert event.get(number, 0) >= 0
        if event["ph"] == "C":
            assert event["args"]
            assert all(type(value) in (int, float) for value in event["args"].values())
        if event["ph"] == "i":
            assert event["s"] in ("g", "p", "t")
        if event["ph"] == "M":
            argument, kind = METADATA[event["name"]]
            assert event["args"].keys() == {argument}
            assert isinstance(event["args"][argument], kind)
    assert_nested([event for event in trace["traceEvents"] if event["ph"] == "X"])
    return trace["traceEvents"]  # type: ignore[no-any-return]


def assert_nested(slices: list[dict[str, Any]]) -> None:
    """On each track a slice that begins within another one ends within it, and the outer one comes first."""
    tracks = defaultdict(list)
    for event in slices:
        tracks[event["pid"], event["tid"]].append(event)
    for events in tracks.values():
        open_until: list[int] = []
        now = 0
        for event in events:
            assert event["ts"] >= now
            now = event["ts"]
            while open_until and open_until[-1] <= now:
                open_until.pop()
            assert not open_until or now + event["dur"] <= open_until[-1]
            open_until.append(now + event["dur"])


def series(events: list[dict[str, Any]], name: str, count: int) -> tuple[int, ...]:
    """Return a counter at each moment; it keeps its value until the next event."""
    values = {event["ts"]: event["args"]["bytes"] for event in events if event["ph"] == "C" and event["name"] == name}
    found: list[int] = []
    for moment in range(count):
        found.append(values[moment] if moment in values else found[-1])
    return tuple(found)


@pytest.mark.parametrize("implementation", get_args(Implementation))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_counters_are_the_timeline(optimizer: str, implementation: Implementation) -> None:
    for graph in (chain(), step(), random_step(3), random_step(5)):
        steps = timeline(graph, OPTIMIZERS[optimizer], implementation)
        events = valid(trace_events(graph, optimizer, implementation, budget_bytes=70))
        count = len(steps.phases)
        for name in ("resident", "saved", "temp"):
            assert series(events, name, count) == getattr(steps, name)
        assert series(events, "total", count) == steps.totals
        assert series(events, "budget", count) == (70,) * count
        (peak,) = (event for event in events if event["ph"] == "i")
        footprint = price(graph, optimizer, implementation)
        assert (peak["ts"], peak["args"]) == (footprint.peak.moment, {"bytes": footprint.peak_bytes})


def test_without_a_budget_there_is_no_counter_of_it() -> None:
    assert "budget" not in {event["name"] for event in valid(trace_events(chain()))}


def test_each_op_has_a_slice_on_the_track_of_its_phase() -> None:
    graph = step()
    ops = [event for event in valid(trace_events(graph)) if event.get("cat") == "op"]
    assert [(event["ts"], event["dur"]) for event in ops] == [(moment, 1) for moment in range(10 + 4)]
    assert [event["tid"] for event in ops] == [1] * 4 + [2] + [3] * 5 + [4] * 4
    assert [event["name"] for event in ops] == ["toy.op"] * 10 + ["optimizer.step"] * 4
    assert [event["args"]["flops"] for event in ops[:4]] == list(FLOPS)
    assert [event["args"]["layer"] for event in ops[:5]] == ["stem", "blocks.0", "blocks.1", "head", ""]
    assert ops[0]["args"] == {
        "layer": "stem",
        "resident_bytes": 8 + 12 + 16 + 20,
        "saved_bytes": 100 + 40,
        "temp_bytes": 0,
        "scratch_bytes": 0,
        "total_bytes": 8 + 12 + 16 + 20 + 100 + 40,
        "flops": 1,
    }


def test_modules_lie_around_their_ops() -> None:
    events = valid(trace_events(step()))
    modules = [(e["tid"], e["ts"], e["dur"], e["name"], e["args"]["type"]) for e in events if e.get("cat") == "module"]
    assert modules == [
        (1, 0, 4, "Net", "Net"),
        (1, 0, 1, "stem", "Scale"),
        (1, 1, 2, "blocks", ""),
        (1, 1, 1, "blocks.0", "Scale"),
        (1, 2, 1, "blocks.1", "Scale"),
        (1, 3, 1, "head", "Scale"),
        (2, 4, 1, "Net", "Net"),
        (3, 5, 5, "Net", "Net"),
        (3, 6, 1, "head", "Scale"),
        (3, 7, 2, "blocks", ""),
        (3, 7, 1, "blocks.1", "Scale"),
        (3, 8, 1, "blocks.0", "Scale"),
        (3, 9, 1, "stem", "Scale"),
    ]


def test_tracks_are_named_and_ordered() -> None:
    named = [event for event in valid(trace_events(chain())) if event["ph"] == "M"]
    tracks = {event["tid"]: event["args"]["name"] for event in named if event["name"] == "thread_name"}
    order = {event["tid"]: event["args"]["sort_index"] for event in named if event["name"] == "thread_sort_index"}
    assert tracks == {number: phase for phase, number in TRACKS.items()}
    assert order == {number: number for number in TRACKS.values()}


@pytest.mark.parametrize("name", ['a"b', "a\\b", "</script>", "\x00\n", "\ud800", "\u2028"])
def test_any_name_is_plain_text(name: str) -> None:
    layers = (dataclasses.replace(layer, path=layer.path and name + layer.path) for layer in chain().layers)
    text = trace_events(dataclasses.replace(chain(), layers=tuple(layers)))
    assert text.isascii()
    assert f"{name}layers.0" in {event["name"] for event in valid(text)}


def test_what_breaks_the_rules_is_seen() -> None:
    """The checks above can fail."""
    good = json.loads(trace_events(chain()))
    for change in ({"dur": -1}, {"ts": None}, {"s": "g"}, {"ph": "Q"}, {"dur": 1_000}):
        events = [dict(event) for event in good["traceEvents"]]
        index = [place for place, event in enumerate(events) if event.get("cat") == "op"][2]
        events[index] |= change
        with pytest.raises((AssertionError, KeyError, TypeError)):
            valid(json.dumps({**good, "traceEvents": events}))


def test_the_trace_of_a_resnet50_is_valid() -> None:
    from memplan.methods import method_named
    from memplan.steps import Steps
    from memplan.subject import subject_of

    graph = Steps(subject_of("resnet50", batch_size=2, input_shape=(3, 64, 64))).step(method_named("full"))
    text = trace_events(graph, "adam", budget_bytes=500_000_000)
    events = valid(text)
    footprint = price(graph, "adam")
    assert max(series(events, "total", len(footprint.timeline.phases))) == footprint.peak_bytes
    ops = [event for event in events if event.get("cat") == "op"]
    assert sum(event["args"].get("flops", 0) for event in ops) == footprint.flops_forward + footprint.flops_backward
    assert "layer1.0.conv1" in {event["name"] for event in events}
    assert len(text) < 2_000_000
