"""Segments and their costs on a step that can be added up by hand; and that these add up to the step's own price."""

from __future__ import annotations

from typing import get_args

import pytest

from memplan.memory import price
from memplan.memory.optimizers import OPTIMIZERS, Implementation
from memplan.methods.cut import touched_bytes
from memplan.planner.costs import Quantity, StepCosts, step_costs
from memplan.planner.instance import Candidate, Instance, peak_of
from memplan.planner.segments import Segments
from tests.planner.toy import FLOPS, INPUT, LOSS, RESULTS, WEIGHTS, step

SGD = OPTIMIZERS["sgd"]


def costs(name: str, quantity: Quantity = "peak", implementation: Implementation = "loop") -> list[int]:
    found = step_costs(step(), SGD, implementation, quantity)
    return [getattr(segment, name) for segment in found.segments]


def test_segments_begin_with_blocks_and_return_in_the_backward() -> None:
    segments = Segments(step())
    assert segments.starts == (0, 1, 2, 3)
    loss = 3
    assert segments.of_op == (0, 1, 2, 3, loss, loss, 3, 2, 1, 0)
    assert segments.of_layer == {1: 0, 2: 1, 3: 2, 4: 3}


def test_what_is_handed_on_belongs_to_the_segment_that_reads_it() -> None:
    # Each result is read by the next segment; the head's own stays its own.
    assert Segments(step()).of_storage == {5: 1, 6: 2, 7: 3, 8: 3}


def test_a_model_without_blocks_has_an_empty_stem_and_one_segment() -> None:
    segments = Segments(step(blocks=False))
    assert segments.count == 2
    assert set(segments.of_op) == {1}


def test_what_stays_is_charged_where_it_is_used() -> None:
    assert costs("constant") == [*WEIGHTS]
    assert costs("gradients") == [*WEIGHTS]
    # The stem keeps the input, which is there throughout in any case.
    assert costs("kept") == [0, 40, 60, 80 + 10 + LOSS]
    assert costs("flops") == [*FLOPS]


def test_the_most_in_forward_and_backward_is_beside_what_others_hold() -> None:
    assert costs("forward") == [40, 40 + 60, (40 + 60 + 80) - 40, (40 + 60 + 80 + 10) - (40 + 60)]
    # Of the head the backward of its op: a2, both gradients of results, and its own weight's.
    head = 80 + 10 + 80 + 20
    upper = (40 + 60) + 80 + 60 + (20 + 16) - 40 - 20
    lower = 40 + 60 + 40 + (20 + 16 + 12) - (20 + 16)
    assert costs("backward") == [40 + 8, lower, upper, head]


def test_where_nothing_below_trains_no_gradient_is_handed_down() -> None:
    # Of the head's own op 80 less than before, so that its weight's gradient is beside what it reads.
    assert costs("lowest")[3] == max(80 + 10 + 20, 80 + 10 + LOSS + 10)
    assert costs("lowest")[2] == (40 + 60) + 80 + (20 + 16) - 40 - 20
    assert costs("lowest")[1] == 40 + 60 + (20 + 16 + 12) - (20 + 16)
    assert costs("lowest")[0] == costs("backward")[0]


def test_state_stays_and_temporaries_of_the_update_come_after() -> None:
    found = step_costs(step(), OPTIMIZERS["adam"], "loop")
    assert [segment.constant for segment in found.segments] == [size + 2 * size + 4 for size in WEIGHTS]
    assert found.after == 0  # the transients depend on what trains, and are added by the table
    assert found.updated == ((8,), (12,), (16,), (20,))
    assert found.inputs == INPUT


def test_without_gradients_that_stay_each_is_its_own_segment_s() -> None:
    assert costs("gradients", implementation="in-backward") == [0, 0, 0, 0]
    # The most is still with the weight's gradient, which goes right after.
    assert costs("backward", implementation="in-backward")[0] == 40 + 8


def test_activations_leave_out_what_stays_from_step_to_step() -> None:
    assert costs("constant", "activations") == costs("gradients", "activations") == [0, 0, 0, 0]
    assert costs("kept", "activations") == costs("kept")
    lower = 40 + 60 + 40
    assert costs("backward", "activations") == [40, lower, (40 + 60) + 80 + 60 - 40, 80 + 10 + 80]


def test_kept_counts_saved_tensors_and_nothing_else() -> None:
    assert costs("kept", "kept") == [0, 40, 60, 80]  # the head's result and the loss are no saved tensors
    assert costs("forward", "kept") == costs("backward", "kept") == [0, 0, 0, 0]
    assert step_costs(step(), SGD, "loop", "kept").inputs == INPUT


def test_work_counts_ten_flops_for_each_byte() -> None:
    graph = step()
    expected = [0, 0, 0, 0]
    for op, segment in zip(graph.ops, Segments(graph).of_op, strict=True):
        expected[segment] += op.flops + 10 * touched_bytes(op)
    assert costs("work") == expected
    assert expected[0] > FLOPS[0]


def instance_of(found: StepCosts, transient: int) -> Instance:
    rows = tuple((Candidate(cost),) for cost in found.segments)
    return Instance(found.inputs, found.after + transient, rows)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("implementation", get_args(Implementation))
def test_segments_add_up_to_the_price_of_the_step(optimizer: str, implementation: Implementation) -> None:
    rule = OPTIMIZERS[optimizer]
    transient = 0 if implementation == "in-backward" else max(rule.transients[implementation](WEIGHTS), default=0)
    found = instance_of(step_costs(step(), rule, implementation), transient)
    assert peak_of(found, [0] * 4) == price(step(), optimizer, implementation).peak_bytes


def test_segments_add_up_to_what_autograd_keeps() -> None:
    found = instance_of(step_costs(step(), SGD, "loop", "kept"), 0)
    assert peak_of(found, [0] * 4) == step().saved_bytes == INPUT + sum(RESULTS[:3])
