"""Count a recorded step as a paper counts it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from memplan.errors import known
from memplan.graph.step_graph import StepGraph
from memplan.memory.accounting.calls import Call, calls_of
from memplan.memory.accounting.held import Held, held_inputs
from memplan.memory.accounting.records import Accounted, LayerAccount
from memplan.memory.accounting.rules import ACCOUNTINGS, FLOAT_BYTES, FROZEN_BYTES, temp_bytes
from memplan.units import format_bytes

_ACTIVATIONS: Final = frozenset({"relu", "relu6", "hardswish", "smooth"})

#: The types of layers that TinyTL's profiler hooks; of any other it sees nothing.
_PROFILED_TYPES: Final = frozenset(
    {
        *("Conv1d", "Conv2d", "Conv3d", "StandardisedConv2d", "Linear", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
        *("GroupNorm", "ReLU", "ReLU6", "LeakyReLU", "Sigmoid", "Tanh"),
    }
)


def account(graph: StepGraph, accounting: str, *, masked: bool = False) -> Accounted:
    """Return the memory of a recorded step in bytes, counted as ``accounting`` does: ``tinytl`` or ``mobiletl``.

    What trains is read from the graph's parameters. With ``masked`` ReLU6 and hard-swish keep one bit per element, as
    under MobileTL's ``signed-mask``. All elements count four bytes, whatever their dtype: that is the papers' rule.

    Raises:
        UsageError: there is no such accounting.
    """
    rule = ACCOUNTINGS[known("accounting", accounting, ACCOUNTINGS)]
    found = calls_of(graph)
    held = held_inputs(graph)
    counted = [call for call in found.calls if call.kind != "gate" or rule.name == "mobiletl"]
    backward = any(call.kind in _ACTIVATIONS and call.differentiated for call in counted)
    kept = [rule.kept(call, masked) if backward or call.kind not in _ACTIVATIONS else 0 for call in counted]
    temps = [temp_bytes(call) for call in counted]
    waits = [_held_bytes(call, held) for call in counted]
    peak, peak_layer, before = 0, "", 0
    for call, stays, temp, waiting in zip(counted, kept, temps, waits, strict=True):
        if before + temp + waiting > peak:
            peak, peak_layer = before + temp + waiting, graph.layers[call.layer].path
        before += stays
    parameters = _parameter_bytes(graph)
    total = sum(parameters.values()) + (peak if rule.of_peak else before)
    gates = {graph.ops[call.op].name: None for call in found.calls if call not in counted}
    return Accounted(
        accounting=rule.name,
        kept_bytes=before,
        temp_bytes=max(temps, default=0),
        peak_bytes=peak,
        peak_layer=peak_layer,
        parameter_bytes=sum(parameters.values()),
        total_bytes=total,
        layers=_layers(graph, counted, kept, temps, waits, parameters),
        notes=tuple(_notes(graph, counted, kept, rule.name)),
        uncounted=tuple(dict.fromkeys((*found.others, *gates))),
    )


def _held_bytes(call: Call, held: Sequence[Held]) -> int:
    return FLOAT_BYTES * sum(value.elements for value in held if value.first_op <= call.op <= value.last_op)


def _parameter_bytes(graph: StepGraph) -> dict[int, int]:
    """Return by layer four bytes for each number that trains and one for each that is frozen."""
    sizes: dict[int, int] = defaultdict(int)
    for parameter in graph.parameters:
        sizes[parameter.layer] += parameter.elements * (FLOAT_BYTES if parameter.trains else FROZEN_BYTES)
    return sizes


def _layers(
    graph: StepGraph,
    calls: Sequence[Call],
    kept: Sequence[int],
    temps: Sequence[int],
    waits: Sequence[int],
    parameters: dict[int, int],
) -> tuple[LayerAccount, ...]:
    stays, temp, waiting = (defaultdict[int, int](int) for _ in range(3))
    for call, one, other, third in zip(calls, kept, temps, waits, strict=True):
        stays[call.layer] += one
        temp[call.layer] = max(temp[call.layer], other)
        waiting[call.layer] = max(waiting[call.layer], third)
    return tuple(
        LayerAccount(
            path=graph.layers[index].path,
            type=graph.layers[index].type,
            kept_bytes=stays[index],
            temp_bytes=temp[index],
            held_bytes=waiting[index],
            parameter_bytes=parameters.get(index, 0),
        )
        for index in sorted({*temp, *parameters})
    )


def _notes(graph: StepGraph, calls: Sequence[Call], kept: Sequence[int], accounting: str) -> Iterator[str]:
    frozen = [call for call in calls if call.needs_input and not call.weight_trains]
    if frozen:
        size = _size(FLOAT_BYTES * sum(call.input_elements for call in frozen))
        yield (
            f"norms with a frozen scale ({len(frozen)} here) count as keeping nothing, but with the batch's or the "
            f"group's statistics the gradient that passes them is made of their input: {size} more"
        )
    if accounting == "tinytl":
        unseen = [
            (graph.layers[call.layer].type, size)
            for call, size in zip(calls, kept, strict=True)
            if size and graph.layers[call.layer].type not in _PROFILED_TYPES
        ]
        if unseen:
            types = ", ".join(sorted({name for name, _ in unseen}))
            size = _size(sum(size for _, size in unseen))
            yield f"TinyTL's own profiler does not see layers of type {types} and reports {size} less kept"


def _size(size_bytes: int) -> str:
    return format_bytes(size_bytes, unit="MB" if size_bytes >= 100_000 else "KB")
