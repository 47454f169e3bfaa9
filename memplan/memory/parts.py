"""What a quantity of a step is made of, layer by layer, so that the parts add up to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from memplan.graph.records import Storage
from memplan.graph.step_graph import StepGraph
from memplan.memory.arrivals import arrivals, released
from memplan.memory.footprint import Footprint
from memplan.memory.optimizers import Implementation
from memplan.memory.timeline import alive_at, maker

#: What can be held to a limit: the allocator's peak, what is saved for the backward, or the most that is temporary.
Measurand = Literal["peak", "saved", "temp"]

MEASURANDS: Final[tuple[Measurand, ...]] = ("peak", "saved", "temp")


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes of a quantity by the index of the layer that made or holds them, and the ``rest`` that is no layer's.

    ``layers`` and ``rest`` add up to ``bytes``. The rest is the batch, and what the optimizer holds at that moment; an
    update inside the backward, which frees what its op still met, can leave it below zero. ``moment`` is when the
    quantity is largest; ``None`` for what is saved, which is all there when the forward ends.
    """

    bytes: int
    layers: Mapping[int, int]
    rest: int
    moment: int | None = None


def parts_of(graph: StepGraph, footprint: Footprint, of: Measurand, implementation: Implementation = "loop") -> Parts:
    """Return what ``of`` is made of in a step that was priced with ``implementation``.

    A saved storage is charged to the first layer that keeps it; at a moment, an activation counts for the layer that
    made it, a parameter and its gradient for the layer whose parameter it is, scratch for the layer that runs.
    """
    if of == "saved":
        charged: dict[int, int] = defaultdict(int)
        for index, keeper in graph.charged_layers.items():
            charged[keeper] += graph.storages[index].bytes
        return Parts(footprint.saved_bytes, dict(charged), footprint.saved_bytes - sum(charged.values()))
    steps = footprint.timeline
    series = steps.totals if of == "peak" else steps.temp
    moment = max(range(len(series)), key=series.__getitem__, default=0)
    if implementation == "in-backward":
        graph = released(graph, arrivals(graph))
    saved = frozenset(graph.saved)
    owners = _owners(graph)
    found: dict[int, int] = defaultdict(int)
    for storage in alive_at(graph, moment):
        if of == "temp" and (storage.role != "activation" or storage.index in saved):
            continue
        layer = _layer_of(graph, storage, owners)
        if layer is not None:
            found[layer] += storage.bytes
    if moment < len(graph.ops) and steps.scratch[moment]:
        found[graph.ops[moment].layer] += steps.scratch[moment]
    size = series[moment] if series else 0
    return Parts(size, dict(found), size - sum(found.values()), moment)


def _owners(graph: StepGraph) -> dict[int, int]:
    """Return the layer of each storage that is a parameter, its gradient or a buffer."""
    owners = {buffer.storage: buffer.layer for buffer in graph.buffers}
    for parameter in graph.parameters:
        owners[parameter.storage] = parameter.layer
        if parameter.gradient is not None:
            owners[parameter.gradient] = parameter.layer
    return owners


def _layer_of(graph: StepGraph, storage: Storage, owners: Mapping[int, int]) -> int | None:
    if storage.index in owners:
        return owners[storage.index]
    op = maker(graph, storage)
    return None if op is None else op.layer
