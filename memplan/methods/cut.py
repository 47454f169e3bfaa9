"""What to keep and what to recompute: a minimum cut through the values of a recorded forward."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, Final

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Op, TensorView
from memplan.graph.step_graph import StepGraph

#: Floating-point operations that one is ready to repeat so that one byte need not be kept.
FLOPS_PER_BYTE: Final = 40.0

#: What reading or writing a byte while recomputing costs, in bytes kept: it settles ties between values that cost no
#: FLOPs, so that a bit mask is kept rather than a norm repeated for it.
TOUCHED_BYTE: Final = 0.02

#: The longest chain of ops that is repeated for one value; a longer one has a link kept. Each link asks for the one
#: before it, and what lies behind is repeated each time.
LONGEST_CHAIN: Final = 64

#: The cut counts in whole thousandths of a byte: sums of floats would leave capacity where there is none.
_PARTS: Final = 1000

#: Where ops come from that give the same results when they are repeated, and do nothing else.
_PURE: Final = frozenset({"aten", "prims", "torchvision", "memplan"})

#: Words in the names of ops that draw random numbers, return what nobody wrote, or write what their name does not say.
_UNREPEATABLE: Final = re.compile(
    "rand|bernoulli|binomial|dirichlet|dropout|normal|uniform|exponential|multinomial|poisson|gamma|geometric|cauchy|rrelu"
    "|philox|nested|sdp_choice|rnn|lstm|gru|empty|resize|set_|moving_avg|_fq_helper|batch_norm|attention"
)

#: Batch norms, and where among their arguments they are told to use the statistics of the batch; -1 where they always
#: do. Then they also write the running statistics, and return what was normalized, its mean, and the inverse of its
#: deviation. Source: aten/src/ATen/native/native_functions.yaml.
_NORMS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "aten.native_batch_norm.default": 5,
        "aten.cudnn_batch_norm.default": 5,
        "aten.miopen_batch_norm.default": 5,
        "aten._native_batch_norm_legit.default": 5,
        "aten._native_batch_norm_legit.no_stats": 3,
        "aten._batch_norm_with_update.default": -1,
    }
)

#: Attention, and where among its arguments the probability of dropout stands: with 0 nothing random is drawn.
#: Source: as above.
_ATTENTION: Final[Mapping[str, int]] = MappingProxyType(
    {
        "aten._scaled_dot_product_flash_attention.default": 3,
        "aten._scaled_dot_product_flash_attention_for_cpu.default": 3,
        "aten._scaled_dot_product_fused_attention_overrideable.default": 4,
        "aten._scaled_dot_product_efficient_attention.default": 5,
        "aten._scaled_dot_product_cudnn_attention.default": 5,
    }
)


#: Ops that, in place, change how a tensor looks at its storage, and not what is in it.
RESHAPING: Final = frozenset(
    f"aten.{name}_"
    for name in ("as_strided", "detach", "squeeze", "swapaxes", "swapdims", "t", "transpose", "unsqueeze")
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


def schedule(
    graph: StepGraph,
    *,
    flops_per_byte: float | Mapping[int, float] = FLOPS_PER_BYTE,
) -> tuple[ScheduledOp, ...]:
    """Return, for each op of the recorded forward, which results autograd's tensors are recomputed from.

    The kept set is the cheapest one from which all that the backward needs can be had: kept bytes, plus the recomputed
    FLOPs at the price of one byte for ``flops_per_byte`` of them, plus what recomputing reads and writes. Exact for
    this price, which counts each op once: a minimum cut. What one block hands to the next is kept.

    Args:
        graph: a recorded step; its forward is what will run.
        flops_per_byte: 0 recomputes nothing that has FLOPs. A mapping gives each op's own by its index; an op that is
            not in it is not repeated.
    """
    values = Values(graph)
    fixed = values.fixed | _crossing(values)
    given = flops_per_byte
    if not isinstance(given, Mapping):
        given = dict.fromkeys((op.index for op in values.ops), given)
    costs = {
        op.index: _cost(op, given[op.index])
        for op in values.ops
        if op.index in given and (given[op.index] or not op.flops)
    }
    repeated = _within_reach(values, _cheapest(values, costs, fixed))
    return tuple(
        ScheduledOp(op.name, tuple(value.output for value in values.outputs[op.index] if value in repeated))
        for op in values.ops
    )


def is_in_place(name: str) -> bool:
    """Whether an op, by PyTorch's naming, writes its result into its first argument."""
    full = name.rpartition(".")[0]
    return full.endswith("_") and not full.endswith("__") and full not in RESHAPING


