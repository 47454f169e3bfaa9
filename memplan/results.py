"""What the public functions return: records that know nothing of torch, so that reports need none."""

from __future__ import annotations

from dataclasses import dataclass, field

from memplan.graph.records import Block, Machine
from memplan.graph.step_graph import StepGraph
from memplan.memory import Footprint, Implementation
from memplan.memory.accounting import Accounted
from memplan.methods import Plan
from memplan.methods.plan import Gradients
from memplan.planner.counting import Counted, CountingName
from memplan.planner.records import Budget, Preference, Upgrade
from memplan.tables import Record, Shown, Table


@dataclass(frozen=True, slots=True)
class Setting:
    """What was analysed: the model, its inputs, and how its step runs."""

    model: str
    origin: str
    batch_size: int | None
    inputs: tuple[str, ...]
    dtype: str
    amp: str | None
    training: bool
    optimizer: str
    implementation: Implementation
    machine: Machine


def _told(setting: Setting) -> str:
    batch = "" if setting.batch_size is None else f", batch {setting.batch_size}"
    return f"{setting.model} ({setting.origin}){batch}, {', '.join(setting.inputs)}, {setting.optimizer}"


@dataclass(frozen=True, slots=True)
class MethodFootprint:
    """The footprint of one method; ``fits`` is ``None`` when no budget was given.

    ``runner`` is who runs the step: ``stock`` is PyTorch with ``requires_grad`` alone, ``memplan`` what
    :func:`memplan.apply` gives, by ``plan``. ``gradients`` says whether they are those of plain training of the same
    parameters, ``implementation`` how the optimizer updates. ``accounted`` is a published way to count, if asked for.
    ``step`` is the recorded step that was priced.
    """

    name: str
    k: int | None
    runner: str
    footprint: Footprint
    fits: bool | None
    gradients: Gradients = "exact"
    implementation: Implementation = "loop"
    plan: Plan | None = None
    accounted: Accounted | None = None
    step: StepGraph | None = field(default=None, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The method's name with its k, as tables show it."""
        return self.name if self.k is None else f"{self.name} k={self.k}"


@dataclass(frozen=True, slots=True)
class Analysis(Shown):
    """What each method needs on one model, in the order asked for.

    ``notes`` says what was assumed or left out, one sentence each; ``seconds`` is the time that recording took.
    ``suggestion`` is the best plan for the budget, if one was looked for; ``no_suggestion`` says why there is none.
    """

    setting: Setting
    blocks: tuple[Block, ...]
    budget_bytes: int | None
    methods: tuple[MethodFootprint, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    suggestion: Planned | None = None
    no_suggestion: str | None = None

    @property
    def fits(self) -> bool:
        """Whether a method or the suggested plan fits the budget, or no budget was given."""
        fitting = self.suggestion is not None or any(method.fits for method in self.methods)
        return self.budget_bytes is None or fitting

    @property
    def unpriced(self) -> tuple[str, ...]:
        """What could not be attributed or priced, over all methods."""
        return tuple(dict.fromkeys(text for method in self.methods for text in method.footprint.unpriced))

    @property
    def untreated(self) -> tuple[str, ...]:
        """What memplan's runner keeps as stock PyTorch does for want of a rule, over all methods."""
        plans = [(method.label, method.plan) for method in self.methods if method.plan is not None]
        return tuple(f"{label}: {text}" for label, plan in plans for text in plan.untreated)

    def __getitem__(self, label: str) -> Footprint:
        """Return the footprint of the method with this name or label, or with its runner before it (``memplan last``).

        Without a runner, stock PyTorch's comes first.
        """
        for method in self.methods:
            if label in (
                method.name,
                method.label,
                f"{method.runner} {method.name}",
                f"{method.runner} {method.label}",
            ):
                return method.footprint
        raise KeyError(label)

    def to_records(self) -> list[Record]:
        """Return one record for each method: who runs it, and bytes as integers."""
        return [
            {
                "runner": method.runner,
                "name": method.name,
                "k": method.k,
                "gradients": method.gradients,
                "saved_bytes": method.footprint.saved_bytes,
                "temp_bytes": method.footprint.temp_bytes,
                "resident_bytes": method.footprint.resident_bytes,
                "peak_bytes": method.footprint.peak_bytes,
                "trained_parameters": method.footprint.trained_parameters,
                "fits": method.fits,
            }
            for method in self.methods
        ]

    def _table(self) -> Table:
        budget = "" if self.budget_bytes is None else f"; the budget is {self.budget_bytes:,} bytes"
        return Table(f"{_told(self.setting)}{budget}", self.to_records())


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One real step: its peak as the allocator saw it, against the predicted one."""

    number: int
    predicted_bytes: int
    measured_bytes: int

    @property
    def error(self) -> float:
        """The signed relative error of the prediction; below zero it promised too little."""
        return self.predicted_bytes / self.measured_bytes - 1


@dataclass(frozen=True, slots=True)
class Verification(Shown):
    """Predicted against measured, for one method: saved bytes, and the peak of each real step.

    ``rss_bytes`` is the process's high-water mark over the steps, ``rss_before_bytes`` what the process held before the
    model was built; both are ``None`` unless asked for. ``budgeted_bytes`` are what was measured of that which
    ``budget`` is on. ``footprint``, ``step`` and ``plan`` are those of the prediction.
    """

    setting: Setting
    method: str
    predicted_saved_bytes: int
    measured_saved_bytes: int
    steps: tuple[MeasuredStep, ...]
    quantity: str
    tolerance: tuple[float, float]
    rss_bytes: int | None = None
    rss_before_bytes: int | None = None
    runner: str = "stock"
    notes: tuple[str, ...] = field(default=())
    budget: Budget | None = None
    budgeted_bytes: int | None = None
    footprint: Footprint | None = field(default=None, repr=False, compare=False)
    step: StepGraph | None = field(default=None, repr=False, compare=False)
    plan: Plan | None = field(default=None, repr=False, compare=False)

    @property
    def fits(self) -> bool | None:
        """Whether every step was within the budget; ``None`` where none was given."""
        if self.budget is None or self.budgeted_bytes is None:
            return None
        return self.budgeted_bytes <= self.budget.bytes

    @property
    def saved_equal(self) -> bool:
        """Whether saved bytes agree, byte for byte."""
        return self.predicted_saved_bytes == self.measured_saved_bytes

    @property
    def steady_error(self) -> float:
        """The signed error of the last step's peak, the steady state."""
        return self.steps[-1].error

    @property
    def holds(self) -> bool:
        """Whether saved bytes are equal and every steady-state peak (second step on) is within the tolerance."""
        low, high = self.tolerance
        return self.saved_equal and all(low <= step.error <= high for step in self.steps[1:])

    def to_records(self) -> list[Record]:
        """Return one record for each quantity, saved bytes and each step's peak: predicted, measured, difference."""
        rows = [("saved", self.predicted_saved_bytes, self.measured_saved_bytes)]
        rows += [(f"peak, step {step.number}", step.predicted_bytes, step.measured_bytes) for step in self.steps]
        return [
            {
                "quantity": name,
                "predicted_bytes": predicted,
                "measured_bytes": measured,
                "difference_bytes": predicted - measured,
            }
            for name, predicted, measured in rows
        ]

    def _table(self) -> Table:
        verdict = "holds" if self.holds else "does not hold"
        return Table(f"{_told(self.setting)}; {self.runner} {self.method}: {verdict}", self.to_records())


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """What a plan does to one stretch of the model: a block, what lies below the blocks, or what lies above them.

    ``path`` is the block's module, and empty for the other two, which ``name`` calls ``stem`` and ``head``. ``price``
    is the FLOPs repeated at most for a byte that is not kept, ``None`` where nothing is recomputed. ``kept_bytes`` stay
    from its forward to its backward. ``channels`` lists what is pruned: a group, the channels kept, and all of them.
    """

    name: str
    path: str
    trained: bool
    treatments: tuple[str, ...]
    price: float | None
    kept_bytes: int
    channels: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Saving:
    """What one treatment of a plan bought: ``bytes`` more would be needed without it, everything else as it is.

    ``changes_gradients`` says whether the gradients are other ones for it.
    """

    treatment: str
    bytes: int
    changes_gradients: bool


@dataclass(frozen=True, slots=True)
class SearchReport:
    """How a plan was found.

    ``score`` gives what was minimised, the most important first, and what was reached. ``bound`` is the solver's proof
    for the last of them, ``gap`` the distance to it, as a fraction. ``repeats`` counts how often the recorded step
    missed the budget and the search was tightened; ``error`` is the recorded bytes over the search's model, less 1.
    """

    solver: str
    score: tuple[tuple[str, float], ...]
    bound: float
    gap: float
    repeats: int
    recordings: int
    error: float


@dataclass(frozen=True, slots=True)
class Planned(Shown):
    """The best plan for a budget, as its own recorded step has it.

    ``bytes`` are those that the budget is on, of ``footprint``: the step of the planned model, recorded. ``stock`` is
    full fine-tuning by stock PyTorch. ``next`` says what a larger budget would give. ``seconds`` are those of recording
    the options and of the search. ``step`` and ``stock_step`` are the recorded steps of the two footprints.
    """

    setting: Setting
    budget: Budget
    prefer: Preference
    runner: str
    plan: Plan
    implementation: Implementation
    bytes: int
    footprint: Footprint
    stock: Footprint
    blocks: tuple[Block, ...]
    segments: tuple[PlannedSegment, ...]
    savings: tuple[Saving, ...]
    search: SearchReport
    next: tuple[Upgrade, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: tuple[float, float] = (0.0, 0.0)
    step: StepGraph | None = field(default=None, repr=False, compare=False)
    stock_step: StepGraph | None = field(default=None, repr=False, compare=False)

    @property
    def margin_bytes(self) -> int:
        """What the budget leaves."""
        return self.budget.bytes - self.bytes

    def to_records(self) -> list[Record]:
        """Return one record for each segment, from the input to the output: what is done there, and bytes it keeps."""
        return [
            {
                "name": segment.name,
                "trains": segment.trained,
                "kept_bytes": segment.kept_bytes,
                "treatments": ", ".join(segment.treatments),
            }
            for segment in self.segments
        ]

    def _table(self) -> Table:
        heading = (
            f"{_told(self.setting)}; {self.runner} {self.plan.label}: {self.budget.of} {self.bytes:,} bytes, "
            f"the budget is {self.budget.bytes:,}; gradients {self.plan.gradients}"
        )
        return Table(heading, self.to_records())


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One plan of the front: no other one needs less memory for as many blocks, as few FLOPs and as exact gradients.

    ``depth`` counts trained segments, ``k`` trained blocks; ``approximations`` the blocks whose gradients are
    approximate, ``flops`` those of the step. ``bytes`` are recorded.
    """

    bytes: int
    k: int
    depth: int
    approximations: int
    flops: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class Front(Shown):
    """The Pareto front of memory against k, FLOPs and approximation, the smallest memory first."""

    setting: Setting
    of: str
    stock_bytes: int
    blocks: tuple[Block, ...]
    points: tuple[FrontPoint, ...]
    notes: tuple[str, ...] = ()

    def to_records(self) -> list[Record]:
        """Return one record for each point, the smallest memory first."""
        return [
            {
                "bytes": point.bytes,
                "k": point.k,
                "approximations": point.approximations,
                "flops": point.flops,
                "gradients": point.plan.gradients,
                "treatments": ", ".join(point.plan.treatments),
            }
            for point in self.points
        ]

    def _table(self) -> Table:
        return Table(
            f"{_told(self.setting)}; {self.of}, of which stock full needs {self.stock_bytes:,} bytes", self.to_records()
        )


@dataclass(frozen=True, slots=True)
class ShrunkGroup:
    """Channels that go together, how many of them are kept, and the share of their importance that is lost."""

    name: str
    kept: int
    channels: int
    lost: float


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A layer that set the peak while channels were pruned, and the peak in bytes when it began to."""

    layer: str
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class PruneResult:
    """A network pruned until its peak is at most ``target_bytes``, by one counting.

    By ``tinytl`` peaks are of one sample, and totals of parameters and ``samples`` peaks; by ``real`` they are the
    allocator's, of the step in which the head alone trains. ``after`` is the recorded step of the pruned network.
    ``groups`` are those that lost channels, ``lost`` is the mean over all ``groups_measured`` of the share of
    importance that is lost, measured by ``importance``. ``bottlenecks`` are in the order in which they set the peak.
    """

    setting: Setting
    counting: CountingName
    samples: int
    target_bytes: int
    before: Counted
    after: Counted
    groups: tuple[ShrunkGroup, ...]
    importance: str
    lost: float
    groups_measured: int
    bottlenecks: tuple[Bottleneck, ...]
    plan: Plan
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
