"""plan: which blocks train, how each runs and what is pruned, so that a training step fits a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from memplan.errors import BudgetError, UsageError, known
from memplan.flags import planned_by_flags
from memplan.memory.optimizers import optimizer_rule
from memplan.methods.method import RUNNERS
from memplan.planner.costs import Quantity
from memplan.planner.options import FEW_PRICES, PRICES
from memplan.planner.pruning import PruningSteps, prunable
from memplan.planner.records import ORDERS, Budget, Found, Preference, Wanted
from memplan.planner.search import Search
from memplan.planner.table import Table
from memplan.planner.terms import Terms, flops_limit, terms_of
from memplan.reasons import not_enough, savings_of, segments_of, upgrades_of
from memplan.rehearsal import Rehearsal
from memplan.results import Planned, SearchReport
from memplan.setting import budget_in_bytes, implementation_of, setting_of
from memplan.steps import Steps
from memplan.subject import Subject, first_batch, subject_of

if TYPE_CHECKING:
    from torch import nn

    from memplan.graph.channels.records import ChannelGroup
    from memplan.methods.pruning import Importance

QUANTITIES: Final[tuple[Quantity, ...]] = ("peak", "activations", "kept")


def plan(
    model: str | nn.Module,
    inputs: Any = None,
    *,
    budget: int | str,
    budget_of: Quantity = "peak",
    lossless: bool = False,
    allow: Sequence[str] = (),
    forbid: Sequence[str] = (),
    k: int | None = None,
    min_k: int | None = None,
    max_prune: float | None = None,
    round_to: int = 8,
    importance: str | Callable[..., Any] = "l1",
    calibration: Any = None,
    keep: Sequence[str] = (),
    max_flops: str | float | None = None,
    prefer: Preference = "k",
    runner: str = "memplan",
    optimizer: str = "sgd",
    foreach: bool | None = None,
    device: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **subject: Any,
) -> Planned:
    """Return the best plan for a training step of ``model`` that fits ``budget``, as its recorded step has it.

    Args:
        model: a spec such as ``"mobilenet_v3"``, or a module, which is not changed.
        inputs: for a module, what its forward takes.
        budget: bytes, or text such as ``"64MB"``.
        budget_of: what the budget is on: the allocator's ``peak``, the ``activations`` alone (the peak of what does not
            stay from step to step), or what is ``kept`` for the backward.
        lossless: whether only what leaves the gradients as they are may be used.
        allow: further treatments: ``prune``, ``frozen-int8``.
        forbid: treatments that may not be used, such as ``recompute`` or ``signed-mask``.
        k: how many blocks train; by default as many as fit.
        min_k: how many must.
        max_prune: the share of a group's channels that may be pruned; 0 by default.
        round_to: kept channels are a multiple of this.
        importance: which channels go: ``l1``, ``l2``, ``bn-scale``, ``taylor``, ``fisher``, ``uniform``, or a function.
        calibration: for ``taylor`` and ``fisher`` a batch ``(inputs, targets)``, or several.
        keep: layers that are not pruned.
        max_flops: of a step, as a number such as ``"30G"`` or as ``"1.1x"`` of full fine-tuning.
        prefer: what counts most: ``k``, ``accuracy-proxy`` (exact gradients and nothing pruned), ``speed`` (nothing
            repeated) or ``memory``.
        runner: ``memplan``, or ``stock`` for what ``requires_grad`` alone can do.
        optimizer: ``sgd``, ``momentum``, ``adam`` or ``adamw``.
        foreach: whether the optimizer updates all parameters together; ``None`` is PyTorch's default for the device.
        device: where the step would run; by default where the model is, the CPU for a spec.
        progress: told what is being done.
        **subject: ``batch_size`` (a number, or ``"auto"`` for the largest at which as many blocks train as at 1),
            ``input_shape`` and so on, see :func:`memplan.subject.subject_of`.

    Raises:
        UsageError: a name, size or combination that cannot be understood.
        AnalysisError: the model cannot be loaded or recorded.
        BudgetError: nothing that is allowed fits.
    """
    size = budget_in_bytes(budget)
    if size is None:
        raise UsageError("no budget is given; write for example 64MB")
    request = Request(
        budget=Budget(size, known("quantity for a budget", budget_of, QUANTITIES)),
        terms=terms_of(lossless=lossless, allow=allow, forbid=forbid, max_prune=max_prune),
        prefer=known("preference", prefer, ORDERS),
        k=k,
        min_k=min_k,
        max_flops=max_flops,
        optimizer=optimizer,
        foreach=foreach,
        runner=known("runner", runner, RUNNERS),
        pruning=Pruning(round_to, importance, calibration, tuple(keep)),
    )
    request.check()
    if subject.get("batch_size") == "auto":
        return _at_the_largest_batch(request, model, inputs, device, progress, subject)
    about = subject_of(model, inputs, **subject)
    progress(f"building {about.name}")
    return planned_for(Steps(about, device), request, progress)


@dataclass(frozen=True, slots=True)
class Pruning:
    """How channels are pruned, if they are."""

    round_to: int = 8
    importance: str | Callable[..., Any] = "l1"
    calibration: Any = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What a plan is asked to be, apart from the model.

    A ``brief`` search tries fewer prices, leaves approximate gradients out where exact ones fit at all, and records no
    upgrades.
    """

    budget: Budget
    terms: Terms
    prefer: Preference = "k"
    k: int | None = None
    min_k: int | None = None
    max_flops: str | float | None = None
    optimizer: str = "sgd"
    foreach: bool | None = None
    runner: str = "memplan"
    pruning: Pruning = Pruning()
    brief: bool = False

    def check(self) -> None:
        """Raise where the request contradicts itself.

        Raises:
            UsageError: it does.
        """
        optimizer_rule(self.optimizer)
        for name, value in (("k", self.k), ("min-k", self.min_k)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise UsageError(f"{name} is a number of blocks from 0 on, not {value!r}")
        if self.k is not None and self.min_k is not None and self.min_k > self.k:
            raise UsageError(f"min-k {self.min_k} is more than k {self.k}; say one of them")
        if self.pruning.round_to < 1:
            raise UsageError(f"channels are rounded to a number from 1 on, not {self.pruning.round_to}")


def planned_for(steps: Steps, request: Request, progress: Callable[[str], None] = lambda _: None) -> Planned:
    """Return the best plan for a model's step.

    Raises:
        UsageError, AnalysisError, BudgetError: see :func:`plan`.
    """
    search = Planning(steps, request, progress)
    return search.by_flags() if request.runner == "stock" else search.by_memplan()


class Planning:
    """One request on one model."""

    def __init__(self, steps: Steps, request: Request, progress: Callable[[str], None]) -> None:
        self.steps = steps
        self._request = request
        self._progress = progress
        self._started = time.perf_counter()
        how = implementation_of(request.foreach, steps.model.device.type)
        self.setting = setting_of(steps.subject, steps, request.optimizer, how)
        progress(f"recording {steps.subject.name}: stock full")
        self.rehearsal = Rehearsal(
            steps,
            request.optimizer,
            how,
            request.budget.of,
            int8=request.terms.allows("frozen-int8"),
            progress=progress,
        )
        self.wanted = self._wanted_of(request)

    def by_flags(self) -> Planned:
        """Return the best plan of what stock PyTorch can do."""
        return planned_by_flags(self.steps, self.rehearsal, self.wanted, self.setting, self._started)

    def by_memplan(self) -> Planned:
        """Return the best plan of what memplan can do."""
        search, found = self._searched()
        recorded = time.perf_counter()
        if found is None:
            raise BudgetError(not_enough(search, self.rehearsal, self.steps.subject.name))
        rehearsed = self.rehearsal.rehearsed(found.choice)
        plan = self.steps.named(rehearsed.plan)
        return Planned(
            setting=self.setting,
            budget=self._request.budget,
            prefer=self._request.prefer,
            runner="memplan",
            plan=plan,
            implementation=rehearsed.implementation,
            bytes=found.bytes,
            footprint=rehearsed.footprint,
            stock=self.rehearsal.stock_footprint,
            blocks=self.rehearsal.stock.blocks,
            segments=tuple(segments_of(search, self.rehearsal, found.choice)),
            savings=tuple(savings_of(search, found.choice)),
            search=SearchReport(
                found.solver, found.score, found.bound, found.gap, found.repeats, found.recordings, found.error
            ),
            next=tuple(upgrades_of(search, self.rehearsal, found, recorded=not self._request.brief)),
            notes=(*self._notes, *plan.notes),
            seconds=(recorded - self._started, time.perf_counter() - recorded),
            step=rehearsed.step,
            stock_step=self.rehearsal.stock,
        )

    def _wanted_of(self, request: Request) -> Wanted:
        rehearsal = self.rehearsal
        blocks, count = len(rehearsal.stock.blocks), rehearsal.count
        for name, value in (("k", request.k), ("min-k", request.min_k)):
            if value is not None and value > blocks:
                raise UsageError(f"{name} must be from 0 to {blocks}, the blocks of this model, not {value}")
        # With all blocks the stem may train too.
        most = count if request.k is None or request.k == blocks else request.k + 1
        least = (request.k if request.k is not None else request.min_k or 0) + 1
        if most < rehearsal.least_depth:
            raise UsageError(
                f"k {request.k} trains no parameter of this model; use {rehearsal.least_depth - 1} or more"
            )
        stock = rehearsal.stock_footprint
        allows = request.terms.allows
        return Wanted(
            budget=request.budget,
            least_depth=max(least, rehearsal.least_depth),
            most_depth=most,
            prefer=request.prefer,
            fused=(False, True) if allows("fused-update") else (False,),
            split=allows("prefix-microbatch"),
            batch=first_batch(self.steps.model.args, self.steps.model.kwargs) or 1,
            flops_limit=flops_limit(request.max_flops, stock.flops_forward + stock.flops_backward),
        )

    def _searched(self) -> tuple[Search, Found | None]:
        """Search with more and more to choose from, until more could not be better.

        Options are recorded when they are needed: what is exact before what is not, for it comes first in any case
        when as much trains.
        """
        terms, rehearsal, most = self._request.terms, self.rehearsal, self.wanted.most_depth
        table = rehearsal.plain
        search, found = self._search(table)
        if found is not None and len(found.choice.options) == most and self._request.prefer != "memory":
            return search, found
        if exact := terms.exact_options(FEW_PRICES if self._request.brief else PRICES):
            table = rehearsal.with_options(table, exact)
            search, found = self._search(table)
            if found is not None and (self._all_blocks(found, most) or self._request.prefer == "accuracy-proxy"):
                return search, found
        if (not terms.approximate and not terms.max_prune) or (self._request.brief and found is not None):
            return search, found
        table = rehearsal.with_options(table, terms.approximate_options())
        if terms.max_prune:
            table = rehearsal.with_pruning(table, self._pruning_steps(terms.max_prune))
        if found is None or self._request.prefer != "k":
            return self._search(table)
        # At the depth that is reached, and below, what is exact comes first.
        whole = Search(table, self.wanted, self.rehearsal.measure, self.setting.implementation)
        deeper = whole.within(len(found.choice.options) + 1, most).best()
        return (search, found) if deeper is None else (whole, deeper)

    def _all_blocks(self, found: Found, most: int) -> bool:
        """Whether nothing that is not exact could be better: as many segments train as may, or all but the stem."""
        depth = len(found.choice.options)
        return depth == most or (depth == self.rehearsal.count - 1 and self._request.prefer == "k")

    def _search(self, table: Table) -> tuple[Search, Found | None]:
        search = Search(table, self.wanted, self.rehearsal.measure, self.setting.implementation)
        return search, search.best()

    def _pruning_steps(self, most: float) -> PruningSteps:
        from memplan.graph.channels.groups import channel_groups

        stock, how = self.rehearsal.stock, self._request.pruning
        self._progress("finding channel groups")
        groups = tuple(prunable(channel_groups(stock), stock, how.keep))
        importance, note = measured_importance(self.steps.subject, groups, how.importance, how.calibration)
        self._notes = (*self._notes, *note)
        return PruningSteps(stock, groups, importance, most, how.round_to)

    _notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """Return what the segments cost under every option that is allowed, pruning left out."""
        terms, rehearsal = self._request.terms, self.rehearsal
        return rehearsal.with_options(rehearsal.plain, (*terms.exact_options(), *terms.approximate_options()))


def measured_importance(
    subject: Subject, groups: Sequence[ChannelGroup], by: str | Callable[..., Any], calibration: Any
) -> tuple[Importance, tuple[str, ...]]:
    """Return how important the channels of the groups are, and a note where weights cannot tell.

    Raises:
        UsageError, AnalysisError: see :func:`memplan.transform.importance.importances`.
    """
    from memplan.transform.importance import importances

    random = subject.source is not None and subject.source.weights is None
    module = subject.built("cpu")[0]
    if random and isinstance(by, str) and by != "uniform" and calibration is None:
        found = importances(module, groups, "uniform")
        return found, (f"weights are random: {by} would mean nothing, so that all channels of a group count alike",)
    return importances(module, groups, by, calibration), ()


def _at_the_largest_batch(
    request: Request,
    model: str | nn.Module,
    inputs: Any,
    device: str | None,
    progress: Callable[[str], None],
    subject: dict[str, Any],
) -> Planned:
    """Return the plan at the largest batch at which as many blocks train as at a batch of one.

    Raises:
        BudgetError: nothing fits at a batch of one.
    """
    if not isinstance(model, str):
        raise UsageError("batch size auto needs a spec: a module's inputs have their batch; give a spec or a number")

    def at(batch: int, request: Request) -> Planned | None:
        progress(f"trying a batch of {batch}")
        about = subject_of(model, inputs, **{**subject, "batch_size": batch})
        try:
            return planned_for(Steps(about, device), request, progress)
        except BudgetError:
            if batch == 1:
                raise
            return None

    best = at(1, request)
    assert best is not None
    if request.k is None:
        blocks = best.plan.k
        request = replace(request, min_k=blocks if request.min_k is None else request.min_k)
    low, high = 1, 2
    while high <= LARGEST_BATCH and (found := at(high, request)) is not None:
        best, low, high = found, high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        found = at(middle, request)
        if found is None:
            high = middle
        else:
            best, low = found, middle
    return best


#: Beyond this nobody looks for a larger batch.
LARGEST_BATCH: Final = 4096
