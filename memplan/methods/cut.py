"""What to keep and what to recompute: a minimum cut through the values of a recorded forward."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from memplan.graph.records import Op, TensorView
from memplan.graph.step_graph import StepGraph

#: Floating-point operations that one is ready to repeat so that one byte need not be kept.
FLOPS_PER_BYTE: Final = 40.0

#: What reading or writing a byte while recomputing costs, in bytes kept: it settles ties between values that cost no
#: FLOPs, so that a bit mask is kept rather than a norm repeated for it.
TOUCHED_BYTE: Final = 0.02

#: Ops that give other results when they are repeated, or that autograd does not see as what they are.
_UNREPEATABLE: Final = (
    "rand",
    "bernoulli",
    "dropout",
    "normal",
    "uniform",
    "exponential",
    "multinomial",
    "rnn",
    "lstm",
    "gru",
    "empty",
    "philox",
)


@dataclass(frozen=True, slots=True)
class ScheduledOp:
    """One op of the forward in a schedule: its name, and which of its results are recomputed rather than kept."""

    name: str
    recomputed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """What a storage holds between two writes: the op that wrote it, and which of its results it is."""

    op: int
    output: int
    storage: int


class Values:
    """The values of a forward: who writes them, who reads them, which of them autograd keeps."""

    def __init__(self, graph: StepGraph) -> None:
        self.graph = graph
        self.ops = [op for op in graph.ops if op.phase == "forward"]
        self.inputs: dict[int, tuple[Value, ...]] = {}
        self.outputs: dict[int, tuple[Value, ...]] = {}
        self.needed: set[Value] = set()
        self.overwritten: set[Value] = set()
        saved = frozenset(graph.saved)
        current: dict[int, Value] = {}
        for op in self.ops:
            self.inputs[op.index] = tuple(
                dict.fromkeys(current[view.storage] for view in op.inputs if view.storage in current)
            )
            self.outputs[op.index] = written = tuple(self._written(op, current))
            for storage in op.saves:
                if storage in saved and storage in current:
                    self.needed.add(current[storage])
            del written

    def _written(self, op: Op, current: dict[int, Value]) -> Iterator[Value]:
        mutates = is_in_place(op.name)
        seen: set[int] = set()
        for position, view in enumerate(op.outputs):
            if view is None or view.storage in seen:
                continue
            storage = self.graph.storages[view.storage]
            if storage.role != "activation" or not (mutates or storage.born == op.index):
                continue
            seen.add(view.storage)
            if view.storage in current:
                self.overwritten.add(current[view.storage])
            current[view.storage] = value = Value(op.index, position, view.storage)
            yield value


def is_in_place(name: str) -> bool:
    """Whether an op, by PyTorch's naming, writes its result into its first argument."""
    base = name.split(".")[1]
    return base.endswith("_") and not base.endswith("__")


def schedule(
    graph: StepGraph,
    *,
    flops_per_byte: float = FLOPS_PER_BYTE,
    layers: Collection[int] | None = None,
) -> tuple[ScheduledOp, ...]:
    """Return, for each op of the recorded forward, which results autograd's tensors are recomputed from.

    The kept set is the cheapest one from which all that the backward needs can be had: kept bytes, plus the recomputed
    FLOPs at the price of one byte for ``flops_per_byte`` of them. Exact for this price: a minimum cut.

    Args:
        graph: a recorded step; its forward is what will run.
        flops_per_byte: 0 recomputes nothing that has FLOPs.
        layers: indices of the layers in which ops may be recomputed; all by default.
    """
    values = Values(graph)
    repeated = _repeated(values, flops_per_byte, layers)
    return tuple(
        ScheduledOp(op.name, tuple(value.output for value in values.outputs[op.index] if value in repeated))
        for op in values.ops
    )


def _repeated(values: Values, flops_per_byte: float, layers: Collection[int] | None) -> set[Value]:
    import networkx

    if not values.needed:
        return set()
    network = networkx.DiGraph()
    relevant = _upstream(values)
    free = frozenset(values.graph.outputs)
    ends = _ends(values)
    for op in values.ops:
        if op.index not in relevant:
            continue
        cost = _cost(op, flops_per_byte)
        inside = (layers is None or op.layer in layers) and op.index not in ends
        if inside and math.isfinite(cost):
            network.add_edge("source", ("repeat", op.index), capacity=cost)
        else:
            network.add_edge("source", ("repeat", op.index))
        for value in values.inputs[op.index]:
            network.add_edge(("have", value), ("repeat", op.index))
        for value in values.outputs[op.index]:
            if value in values.overwritten:
                network.add_edge(("repeat", op.index), ("have", value))
            else:
                size = 0 if value.storage in free else values.graph.storages[value.storage].bytes
                network.add_edge(("repeat", op.index), ("have", value), capacity=float(size))
            if value in values.needed:
                network.add_edge(("have", value), "sink")
    from networkx.algorithms.flow import boykov_kolmogorov

    _, (_, late) = networkx.minimum_cut(network, "source", "sink", flow_func=boykov_kolmogorov)
    return {
        value
        for op in values.ops
        if ("repeat", op.index) in late
        for value in values.outputs[op.index]
        if ("have", value) in late and values.graph.storages[value.storage].bytes > _touched(op) * TOUCHED_BYTE
    }


def _ends(values: Values) -> set[int]:
    """Return the ops that make what leaves a block, where recomputing stops: else it would go on to the input."""
    ends = set()
    for block in values.graph.blocks:
        inside = range(block.first_op, block.last_op + 1)
        made = {value for index in inside for value in values.outputs.get(index, ())}
        for op in values.ops[block.last_op + 1:]:
            ends.update(value.op for value in values.inputs[op.index] if value in made)
    return ends


def _upstream(values: Values) -> set[int]:
    """Return the ops that what is needed depends on."""
    found: set[int] = set()
    wanted = [value.op for value in values.needed]
    while wanted:
        index = wanted.pop()
        if index not in found:
            found.add(index)
            wanted.extend(value.op for value in values.inputs[index])
    return found


def _cost(op: Op, flops_per_byte: float) -> float:
    """Return what repeating an op costs, in bytes kept; infinite where it cannot be repeated."""
    base = op.name.split(".")[1]
    if any(word in base for word in _UNREPEATABLE) or (op.flops and not flops_per_byte):
        return math.inf
    return op.flops / (flops_per_byte or 1) + TOUCHED_BYTE * _touched(op)


def _touched(op: Op) -> int:
    return sum(_bytes(view) for view in (*op.inputs, *op.outputs) if view is not None)


def _bytes(view: TensorView) -> int:
    return 4 * math.prod(view.shape)
