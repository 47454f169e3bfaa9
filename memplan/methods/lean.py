"""The lossless layer treatments, given where they save something."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Final

from memplan.errors import UsageError
from memplan.graph.records import Op
from memplan.graph.step_graph import StepGraph
from memplan.methods.plan import Microbatch, Plan, TreatedLayer
from memplan.methods.structure import CONVOLUTION, Structure
from memplan.methods.treatments.bitmask import TREATMENT as BITMASK
from memplan.methods.treatments.frozen_int8 import TREATMENT as FROZEN_INT8
from memplan.methods.treatments.record import Treatment

LEAN: Final = "lean-frozen"
MASK: Final = BITMASK.name


def with_lean_layers(plan: Plan, structure: Structure, masked: Collection[int] | None = None) -> Plan:
    """Return ``plan`` with frozen weights that keep no input, and bit masks in the layers ``masked``.

    By default these are the layers where nobody else keeps the tensor; :func:`maskable` and :func:`unrepeatable` give
    others.
    """
    frozen = len(plan.trained) < len(structure.graph.parameters)
    root = (TreatedLayer("", (LEAN,)),) if frozen else ()
    chosen = worth_masking(structure) if masked is None else masked
    paths = [structure.graph.layers[layer].path for layer in sorted(chosen)]
    names = (LEAN, MASK) if frozen else (MASK,)
    treated = merged((*root, *(TreatedLayer(path, names) for path in paths)), plan.layers)
    return replace(plan, layers=treated)


def maskable(structure: Structure) -> frozenset[int]:
    """Return the layers with anything that a bit mask can serve, whoever else keeps the tensor.

    They are masked when what others keep will not be kept, or a gradient will flow where in stock's recording none
    does.
    """
    return frozenset(op.layer for op in structure.forward if op.name in BITMASK.saved)


def unrepeatable(structure: Structure) -> frozenset[int]:
    """Return the layers with a dropout or max-pooling that a bit mask can serve.

    Where the rest is recomputed they alone are masked. An activation's mask would be kept beside what it is recomputed
    from: measured, it saves nothing at the peak and costs a tenth of the step (docs/step-time.md).
    """
    return frozenset(
        op.layer
        for op in structure.forward
        if op.name in BITMASK.saved and any(word in op.name for word in ("bernoulli", "dropout", "max_pool"))
    )


def with_everywhere(plan: Plan, treatment: Treatment, graph: StepGraph) -> Plan:
    """Return ``plan`` with one more treatment of all layers, tried before those it has; or a note where it has no use.

    Raises:
        UsageError: the treatment is not one of single layers.
    """
    name = treatment.name
    if name == FROZEN_INT8.name:
        layers = tuple(_frozen_weights(plan, graph))
        note = () if layers else (f"{name} does not apply: no convolution or linear layer is frozen",)
        return replace(plan, int8=layers, gradients="approximate", notes=(*plan.notes, *note))
    if not treatment.saved:
        raise UsageError(f"{name} is no treatment of single layers; choose a method that has it")
    treated = tuple(replace(entry, treatments=(name, *entry.treatments)) for entry in plan.layers)
    root = () if any(not entry.path for entry in treated) else (TreatedLayer("", (name,)),)
    return replace(
        plan,
        layers=merged(root, treated),
        gradients=plan.gradients if treatment.lossless else "approximate",
    )


def _frozen_weights(plan: Plan, graph: StepGraph) -> Iterator[str]:
    """Yield the layers of torch's own classes whose weight is frozen and their own alone."""
    trained, tied = frozenset(plan.trained), _tied(graph)
    for parameter in graph.parameters:
        layer = graph.layers[parameter.layer]
        own = parameter.name == f"{layer.path}.weight"
        if own and layer.type in INT8_LAYERS and parameter.name not in trained and layer.path not in tied:
            yield layer.path


def _tied(graph: StepGraph) -> frozenset[str]:
    """Return the layers whose parameters other layers read too."""
    readers: dict[int, set[int]] = defaultdict(set)
    for op in graph.ops:
        if op.phase == "forward":
            for view in op.inputs:
                readers[view.storage].add(op.layer)
    return frozenset(
        graph.layers[parameter.layer].path for parameter in graph.parameters if len(readers[parameter.storage]) > 1
    )


#: Classes of torch.nn whose weight can be stored in 8 bits.
INT8_LAYERS: Final = frozenset({"Linear", *(f"Conv{kind}{axes}d" for kind in ("", "Transpose") for axes in (1, 2, 3))})


def merged(first: Iterable[TreatedLayer], second: Iterable[TreatedLayer]) -> tuple[TreatedLayer, ...]:
    """Return the entries of both, ordered by path; where both treat a module, ``second`` does."""
    by_path = {entry.path: entry for entry in (*first, *second)}
    return tuple(by_path[path] for path in sorted(by_path))


def with_microbatch(plan: Plan, structure: Structure) -> Plan:
    """Return ``plan`` with its frozen prefix run one sample at a time, or with a note that says why it is not."""
    if not any(op.index < structure.start for op in structure.forward):
        return plan
    boundary = structure.boundary()
    if boundary is None:
        reason = "no module ends where a single tensor leaves it"
    else:
        mixed = structure.prefix_mixes_samples(evaluated=bool(plan.evaluated))
        if mixed is None:
            return replace(plan, microbatch=Microbatch(boundary, 1))
        reason = mixed
    return replace(plan, notes=(*plan.notes, f"the frozen prefix runs as one batch: {reason}"))


def worth_masking(structure: Structure) -> set[int]:
    """Return the layers with an activation whose kept tensor no other op keeps too."""
    keepers: dict[int, list[Op]] = defaultdict(list)
    graph = structure.graph
    frozen = {parameter.storage for parameter in graph.parameters if not parameter.trains}
    for op in structure.forward:
        if op.name == CONVOLUTION and any(view.storage in frozen for view in op.inputs):
            continue  # lean-frozen: it keeps nothing
        for storage in op.saves:
            keepers[storage].append(op)
    kept = frozenset(graph.saved)
    return {
        op.layer
        for op, saves in _masks(structure)
        if any(storage in kept and len(keepers[storage]) == 1 for storage in saves)
    }


def _masks(structure: Structure) -> Iterator[tuple[Op, tuple[int, ...]]]:
    """Yield each op that a bit mask can serve, with the storages that stock keeps for it.

    Before an activation in place stock keeps a copy of what is overwritten; of dropout the product keeps the noise.
    """
    noise: set[int] = set()
    before: Op | None = None
    for op in structure.forward:
        if "bernoulli" in op.name:
            noise.update(view.storage for view in op.inputs)
        elif op.name in BITMASK.saved:
            copied = before is not None and before.name == "aten.clone.default" and before.args[0] == op.args[0]
            saves = (*op.saves, *(before.saves if before is not None and copied else ()))
            if saves:
                yield op, saves
        elif op.name in ("aten.mul.Tensor", "aten.mul_.Tensor") and noise.intersection(op.saves):
            yield op, op.saves
        before = op
