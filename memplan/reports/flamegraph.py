"""Bytes by module path as collapsed stacks, one line for each: what flamegraph.pl and speedscope read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

from memplan.graph.step_graph import StepGraph
from memplan.memory import Implementation, price
from memplan.memory.lifetimes import Allocation, allocations

#: What is added up: what is alive at the peak, or what is kept from forward to backward.
Quantity: TypeAlias = Literal["peak", "saved"]

#: What separates frames, and a stack from its bytes; the sign that escapes it; what no terminal or file takes.
_RESERVED: Final = re.compile("[;%\\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")

#: Temporary bytes that are not called temp.
_OWN_NAME: Final = frozenset({"scratch", "update"})


def flamegraph(
    graph: StepGraph,
    optimizer: str = "sgd",
    implementation: Implementation = "loop",
    *,
    of: Quantity = "peak",
) -> str:
    """Return collapsed stacks: for each the names of its modules from the outermost inwards, a type, and bytes.

    The bytes of the peak add up to ``peak_bytes`` of the footprint; each stack ends in what it is: parameter, buffer,
    gradient, state, saved, temp, scratch or update. Storages stand where they are made. Saved bytes add up to
    ``saved_bytes``; they stand where the table of layers has them, at the first layer that keeps them.

    Raises:
        UsageError: there is no such optimizer.
    """
    types = {layer.path: layer.type for layer in graph.layers}
    sizes: dict[str, int] = defaultdict(int)
    for path, ends, size in _saved(graph) if of == "saved" else _at_peak(graph, optimizer, implementation):
        frames = (*(path or "(model)").split("."), types.get(path, ""), *ends)
        sizes[";".join(frame_name(frame) for frame in frames if frame)] += size
    return "".join(f"{stack} {size}\n" for stack, size in sorted(sizes.items()))


def _saved(graph: StepGraph) -> Iterator[tuple[str, tuple[str, ...], int]]:
    for storage, layer in graph.charged_layers.items():
        if graph.storages[storage].bytes:
            yield graph.layers[layer].path, (), graph.storages[storage].bytes


def _at_peak(
    graph: StepGraph, optimizer: str, implementation: Implementation
) -> Iterator[tuple[str, tuple[str, ...], int]]:
    moment = price(graph, optimizer, implementation, alive=0).peak.moment
    for allocation in allocations(graph, optimizer, implementation):
        if allocation.first <= moment <= allocation.last:
            yield allocation.layer, (label(allocation),), allocation.bytes


def label(allocation: Allocation) -> str:
    """Return what an allocation is, in one word: its role where it is resident, else saved, temp, scratch or update."""
    named = allocation.kind == "resident" or allocation.what in _OWN_NAME
    return allocation.what if named else allocation.kind


def frame_name(text: str) -> str:
    """Return ``text`` as a frame of a stack, with what would end a frame or a line as the percent signs of URLs.

    >>> frame_name("a b;c"), frame_name("features")
    ('a%20b%3Bc', 'features')
    """
    return _RESERVED.sub(lambda match: "".join(f"%{byte:02X}" for byte in _bytes(match[0])), text)


def _bytes(character: str) -> bytes:
    return character.encode("utf-8", "surrogatepass")
