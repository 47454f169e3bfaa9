"""StepGraph: one recorded training step, validated once, printed one op per line, saved as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from memplan.errors import AnalysisError
from memplan.graph.records import (
    BEFORE,
    Argument,
    Block,
    Buffer,
    Layer,
    Machine,
    Op,
    Parameter,
    Phase,
    Storage,
    TensorView,
)


@dataclass(frozen=True)
class StepGraph:
    """The forward, loss and backward of one training step, as stock PyTorch runs it on ``machine``.

    ``saved`` lists the storages that autograd holds when the model's forward ends, parameters and buffers excluded.
    ``outputs`` lists the storages of what the model returns.
    ``unpriced`` names what was seen and could not be attributed or priced; it is empty for a complete record.

    Raises:
        AnalysisError: the record contradicts itself (an op out of order, a storage unknown or dead when used).
    """

    machine: Machine
    layers: tuple[Layer, ...]
    parameters: tuple[Parameter, ...]
    storages: tuple[Storage, ...]
    ops: tuple[Op, ...]
    saved: tuple[int, ...]
    outputs: tuple[int, ...] = ()
    blocks: tuple[Block, ...] = ()
    unpriced: tuple[str, ...] = ()
    buffers: tuple[Buffer, ...] = ()

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise AnalysisError(f"the recorded step is inconsistent: {problem}; please report it with the model's name")

    @cached_property
    def saved_bytes(self) -> int:
        """Bytes that autograd keeps from forward to backward: unique storages, the loss excluded."""
        return sum(self.storages[index].bytes for index in self.saved)

    @cached_property
    def charged_layers(self) -> dict[int, int]:
        """For each saved storage, the layer that is charged for it: the first one that keeps it."""
        charged: dict[int, int] = {}
        saved = frozenset(self.saved)
        for op in self.ops:
            for storage in op.saves:
                if storage in saved:
                    charged.setdefault(storage, op.layer)
        return charged

    @cached_property
    def unhooked(self) -> tuple[int, ...]:
        """Storages made in the forward, alive in the backward, neither the output nor seen by autograd's hooks.

        A custom function that keeps tensors on its context does that, and so does checkpointing with its arguments.
        """
        seen, backward = frozenset((*self.saved, *self.outputs)), self.phase_ops("backward")
        born = self.phase_ops("forward")
        return tuple(
            storage.index
            for storage in self.storages
            if storage.role == "activation"
            and storage.bytes
            and storage.born in born
            and storage.last > backward.start
            and storage.index not in seen
        )

    def flops(self, phase: Phase) -> int:
        """Return the floating-point operations of one phase, as PyTorch's own flop formulas count them."""
        return sum(op.flops for op in self.ops if op.phase == phase)

    def phase_ops(self, phase: Phase) -> range:
        """Return the indices of the ops of one phase; they are consecutive."""
        indices = [op.index for op in self.ops if op.phase == phase]
        return range(indices[0], indices[-1] + 1) if indices else range(0)

    def lines(self) -> Iterator[str]:
        """Yield one line for each op: phase, layer, name, arguments, results, what is saved."""
        for op in self.ops:
            layer = self.layers[op.layer].path or "(model)"
            results = ", ".join(_show(view) for view in op.outputs if view is not None) or "()"
            saves = f"  saves {' '.join(f's{index}' for index in op.saves)}" if op.saves else ""
            arguments = ", ".join(_show(argument) for argument in op.args)
            yield f"{op.index:>5} {op.phase:<8} {layer:<28} {op.name}({arguments}) -> {results}{saves}"

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _show(value: Argument) -> str:
    if isinstance(value, TensorView):
        return f"s{value.storage}:{'x'.join(map(str, value.shape)) or 'scalar'}"
    if isinstance(value, tuple):
        return f"[{', '.join(_show(item) for item in value)}]"
    return str(value)


_PHASE_ORDER = {"forward": 0, "loss": 1, "backward": 2, "optimizer": 3}


def _problems(graph: StepGraph) -> Iterator[str]:
    count = len(graph.storages)
    for position, storage in enumerate(graph.storages):
        if storage.index != position:
            yield f"storage {storage.index} stands at position {position}"
        if storage.bytes < 0 or not BEFORE <= storage.born <= storage.last + 1 <= len(graph.ops) + 1:
            yield f"storage {storage.index} has {storage.bytes} bytes and lives from {storage.born} to {storage.last}"
    phase = 0
    for position, op in enumerate(graph.ops):
        if op.index != position:
            yield f"op {op.index} stands at position {position}"
        if _PHASE_ORDER[op.phase] < phase:
            yield f"op {op.index} of the {op.phase} comes after a later phase"
        phase = _PHASE_ORDER[op.phase]
        if not 0 <= op.layer < len(graph.layers):
            yield f"op {op.index} names the unknown layer {op.layer}"
        for view in (*op.inputs, *(view for view in op.outputs if view is not None)):
            if not 0 <= view.storage < count:
                yield f"op {op.index} uses the unknown storage {view.storage}"
            elif not graph.storages[view.storage].born <= op.index <= graph.storages[view.storage].last:
                yield f"op {op.index} ({op.name}) uses storage {view.storage} outside its life"
    for buffer in graph.buffers:
        if not 0 <= buffer.storage < count:
            yield f"the buffer {buffer.name!r} lies in the unknown storage {buffer.storage}"
    for index in graph.saved:
        if not 0 <= index < count:
            yield f"the unknown storage {index} is saved"
