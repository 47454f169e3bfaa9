"""What is asked of the search, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from memplan.planner.costs import Quantity
from memplan.planner.instance import Aim
from memplan.planner.options import Choice

#: What is best, in a word; see ``ORDERS``.
Preference: TypeAlias = Literal["k", "accuracy-proxy", "speed", "memory"]

#: For each preference what counts, the most important first. ``k`` is how many blocks train, ``depth`` how many
#: segments: what lies below all blocks is not worth an approximation.
ORDERS: Final[dict[Preference, tuple[Aim | Literal["k", "depth"], ...]]] = {
    "k": ("k", "approximations", "importance", "depth", "work", "memory"),
    "accuracy-proxy": ("approximations", "importance", "depth", "work", "memory"),
    "speed": ("work", "depth", "approximations", "importance", "memory"),
    "memory": ("depth", "memory", "approximations", "importance", "work"),
}


#: One part in so many of a budget is left free.
RESERVE: Final = 50_000


def least_budget(recorded_bytes: int) -> int:
    """Return the smallest budget that a recorded step of so many bytes fits.

    >>> least_budget(49_999), least_budget(50_000)
    (49999, 50001)
    """
    return recorded_bytes + (recorded_bytes - 1) // (RESERVE - 1)


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes, and what of the step they are to hold."""

    bytes: int
    of: Quantity = "peak"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a plan must be: within the budget, and with a depth between two (both included), in trained segments.

    ``fused`` lists whether updates may come during the backward, in the order in which equals are preferred; ``split``
    says whether the frozen part may run in parts, of a batch of ``batch`` samples.
    """

    budget: Budget
    least_depth: int
    most_depth: int
    prefer: Preference = "k"
    fused: tuple[bool, ...] = (False, True)
    split: bool = True
    batch: int = 1
    flops_limit: int | None = None

    @property
    def limit(self) -> int:
        """Bytes that a recorded step may have, for the real one to stay within the budget.

        A recorded peak has been below the measured one by a hundred-thousandth at the worst (docs/methods-measured.md).
        """
        return self.budget.bytes - self.budget.bytes // RESERVE


@dataclass(frozen=True, slots=True)
class Measured:
    """A recorded step of a choice: its bytes, of what the budget is on, and whether the frozen part sets the peak.

    ``split`` is whether the frozen part ran in parts as asked.
    """

    bytes: int
    in_prefix: bool
    split: bool


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A better plan that does not fit, in words, and the budget it would need: the bytes of its recorded step."""

    what: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """The best choice, the bytes of its recorded step, and how it was found.

    ``score`` gives the reached value of each aim. ``bound`` and ``gap`` are the solver's for the last aim. ``repeats``
    counts how often the recorded step missed the budget and the search was tightened, ``recordings`` all recorded
    steps of choices. ``error`` is recorded bytes over those of the search's model, less 1.
    """

    choice: Choice
    bytes: int
    solver: str
    score: tuple[tuple[str, float], ...]
    bound: float
    gap: float
    repeats: int
    recordings: int
    error: float
