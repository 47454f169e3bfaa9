"""Records made by hand: a chain of layers whose bytes can be added up, and nothing of torch."""

from __future__ import annotations

import dataclasses
import io

from rich.console import Console, RenderableType

from memplan.graph import Block, Layer, Machine, Op, Parameter, Phase, StepGraph, Storage, TensorView
from memplan.memory import price
from memplan.planner.records import Budget
from memplan.results import Analysis, MeasuredStep, MethodFootprint, Setting, Verification

MACHINE = Machine("cpu", "AVX2", 2, "2.13.0")
WEIGHT = 4_000_000
VALUE = 8_000_000

SETTING = Setting(
    model="chain",
    origin="file",
    batch_size=8,
    inputs=("8x250000 float32",),
    dtype="float32",
    amp=None,
    training=True,
    optimizer="momentum",
    implementation="loop",
    machine=MACHINE,
)


def chain(length: int = 4, *, trained: int | None = None) -> StepGraph:
    """Return the step of ``length`` layers, of which the last ``trained`` train: each keeps its input.

    Storages are the weights, the input, the values, the loss, then in backward a gradient of each value and weight.
    """
    first = 0 if trained is None else length - trained
    kept = range(first, length)
    op_count = length + 1 + 1 + 2 * len(kept)
    storages = [Storage(i, WEIGHT, "parameter", -1, op_count) for i in range(length)]
    values = list(range(length, 2 * length + 1))
    storages.append(Storage(length, VALUE, "input", -1, op_count))
    ops: list[Op] = []

    def run(phase: Phase, layer: int, reads: tuple[int, ...], makes: int, saves: tuple[int, ...] = ()) -> None:
        views = tuple(TensorView(storage, (1,), (1,), "float32") for storage in (*reads, makes))
        ops.append(Op(len(ops), phase, "aten.toy.default", layer, views[:-1], views[-1:], saves, 1_000))

    for i in range(length):
        # A value lives until the backward of the layer that keeps it, or until the next layer has read it.
        reader = i + 1
        last = length + 3 + 2 * (length - 1 - reader) if reader in kept else min(reader, length)
        storages.append(Storage(values[i + 1], VALUE, "activation", i, last))
        run("forward", i + 1, (values[i], i), values[i + 1], (values[i],) if i in kept else ())
    loss = len(storages)
    storages.append(Storage(loss, 4, "activation", length, length + 1))
    run("loss", 0, (values[length],), loss)
    coming = loss + 1
    storages.append(Storage(coming, VALUE, "activation", length + 1, length + 2))
    run("backward", 0, (loss,), coming)
    gradients: dict[int, int] = {}
    for i in reversed(kept):
        moment = len(ops)
        gradients[i] = len(storages)
        storages.append(Storage(gradients[i], WEIGHT, "gradient", moment, op_count))
        storages[coming] = dataclasses.replace(storages[coming], last=moment + 1)
        run("backward", i + 1, (coming, values[i]), gradients[i])
        storages.append(Storage(len(storages), VALUE, "activation", moment + 1, moment + 1))
        run("backward", i + 1, (coming, i), len(storages) - 1)
        coming = len(storages) - 1
    return StepGraph(
        machine=MACHINE,
        layers=(Layer(0, "", "Chain", False), *(Layer(i + 1, f"layers.{i}", "Linear", False) for i in range(length))),
        parameters=tuple(
            Parameter(f"layers.{i}.weight", i + 1, i, WEIGHT // 4, i in kept, gradients.get(i)) for i in range(length)
        ),
        storages=tuple(storages),
        ops=tuple(ops),
        saved=tuple(values[i] for i in kept),
        blocks=tuple(Block(i, f"layers.{i}", "Linear", i, i) for i in range(length - 1)),
    )


def analysis(
    *, budget_bytes: int | None = None, notes: tuple[str, ...] = (), unpriced: tuple[str, ...] = ()
) -> Analysis:
    """Return the analysis of two methods on the chain: everything trains, and the last block and the head."""

    def method(name: str, k: int | None, trained: int) -> MethodFootprint:
        graph = dataclasses.replace(chain(trained=trained), unpriced=unpriced)
        footprint = price(graph, "momentum", alive=len(graph.storages))
        fits = None if budget_bytes is None else footprint.peak_bytes <= budget_bytes
        return MethodFootprint(name, k, "stock", footprint, fits)

    methods = (method("full", None, 4), method("top-k", 1, 2))
    return Analysis(SETTING, chain().blocks, budget_bytes, methods, 0.25, notes)


def verification(*, measured_saved_bytes: int = 32_000_000, measured_bytes: int = 88_000_000) -> Verification:
    """Return a verification of the chain that promised 32 MB saved and a peak of 88 MB."""
    return Verification(
        setting=SETTING,
        method="full",
        predicted_saved_bytes=32_000_000,
        measured_saved_bytes=measured_saved_bytes,
        steps=(MeasuredStep(1, 72_000_000, 72_000_000), MeasuredStep(2, 88_000_000, measured_bytes)),
        quantity="allocator peak (CPU profiler)",
        tolerance=(-0.01, 0.03),
        rss_bytes=500_000_000,
        rss_before_bytes=400_000_000,
        budget=Budget(90_000_000),
        budgeted_bytes=measured_bytes,
    )


def shown(report: RenderableType, width: int = 80, *, terminal: bool = False) -> str:
    """Return what a console of ``width`` columns shows; without ``terminal`` what a pipe gets."""
    screen = io.StringIO()
    console = Console(
        file=screen,
        width=width,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        legacy_windows=False,
        _environ={},
    )
    console.print(report)
    return screen.getvalue()
