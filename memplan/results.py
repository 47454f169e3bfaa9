"""What the public functions return: records that know nothing of torch, so that reports need none."""

from __future__ import annotations

from dataclasses import dataclass, field

from memplan.graph.records import Block, Machine
from memplan.memory import Footprint, Implementation
from memplan.memory.accounting import Accounted
from memplan.methods import Plan
from memplan.methods.plan import Gradients


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


@dataclass(frozen=True, slots=True)
class MethodFootprint:
    """The footprint of one method; ``fits`` is ``None`` when no budget was given.

    ``runner`` is who runs the step: ``stock`` is PyTorch with ``requires_grad`` alone, ``memplan`` what
    :func:`memplan.apply` gives, by ``plan``. ``gradients`` says whether they are those of plain training of the same
    parameters, ``implementation`` how the optimizer updates. ``accounted`` is a published way to count, if asked for.
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

    @property
    def label(self) -> str:
        """The method's name with its k, as tables show it."""
        return self.name if self.k is None else f"{self.name} k={self.k}"


@dataclass(frozen=True, slots=True)
class Analysis:
    """What each method needs on one model, in the order asked for.

    ``notes`` says what was assumed or left out, one sentence each; ``seconds`` is the time that recording took.
    """

    setting: Setting
    blocks: tuple[Block, ...]
    budget_bytes: int | None
    methods: tuple[MethodFootprint, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether a method fits the budget, or no budget was given."""
        return self.budget_bytes is None or any(method.fits for method in self.methods)

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
class Verification:
    """Predicted against measured, for one method: saved bytes, and the peak of each real step.

    ``rss_bytes`` is the process's high-water mark over the steps, ``rss_before_bytes`` what the process held before the
    model was built; both are ``None`` unless asked for.
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
