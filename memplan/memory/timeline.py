"""Memory over one training step: at each moment the resident, saved and temporary bytes that are alive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import add
from typing import Final

from memplan.graph.records import Op, Parameter, Phase, Role, Storage
from memplan.graph.step_graph import StepGraph
from memplan.memory.arrivals import Arrival, arrivals, released
from memplan.memory.optimizers import Implementation, OptimizerRule
from memplan.memory.scratch import scratch_bytes

_KINDS: Final = ("resident", "saved", "temp")
_RESIDENT: Final[frozenset[Role]] = frozenset({"parameter", "buffer", "gradient"})

_scratch_bytes = lru_cache(maxsize=65_536)(scratch_bytes)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Bytes alive at each moment of a step: one moment for each op, then one for each update after the backward.

    ``temp`` includes ``scratch``, the bytes that a kernel allocates and frees within its op.
    """

    phases: tuple[Phase, ...]
    resident: tuple[int, ...]
    saved: tuple[int, ...]
    temp: tuple[int, ...]
    scratch: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The sum of resident, saved and temporary bytes at each moment."""
        return tuple(map(sum, zip(self.resident, self.saved, self.temp, strict=True)))


def timeline(
    graph: StepGraph,
    rule: OptimizerRule,
    implementation: Implementation = "loop",
    *,
    first_step: bool = False,
) -> Timeline:
    """Return the memory over one step of ``graph`` with this optimizer, from zeroed gradients to updated parameters.

    In the steady state (from the second step on) the optimizer's state exists all along; in the first step it appears
    during the update. An update inside the backward has no moment of its own: the op that completes the gradient shows
    the larger of the two.
    """
    if implementation == "in-backward":
        return _timeline_in_backward(graph, rule, first_step)
    alive, scratch = _alive(graph), _scratch(graph)
    updated = [graph.storages[parameter.storage].bytes for parameter in updated_parameters(graph)]
    states = [rule.state(size) for size in updated]
    updates: tuple[Phase, ...] = ("optimizer",)
    transients = rule.transients[implementation](updated)
    moments = len(transients)
    state_before = 0 if first_step else sum(states)
    if first_step and implementation == "loop" and rule.name == "momentum":
        # The buffers appear one after the other, each as its parameter is updated.
        state_during = list(accumulate(states))
    else:
        state_during = [sum(states)] * moments
    *resident, resident_after = alive["resident"]
    *saved, saved_after = alive["saved"]
    *temp, temp_after = alive["temp"]
    return Timeline(
        phases=(*(op.phase for op in graph.ops), *updates * moments),
        resident=(*(size + state_before for size in resident), *(resident_after + state for state in state_during)),
        saved=(*saved, *[saved_after] * moments),
        temp=(*map(add, temp, scratch), *(temp_after + transient for transient in transients)),
        scratch=(*scratch, *[0] * moments),
    )


def _timeline_in_backward(graph: StepGraph, rule: OptimizerRule, first_step: bool) -> Timeline:
    """Return the memory over a step whose gradients are released: of each op and the updates after it, the larger."""
    arriving = arrivals(graph)
    graph = released(graph, arriving)
    alive, scratch = _alive(graph), _scratch(graph)
    updates: dict[int, list[_Update]] = defaultdict(list)
    state = 0
    for arrival in arriving:
        update = _update(graph, arrival, rule)
        state += 0 if first_step else update.state
        for index in range(arrival.first, arrival.last + 1):
            updates[index].append(update)
    ending: dict[int, list[Storage]] = defaultdict(list)
    for storage in graph.storages:
        if storage.role == "activation":
            ending[storage.last].append(storage)
    kept = frozenset(graph.saved)
    moments = []
    for op in graph.ops:
        resident, saved, temp = (alive[kind][op.index] for kind in _KINDS)
        moment = (resident + state, saved, temp + scratch[op.index], scratch[op.index])
        if here := updates[op.index]:
            begun = [update for update in here if first_step and update.arrival.first == op.index]
            resident += state + _begun_bytes(begun, op.index)
            temp += max(update.transient for update in here)
            for storage in gone_before_update(graph, op, ending[op.index]):
                if storage.index in kept:
                    saved -= storage.bytes
                else:
                    temp -= storage.bytes
            moment = max(moment, (resident, saved, temp, 0), key=lambda kinds: sum(kinds[:3]))
            state += sum(update.state for update in begun)
        moments.append(moment)
    resident_bytes, saved_bytes, temp_bytes, scratch_bytes = zip(*moments, strict=True) if moments else ((),) * 4
    return Timeline(tuple(op.phase for op in graph.ops), resident_bytes, saved_bytes, temp_bytes, scratch_bytes)


@dataclass(frozen=True, slots=True)
class _Update:
    """Bytes of one update inside the backward: the gradient, the state of its parameters, and the temporaries."""

    arrival: Arrival
    gradient: int
    state: int
    transient: int


def _update(graph: StepGraph, arrival: Arrival, rule: OptimizerRule) -> _Update:
    sizes = [graph.storages[parameter.storage].bytes for parameter in arrival.parameters]
    return _Update(
        arrival,
        gradient=graph.storages[arrival.gradient].bytes,
        state=sum(map(rule.state, sizes)),
        transient=max(rule.transients["in-backward"](sizes)),
    )


def _begun_bytes(begun: Sequence[_Update], op: int) -> int:
    """Bytes of the states that begin after ``op``, beyond the gradients that go meanwhile, at the worst.

    The order in which the engine takes several gradients of one op is its own affair: the largest pair of a new state
    and its gradient is counted whole, and of every other one the larger.
    """
    pairs = [(update.state, update.gradient if update.arrival.last == op else 0) for update in begun]
    return sum(max(0, state - gone) for state, gone in pairs) + max((min(pair) for pair in pairs), default=0)


def _alive(graph: StepGraph) -> dict[str, list[int]]:
    """Return, for each kind, the bytes alive at each op and after the last."""
    changes = {kind: [0] * (len(graph.ops) + 2) for kind in _KINDS}
    saved = frozenset(graph.saved)
    for storage in graph.storages:
        change = changes[kind_of(storage, saved)]
        change[max(storage.born, 0)] += storage.bytes
        change[storage.last + 1] -= storage.bytes
    return {kind: list(accumulate(changes[kind]))[:-1] for kind in _KINDS}


def kind_of(storage: Storage, saved: Container[int]) -> str:
    """Return the kind that a storage counts as: ``resident``, ``saved`` or ``temp``."""
    return "resident" if storage.role in _RESIDENT else "saved" if storage.index in saved else "temp"


def _scratch(graph: StepGraph) -> list[int]:
    return [_scratch_bytes(op.name, op.args, op.outputs, graph.machine) for op in graph.ops]


def gone_before_update(graph: StepGraph, op: Op, ending: Sequence[Storage]) -> Sequence[Storage]:
    """Return those of the storages that end with ``op`` that an update right after it no longer meets.

    A gradient that had to be cloned outlives its clone's update. With the last op ends what the caller of the backward
    holds, its output and loss: only what that op read is gone before.
    """
    read = frozenset(view.storage for view in op.inputs)
    if op.name in ("aten.copy_.default", "aten.clone.default"):
        return [storage for storage in ending if storage.index not in read]
    if op.index == len(graph.ops) - 1:
        return [storage for storage in ending if storage.index in read.difference(graph.outputs)]
    return ending


def updated_parameters(graph: StepGraph) -> Sequence[Parameter]:
    """Return the parameters that the optimizer updates: those that received a gradient, in definition order."""
    return [parameter for parameter in graph.parameters if parameter.gradient is not None]


def alive_at(graph: StepGraph, moment: int) -> list[Storage]:
    """Return the storages that are alive at ``moment``, the largest first; the optimizer's moments count
    as the last.
    """
    moment = min(moment, len(graph.ops))
    alive = [storage for storage in graph.storages if storage.born <= moment <= storage.last and storage.bytes]
    return sorted(alive, key=lambda storage: (-storage.bytes, storage.index))


def maker(graph: StepGraph, storage: Storage) -> Op | None:
    """Return the op that makes a storage, or ``None`` when it exists before the step."""
    return graph.ops[storage.born] if storage.born >= 0 else None
