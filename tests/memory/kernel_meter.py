"""Measure what one aten op allocates inside itself, from the profiler's memory events, and record the op's tensors."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from memplan.graph.records import Argument, Machine, TensorView


@dataclass(frozen=True, slots=True)
class Case:
    """One op call: the op as a dispatch mode names it, and a function that makes its arguments in schema order."""

    name: str
    target: str
    make: Callable[[], Sequence[object]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one op call held beyond its results at its worst moment, with the records of its arguments and results."""

    scratch_bytes: int
    fresh_bytes: int
    args: tuple[Argument, ...]
    outputs: tuple[TensorView | None, ...]


def this_machine() -> Machine:
    """The machine that the readings come from."""
    return Machine("cpu", torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), torch.__version__)


def overload(target: str) -> torch._ops.OpOverload:
    """The op that a name such as ``aten.add.Tensor`` stands for."""
    namespace, name, variant = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), variant)


class _Recorder:
    """Tensors as records, storages numbered as they are met."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}

    def record(self, value: object) -> Argument:
        if isinstance(value, torch.Tensor):
            key = value.untyped_storage()._cdata
            number = self._storages.setdefault(key, len(self._storages))
            return TensorView(
                number, tuple(value.shape), tuple(value.stride()), str(value.dtype).removeprefix("torch.")
            )
        if isinstance(value, (list, tuple)):
            return tuple(self.record(item) for item in value)
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        return str(value).removeprefix("torch.")

    def knows(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages


def _complete(op: torch._ops.OpOverload, values: Sequence[object]) -> list[object]:
    schema = op._schema.arguments
    return [*values, *(argument.default_value for argument in schema[len(values) :])]


def _call(op: torch._ops.OpOverload, values: Sequence[object]) -> object:
    positional = [
        value for argument, value in zip(op._schema.arguments, values, strict=True) if not argument.kwarg_only
    ]
    keywords = {
        argument.name: value
        for argument, value in zip(op._schema.arguments, values, strict=True)
        if argument.kwarg_only
    }
    return op(*positional, **keywords)


def _flatten(value: object) -> list[torch.Tensor | None]:
    if value is None or isinstance(value, torch.Tensor):
        return [value]
    return [leaf for item in value for leaf in _flatten(item)] if isinstance(value, (list, tuple)) else []


def _results(value: object, recorder: _Recorder) -> tuple[tuple[TensorView | None, ...], int]:
    """The records of an op's results and the bytes of the storages among them that no argument owns."""
    fresh: dict[int, int] = {}
    views: list[TensorView | None] = []
    leaves = _flatten(value)
    for leaf in leaves:
        if leaf is not None and not recorder.knows(leaf):
            storage = leaf.untyped_storage()
            fresh[storage._cdata] = storage.nbytes()
    for leaf in leaves:
        view = recorder.record(leaf)
        views.append(view if isinstance(view, TensorView) else None)
    return tuple(views), sum(fresh.values())


def read_cases(cases: Sequence[Case], gradients: bool = False) -> list[Reading]:
    """Run every case twice and read the second run: the first one fills caches of compiled kernels.

    All runs share one profiler session, since starting one costs more than most ops.
    """
    calls = []
    with torch.set_grad_enabled(gradients), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as session:
        for index, case in enumerate(cases):
            op = overload(case.target)
            _call(op, _complete(op, case.make()))
            values = _complete(op, case.make())
            recorder = _Recorder()
            records = tuple(recorder.record(value) for value in values)
            with record_function(f"case {index}"):
                result = _call(op, values)
            calls.append((records, *_results(result, recorder)))
            del result, values
    events = session.profiler.kineto_results.events()
    spans = {event.name(): (event.start_ns(), event.end_ns()) for event in events if event.name().startswith("case ")}
    memory = sorted(
        ((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"), key=lambda e: e[0]
    )
    times = [time for time, _ in memory]
    readings = []
    for index, (records, outputs, fresh) in enumerate(calls):
        start, end = spans[f"case {index}"]
        held = worst = 0
        for _, change in memory[bisect_left(times, start) : bisect_right(times, end)]:
            held += change
            worst = max(worst, held)
        readings.append(Reading(max(0, worst - fresh), fresh, records, outputs))
    return readings
