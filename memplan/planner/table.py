"""What every segment costs under every option: one recording for each option, with all segments under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from memplan.memory.optimizers import Implementation, OptimizerRule
from memplan.planner.costs import StepCosts
from memplan.planner.instance import Candidate, Instance, undominated
from memplan.planner.options import PLAIN, Option

#: An option and a step of pruning, 0 for none.
Way: TypeAlias = "tuple[Option, int]"


@dataclass(frozen=True)
class Table:
    """The costs of segments, from recordings in which all of them run in one way.

    ``trained`` has, for each way and each implementation of the optimizer, the step in which everything trains;
    ``frozen``, for each step of pruning, the one in which the head alone does. ``importance`` is what a step of pruning
    costs each segment. ``alone`` is ``frozen`` for each implementation: at depth 1 the highest segment trains in part,
    as it does there. ``handed`` are the bytes that each segment is handed by the one below.
    """

    rule: OptimizerRule
    trained: Mapping[Way, Mapping[Implementation, StepCosts]]
    frozen: Mapping[int, StepCosts]
    handed: tuple[int, ...]
    importance: tuple[tuple[float, ...], ...] = ()
    alone: Mapping[int, Mapping[Implementation, StepCosts]] = field(default_factory=dict)
    approximated: tuple[bool, ...] = ()

    @property
    def count(self) -> int:
        """How many segments there are."""
        return len(self.handed)

    def instance(
        self,
        depth: int,
        implementation: Implementation,
        *,
        share: float = 1.0,
        extra: int = 0,
        flops_limit: int | None = None,
    ) -> Instance:
        """Return the problem in which the ``depth`` top segments train.

        Args:
            depth: from 1 to the number of segments.
            implementation: how the optimizer updates.
            share: the part of the batch that the frozen segments take at a time.
            extra: bytes that these need beyond the proportion, as a recorded step has shown.
            flops_limit: of forward and backward.
        """
        whole = extra + self._whole(depth, share)
        rows = [undominated(self._ways(segment, depth, implementation, share, whole)) for segment in range(self.count)]
        return self._instance(depth, implementation, rows, flops_limit)

    def fixed(
        self,
        depth: int,
        implementation: Implementation,
        ways: Sequence[Way],
        *,
        share: float = 1.0,
        extra: int = 0,
    ) -> Instance:
        """Return the problem in which nothing is left to choose: ``ways`` has one for each segment.

        Of a frozen segment's only the step of pruning counts.
        """
        whole = extra + self._whole(depth, share)
        rows = [self._way(segment, way, depth, implementation, share, whole) for segment, way in enumerate(ways)]
        return self._instance(depth, implementation, [(row,) for row in rows], None)

    def _instance(
        self,
        depth: int,
        implementation: Implementation,
        rows: Sequence[tuple[Candidate, ...]],
        flops_limit: int | None,
    ) -> Instance:
        any_way = next(iter(self.trained.values()))[implementation]
        if self._is_head_alone(depth):
            any_way = self.alone[0][implementation]
        sizes = [size for updated in any_way.updated[self.count - depth :] for size in updated]
        early = implementation == "in-backward"
        transient = 0 if early else max(self.rule.transients[implementation](sizes), default=0)
        return Instance(any_way.inputs, any_way.after + transient, tuple(rows), flops_limit)

    def frozen_bytes(self, depth: int, implementation: Implementation, share: float, extra: int = 0) -> int:
        """Return the most that is alive while the frozen segments run a share of the batch, at the best pruning."""
        whole = extra + self._whole(depth, share)
        candidates = [self._ways(segment, depth, implementation, share, whole) for segment in range(self.count)]
        running = candidates if self._is_head_alone(depth) else candidates[: self.count - depth]
        inputs = next(iter(self.frozen.values())).inputs
        fixed = sum(min(candidate.cost.constant for candidate in ways) for ways in candidates)
        most = max((min(candidate.cost.forward for candidate in ways) for ways in running), default=0)
        return inputs + fixed + most

    def _is_head_alone(self, depth: int) -> bool:
        return depth == 1 and bool(self.alone)

    def _whole(self, depth: int, share: float) -> int:
        """Return the bytes in which a frozen part that runs in parts gathers what it hands on."""
        return self.handed[self.count - depth] if share < 1 else 0

    def _ways(
        self, segment: int, depth: int, implementation: Implementation, share: float, whole: int
    ) -> list[Candidate]:
        frozen = segment < self.count - depth or self._is_head_alone(depth)
        ways = [(PLAIN, level) for level in self.frozen] if frozen else list(self.trained)
        return [self._way(segment, way, depth, implementation, share, whole) for way in ways]

    def _way(
        self, segment: int, way: Way, depth: int, implementation: Implementation, share: float, whole: int
    ) -> Candidate:
        first = self.count - depth
        if segment >= first and not self._is_head_alone(depth):
            return self._candidate(segment, way, implementation, first)
        level = way[1]
        trains = segment >= first
        cost = (self.alone[level][implementation] if trains else self.frozen[level]).segments[segment]
        forward = cost.forward if share == 1 else whole + round(cost.forward * share)
        if not trains:
            cost = replace(cost, kept=0, gradients=0, backward=0)
        return Candidate(replace(cost, forward=forward), 0, self._lost(segment, level), pruned=level)

    def _candidate(self, segment: int, way: Way, implementation: Implementation, first: int) -> Candidate:
        option, level = way
        cost = self.trained[way][implementation].segments[segment]
        if segment == first:
            cost = replace(cost, backward=cost.lowest)
        approximations = int(bool(option.approximate) and self.approximated[segment])
        plain = self.trained[PLAIN, 0][implementation].segments[segment].work
        return Candidate(cost, approximations, self._lost(segment, level), cost.work - plain, option, level)

    def _lost(self, segment: int, level: int) -> float:
        return self.importance[segment][level] if level else 0.0

    @property
    def options(self) -> tuple[Option, ...]:
        """The options of trained segments."""
        return tuple(dict.fromkeys(option for option, _ in self.trained))

    def exact(self) -> Table:
        """Return the table without what changes the gradients or the network."""
        trained = {way: costs for way, costs in self.trained.items() if not way[0].approximate and not way[1]}
        alone = {step: costs for step, costs in self.alone.items() if step == 0}
        return replace(self, trained=trained, frozen={0: self.frozen[0]}, alone=alone)

    def constant_bytes(self, depth: int, implementation: Implementation) -> int:
        """Return the bytes of parameters, buffers, inputs and the optimizer's state with ``depth`` trained segments."""
        rows = self.fixed(depth, implementation, [(PLAIN, 0)] * self.count)
        return rows.base + sum(candidates[0].cost.constant for candidates in rows.segments)

    def state_bytes(self, depth: int) -> int:
        """Return the bytes of the optimizer's state with ``depth`` trained segments."""
        any_way = next(iter(self.trained.values()))["in-backward"]
        return sum(self.rule.state(size) for updated in any_way.updated[self.count - depth :] for size in updated)

    def with_ways(self, trained: Mapping[Way, Mapping[Implementation, StepCosts]]) -> Table:
        """Return the table with further ways."""
        return replace(self, trained={**self.trained, **trained})
