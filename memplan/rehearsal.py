"""Choices of the search on one model: their plans, and the steps that these give on fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from memplan.errors import AnalysisError, NothingTrainsError
from memplan.graph.blocks import located_blocks
from memplan.graph.head import end_of_module
from memplan.graph.step_graph import StepGraph
from memplan.memory import Footprint, Implementation, price
from memplan.memory.optimizers import optimizer_rule
from memplan.methods import METHODS, Plan
from memplan.methods.cut import ScheduledOp
from memplan.methods.lean import INT8_LAYERS, with_everywhere
from memplan.methods.treatments import treatment_named
from memplan.planner.assembly import assembled, first_use, scheduled
from memplan.planner.costs import Quantity, StepCosts, quantity_of, step_costs
from memplan.planner.options import PLAIN, Choice, Option
from memplan.planner.pruning import PruningSteps
from memplan.planner.records import Measured
from memplan.planner.segments import Segments
from memplan.planner.table import Table, Way
from memplan.steps import Steps, loss_shapes

#: What the plans of the search call their method.
METHOD_NAME: Final = "planned"

#: The costs of a step under each implementation of the optimizer that is tried.
Costs = Mapping[Implementation, StepCosts]


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A choice's plan and its recorded step, with what the budget is on."""

    plan: Plan
    step: StepGraph
    footprint: Footprint
    implementation: Implementation
    measured: Measured


