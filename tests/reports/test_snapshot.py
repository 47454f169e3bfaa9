"""The snapshot for PyTorch's memory viewer: replayed event by event, and given to PyTorch's own readers."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import pickle
import pickletools
import random
import re
from typing import Any, get_args

import pytest

from memplan.graph import StepGraph, Storage
from memplan.memory import OPTIMIZERS, Implementation, price
from memplan.memory.lifetimes import allocations
from memplan.reports.snapshot import snapshot, to_pickle
from tests.memory.test_lifetimes import random_step
from tests.memory.test_timeline import chain as short_chain
from tests.planner.toy import step
from tests.reports.toy import chain

#: What the viewer's reader of pickles knows. Source: torch/utils/viz/MemoryViz.js, ``unpickle``.
READ_BY_THE_VIEWER = frozenset(
    {
        *("PROTO", "FRAME", "MEMOIZE", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MARK", "STOP"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "DICT", "EMPTY_LIST", "APPEND", "APPENDS", "LIST"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SHORT_BINUNICODE", "BINUNICODE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NEWFALSE", "NEWTRUE", "NONE"),
    }
)

#: Whole numbers beyond this are not JavaScript's.
LARGEST_NUMBER = 2**53


def replayed(contents: dict[str, Any]) -> list[dict[int, int]]:
    """Return the live allocations, sizes by address, after each event but the requests to free.

    Every event must be possible: what is allocated lies in the segment and overlaps nothing, what is freed is there.
    """
    live: dict[int, int] = {}
    states = []
    segments: list[tuple[int, int]] = []
    requested = None
    for event in contents["device_traces"][0]:
        address, size = event["addr"], event["size"]
        assert requested in (None, (event["action"], address, size))
        requested = None
        if event["action"] == "segment_alloc":
            segments.append((address, address + size))
        elif event["action"] == "alloc":
            assert any(begin <= address and address + size <= end for begin, end in segments)
            assert all(other + other_size <= address or address + size <= other for other, other_size in live.items())
            live[address] = size
        elif event["action"] == "free_requested":
            requested = ("free_completed", address, size)
            continue
        else:
            assert event["action"] == "free_completed"
            assert live.pop(address) == size
        states.append(dict(live))
    return states


def peak(contents: dict[str, Any]) -> int:
    return max(sum(state.values()) for state in replayed(contents))


@pytest.mark.parametrize("implementation", get_args(Implementation))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_largest_sum_of_events_is_the_peak(optimizer: str, implementation: Implementation) -> None:
    for graph in (chain(), chain(trained=1), step(), short_chain()):
        contents = pickle.loads(to_pickle(snapshot(graph, optimizer, implementation)))
        assert peak(contents) == price(graph, optimizer, implementation).peak_bytes


@pytest.mark.parametrize("seed", range(12))
def test_random_steps_replay_to_what_is_left_at_the_end(seed: int) -> None:
    graph = random_step(seed)
    contents = snapshot(graph, "adam", random.Random(seed).choice(get_args(Implementation)))
    last = replayed(contents)[-1]
    (segment,) = contents["segments"]
    reached, active = segment["address"], {}
    for block in segment["blocks"]:
        assert block["address"] == reached
        if block["state"] == "active_allocated":
            active[reached] = block["requested_size"]
        reached += block["size"]
    assert reached == segment["address"] + segment["total_size"]
    assert active == last
    assert segment["allocated_size"] == sum(last.values())
    # The segment is as large as the step ever needed, and not much of it is gaps.
    most = max(address + size for state in replayed(contents) for address, size in state.items())
    assert most == reached


def test_what_exists_before_the_step_is_allocated_first() -> None:
    graph = short_chain()
    events = snapshot(graph, "adam")["device_traces"][0]
    assert [(event["action"], event["size"], event["time_us"]) for event in events[1:]] == [
        ("alloc", 8, 0),  # the parameter, the input, the state
        ("alloc", 100, 0),
        ("alloc", 2 * 8 + 4, 0),
        ("alloc", 40, 0),
        ("alloc", 4, 1),
        ("alloc", 40, 2),
        ("free_requested", 40, 3),
        ("free_completed", 40, 3),
        ("alloc", 8, 3),
        ("free_requested", 4, 4),
        ("free_completed", 4, 4),
        ("free_requested", 40, 4),
        ("free_completed", 40, 4),
        ("alloc", 2 * 8, 4),
    ]
    before = [event["frames"][0]["name"] for event in events[1:4]]
    assert before == ["parameter", "input", "state"]


def test_each_allocation_takes_the_first_gap_that_is_large_enough() -> None:
    """After the parameter, input and state, at 8 + 100 + 20, what comes goes behind them or where the first 40 was."""
    addresses = [event["addr"] for event in snapshot(short_chain(), "adam")["device_traces"][0]]
    begin = 8 + 100 + 20
    gradient = begin  # 8 bytes where 40 were
    assert [address - addresses[0] for address in addresses[1:]] == [
        *(0, 8, 108),
        *(begin, begin + 40, begin + 44),
        *(begin, begin),
        gradient,
        *(begin + 40, begin + 40, begin + 44, begin + 44),
        gradient + 8,  # the gaps have become one, up to the end
    ]


def test_what_is_too_large_for_the_last_gap_takes_it_along() -> None:
    graph = short_chain(trains=False)
    storages = (
        *graph.storages[:2],
        Storage(2, 10, "activation", 0, 1),
        Storage(3, 0, "activation", 1, 3),
        Storage(4, 25, "activation", 2, 3),
        Storage(5, 0, "activation", 3, 3),
    )
    ops = (*graph.ops[:2], dataclasses.replace(graph.ops[2], args=graph.ops[2].args[:1]), graph.ops[3])
    (segment,) = snapshot(dataclasses.replace(graph, storages=storages, ops=ops))["segments"]
    assert segment["total_size"] == 8 + 100 + 25


def test_frames_name_the_op_and_the_modules_around_it() -> None:
    graph = chain(trained=1)
    found = {
        tuple(f"{frame['filename']}:{frame['line']}:{frame['name']}" for frame in event["frames"])
        for event in snapshot(graph)["device_traces"][0]
        if event["action"] == "alloc"
    }
    chained = ("layers:0:", "(model):0:Chain")
    assert ("layers.2:2:aten.toy.default", "layers.2:0:Linear", *chained, "forward:0:saved") in found
    assert ("layers.3:0:parameter", "layers.3:0:Linear", *chained, "before:0:parameter") in found
    assert ("layers.3:6:aten.toy.default", "layers.3:0:Linear", *chained, "backward:0:gradient") in found
    assert ("(model):4:aten.toy.default", "(model):0:Chain", "loss:0:temp") in found


def test_the_viewer_can_read_the_pickle() -> None:
    layers = (dataclasses.replace(layer, path=layer.path and f"{layer.path}.é\ud800\n") for layer in chain().layers)
    data = to_pickle(snapshot(dataclasses.replace(chain(), layers=tuple(layers)), "adam"))
    assert data[:2] == b"\x80\x04"
    for opcode, argument, _ in pickletools.genops(data):
        assert opcode.name in READ_BY_THE_VIEWER
        assert not isinstance(argument, int) or abs(argument) < LARGEST_NUMBER
        if isinstance(argument, str):
            argument.encode("utf-8")
    categories = [event.get("category") for event in pickle.loads(data)["device_traces"][0]]
    assert set(categories) == {None, "unknown", "parameter", "gradient", "state", "saved", "temp", "update"}


def test_memory_viz_draws_it() -> None:
    from torch.cuda import _memory_viz

    graph, lines = chain(), io.StringIO()
    contents = snapshot(graph, "adam")
    (segment,) = contents["segments"]
    for draw, kind in ((_memory_viz.trace_plot, "Active Memory Timeline"), (_memory_viz.segment_plot, "Allocator")):
        page = draw(contents)
        assert kind in page
        embedded = re.search(r"local_files = (.*)\n", page)
        assert embedded is not None
        (file,) = json.loads(embedded[1])
        assert pickle.loads(base64.b64decode(file["base64"])) == contents
    for report in (_memory_viz.memory, _memory_viz.segments):
        text = report(contents, format_flamegraph=str)
        sizes = [int(line.rpartition(" ")[2]) for line in text.splitlines()]
        assert sum(sizes) == segment["total_size"]
        assert "active_allocated;before:0:state;(model):0:Chain;layers:0:;layers.3:0:Linear;layers.3:0:state" in text
    assert "total_allocated" in _memory_viz.segsum(contents)
    with contextlib.redirect_stdout(lines):
        _memory_viz.compare(contents["segments"], contents["segments"], format_flamegraph=str)
    assert "only_before = []" in lines.getvalue()
    told = _memory_viz.trace(contents)
    assert told.count(" = s0[") + told.count(" = a[") == len(allocations(graph, "adam"))
    left = _memory_viz.filter_alloc_free_pairs(pickle.loads(pickle.dumps(contents)))["device_traces"][0]
    assert sum(event["size"] for event in left if event["action"] == "alloc") == segment["allocated_size"]


def test_a_real_network_has_its_peak() -> None:
    from memplan.methods import method_named
    from memplan.steps import Steps
    from memplan.subject import subject_of

    graph: StepGraph = Steps(subject_of("mobilenet_v3_small", batch_size=2, input_shape=(3, 64, 64))).step(
        method_named("full")
    )
    contents = snapshot(graph, "momentum")
    footprint = price(graph, "momentum")
    assert peak(contents) == footprint.peak_bytes
    # First fit wastes little: the segment is at most a tenth larger than the peak.
    assert footprint.peak_bytes <= contents["segments"][0]["total_size"] < 1.1 * footprint.peak_bytes
