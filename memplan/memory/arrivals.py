"""When gradients arrive: the moments at which an optimizer inside the backward can update, and release them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Final

from memplan.graph.records import Op, Parameter
from memplan.graph.step_graph import StepGraph

#: Ops whose backward hands the gradient on without an op of its own, where no broadcast has to be summed up.
_PASSING: Final = frozenset({"add", "add_", "sub", "sub_", "clone", "expand", "alias", "_to_copy", "copy_"})


@dataclass(frozen=True, slots=True)
class Arrival:
    """A gradient's storage, the parameters that it is for, and the ops after which they may be updated.

    The update comes right after one op from ``first`` to ``last``, as a rule one and the same; the storage is released
    after ``last``.
    """

    gradient: int
    parameters: tuple[Parameter, ...]
    first: int
    last: int


def arrivals(graph: StepGraph) -> Sequence[Arrival]:
    """Return when each gradient arrives, in definition order of the parameters.

    The engine accumulates a gradient at once, so that the last op on its storage completes it: the one that writes it,
    or a view of that. Where another op goes on reading the storage, or the backward of an addition hands it on without
    an op, the record does not tell, and every op that can be is in the range.

    Source: torch/csrc/autograd/functions/accumulate_grad.h (``sequence_nr`` is the largest there is; a gradient that
    nobody else holds is stolen, another one cloned).
    """
    owners: dict[int, list[Parameter]] = defaultdict(list)
    for parameter in graph.parameters:
        if parameter.gradient is not None:
            owners[parameter.gradient].append(parameter)
    touching: dict[int, list[Op]] = {gradient: [] for gradient in owners}
    passed = _passed_on(graph)
    for op in graph.ops:
        outputs = (view.storage for view in op.outputs if view is not None)
        for storage in {*(view.storage for view in op.inputs), *outputs} & touching.keys():
            touching[storage].append(op)
    return [_arrival(graph, gradient, parameters, touching, passed) for gradient, parameters in owners.items()]


def released(graph: StepGraph, arriving: Sequence[Arrival]) -> StepGraph:
    """Return the step in which each gradient ends where it arrives."""
    last = {arrival.gradient: arrival.last for arrival in arriving}
    storages = (replace(storage, last=last.get(storage.index, storage.last)) for storage in graph.storages)
    return replace(graph, storages=tuple(storages))


def _arrival(
    graph: StepGraph,
    gradient: int,
    parameters: Sequence[Parameter],
    touching: Mapping[int, Sequence[Op]],
    passed: frozenset[int],
) -> Arrival:
    written = max(
        (op.index for op in touching[gradient] if _in_place(op) and _makes(op, gradient)),
        default=graph.storages[gradient].born,
    )
    since = [op for op in touching[gradient] if op.index > written]
    last = since[-1].index if since else written
    handed_on = any(parameter.storage in passed for parameter in parameters)
    certain = all(_makes(op, gradient) for op in since) and not handed_on
    return Arrival(
        gradient,
        tuple(parameters),
        first=last if certain else written,
        last=max(last, len(graph.ops) - 1) if handed_on else last,
    )


def _in_place(op: Op) -> bool:
    return op.name.split(".")[1].endswith("_")


def _makes(op: Op, storage: int) -> bool:
    """Whether a result of ``op`` lies in ``storage``: it is born there, written there, or a view of it."""
    return any(view is not None and view.storage == storage for view in op.outputs)


def _passed_on(graph: StepGraph) -> frozenset[int]:
    """Return the storages of parameters whose gradient may be the very tensor that another op's backward made."""
    return frozenset(
        view.storage
        for op in graph.ops
        if op.phase != "backward" and op.name.split(".")[1] in _PASSING
        for view in op.inputs
        if any(result is not None and prod(result.shape) == prod(view.shape) for result in op.outputs)
    )
