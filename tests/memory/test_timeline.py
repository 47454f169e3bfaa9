"""The timeline of steps small enough to add up by hand. No torch here."""

from __future__ import annotations

import dataclasses

import pytest

from memplan.errors import AnalysisError, UsageError
from memplan.graph.records import BEFORE, Layer, Machine, Op, Parameter, Phase, Storage, TensorView
from memplan.graph.step_graph import StepGraph
from memplan.memory import price, timeline
from memplan.memory.optimizers import OPTIMIZERS

MACHINE = Machine("cpu", "AVX2", 2, "2.13.0")


def chain(*, trains: bool = True) -> StepGraph:
    """One layer ``y = x * w``, a loss, and the backward: x of 100 bytes is saved, y of 40 is temporary, w has 8."""
    gradient = 5 if trains else None
    storages = (
        Storage(0, 8, "parameter", BEFORE, 4),
        Storage(1, 100, "input", BEFORE, 4),
        Storage(2, 40, "activation", 0, 2),
        Storage(3, 4, "activation", 1, 3),
        Storage(4, 40, "activation", 2, 3),
        Storage(5, 8, "gradient", 3, 4),
    )
    ops = (
        _op(0, "forward", 1, (1, 0), (2,), saves=(1,)),
        _op(1, "loss", 0, (2,), (3,)),
        _op(2, "backward", 0, (3, 2), (4,)),
        _op(3, "backward", 1, (4, 1), (5,)),
    )
    return StepGraph(
        machine=MACHINE,
        layers=(Layer(0, "", "Net", False), Layer(1, "scale", "Scale", False)),
        parameters=(Parameter("scale.w", 1, 0, 2, trains, gradient),),
        storages=storages,
        ops=ops,
        saved=(1,),
    )


def _op(
    index: int, phase: Phase, layer: int, inputs: tuple[int, ...], outputs: tuple[int, ...], saves: tuple[int, ...] = ()
) -> Op:
    views = [TensorView(storage, (1,), (1,), "float32") for storage in (*inputs, *outputs)]
    return Op(index, phase, "toy.op", layer, tuple(views[: len(inputs)]), tuple(views[len(inputs) :]), saves, flops=10)


def test_each_moment_adds_up() -> None:
    steps = timeline(chain(), OPTIMIZERS["sgd"])
    assert steps.phases == ("forward", "loss", "backward", "backward", "optimizer")
    assert steps.resident == (8, 8, 8, 8 + 8, 8 + 8)
    assert steps.saved == (100, 100, 100, 100, 100)
    assert steps.temp == (40, 40 + 4, 40 + 4 + 40, 4 + 40, 0)
    assert steps.totals == (148, 152, 192, 160, 116)


def test_the_peak_says_where_and_what() -> None:
    footprint = price(chain(), "sgd", alive=2)
    assert footprint.peak_bytes == 8 + 100 + 40 + 4 + 40
    assert (footprint.peak.moment, footprint.peak.phase, footprint.peak.op) == (2, "backward", "toy.op")
    assert [(alive.bytes, alive.kind) for alive in footprint.peak.alive] == [(100, "saved"), (40, "temp")]


def test_state_is_there_from_the_second_step_on() -> None:
    footprint = price(chain(), "adam")
    state = 2 * 8 + 4
    assert footprint.composition.state_bytes == state
    assert footprint.peak_bytes == 192 + state
    assert footprint.first_step_peak_bytes == 192
    assert timeline(chain(), OPTIMIZERS["adam"]).temp[-1] == 2 * 8


def test_a_frozen_parameter_has_neither_gradient_nor_state() -> None:
    graph = dataclasses.replace(
        chain(trains=False), storages=(*chain().storages[:5], Storage(5, 8, "activation", 3, 3))
    )
    footprint = price(graph, "adam")
    assert footprint.composition.gradient_bytes == footprint.composition.state_bytes == 0
    assert (footprint.parameters, footprint.trained_parameters) == (2, 0)
    assert footprint.timeline.phases[-1] == "backward"


def test_saved_bytes_of_the_layers_add_up_and_temp_is_a_maximum() -> None:
    footprint = price(chain())
    assert sum(layer.saved_bytes for layer in footprint.layers) == footprint.saved_bytes == 100
    assert max(layer.temp_bytes for layer in footprint.layers) == footprint.temp_bytes == 84
    scale = next(layer for layer in footprint.layers if layer.path == "scale")
    assert (scale.parameter_bytes, scale.gradient_bytes, scale.state_bytes, scale.temp_bytes) == (8, 8, 0, 44)


def test_composition_names_everything_that_stays() -> None:
    composition = price(chain(), "momentum").composition
    assert dataclasses.asdict(composition) == {
        "parameter_bytes": 8,
        "buffer_bytes": 0,
        "gradient_bytes": 8,
        "state_bytes": 8,
        "input_bytes": 100,
    }


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(UsageError, match=r"no optimizer 'adamm'; did you mean 'adam' or 'adamw'\?"):
        price(chain(), "adamm")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"saved": (9,)}, "the unknown storage 9 is saved"),
        ({"storages": chain().storages[:-1]}, "op 3 uses the unknown storage 5"),
        ({"ops": chain().ops[::-1]}, "op 3 stands at position 0"),
        ({"layers": ()}, "op 0 names the unknown layer 1"),
        (
            {"storages": (*chain().storages[:2], Storage(2, 40, "activation", 0, 1), *chain().storages[3:])},
            r"op 2 \(toy.op\) uses storage 2 outside its life",
        ),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, object], problem: str) -> None:
    with pytest.raises(AnalysisError, match=problem):
        dataclasses.replace(chain(), **change)
