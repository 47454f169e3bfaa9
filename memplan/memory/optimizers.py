"""What an optimizer keeps from step to step, and what its own step allocates on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, TypeAlias

from memplan.errors import known

#: How the update is computed: after the backward one parameter after the other, with ``torch._foreach_*`` on lists, or
#: in one kernel; or inside the backward, each parameter as soon as its gradient is ready, which is then released.
Implementation: TypeAlias = Literal["loop", "foreach", "fused", "in-backward"]

#: Bytes of the counter that Adam keeps for each parameter: one float32.
_STEP_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class OptimizerRule:
    """State and transients of one optimizer.

    ``state_copies`` counts state tensors as large as their parameter; ``state_bytes`` is what each parameter adds
    beside them. ``transients`` gives, from the bytes of the parameters in update order, the bytes of temporaries alive
    at each moment of the update.
    """

    name: str
    state_copies: int
    state_bytes: int
    transients: dict[Implementation, Callable[[Sequence[int]], list[int]]]
    source: str

    def state(self, parameter_bytes: int) -> int:
        """Return the bytes of state that a parameter of ``parameter_bytes`` has after its first update."""
        return self.state_copies * parameter_bytes + self.state_bytes


def _none(parameter_bytes: Sequence[int]) -> list[int]:
    return [0] * len(parameter_bytes)


def _adam_loop(parameter_bytes: Sequence[int]) -> list[int]:
    """A square root and its quotient for this parameter, while the name ``denom`` still holds the previous quotient."""
    return [previous + 2 * size for previous, size in pairwise((0, *parameter_bytes))]


def _adam_alone(parameter_bytes: Sequence[int]) -> list[int]:
    """A square root and its quotient for this parameter; each update has a frame of its own."""
    return [2 * size for size in parameter_bytes]


def _adam_foreach(parameter_bytes: Sequence[int]) -> list[int]:
    """The square roots of all second moments at once."""
    return [sum(parameter_bytes)] if parameter_bytes else []


_PLAIN: Final[dict[Implementation, Callable[[Sequence[int]], list[int]]]] = {
    "loop": _none,
    "foreach": _none,
    "fused": _none,
    "in-backward": _none,
}
_ADAM: Final[dict[Implementation, Callable[[Sequence[int]], list[int]]]] = {
    "loop": _adam_loop,
    "foreach": _adam_foreach,
    "fused": _none,
    "in-backward": _adam_alone,
}

OPTIMIZERS: Final[dict[str, OptimizerRule]] = {
    rule.name: rule
    for rule in (
        OptimizerRule("sgd", 0, 0, _PLAIN, "torch/optim/sgd.py, momentum 0: updates in place"),
        OptimizerRule("momentum", 1, 0, _PLAIN, "torch/optim/sgd.py: momentum_buffer"),
        OptimizerRule("adam", 2, _STEP_BYTES, _ADAM, "torch/optim/adam.py: exp_avg, exp_avg_sq, step; denom"),
        OptimizerRule("adamw", 2, _STEP_BYTES, _ADAM, "torch/optim/adamw.py: as Adam, decay in place"),
    )
}


def optimizer_rule(name: str) -> OptimizerRule:
    """Return the rule of an optimizer.

    Raises:
        UsageError: there is no such optimizer.
    """
    return OPTIMIZERS[known("optimizer", name, OPTIMIZERS)]
