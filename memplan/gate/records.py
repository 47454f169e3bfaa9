"""What is checked, what was found, and the verdict: records that know nothing of torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from memplan.gate.growth import Growth
from memplan.graph.records import Machine
from memplan.graph.step_graph import StepGraph
from memplan.memory import Footprint, Implementation
from memplan.memory.parts import Measurand
from memplan.methods.plan import Gradients, Plan
from memplan.tables import Record, Shown, Table

#: What a step is priced for unless something else is configured, so that every machine gives the same bytes; the
#: accuracy of docs/accuracy.md was measured on it.
THREADS: Final = 2
INSTRUCTION_SET: Final = "AVX2"

FailureKind = Literal["budget", "growth", "baseline", "unpriced", "analysis"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a check is written; ``line`` is ``None`` where it is not known."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a check holds its quantity to. Growth fails only beyond ``min_growth_bytes`` too."""

    budget_bytes: int | None = None
    max_growth: Growth | None = None
    min_growth_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One named check: a model, how its step runs, the quantity, and its limits.

    ``subject`` are the arguments of :func:`memplan.subject.subject_of` beside the model, ``plan`` the path of a plan's
    file, which stands for method, k and treatments. With ``strict``, what could not be priced fails the check.
    """

    name: str
    model: str
    of: Measurand = "peak"
    limits: Limits = Limits()
    method: str = "full"
    k: int | None = None
    treatments: tuple[str, ...] = ()
    plan: str | None = None
    runner: str | None = None
    optimizer: str = "sgd"
    foreach: bool | None = None
    strict: bool = False
    subject: tuple[tuple[str, Any], ...] = ()
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class LayerPart:
    """One layer's part of the quantity: ``bytes`` of it, and what else is told of the layer.

    ``saved_bytes`` are kept for the backward, ``temp_bytes`` the most that is temporary while it runs, ``held_bytes``
    parameters, gradients and optimizer state. ``output`` is the shape of what it gives, such as ``8x64x56x56``.
    """

    layer: str
    type: str
    output: str
    trains: bool
    bytes: int
    saved_bytes: int
    temp_bytes: int
    held_bytes: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What a step needs. ``bytes`` is the upper estimate, which limits are held against.

    ``layers`` and ``rest_bytes`` (the batch, and what the optimizer holds at that moment) add up to
    ``predicted_bytes``. ``where`` tells the moment.
    """

    of: Measurand
    bytes: int
    predicted_bytes: int
    lower_bytes: int
    where: str
    model: str
    inputs: tuple[str, ...]
    dtype: str
    method: str
    runner: str
    optimizer: str
    machine: Machine
    rest_bytes: int
    layers: tuple[LayerPart, ...] = field(repr=False)
    unpriced: tuple[str, ...] = ()


def layer_name(path: str) -> str:
    """Return how a layer is called in sentences; the outermost has no path."""
    return path or "the model itself"


@dataclass(frozen=True, slots=True)
class Change:
    """How one layer's part changed since the baseline; ``None`` bytes are those of a layer that was not there.

    ``words`` say what else is different about it: a new shape, that it trains now.
    """

    layer: str
    type: str
    before_bytes: int | None
    after_bytes: int | None
    words: tuple[str, ...] = ()

    @property
    def growth_bytes(self) -> int:
        """Bytes more than before; below zero they are fewer."""
        return (self.after_bytes or 0) - (self.before_bytes or 0)


@dataclass(frozen=True, slots=True)
class PricedStep:
    """A step as it was recorded and priced, which pages draw; ``label`` says who runs what, as ``stock full``."""

    label: str
    graph: StepGraph = field(repr=False)
    footprint: Footprint = field(repr=False)
    implementation: Implementation
    plan: Plan | None = None


@dataclass(frozen=True, slots=True)
class Remedy:
    """One way back under the limit: what to do, the bytes it then needs (upper estimate), and the command, if any."""

    what: str
    bytes: int
    gradients: Gradients
    command: str | None = None
    step: PricedStep | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a check fails, as one sentence that names the check's quantity, the limit and the layer."""

    kind: FailureKind
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict(Shown):
    """What a check came to. It holds when nothing failed; ``reading`` is ``None`` where the model was not analysed.

    ``differences`` say what of the setting is not as in the baseline, ``changes`` the layers, those that explain the
    growth first. ``limit_bytes`` is the most that budget and growth allow, ``remedies`` ways back under it, and
    ``sought`` whether any were looked for. ``step`` is what the reading was taken from, where it was asked for.
    """

    check: Check
    reading: Reading | None
    baseline: Reading | None = None
    limit_bytes: int | None = None
    failures: tuple[Failure, ...] = ()
    differences: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    sought: bool = False
    notes: tuple[str, ...] = ()
    step: PricedStep | None = field(default=None, repr=False, compare=False)

    @property
    def holds(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def analysed(self) -> bool:
        """Whether the model could be analysed."""
        return self.reading is not None

    @property
    def growth_bytes(self) -> int | None:
        """Bytes more than the baseline's; ``None`` without one."""
        if self.reading is None or self.baseline is None:
            return None
        return self.reading.bytes - self.baseline.bytes

    @property
    def growth_share(self) -> float | None:
        """Growth as a fraction of the baseline; ``None`` without one, or where it is nothing."""
        if self.growth_bytes is None or self.baseline is None or not self.baseline.bytes:
            return None
        return self.growth_bytes / self.baseline.bytes

    @property
    def word(self) -> str:
        """The verdict as tables show it."""
        if not self.analysed:
            return "error"
        return "ok" if self.holds else "fails"

    def to_records(self) -> list[Record]:
        """Return one record for each layer's part of the quantity; none where the model was not analysed."""
        return [] if self.reading is None else [asdict(part) for part in self.reading.layers]

    def _table(self) -> Table:
        limit = "" if self.limit_bytes is None else f", the limit is {self.limit_bytes:,}"
        now = "" if self.reading is None else f", {self.check.of} {self.reading.bytes:,} bytes{limit}"
        reasons = "".join(f"; {failure.sentence}" for failure in self.failures)
        return Table(f"{self.check.name}: {self.word}{now}{reasons}", self.to_records())


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdicts of all checks, in the order of the configuration.

    ``baseline`` is the file (and revision) that was compared with, ``None`` where there is none. ``notes`` tell what
    holds for all checks, a missing baseline first; ``stale`` are entries of the baseline that no check has. With
    ``warn_only`` limits that fail are warnings, with ``exit_zero`` they are not told by the exit code.
    """

    verdicts: tuple[Verdict, ...]
    config: str
    baseline: str | None = None
    notes: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    warn_only: bool = False
    exit_zero: bool = False
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(verdict.holds for verdict in self.verdicts)

    def failing(self) -> Iterator[Verdict]:
        """Yield the verdicts that do not hold."""
        return (verdict for verdict in self.verdicts if not verdict.holds)

    @property
    def exit_code(self) -> int:
        """0 where all hold, 3 where a model could not be analysed, else 1."""
        if self.exit_zero:
            return 0
        if not all(verdict.analysed for verdict in self.verdicts):
            return 3
        return 0 if self.holds or self.warn_only else 1
