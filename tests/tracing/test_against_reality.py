"""The recording is right when a real step agrees: saved bytes by hooks, the peak by the allocator's events."""

from __future__ import annotations

import pytest
import torch

from memplan.memory import price
from memplan.tracing.record import trace
from memplan.transform.measure import measure
from tests.tracing.networks import NETWORKS, forward_of

pytestmark = pytest.mark.filterwarnings("ignore:.*use_reentrant.*")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_saved_bytes_are_equal_and_the_peak_within_tolerance(name: str, optimizer: str) -> None:
    make, inputs_of = NETWORKS[name]
    torch.manual_seed(0)
    model, inputs = make(), inputs_of()
    record = trace(model, inputs)
    predicted = price(record.step, optimizer)

    args, kwargs = forward_of(inputs)
    measured = measure(model, args, kwargs, optimizer=optimizer, implementation="loop", steps=3)

    assert predicted.saved_bytes == measured.saved_bytes
    first, second, third = measured.peak_bytes
    assert second == third
    assert predicted.first_step_peak_bytes == pytest.approx(first, rel=0.01, abs=512)
    assert -0.01 * second - 512 <= predicted.peak_bytes - second <= 0.03 * second + 512