def is_repeatable(name: str, args: Sequence[Any]) -> bool:
    """Whether an op gives the same results again, or can be made to, and leaves everything else as it is.

    Args:
        name: as in ``aten.relu_.default``.
        args: its arguments, as recorded or as they are; trailing ones may be missing where they are the defaults.
    """
    namespace, base, overload = name.split(".", 2)
    if name in _NORMS:
        return True
    if name in _ATTENTION:
        position = _ATTENTION[name]
        return len(args) <= position or not args[position]
    return namespace in _PURE and not overload.endswith("out") and _UNREPEATABLE.search(base) is None


def takes_statistics(name: str, args: Sequence[Any]) -> bool:
    """Whether an op is a batch norm that normalizes with the statistics of its batch.

    Its results after the first, among them these statistics, are never recomputed: the first one is made from them.
    """
    position = _NORMS.get(name)
    return position is not None and (position < 0 or bool(args[position]))


class Values:
    """The values of a forward: who writes them, who reads them, and which of them autograd needs.

    ``fixed`` values can be had only by keeping them, ``overwritten`` ones only by repeating what made them; from one
    that is both nothing can be repeated.
    """

    def __init__(self, graph: StepGraph) -> None:
        self.graph = graph
        self.ops = tuple(op for op in graph.ops if op.phase == "forward")
        self.inputs: dict[int, tuple[Value, ...]] = {}
        self.outputs: dict[int, tuple[Value, ...]] = {}
        self.needed: set[Value] = set()
        self.overwritten: set[Value] = set()
        self.fixed: set[Value] = set()
        self._current: dict[int, Value] = {}
        self._seen_as_several = _seen_as_several(self.ops)
        self._readers: dict[int, list[int]] = defaultdict(list)  # of what is no value: inputs, parameters, buffers
        self._writes: Counter[int] = Counter()
        saved = frozenset(graph.saved)
        for op in self.ops:
            self._read(op)
            self._write(op)
            self.needed.update(
                self._current[storage] for storage in op.saves if storage in saved and storage in self._current
            )
        # What is written after autograd began to keep it is left to autograd, which then has its own opinion.
        self.fixed |= self.needed & self.overwritten
        self.needed -= self.overwritten

    def _read(self, op: Op) -> None:
        storages = dict.fromkeys(view.storage for view in op.inputs)
        self.inputs[op.index] = tuple(self._current[storage] for storage in storages if storage in self._current)
        for storage in storages:
            if storage not in self._current:
                self._readers[storage].append(op.index)

    def _write(self, op: Op) -> None:
        made: list[Value] = []
        for storage in _written(op):
            before = self._current.get(storage)
            if before is None:
                # There is no way back to what an input, a parameter or a buffer held before it was written.
                self._fix(index for index in self._readers.pop(storage, ()))
                continue
            self.overwritten.add(before)
            self._writes[storage] += 1
            self._current[storage] = value = Value(op.index, 0, storage)
            made.append(value)
        seen = {value.storage for value in made}
        for position, view in enumerate(op.outputs):
            if view is None or view.storage in seen:
                continue
            home = self.graph.storages[view.storage]
            if home.role == "activation" and home.born == op.index:
                seen.add(view.storage)
                self._current[view.storage] = value = Value(op.index, position, view.storage)
                made.append(value)
        self.outputs[op.index] = tuple(made)
        repeatable = is_repeatable(op.name, op.args)
        statistics = takes_statistics(op.name, op.args)
        in_place = is_in_place(op.name)
        for value in made:
            if (
                not repeatable
                or (statistics and value.output)
                or (in_place and not (isinstance(op.args[0], TensorView) and op.args[0].storage == value.storage))
                or value.storage in self._seen_as_several
                or self._writes[value.storage] > LONGEST_CHAIN
            ):
                self.fixed.add(value)
        if statistics:
            # The first result is made again from the other ones.
            own = tuple(value for value in made if value.output)
            self.inputs[op.index] = (*self.inputs[op.index], *own)

    def _fix(self, ops: Iterator[int]) -> None:
        for index in ops:
            self.fixed.update(self.outputs.get(index, ()))


