"""Allocations and their lifetimes: by hand on a step of a few ops, and added up against the timeline on many."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import nn

from memplan.errors import UsageError
from memplan.graph.records import BEFORE, Layer, Machine, Op, Parameter, Phase, Storage, TensorView
from memplan.graph.step_graph import StepGraph
from memplan.memory import OPTIMIZERS, Implementation, Timeline, price, timeline
from memplan.memory.lifetimes import Allocation, Moment, allocations, moments
from memplan.methods import method_named
from memplan.methods.plan import Microbatch
from memplan.steps import Steps
from memplan.subject import subject_of
from memplan.tracing.record import trace
from tests.memory.test_fused_update import NETWORKS, Sums, two_weights
from tests.memory.test_timeline import chain as short_chain
from tests.planner.toy import step as stem_blocks_and_head
from tests.reports.toy import chain

IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
KINDS = ("resident", "saved", "temp")


def sums(found: tuple[Allocation, ...], kind: str, count: int) -> tuple[int, ...]:
    alive = [each for each in found if each.kind == kind]
    return tuple(sum(each.bytes for each in alive if each.first <= moment <= each.last) for moment in range(count))


def assert_they_add_up(graph: StepGraph, optimizer: str, implementation: Implementation) -> None:
    steps: Timeline = timeline(graph, OPTIMIZERS[optimizer], implementation)
    found = allocations(graph, optimizer, implementation)
    ran = moments(graph, optimizer, implementation)
    assert tuple(moment.phase for moment in ran) == steps.phases
    assert all(each.bytes > 0 and 0 <= each.first <= each.last < len(ran) for each in found)
    for kind in KINDS:
        assert sums(found, kind, len(ran)) == getattr(steps, kind)
    scratch = tuple(each for each in found if each.what == "scratch")
    assert sums(scratch, "temp", len(ran)) == steps.scratch


EVERY_WAY = [(optimizer, implementation) for optimizer in OPTIMIZERS for implementation in IMPLEMENTATIONS]


TOYS: dict[str, Callable[[], StepGraph]] = {
    "chain": chain,
    "chain of which two train": lambda: chain(trained=2),
    "chain of which none trains": lambda: chain(trained=0),
    "one layer": short_chain,
    "stem, blocks and head": stem_blocks_and_head,
    "two weights": two_weights,
    "gradients in one storage": lambda: two_weights(shared=True),
    "a gradient that is read again": lambda: two_weights(reader=True),
}


@pytest.mark.parametrize(("optimizer", "implementation"), EVERY_WAY)
@pytest.mark.parametrize("name", TOYS)
def test_the_allocations_of_toys_add_up(name: str, optimizer: str, implementation: Implementation) -> None:
    assert_they_add_up(TOYS[name](), optimizer, implementation)


@pytest.mark.parametrize("seed", range(40))
def test_the_allocations_of_random_steps_add_up(seed: int) -> None:
    graph = random_step(seed)
    for optimizer, implementation in EVERY_WAY:
        assert_they_add_up(graph, optimizer, implementation)


def test_some_random_steps_show_updates_inside_the_backward() -> None:
    """So that the test above is not about nothing: updates that are larger than their op, beside others."""
    found = [allocations(random_step(seed), "adam", "in-backward") for seed in range(40)]
    with_updates = [each for each in found if any(allocation.what == "update" for allocation in each)]
    assert 10 < len(with_updates) < 40


def random_step(seed: int) -> StepGraph:
    """A forward and a backward over storages of random sizes and ends, with gradients that are made at random ops."""
    draw = random.Random(seed)
    width, count = draw.randint(1, 4), draw.randint(4, 12)
    half = count // 2
    storages = [Storage(i, draw.randint(1, 60), "parameter", BEFORE, count) for i in range(width)]
    storages.append(Storage(width, draw.randint(0, 50), "input", BEFORE, draw.choice([half, count])))
    saved = [width] if draw.random() < 0.5 else []
    gradients: dict[int, int] = {}
    ops: list[Op] = []
    for index in range(count):
        phase: Phase = "forward" if index < half else "backward"
        alive = [storage.index for storage in storages if storage.born < index <= storage.last]
        made = []
        for _ in range(draw.randint(0, 2)):
            last = draw.choice([index, min(index + 1, count), draw.randint(index, count)])
            made.append(Storage(len(storages) + len(made), draw.randint(0, 50), "activation", index, last))
            if phase == "forward" and last > half and draw.random() < 0.7:
                saved.append(made[-1].index)
        for parameter in range(width):
            if phase == "backward" and parameter not in gradients and draw.random() < 0.4:
                size = storages[parameter].bytes
                gradients[parameter] = len(storages) + len(made)
                made.append(Storage(gradients[parameter], size, "gradient", index, count))
        storages += made
        name = draw.choice(["aten.toy.default", "aten.clone.default", "aten.add.Tensor"])
        reads = draw.sample(alive, min(len(alive), 2))
        views = [TensorView(storage, (1,), (1,), "float32") for storage in (*reads, *(each.index for each in made))]
        split = len(reads)
        ops.append(Op(index, phase, name, draw.randint(0, 1), tuple(views[:split]), tuple(views[split:]), (), 0))
    return StepGraph(
        machine=Machine("cpu", "AVX2", 2, "2.13.0"),
        layers=(Layer(0, "", "Net", False), Layer(1, "layer", "Layer", False)),
        parameters=tuple(Parameter(f"layer.w{i}", 1, i, 1, i in gradients, gradients.get(i)) for i in range(width)),
        storages=tuple(storages),
        ops=tuple(ops),
        saved=tuple(saved),
        outputs=tuple(storage.index for storage in storages if storage.role == "activation" and storage.last == count)[
            :1
        ],
    )


def test_a_step_is_taken_apart() -> None:
    graph = short_chain()
    assert moments(graph, "adam") == (
        Moment("forward", "scale", "toy.op"),
        Moment("loss", "", "toy.op"),
        Moment("backward", "", "toy.op"),
        Moment("backward", "scale", "toy.op"),
        Moment("optimizer", "", "optimizer.step"),
    )
    assert allocations(graph, "adam") == (
        Allocation(8, "resident", "parameter", "scale", "", 0, 4),
        Allocation(100, "saved", "input", "", "", 0, 4),
        Allocation(2 * 8 + 4, "resident", "state", "scale", "", 0, 4),
        Allocation(40, "temp", "activation", "scale", "toy.op", 0, 2),
        Allocation(4, "temp", "activation", "", "toy.op", 1, 3),
        Allocation(40, "temp", "activation", "", "toy.op", 2, 3),
        Allocation(8, "resident", "gradient", "scale", "toy.op", 3, 4),
        Allocation(2 * 8, "temp", "update", "scale", "optimizer.step", 4, 4),
    )


def test_where_an_update_is_larger_than_its_op_what_the_op_read_has_ended_before() -> None:
    graph = two_weights()
    small = dataclasses.replace(
        graph, storages=(*graph.storages[:4], Storage(4, 4, "activation", 1, 2), *graph.storages[5:])
    )
    found = allocations(small, "adam", "in-backward")
    # Storage 4 ends with op 2, and the larger weight has two temporaries: 2 * 8 > 4.
    assert Allocation(4, "temp", "activation", "", "toy.op", 1, 1) in found
    assert [each for each in found if each.what == "update"] == [
        Allocation(2 * 8, "temp", "update", "", "optimizer.step", 2, 2)
    ]
    assert [(each.bytes, each.first, each.last) for each in found if each.what == "gradient"] == [(8, 2, 2), (6, 2, 2)]
    # Where the op is larger, it stays: 2 * 8 < 40.
    found = allocations(graph, "adam", "in-backward")
    assert Allocation(40, "temp", "activation", "", "toy.op", 1, 2) in found
    assert not [each for each in found if each.what == "update"]


def test_foreach_updates_all_parameters_in_one_moment() -> None:
    found = allocations(two_weights(), "adam", "foreach")
    assert [each for each in found if each.what == "update"] == [
        Allocation(8 + 6, "temp", "update", "", "optimizer.step", 4, 4)
    ]
    assert len(moments(two_weights(), "adam", "foreach")) == 4 + 1
    assert len(moments(two_weights(), "adam")) == 4 + 2


def test_what_exists_before_the_step_comes_first() -> None:
    found = allocations(chain(), "momentum")
    before = [each for each in found if not each.op]
    assert list(found[: len(before)]) == before
    assert {each.what for each in before} == {"parameter", "input", "state"}
    assert [each.first for each in found] == sorted(each.first for each in found)


def test_an_unknown_optimizer_is_named() -> None:
    for function in (moments, allocations):
        with pytest.raises(UsageError, match=r"no optimizer 'adamm'; did you mean 'adam' or 'adamw'\?"):
            function(chain(), "adamm")


@pytest.mark.parametrize("name", [*NETWORKS, "sums"])
def test_the_allocations_of_recorded_steps_add_up(name: str) -> None:
    make, shape = NETWORKS.get(name, (Sums, (96, 96)))
    graph = trace(make(), torch.empty(shape)).step
    for optimizer, implementation in EVERY_WAY:
        assert_they_add_up(graph, optimizer, implementation)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_the_allocations_of_networks_add_up(name: str) -> None:
    steps = Steps(subject_of(name, batch_size=2, input_shape=(3, 64, 64)))
    graph = steps.step(method_named("full"))
    for optimizer, implementation in (("momentum", "loop"), ("adam", "foreach"), ("adam", "in-backward")):
        assert_they_add_up(graph, optimizer, implementation)


def test_the_allocations_of_a_plan_add_up() -> None:
    """With a prefix in parts, recomputed layers and updates inside the backward."""
    steps = Steps(subject_of("mobilenet_v3_small", batch_size=4, input_shape=(3, 64, 64)))
    plan = steps.planned(method_named("mobiletl"), 2).plan
    plan = dataclasses.replace(plan, microbatch=Microbatch("features.9", 2), fused_update=True)
    for planned in (plan, steps.planned(method_named("lossless")).plan):
        graph = steps.run(planned)
        for optimizer in OPTIMIZERS:
            assert_they_add_up(graph, optimizer, "in-backward")


def test_the_largest_moment_is_the_peak() -> None:
    graph = trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.empty(3, 8)).step
    for optimizer, implementation in EVERY_WAY:
        found = allocations(graph, optimizer, implementation)
        count = len(moments(graph, optimizer, implementation))
        totals = [sum(column) for column in zip(*(sums(found, kind, count) for kind in KINDS), strict=True)]
        peak = price(graph, optimizer, implementation).peak
        assert (max(totals), totals.index(max(totals))) == (peak.bytes, peak.moment)
