"""The network as pages draw it: calls of layers in segments, what goes between them, and the state of each layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from memplan.graph.blocks import find_blocks, located_blocks
from memplan.graph.records import Block
from memplan.graph.step_graph import StepGraph
from memplan.memory import Footprint
from memplan.planner.segments import Segments

if TYPE_CHECKING:
    import networkx

#: The bits of a layer's state, by name, in the order in which pages say them.
STATES: Final = {"trains": 1, "frozen": 2, "recomputed": 4, "pruned": 8}

#: The segment of what belongs to none, the model's own operations for one.
NOWHERE: Final = "(model)"


@dataclass(frozen=True, slots=True)
class Network:
    """The calls in the order in which they run, the edges between them, and the segments: stem, blocks and head.

    ``calls`` are paths, ``inside`` the segment of each, and ``edges`` pairs of their places. ``places`` gives the
    segment of layers by path.
    """

    segments: tuple[str, ...]
    calls: tuple[str, ...]
    inside: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    places: dict[str, int]

    def segment_of(self, path: str) -> int:
        """Return the segment of a layer, or of the nearest module around it that has one."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path.rpartition(".")[0]
        return len(self.segments) - 1


@dataclass(frozen=True, slots=True)
class LayerState:
    """What happens to a layer in a run: its bits of ``STATES``, and the plan's treatments that are on there."""

    bits: int = 0
    treatments: tuple[str, ...] = ()


def network_of(graph: StepGraph, layers: networkx.DiGraph[int], blocks: tuple[Block, ...]) -> Network:
    """Return the network of a recorded step, in the segments that ``blocks`` make of it.

    Args:
        graph: the step.
        layers: the data flow between its layers, see :func:`memplan.reports.network.layer_network`.
        blocks: the model's blocks, as any recording of it has them; none to find them in this one.
    """
    found = blocks or graph.blocks or find_blocks(graph.layers, graph.ops, graph.storages, graph.parameters)
    graph = located_blocks(graph, found)
    segments = Segments(graph)
    names = ("stem", *(block.path for block in graph.blocks), "head") if graph.blocks else ("network",)
    places = {
        graph.layers[index].path: min(segment, len(names) - 1)
        for index, segment in segments.of_layer.items()
        if graph.layers[index].path
    }
    network = Network((*names, NOWHERE), (), (), tuple(layers.edges), places)
    calls = tuple(path for _, path in layers.nodes(data="path"))
    return replace(network, calls=calls, inside=_inside(network, layers, [network.segment_of(path) for path in calls]))


def _inside(network: Network, layers: networkx.DiGraph[int], own: Sequence[int]) -> tuple[int, ...]:
    """Return the segment of each call; ``own`` has those of modules, and ``NOWHERE`` for the model's own ops.

    These stand where what they read is from, as the addition to which a value goes round a block. Those in which
    branches meet, none of which reads another, stand with the module that reads on.
    """
    nowhere = len(network.segments) - 1
    after = [nowhere - 1] * len(own)  # by call: the segment of the modules that read on
    for node in reversed(range(len(own))):
        following = (own[target] if own[target] < nowhere else after[target] for target in layers.successors(node))
        after[node] = min(following, default=nowhere - 1)
    inside: list[int] = []
    read = set[tuple[int, int]]()  # pairs of segments: modules of the second read what is from the first
    for node, segment in enumerate(own):
        before = {inside[source] for source in layers.predecessors(node) if source < node}
        if segment < nowhere:
            read.update((each, segment) for each in before)
            inside.append(segment)
            continue
        last = max(before, default=0)
        meet = any((each, last) not in read for each in before - {last})
        inside.append(max(last, after[node]) if meet else last)
    return tuple(inside)


def layer_states(footprint: Footprint, nodes: Iterable[dict[str, Any]] = ()) -> dict[str, LayerState]:
    """Return what happens to each layer of a footprint, by its path.

    Args:
        footprint: says which layers have parameters, and which of them receive gradients.
        nodes: the attributes of the calls of the run's layers, where its step is known.
    """
    bits = {
        layer.path: STATES["trains"] if layer.gradient_bytes else STATES["frozen"] if layer.parameter_bytes else 0
        for layer in footprint.layers
    }
    treatments: dict[str, dict[str, None]] = defaultdict(dict)
    for node in nodes:
        path = node["path"]
        bits[path] = bits.get(path, 0) | sum(STATES[name] for name in ("recomputed", "pruned") if node[name])
        treatments[path].update(dict.fromkeys(filter(None, node["treatments"].split(", "))))
    return {path: LayerState(state, tuple(treatments[path])) for path, state in bits.items()}
