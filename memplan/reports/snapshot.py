"""The predicted step as a snapshot of PyTorch's allocator, for PyTorch's own memory viewer."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final

from memplan.graph.step_graph import StepGraph
from memplan.memory import Implementation
from memplan.memory.lifetimes import Allocation, Moment, allocations, moments
from memplan.reports.flamegraph import frame_name, label

#: The viewer reads the protocols 2 to 4 only. Source: torch/utils/viz/MemoryViz.js, ``unpickle``.
PROTOCOL: Final = 4

#: Where the segment begins: any address will do that JavaScript's numbers hold.
_START: Final = 0x7F0000000000

#: The viewer that colours allocations by category fails where no event is of this one.
_UNKNOWN: Final = "unknown"


def snapshot(graph: StepGraph, optimizer: str = "sgd", implementation: Implementation = "loop") -> dict[str, Any]:
    """Return what ``torch.cuda.memory._snapshot`` would of one step in steady state, as far as it is predicted.

    Sizes and order are the prediction's: the largest sum of allocated bytes is the footprint's ``peak_bytes``. The
    addresses are not: each allocation takes the first gap in one segment that is large enough. ``time_us`` counts
    moments. The frames of an allocation name the op that makes it, and the modules around it from the inside out; what
    exists before the step is allocated first.

    Raises:
        UsageError: there is no such optimizer.

    Source: torch/cuda/memory.py, ``_snapshot``.
    """
    found = allocations(graph, optimizer, implementation)
    ran = moments(graph, optimizer, implementation)
    addresses, size = _placed(found, len(ran))
    frames = _Frames(graph, ran)
    stacks = [frames.of(allocation) for allocation in found]
    segment = _event("segment_alloc", _START, size, [], 0) | {"category": _UNKNOWN}
    events = [segment, *_events(found, addresses, stacks, len(ran))]
    blocks = list(_blocks(found, addresses, stacks, size, len(ran) - 1))
    active = sum(block["requested_size"] for block in blocks)
    return {
        "segments": [
            {
                "device": 0,
                "address": _START,
                "total_size": size,
                "allocated_size": active,
                "active_size": active,
                "requested_size": active,
                "stream": 0,
                "segment_type": "large",
                "segment_pool_id": (0, 0),
                "is_expandable": False,
                "frames": [],
                "blocks": blocks,
            }
        ],
        "device_traces": [events],
        "allocator_settings": {},
        "external_annotations": [],
    }


def to_pickle(contents: dict[str, Any]) -> bytes:
    """Return a snapshot as the bytes of a file that PyTorch's memory viewer opens."""
    return pickle.dumps(contents, PROTOCOL)


def _event(action: str, address: int, size: int, frames: list[dict[str, Any]], moment: int) -> dict[str, Any]:
    return {
        "action": action,
        "addr": address,
        "size": size,
        "stream": 0,
        "time_us": moment,
        "frames": frames,
    }


def _events(
    found: Sequence[Allocation], addresses: Sequence[int], stacks: Sequence[list[dict[str, Any]]], count: int
) -> Iterator[dict[str, Any]]:
    """Yield the events moment by moment: first what has ended is freed, then what begins is allocated."""
    for moment, ended, begun in _changes(found, count):
        for index in ended:
            for action in ("free_requested", "free_completed"):
                yield _event(action, addresses[index], found[index].bytes, stacks[index], moment)
        for index in begun:
            allocated = _event("alloc", addresses[index], found[index].bytes, stacks[index], moment)
            yield allocated | {"category": label(found[index])}


def _changes(found: Sequence[Allocation], count: int) -> Iterator[tuple[int, list[int], list[int]]]:
    """Yield each moment with the indices of what has ended before it and of what begins with it."""
    ended, begun = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
    for index, allocation in enumerate(found):
        begun[allocation.first].append(index)
        ended[allocation.last + 1].append(index)
    for moment in range(count):
        yield moment, ended[moment], begun[moment]


def _placed(found: Sequence[Allocation], count: int) -> tuple[list[int], int]:
    """Return an address for each allocation, so that no two that are alive at once overlap, and the bytes of it all."""
    addresses = [0] * len(found)
    gaps: dict[int, int] = {}  # begin -> end, of all that is free below ``top``
    ends: dict[int, int] = {}  # end -> begin
    top = _START

    def free(begin: int, end: int) -> None:
        if end in gaps:
            end = _taken(gaps, ends, end)
        if begin in ends:
            begin = ends[begin]
            _taken(gaps, ends, begin)
        gaps[begin], ends[end] = end, begin

    for _, ended, begun in _changes(found, count):
        for index in ended:
            free(addresses[index], addresses[index] + found[index].bytes)
        for index in begun:
            size = found[index].bytes
            begin = min((begin for begin, end in gaps.items() if end - begin >= size), default=None)
            if begin is None:
                begin = ends.get(top, top)
                top = begin + size
                if begin in gaps:
                    _taken(gaps, ends, begin)
            else:
                end = _taken(gaps, ends, begin)
                if end > begin + size:
                    free(begin + size, end)
            addresses[index] = begin
    return addresses, top - _START


def _taken(gaps: dict[int, int], ends: dict[int, int], begin: int) -> int:
    """Take a gap out, and return its end."""
    end = gaps.pop(begin)
    del ends[end]
    return end


def _blocks(
    found: Sequence[Allocation],
    addresses: Sequence[int],
    stacks: Sequence[list[dict[str, Any]]],
    size: int,
    last: int,
) -> Iterator[dict[str, Any]]:
    """Yield the blocks of the segment at the last moment, with the gaps between them."""
    reached = _START
    for address, index in sorted((addresses[index], index) for index, each in enumerate(found) if each.last == last):
        if address > reached:
            yield _block(reached, address - reached, 0, "inactive", [])
        yield _block(address, found[index].bytes, found[index].bytes, "active_allocated", stacks[index])
        reached = address + found[index].bytes
    if reached < _START + size:
        yield _block(reached, _START + size - reached, 0, "inactive", [])


def _block(address: int, size: int, requested: int, state: str, frames: list[dict[str, Any]]) -> dict[str, Any]:
    return {"address": address, "size": size, "requested_size": requested, "state": state, "frames": frames}


class _Frames:
    """Stacks of frames, the innermost first, shared among the allocations of one op."""

    def __init__(self, graph: StepGraph, ran: Sequence[Moment]) -> None:
        self._types = {layer.path: layer.type for layer in graph.layers}
        self._ran = ran
        self._modules: dict[str, list[dict[str, Any]]] = {}

    def of(self, allocation: Allocation) -> list[dict[str, Any]]:
        """Return the frames of an allocation; where a file has its line, an op has its moment."""
        phase = self._ran[allocation.first].phase if allocation.op else "before"
        return [
            _frame(allocation.layer, allocation.first, allocation.op or allocation.what),
            *self._around(allocation.layer),
            _frame(phase, 0, label(allocation)),
        ]

    def _around(self, path: str) -> list[dict[str, Any]]:
        if path not in self._modules:
            outer = self._around(path.rpartition(".")[0]) if path else []
            self._modules[path] = [_frame(path, 0, self._types.get(path, "")), *outer]
        return self._modules[path]


def _frame(place: str, line: int, name: str) -> dict[str, Any]:
    return {"filename": frame_name(place) or "(model)", "line": line, "name": frame_name(name)}