class Rehearsal:
    """Records the steps of choices on one model, each once.

    ``int8`` stores the frozen weights of every choice in 8 bits; ``pruning`` says what may be pruned.
    """

    def __init__(
        self,
        steps: Steps,
        optimizer: str,
        implementation: Implementation,
        quantity: Quantity = "peak",
        *,
        int8: bool = False,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._steps = steps
        self._optimizer = optimizer
        self._rule = optimizer_rule(optimizer)
        self._implementation = implementation
        self._quantity: Quantity = quantity
        self.int8 = int8
        self._progress = progress
        self._rehearsed: dict[Choice, Rehearsed] = {}
        self._unscheduled: dict[Option, tuple[Plan, StepGraph]] = {}
        self._recorded: dict[Option, StepGraph] = {}
        self.pruning: PruningSteps | None = None

    @cached_property
    def stock(self) -> StepGraph:
        """The step of stock PyTorch in which everything trains, with its blocks."""
        return self._steps.step(METHODS["full"])

    @cached_property
    def stock_footprint(self) -> Footprint:
        """What stock PyTorch needs to train everything."""
        return price(self.stock, self._optimizer, self._implementation)

    def kept_by(self, step: StepGraph) -> tuple[int, ...]:
        """Return what each segment of a recorded step keeps for the backward, in bytes."""
        costs = step_costs(located_blocks(step, self.stock.blocks), self._rule, self._implementation, self._quantity)
        return tuple(segment.kept for segment in costs.segments)

    @cached_property
    def count(self) -> int:
        """How many segments the model has."""
        return self._segments.count

    @cached_property
    def _segments(self) -> Segments:
        return Segments(self.stock)

    @cached_property
    def least_depth(self) -> int:
        """The least segments that train a parameter: more than the head of a model that has none, as a backbone has."""
        return next((depth for depth in range(1, self.count) if self._trains(depth)), self.count)

    def _trains(self, depth: int) -> bool:
        try:
            return bool(self.trained(depth))
        except NothingTrainsError:
            return False

    def segment_name(self, index: int) -> tuple[str, str]:
        """Return what a segment is called, and the path of its block; what lies below and above the blocks has none."""
        blocks = self.stock.blocks
        if 0 < index <= len(blocks):
            return blocks[index - 1].path, blocks[index - 1].path
        return ("stem" if index == 0 else "head"), ""

    def works(self, index: int) -> bool:
        """Whether a segment has anything to do."""
        return self._segments.work[index] > 0

    def one_more(self, depth: int) -> str:
        """Return in words what trains with ``depth`` segments beyond what trains with one less."""
        name, path = self.segment_name(self.count - depth)
        return f"one more block, {name}" if path else f"the {name} trains too"

    def frozen_weight_bytes(self, depth: int) -> int:
        """Return the bytes of the weights of convolutions and linear layers that do not train."""
        trained = frozenset(self.trained(depth))
        return sum(
            self.stock.storages[parameter.storage].bytes
            for parameter in self.stock.parameters
            if parameter.name not in trained
            and parameter.name.endswith(".weight")
            and self.stock.layers[parameter.layer].type in INT8_LAYERS
        )

    @property
    def is_single_precision(self) -> bool:
        """Whether the model computes in float32."""
        outputs = (view for op in self.stock.ops if op.phase == "forward" for view in op.outputs if view is not None)
        return next((view.dtype for view in outputs), "") == "float32"

    # -- the table -----------------------------------------------------------------------------------------------------

    @cached_property
    def plain(self) -> Table:
        """What the segments cost as stock PyTorch runs them, trained or frozen."""
        blocks = range(1, len(self.stock.blocks) + 1)
        alone = self._costs(self._alone)
        return Table(
            rule=self._rule,
            trained={(PLAIN, 0): self._costs(self.stock)},
            frozen={0: alone[self._implementation]},
            alone={0: alone},
            handed=self._handed(),
            approximated=tuple(index in blocks for index in range(self.count)),
        )

    def with_options(self, table: Table, options: Sequence[Option]) -> Table:
        """Return the table with further options; one that recomputes no more than a cheaper one is left out."""
        found: dict[Way, Costs] = {}
        schedules: set[tuple[bool, tuple[ScheduledOp, ...]]] = set()
        for option in options:
            self._progress(f"recording {' and '.join(option.treatments)}")
            plan, step = self._unscheduled_of(option)
            if option.price is not None:
                schedule = scheduled(step, dict.fromkeys(range(self.count), option))
                key = (bool(option.approximate), schedule)
                if not schedule or key in schedules:
                    continue
                schedules.add(key)
                step = self._run(replace(plan, schedule=schedule))
            self._recorded[option] = step
            found[option, 0] = self._costs(step)
        return table.with_ways(found)

    def with_pruning(self, table: Table, pruning: PruningSteps) -> Table:
        """Return the table with every option at every step of pruning, without further recordings."""
        from memplan.graph.channels.resize import resized

        self.pruning = pruning
        kept = {step: pruning.kept(step) for step in range(1, len(pruning.shares))}
        found: dict[Way, Costs] = {}
        for option, level in list(table.trained):
            for step, counts in kept.items() if not level else ():
                self._progress(f"pricing {' and '.join(option.treatments) or 'the plain step'}, pruned")
                recorded = self.stock if option == PLAIN else self._recorded[option]
                found[option, step] = self._costs(resized(recorded, pruning.groups, counts))
        alone = {step: self._costs(resized(self._alone, pruning.groups, counts)) for step, counts in kept.items()}
        frozen = {step: costs[self._implementation] for step, costs in alone.items()}
        return replace(
            table.with_ways(found),
            frozen={**table.frozen, **frozen},
            alone={**table.alone, **alone},
            importance=pruning.lost,
        )

    def _unscheduled_of(self, option: Option) -> tuple[Plan, StepGraph]:
        """Return the plan of an option for all segments, and its step with nothing recomputed."""
        alike = option if option.price is None else replace(option, price=0.0)
        if alike not in self._unscheduled:
            plan = self._assembled(Choice((alike,) * self.count))
            self._unscheduled[alike] = plan, self._run(plan)
        return self._unscheduled[alike]

    def _costs(self, step: StepGraph) -> Costs:
        how: tuple[Implementation, ...] = (self._implementation, "in-backward")
        segments = Segments(step)
        return {each: step_costs(step, self._rule, each, self._quantity, segments) for each in how}

    @cached_property
    def _alone(self) -> StepGraph:
        """The step in which the head alone trains, or what can instead, and the rest runs as a frozen part does."""
        return self._run(self._assembled(Choice((PLAIN,) * self.least_depth)))

    def _handed(self) -> tuple[int, ...]:
        """Return the bytes that each segment is handed by those below it."""
        segments = Segments(self._alone)
        handed = [0] * segments.count
        for storage, segment in segments.of_storage.items():
            if segments.of_op[self._alone.storages[storage].born] < segment:
                handed[segment] += self._alone.storages[storage].bytes
        return tuple(handed)

    # -- choices -------------------------------------------------------------------------------------------------------

    def measure(self, choice: Choice) -> Measured:
        """Record the step of a choice."""
        return self.rehearsed(choice).measured

    def rehearsed(self, choice: Choice) -> Rehearsed:
        """Return the plan and the recorded step of a choice."""
        if choice not in self._rehearsed:
            self._progress(f"recording a plan that trains {len(choice.options)} of {self.count} segments")
            self._rehearsed[choice] = self._rehearse(choice)
        return self._rehearsed[choice]

    def _rehearse(self, choice: Choice) -> Rehearsed:
        plan = self._assembled(choice)
        split = plan.microbatch is not None
        try:
            step = self._run(plan)
        except AnalysisError:
            if not split:
                raise
            split, plan = False, _in_one_part(plan)
            step = self._run(plan)
        if split and loss_shapes(step) != loss_shapes(self.stock):
            split, plan = False, _in_one_part(plan)
            step = self._run(plan)
        first = self.count - len(choice.options)
        schedule = scheduled(step, dict(enumerate(choice.options, first)))
        if schedule:
            if plan.microbatch is not None:
                # How often the frozen part's ops run depends on the batch.
                schedule = schedule[end_of_module(plan.microbatch.boundary, step.layers, step.ops) :]
            plan = replace(plan, schedule=schedule)
            step = self._run(plan)
        how: Implementation = "in-backward" if plan.fused_update else self._implementation
        footprint = price(step, self._optimizer, how)
        measured = Measured(
            bytes=quantity_of(footprint, self._quantity),
            in_prefix=footprint.peak.moment < first_use(step, plan.trained),
            split=split,
        )
        return Rehearsed(plan, step, footprint, how, measured)

    def _assembled(self, choice: Choice) -> Plan:
        depth = len(choice.options)
        plan = assembled(self.stock, choice, self.trained(depth), name=METHOD_NAME, k=self.k_of(depth))
        if self.int8 and len(plan.trained) < len(self.stock.parameters):
            plan = with_everywhere(plan, treatment_named("frozen-int8"), self.stock)
        if choice.pruned and self.pruning is not None:
            plan = replace(plan, pruned=self.pruning.pruned(choice.pruned))
        return plan

    def k_of(self, depth: int) -> int | None:
        """Return how many blocks train with ``depth`` segments; ``None`` when the model has none."""
        return min(depth - 1, len(self.stock.blocks)) if self.stock.blocks else None

    def trained(self, depth: int) -> Collection[str]:
        """Return the names of the parameters that train with ``depth`` segments."""
        if depth == self.count:
            return [parameter.name for parameter in self.stock.parameters]
        return self._steps.trained(METHODS["top-k"], depth - 1)

    def _run(self, plan: Plan) -> StepGraph:
        return located_blocks(self._steps.run(plan), self.stock.blocks)


def _in_one_part(plan: Plan) -> Plan:
    note = "the frozen part runs as one batch: the model's forward uses the size of its batch"
    return replace(plan, microbatch=None, notes=(*plan.notes, note))
