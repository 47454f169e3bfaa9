"""One training step written by hand: a stem, two blocks and a head, each with one op that multiplies by a weight."""

from __future__ import annotations

from typing import Final

from memplan.graph.records import BEFORE, Block, Layer, Machine, Op, Parameter, Phase, Storage, TensorView
from memplan.graph.step_graph import StepGraph

INPUT: Final = 100
#: Bytes of the weights of the stem, the blocks and the head, and of what each hands on; then the loss.
WEIGHTS: Final = (8, 12, 16, 20)
RESULTS: Final = (40, 60, 80, 10)
LOSS: Final = 4
#: FLOPs of each forward op; the backward's have none.
FLOPS: Final = (1, 10, 100, 1000)


def step(*, blocks: bool = True) -> StepGraph:
    """Return the step: forward ops 0 to 3, the loss and its backward, then the backwards from the head to the stem.

    Every op's backward reads what came in. Storages: 0 to 3 are weights, 4 the input, 5 to 8 results, 9 the loss, 10 to
    13 gradients of the results from the last to the first, 14 to 17 gradients of the weights.
    """
    storages = [Storage(i, size, "parameter", BEFORE, 10) for i, size in enumerate(WEIGHTS)]
    storages.append(Storage(4, INPUT, "input", BEFORE, 10))
    ends = (8, 7, 6, 5)
    storages += [Storage(5 + i, size, "activation", i, ends[i]) for i, size in enumerate(RESULTS)]
    storages.append(Storage(9, LOSS, "activation", 4, 5))
    storages += [Storage(10 + i, size, "activation", 5 + i, 6 + i) for i, size in enumerate(reversed(RESULTS))]
    storages += [Storage(14 + i, size, "gradient", 9 - i, 10) for i, size in enumerate(WEIGHTS)]
    ops = [_op(i, "forward", i + 1, (4 + i, i), (5 + i,), saves=(4 + i,), flops=FLOPS[i]) for i in range(4)]
    ops.append(_op(4, "loss", 0, (8,), (9,)))
    ops.append(_op(5, "backward", 0, (9, 8), (10,)))
    for number, layer in enumerate((4, 3, 2)):
        results = (11 + number, 14 + layer - 1)
        ops.append(_op(6 + number, "backward", layer, (10 + number, 4 + layer - 1, layer - 1), results))
    ops.append(_op(9, "backward", 1, (13, 4, 0), (14,)))
    names = ("", "stem", "blocks.0", "blocks.1", "head")
    found = (Block(1, "blocks.0", "Scale", 1, 1), Block(2, "blocks.1", "Scale", 2, 2))
    return StepGraph(
        machine=Machine("cpu", "AVX2", 2, "2.13.0"),
        layers=tuple(Layer(i, name, "Scale" if name else "Net", False) for i, name in enumerate(names)),
        parameters=tuple(
            Parameter(f"{names[i + 1]}.w", i + 1, i, size // 4, True, 14 + i) for i, size in enumerate(WEIGHTS)
        ),
        storages=tuple(storages),
        ops=tuple(ops),
        saved=(4, 5, 6, 7),
        blocks=found if blocks else (),
    )


def _op(
    index: int,
    phase: Phase,
    layer: int,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    *,
    saves: tuple[int, ...] = (),
    flops: int = 0,
) -> Op:
    def views(storages: tuple[int, ...]) -> tuple[TensorView, ...]:
        return tuple(TensorView(storage, (1,), (1,), "float32") for storage in storages)

    return Op(index, phase, "toy.op", layer, views(inputs), views(outputs), saves, flops)