def _written(op: Op) -> tuple[int, ...]:
    """Return the storages that an op writes beside those it makes."""
    views: tuple[Any, ...] = ()
    if is_in_place(op.name):
        first = op.args[0]
        views = first if isinstance(first, tuple) else (first,)
    elif op.name.endswith("out"):
        views = op.outputs
    elif takes_statistics(op.name, op.args) and not op.name.endswith("no_stats"):
        views = op.args[3:5]
    return tuple(dict.fromkeys(view.storage for view in views if isinstance(view, TensorView)))


def _seen_as_several(ops: Sequence[Op]) -> set[int]:
    """Return the storages whose elements are read as more than one dtype, complex ones among them: windows on them
    cannot be opened by strides alone.
    """
    dtypes: dict[int, set[str]] = defaultdict(set)
    for op in ops:
        for view in (*op.inputs, *op.outputs):
            if view is not None:
                dtypes[view.storage].add(view.dtype)
    return {
        storage
        for storage, names in dtypes.items()
        if len(names) > 1 or any(name.startswith("complex") for name in names)
    }


def _crossing(values: Values) -> set[Value]:
    """Return the values that leave the block, or the stretch between two blocks, in which they were made.

    Recomputing stops there: else the first of them would be asked for would go back to the model's input.
    """
    limits = sorted({limit for block in values.graph.blocks for limit in (block.first_op, block.last_op + 1)})
    return {
        value
        for op in values.ops
        for value in values.inputs[op.index]
        if bisect_right(limits, value.op) != bisect_right(limits, op.index)
    }


def _cheapest(values: Values, costs: Mapping[int, float], fixed: Set[Value]) -> set[Value]:
    """Return the values to be recomputed, by the cut that parts what is kept from what autograd needs.

    The edge to an op is cut where the op is repeated, the edge to a value where the value is kept. Other edges carry
    any amount: an op is repeated from values that are at hand.

    Args:
        costs: of repeating an op, in bytes kept; ops that are not in it are not repeated.
        fixed: values that are not recomputed.
    """
    if not values.needed:
        return set()
    import networkx
    from networkx.algorithms.flow import preflow_push

    network = networkx.DiGraph()
    outputs = frozenset(values.graph.outputs)
    wanted = list(values.needed)
    seen = set(wanted)
    for value in values.needed:
        network.add_edge(value, "needed")
    while wanted:
        value = wanted.pop()
        maker: Any = "forward"
        if value.op in costs and value not in fixed:
            maker = value.op
            network.add_edge("forward", maker, capacity=round(costs[maker] * _PARTS))
            for read in values.inputs[maker]:
                network.add_edge(read, maker)
                if read not in seen:
                    seen.add(read)
                    wanted.append(read)
        if value in values.overwritten:
            network.add_edge(maker, value)
        else:
            kept = 0 if value.storage in outputs else values.graph.storages[value.storage].bytes
            network.add_edge(maker, value, capacity=kept * _PARTS)
    _, (_, later) = networkx.minimum_cut(network, "forward", "needed", flow_func=preflow_push)
    return {value for value in seen if value in later and value.op in later and value not in fixed}


def _within_reach(values: Values, repeated: set[Value]) -> set[Value]:
    """Return ``repeated`` without the links at which chains grow longer than ``LONGEST_CHAIN``."""
    length: dict[Value, int] = {}
    for op in values.ops:
        before = max((length.get(value, 0) for value in values.inputs[op.index]), default=0)
        for value in values.outputs[op.index]:
            if value in repeated and (before < LONGEST_CHAIN or value in values.overwritten):
                length[value] = before + 1
    return set(length)


def _cost(op: Op, flops_per_byte: float) -> float:
    """Return what repeating an op costs, in bytes kept."""
    return (op.flops / flops_per_byte if op.flops else 0.0) + TOUCHED_BYTE * touched_bytes(op)


def touched_bytes(op: Op) -> int:
    """Return the bytes of all tensors that an op reads and writes."""
    views = (view for view in (*op.inputs, *op.outputs) if view is not None)
    return sum(prod(view.shape) * item_bytes(view.dtype) for view in views)
