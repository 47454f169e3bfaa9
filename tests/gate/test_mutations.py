"""Injected regressions: the gate fails beyond the limit, names the layer that grew, and passes up to the limit."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

import memplan
from memplan.gate.records import Verdict
from tests.gate.mutations import MUTATIONS, Mutation, built


@cache
def accepted(base: str, of: str, method: tuple[tuple[str, Any], ...], shape: tuple[tuple[str, Any], ...]) -> Verdict:
    return memplan.check(*built(base, **dict(shape)), of=of, name=base, suggest=False, **dict(method))


def parts(mutation: Mutation) -> tuple[tuple[tuple[str, Any], ...], tuple[tuple[str, Any], ...]]:
    shape = tuple(item for item in mutation.options if item[0] == "input_shape")
    return tuple(item for item in mutation.options if item not in shape), shape


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_growth_beyond_the_limit_fails_and_names_the_layer(mutation: Mutation) -> None:
    method, shape = parts(mutation)
    before = accepted(mutation.base, mutation.of, method, shape)
    assert before.reading is not None
    module, inputs = built(mutation.base, **dict(shape))
    mutation.apply(module)

    def gate(max_growth: str) -> Verdict:
        return memplan.check(
            module,
            inputs,
            of=mutation.of,
            name=mutation.base,
            suggest=False,
            baseline=before,
            max_growth=max_growth,
            **dict(method),
        )

    verdict = gate("0%")
    growth = verdict.growth_bytes
    assert growth is not None
    assert growth > 0
    (failure,) = verdict.failures
    assert failure.kind == "growth"
    # The layer that grew most, or, where it grew for the sake of another one, that one.
    named = re.findall(r"; (?:the first that differs is )?([\w.]+)(?: grew most| \()", failure.sentence)
    assert any(f"{each}.".startswith(f"{path}.") for path in mutation.blamed for each in named), failure.sentence
    # The layers' changes explain the growth to the byte, but for the estimate's margin.
    reading = verdict.reading
    assert reading is not None
    assert sum(change.growth_bytes for change in verdict.changes) == (
        reading.predicted_bytes - before.reading.predicted_bytes
    )
    assert not gate(f"{growth - 1}B" if growth > 1 else "0").holds
    assert gate(f"{growth}B").holds


def test_there_are_enough_mutations() -> None:
    assert len(MUTATIONS) >= 30


def test_the_same_model_has_not_grown() -> None:
    before = memplan.check(*built("resnet18"), suggest=False)
    after = memplan.check(*built("resnet18"), suggest=False, baseline=before, max_growth="0")
    assert after.holds
    assert after.growth_bytes == 0
    assert after.changes == ()
    assert after.differences == ()


def test_a_larger_input_is_told_as_such() -> None:
    before = memplan.check("resnet18", input_shape=(3, 128, 128), suggest=False)
    after = memplan.check("resnet18", input_shape=(3, 160, 160), suggest=False, baseline=before, max_growth="2%")
    (failure,) = after.failures
    assert failure.sentence.endswith("what is asked differs: inputs 8x3x128x128 float32 -> 8x3x160x160 float32")


def test_a_frozen_layer_that_trains_is_told_as_such() -> None:
    module, inputs = built("resnet18")
    module.requires_grad_(False)
    module.fc.requires_grad_(True)
    before = memplan.check(module, inputs, method="as-is", name="net", suggest=False)
    module.layer4[1].conv2.weight.requires_grad_(True)
    after = memplan.check(module, inputs, method="as-is", name="net", suggest=False, baseline=before, max_growth="1%")
    (failure,) = after.failures
    assert "layer4.1.conv2 grew most" in failure.sentence
    assert "trains now" in failure.sentence
