"""Lower a finished recording to the torch-free StepGraph."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any, Final

import torch

from memplan.graph.records import BEFORE, Argument, Buffer, Layer, Machine, Op, Parameter, Storage, TensorView
from memplan.graph.step_graph import StepGraph
from memplan.tracing.recorder import Recorder, StorageLife

_LITERALS: Final = (TensorView, int, float, str, type(None))


def lower(
    recorder: Recorder,
    *,
    machine: Machine,
    layers: tuple[Layer, ...],
    parameters: tuple[Parameter, ...],
    saved: tuple[int, ...],
    outputs: tuple[int, ...],
    unpriced: tuple[str, ...] = (),
    buffers: tuple[Buffer, ...] = (),
) -> StepGraph:
    """Return the StepGraph of a finished recording.

    Raises:
        AnalysisError: the recording contradicts itself.
    """
    saves: dict[int, list[int]] = defaultdict(list)
    for op, life in recorder.saves:
        if life.role not in ("parameter", "buffer") and life.index not in saves[op]:
            saves[op].append(life.index)
    ops = tuple(
        Op(
            index=index,
            phase=call.phase,
            name=str(call.func),
            layer=call.layer,
            args=_arguments(call.func, call.args, call.kwargs),
            outputs=call.outputs,
            saves=tuple(saves.get(index, ())),
            flops=call.flops,
        )
        for index, call in enumerate(recorder.calls)
    )
    gradients = {parameter.gradient for parameter in parameters}
    return StepGraph(
        machine=machine,
        layers=layers,
        parameters=parameters,
        storages=tuple(_storage(life, len(ops), gradients) for life in recorder.storages),
        ops=ops,
        saved=saved,
        outputs=outputs,
        unpriced=unpriced,
        buffers=buffers,
    )


def _storage(life: StorageLife, op_count: int, gradients: set[int | None]) -> Storage:
    role = "gradient" if life.index in gradients else life.role
    outlives = life.born == BEFORE or role == "gradient" or life.released is None
    last = op_count if outlives or life.released is None else life.released - 1
    return Storage(life.index, life.bytes, role, life.born, max(last, life.born))


@cache
def _schema(target: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (argument.name, argument.default_value if argument.has_default_value() else None)
        for argument in target._schema.arguments
    )


def _arguments(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Argument, ...]:
    rest = _schema(target)[len(args) :]
    return tuple([_literal(value) for value in args] + [_literal(kwargs.get(name, default)) for name, default in rest])


def _literal(value: Any) -> Argument:
    if isinstance(value, _LITERALS):
        return value
    if isinstance(value, (tuple, list)):
        return tuple([_literal(item) for item in value])
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return str(value)
    return str(value).removeprefix("torch.")
