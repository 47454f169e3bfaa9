"""The table of optimizers against torch.optim: state, and the temporaries of an update, by the allocator's events."""

from __future__ import annotations

import pytest
import torch

from memplan.memory.optimizers import OPTIMIZERS
from memplan.transform.measure import optimizer_of

# Sizes fall and rise, so that the previous parameter's temporary is sometimes the larger one.
SIZES = (1000, 40_000, 30_000, 5, 20_000, 25_000)


@pytest.mark.parametrize("implementation", ["loop", "foreach", "fused"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_and_transients_are_those_of_torch(name: str, implementation: str) -> None:
    parameters = [torch.nn.Parameter(torch.ones(size)) for size in SIZES]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = optimizer_of(name, parameters, implementation)
    optimizer.step()

    state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, torch.Tensor)]
    rule = OPTIMIZERS[name]
    sizes = [4 * size for size in SIZES]
    assert sum(rule.state(size) for size in sizes) == sum(value.nbytes for value in state)

    with torch.profiler.profile(profile_memory=True) as profiler:
        optimizer.step()
    alive = highest = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            highest = max(highest, alive)
    transients = rule.transients[implementation](sizes)
    # Scalars that are wrapped in tensors come on top: a few bytes for each parameter.
    assert max(transients) <= highest <= max(transients) + 64
    assert alive == 0


def test_adam_holds_the_previous_quotient_while_it_makes_two_more() -> None:
    assert OPTIMIZERS["adam"].transients["loop"]([10, 40, 30]) == [0 + 2 * 10, 10 + 2 * 40, 40 + 2 * 30]
    assert OPTIMIZERS["adam"].transients["foreach"]([10, 40, 30]) == [10 + 40 + 30]
    assert OPTIMIZERS["adam"].transients["foreach"]([]) == []
