"""A recording as a ``torch.fx`` graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Graph, Node

from memplan.graph.records import TensorView
from memplan.tracing.recorder import Call


def fx_graph(calls: Sequence[Call], given: Sequence[tuple[str, int]]) -> Graph:
    """Return the data flow of a recording: a node for each call, and a placeholder for what was there before.

    A node stands for the last write of its storages: views and in-place results included.
    """
    graph = Graph()
    writers: dict[int, Node] = {}
    for name, storage in given:
        if storage not in writers:
            writers[storage] = graph.placeholder(name.replace(".", "_"))
    for call in calls:
        node = graph.call_function(call.func, _as_nodes(call.args, writers), {})
        node.meta = {
            "phase": call.phase,
            "layer": call.layer,
            "args": call.args,
            "kwargs": call.kwargs,
            "outputs": call.outputs,
            "flops": call.flops,
        }
        for view in call.outputs:
            if view is not None:
                writers[view.storage] = node
    return graph


def _as_nodes(value: Any, writers: dict[int, Node]) -> Any:
    if type(value) is TensorView:
        return writers.get(value.storage)
    if type(value) is tuple:
        return tuple([_as_nodes(item, writers) for item in value])
    return value
