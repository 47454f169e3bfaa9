"""Memory over one training step: at each moment the resident, saved and temporary bytes that are alive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Final

from memplan.graph.records import Op, Parameter, Phase, Role, Storage
from memplan.graph.step_graph import StepGraph
from memplan.memory.optimizers import Implementation, OptimizerRule
from memplan.memory.scratch import scratch_bytes

_RESIDENT: Final[frozenset[Role]] = frozenset({"parameter", "buffer", "gradient"})

_scratch_bytes = lru_cache(maxsize=65_536)(scratch_bytes)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Bytes alive at each moment of a step: one moment for each op, then one for each update of the optimizer.

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
    during the update.
    """
    op_count = len(graph.ops)
    saved_storages = frozenset(graph.saved)
    resident, saved, temp = ([0] * (op_count + 2) for _ in range(3))
    for storage in graph.storages:
        kind = resident if storage.role in _RESIDENT else saved if storage.index in saved_storages else temp
        kind[max(storage.born, 0)] += storage.bytes
        kind[storage.last + 1] -= storage.bytes
    resident, saved, temp = (list(accumulate(changes)) for changes in (resident, saved, temp))
    scratch = [_scratch_bytes(op.name, op.args, op.outputs, graph.machine) for op in graph.ops]
    temp = [alive + extra for alive, extra in zip(temp, scratch, strict=False)] + [temp[op_count]]

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
    return Timeline(
        phases=(*(op.phase for op in graph.ops), *updates * moments),
        resident=tuple(
            [alive + state_before for alive in resident[:op_count]]
            + [resident[op_count] + state for state in state_during]
        ),
        saved=tuple(saved[:op_count] + [saved[op_count]] * moments),
        temp=tuple(temp[:op_count] + [temp[op_count] + transient for transient in transients]),
        scratch=tuple(scratch + [0] * moments),
    )


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
