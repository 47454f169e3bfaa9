"""A recorded step as a networkx graph, for whoever wants to ask more of it than memplan does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memplan.graph.records import Phase
from memplan.graph.step_graph import StepGraph

if TYPE_CHECKING:
    import networkx


def to_networkx(graph: StepGraph, *, phase: Phase | None = None) -> networkx.DiGraph[int]:
    """Return the data flow between ops: an edge from the op that last wrote a storage to each op that reads it.

    Nodes are op indices with ``name``, ``layer`` (a path) and ``phase``; an edge has the ``storage`` and its ``bytes``.
    Views and in-place results are writes of their storage. With ``phase`` only that phase's ops are nodes. What exists
    before the step (parameters, buffers, inputs) has no node.
    """
    import networkx

    network: networkx.DiGraph[int] = networkx.DiGraph()
    writer: dict[int, int] = {}
    for op in graph.ops:
        if phase is not None and op.phase != phase:
            continue
        network.add_node(op.index, name=op.name, layer=graph.layers[op.layer].path, phase=op.phase)
        for view in op.inputs:
            if view.storage in writer:
                size = graph.storages[view.storage].bytes
                network.add_edge(writer[view.storage], op.index, storage=view.storage, bytes=size)
        for result in op.outputs:
            if result is not None:
                writer[result.storage] = op.index
    return network
