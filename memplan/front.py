"""pareto: the front of memory against how many blocks train, FLOPs and approximation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from memplan.errors import UsageError
from memplan.planner.costs import Quantity, quantity_of
from memplan.planner.instance import AIMS, Aim, Instance, flops_of, peak_of, score
from memplan.planner.options import Choice
from memplan.planner.records import Budget
from memplan.planner.solver import solve
from memplan.planner.table import Table
from memplan.planner.terms import terms_of
from memplan.planning import Planning, Request
from memplan.results import Front, FrontPoint
from memplan.steps import Steps
from memplan.subject import subject_of

if TYPE_CHECKING:
    from torch import nn

#: Points of a front by default. Each is a recorded step.
POINTS: Final = 16

#: Budgets between the smallest and the largest at one depth, whose best plans may be points.
_LIMITS: Final = 6


def pareto(
    model: str | nn.Module,
    inputs: Any = None,
    *,
    of: Quantity = "peak",
    points: int = POINTS,
    lossless: bool = False,
    allow: Sequence[str] = (),
    forbid: Sequence[str] = (),
    optimizer: str = "sgd",
    foreach: bool | None = None,
    device: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **subject: Any,
) -> Front:
    """Return plans of which none needs less memory for as many blocks, as few FLOPs and as exact gradients.

    Args:
        model: a spec, or a module, which is not changed.
        inputs: for a module, what its forward takes.
        of: what memory is: ``peak``, ``activations`` or ``kept``, see :func:`memplan.plan`.
        points: how many plans at most; each is recorded.
        lossless: whether only what leaves the gradients as they are may be used.
        allow: further treatments: ``frozen-int8``.
        forbid: treatments that may not be used.
        optimizer: ``sgd``, ``momentum``, ``adam`` or ``adamw``.
        foreach: whether the optimizer updates all parameters together.
        device: where the step would run.
        progress: told what is being done.
        **subject: see :func:`memplan.subject.subject_of`.

    Raises:
        UsageError: a name, size or combination that cannot be understood.
        AnalysisError: the model cannot be loaded or recorded.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise UsageError(f"a front has 2 points or more, not {points!r}")
    if "prune" in allow:
        raise UsageError("the front leaves out pruning; memplan plan --max-prune shows what it gives at a budget")
    terms = terms_of(lossless=lossless, allow=allow, forbid=forbid)
    request = Request(Budget(1, of), terms, optimizer=optimizer, foreach=foreach)
    request.check()
    about = subject_of(model, inputs, **subject)
    progress(f"building {about.name}")
    planning = Planning(Steps(about, device), request, progress)
    rehearsal = planning.rehearsal
    table = planning.table()
    found = _chosen(_front(list(_candidates(planning, table))), points)
    told = []
    for candidate in found:
        rehearsed = rehearsal.rehearsed(candidate.choice)
        told.append(
            FrontPoint(
                bytes=rehearsed.measured.bytes,
                k=rehearsal.k_of(candidate.depth) or 0,
                depth=candidate.depth,
                approximations=candidate.approximations,
                flops=rehearsed.footprint.flops_forward + rehearsed.footprint.flops_backward,
                plan=planning.steps.named(rehearsed.plan),
            )
        )
    return Front(
        setting=planning.setting,
        of=of,
        stock_bytes=quantity_of(rehearsal.stock_footprint, of),
        blocks=rehearsal.stock.blocks,
        points=tuple(sorted(_undominated(told), key=lambda point: (point.bytes, -point.depth))),
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A choice that may be a point: its bytes and FLOPs by the search's model, and how many blocks it approximates."""

    choice: Choice
    depth: int
    bytes: int
    flops: int
    approximations: int

    def beats(self, other: _Candidate) -> bool:
        """Whether it is nowhere worse, and somewhere better."""
        mine = (self.bytes, -self.depth, self.flops, self.approximations)
        others = (other.bytes, -other.depth, other.flops, other.approximations)
        return mine != others and all(own <= their for own, their in zip(mine, others, strict=True))


def _candidates(planning: Planning, table: Table) -> Iterator[_Candidate]:
    """Yield the best choices at several limits for each depth, with and without approximation."""
    wanted = planning.wanted
    fused = wanted.fused[-1]
    how = "in-backward" if fused else planning.setting.implementation
    exact = table.exact()
    for kind in (exact, table) if len(exact.trained) < len(table.trained) else (exact,):
        for depth in range(planning.rehearsal.least_depth, table.count + 1):
            split = wanted.split and wanted.batch > 1 and depth < table.count
            for samples in (1, None) if split else (None,):
                share = 1.0 if samples is None else samples / wanted.batch
                instance = kind.instance(depth, how, share=share)
                for picks in _at_several_limits(instance):
                    yield _candidate(instance, picks, depth, samples, fused=fused)


def _at_several_limits(instance: Instance) -> Iterator[tuple[int, ...]]:
    least = solve(instance, None, ("memory",))
    most = solve(instance, None, ("approximations", "importance", "work", "memory"))
    if least is None or most is None:
        return
    low, high = peak_of(instance, least.picks), peak_of(instance, most.picks)
    order: tuple[Aim, ...] = ("approximations", "importance", "work", "memory")
    for step in range(_LIMITS):
        found = solve(instance, low + (high - low) * step // (_LIMITS - 1), order)
        if found is not None:
            yield found.picks


def _candidate(instance: Instance, picks: Sequence[int], depth: int, samples: int | None, *, fused: bool) -> _Candidate:
    options = tuple(row[pick].option for row, pick in zip(instance.segments, picks, strict=True))[-depth:]
    reached = dict(zip(AIMS, score(instance, picks), strict=True))
    return _Candidate(
        Choice(options, fused, samples),
        depth,
        peak_of(instance, picks),
        flops_of(instance, picks),
        int(reached["approximations"]),
    )


def _front(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Return the candidates that none beats, each set of numbers once, the smallest first."""
    unique = {(each.bytes, each.depth, each.flops, each.approximations): each for each in candidates}
    found = [each for each in unique.values() if not any(other.beats(each) for other in unique.values())]
    return sorted(found, key=lambda each: (each.bytes, -each.depth))


def _chosen(front: Sequence[_Candidate], points: int) -> list[_Candidate]:
    """Return at most ``points`` of the front: half of them for how many blocks train exactly, a quarter for how many
    FLOPs training the most saves, the rest for what approximation adds.
    """
    exact = [each for each in front if not each.approximations]
    deepest: list[_Candidate] = []
    for each in exact:  # the smallest first: a point that trains no more than a smaller one is not a step
        if not deepest or each.depth > deepest[-1].depth:
            deepest.append(each)
    whole = [each for each in exact if deepest and each.depth == deepest[-1].depth and each is not deepest[-1]]
    found = _thinned(deepest, max(points // 2, 2))
    found += _thinned(whole, points // 4)
    left = [each for each in front if each.approximations]
    found += _thinned(left, points - len(found))
    left = [each for each in front if each not in found]
    found += _thinned(left, points - len(found))
    return sorted(found, key=lambda each: (each.bytes, -each.depth))


def _thinned(front: Sequence[_Candidate], points: int) -> list[_Candidate]:
    """Return at most ``points`` of the front, evenly spread over it, its end among them and from two on its start."""
    if len(front) <= points:
        return list(front)
    last = len(front) - 1
    places = {round(step * last / (points - 1)) for step in range(points)} if points > 1 else {last}
    return [front[place] for place in sorted(places)] if points > 0 else []


def _undominated(points: Sequence[FrontPoint]) -> Iterator[FrontPoint]:
    """Yield the recorded points that none beats."""

    def numbers(point: FrontPoint) -> tuple[int, int, int, int]:
        return point.bytes, -point.depth, point.flops, point.approximations

    for point in points:
        mine = numbers(point)
        others = [numbers(other) for other in points if numbers(other) != mine]
        if not any(all(o <= m for o, m in zip(other, mine, strict=True)) for other in others):
            yield point
