"""The cut is the cheapest, by exhaustive search; and it stays where values are handed on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import Any

import pytest

from memplan.graph.records import BEFORE, Block, Layer, Machine, Op, Storage, TensorView
from memplan.graph.step_graph import StepGraph
from memplan.methods.cut import LONGEST_CHAIN, TOUCHED_BYTE, Values, is_in_place, is_repeatable, schedule
from memplan.methods.treatments.recompute import TREATMENT

FLOPS_PER_BYTE = 40.0


def toy(
    ops: Sequence[tuple[str, Sequence[int], int, int]],
    saved: Sequence[int],
    *,
    outputs: Sequence[int] = (),
    blocks: Sequence[tuple[int, int]] = (),
) -> StepGraph:
    """Return a forward in which op i makes storage i + 1 from others; storage 0 is the input.

    Args:
        ops: name, storages read, FLOPs, and float32 elements of the result. An op in place writes the first it reads
            and makes none.
        saved: storages that autograd keeps from the op that wrote them last.
        outputs: storages that the model returns.
        blocks: first and last op of each.
    """
    elements = {0: 4}
    made: list[Op] = []
    last_writer: dict[int, int] = {}
    for index, (name, reads, flops, count) in enumerate(ops):
        written = reads[0] if is_in_place(name) else index + 1
        elements.setdefault(index + 1, count)
        last_writer[written] = index
        views = tuple(view(storage, elements[storage]) for storage in reads)
        made.append(Op(index, "forward", name, 0, views, (view(written, elements[written]),), (), flops))
    saves = {op: tuple(s for s in saved if last_writer.get(s) == op) for op in range(len(ops))}
    return StepGraph(
        machine=Machine("cpu", "AVX2", 1, "2.13.0"),
        layers=(Layer(0, "", "Toy", False),),
        parameters=(),
        storages=tuple(
            Storage(s, 4 * elements[s], "activation" if s else "input", s - 1 if s else BEFORE, len(ops))
            for s in range(len(ops) + 1)
        ),
        ops=tuple(Op(o.index, o.phase, o.name, 0, o.args, o.outputs, saves[o.index], o.flops) for o in made),
        saved=tuple(sorted(saved)),
        outputs=tuple(outputs),
        blocks=tuple(Block(i, f"b{i}", "Block", *ends) for i, ends in enumerate(blocks)),
    )


def view(storage: int, count: int, dtype: str = "float32") -> TensorView:
    return TensorView(storage, (count,), (1,), dtype)


def recomputed(graph: StepGraph, **options: Any) -> list[int]:
    """Return the ops whose result is recomputed."""
    plan = schedule(graph, **{"flops_per_byte": FLOPS_PER_BYTE, **options})
    assert [op.name for op in plan] == [op.name for op in graph.ops]
    return [index for index, op in enumerate(plan) if op.recomputed]


POINTWISE, PRODUCT, IN_PLACE, DRAW = (
    "aten.sin.default",
    "aten.mm.default",
    "aten.relu_.default",
    "aten.rand_like.default",
)


def price_of(ops: Sequence[tuple[str, Sequence[int], int, int]], saved: set[int], repeated: set[int]) -> float:
    """Return what it costs to repeat just ``repeated``, in bytes: written from the definition, knowing no cut.

    A value is (storage, writer). All that a repeated op reads, and all that autograd needs, is repeated or kept.
    """
    writer: dict[int, int] = {}
    size = {0: 4} | {i + 1: op[3] for i, op in enumerate(ops)}
    overwritten: set[int] = set()  # ops whose result is
    reads: list[set[int]] = []
    for index, (name, sources, _, _) in enumerate(ops):
        reads.append({writer[s] for s in sources if s in writer})
        target = sources[0] if is_in_place(name) else index + 1
        if target in writer:
            overwritten.add(writer[target])
        if target:
            writer[target] = index
    needed = {writer[s] for s in saved}
    kept = set(needed - repeated).union(*(reads[i] - repeated for i in repeated))
    if kept & overwritten or any(ops[i][0] == DRAW for i in repeated):
        return float("inf")
    total = 0.0
    for index in kept:
        name, sources, _, _ = ops[index]
        total += 4 * size[sources[0] if is_in_place(name) else index + 1]
    for index in repeated:
        name, sources, flops, _ = ops[index]
        result = sources[0] if is_in_place(name) else index + 1
        total += flops / FLOPS_PER_BYTE + TOUCHED_BYTE * 4 * (sum(size[s] for s in sources) + size[result])
    return total


def random_forward(seed: int) -> tuple[list[tuple[str, Sequence[int], int, int]], set[int]]:
    draw = random.Random(seed)
    ops: list[tuple[str, Sequence[int], int, int]] = []
    there = [0]
    for index in range(draw.randint(3, 9)):
        kind = draw.choice([POINTWISE, POINTWISE, PRODUCT, PRODUCT, IN_PLACE, DRAW])
        sources = draw.sample(there, min(len(there), draw.randint(1, 2)))
        if kind == IN_PLACE:
            sources = [s for s in sources if s] or [0]
            if sources == [0]:
                kind = POINTWISE
        flops = draw.choice([10, 1_000, 5_000]) * draw.randint(1, 9) if kind == PRODUCT else 0
        ops.append((kind, sources, flops, draw.randint(1, 60)))
        if kind != IN_PLACE:
            there.append(index + 1)
    made = there[1:]
    return ops, set(draw.sample(made, draw.randint(1, len(made)))) if made else set()


def subsets(items: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(items, count) for count in range(len(items) + 1))


@pytest.mark.parametrize("seed", range(150))
def test_nothing_is_cheaper_than_the_cut(seed: int) -> None:
    ops, saved = random_forward(seed)
    found = price_of(ops, saved, set(recomputed(toy(ops, sorted(saved)))))
    best = min(price_of(ops, saved, set(choice)) for choice in subsets(range(len(ops))))
    assert found == pytest.approx(best, abs=1e-3 * 2 * len(ops))  # the cut counts in thousandths of a byte


def test_the_search_meets_forwards_in_which_there_is_something_to_choose() -> None:
    counts = [len(recomputed(toy(ops, sorted(saved)))) for ops, saved in map(random_forward, range(150))]
    assert sum(count > 0 for count in counts) > 50
    assert max(counts) >= 4


def test_the_price_decides_whether_a_product_is_repeated() -> None:
    # 400 bytes kept against 12,000 FLOPs / 40 = 300, and 0.02 * (16 + 400) touched = 8.32.
    graph = toy([(PRODUCT, [0], 12_000, 100)], [1])
    assert recomputed(graph) == [0]
    assert recomputed(graph, flops_per_byte=30.0) == []
    assert recomputed(graph, flops_per_byte=0.0) == []
    assert recomputed(graph, flops_per_byte={}) == []
    assert recomputed(graph, flops_per_byte={0: FLOPS_PER_BYTE}) == [0]


def test_what_is_touched_is_counted_in_the_bytes_of_its_dtype() -> None:
    # Kept: 100 bytes. Touched: 2,600 input elements of 1 byte, 0.02 * (2,600 + 100) = 54; of 2 bytes 106.
    def graph(dtype: str) -> StepGraph:
        stock = toy([(POINTWISE, [0], 0, 25)], [1])
        op = stock.ops[0]
        first = Op(0, "forward", op.name, 0, (view(0, 2_600, dtype),), op.outputs, op.saves, 0)
        return StepGraph(
            stock.machine, stock.layers, (), stock.storages, (first,), stock.saved, stock.outputs, blocks=()
        )

    assert recomputed(graph("bool")) == recomputed(graph("float8_e4m3fn")) == [0]
    assert recomputed(graph("bfloat16")) == recomputed(graph("int64")) == []


def test_the_output_of_a_block_and_of_a_stretch_between_blocks_is_kept() -> None:
    ops = [(POINTWISE, [index], 0, 50) for index in range(9)]
    saved = list(range(1, 10))
    # Stretches 0-1 and 5-6, blocks 2-4 and 7-8; of each the last result is handed on, but for the last one of all.
    assert recomputed(toy(ops, saved, blocks=[(2, 4), (7, 8)])) == [0, 2, 3, 5, 7, 8]
    assert recomputed(toy(ops, saved)) == list(range(9))


def test_what_the_model_returns_is_kept_for_nothing() -> None:
    ops = [(POINTWISE, [0], 0, 50), (POINTWISE, [1], 0, 50)]
    assert recomputed(toy(ops, [1, 2], outputs=[2])) == [0]


def test_what_was_overwritten_is_repeated_and_never_kept() -> None:
    # relu_ overwrites the product: to have its result without keeping it, the product has to be repeated too.
    ops = [(PRODUCT, [0], 4_000, 100), (IN_PLACE, [1], 0, 0), (POINTWISE, [1], 0, 100)]
    assert recomputed(toy(ops, [1, 3])) == [0, 1, 2]
    dear = [(PRODUCT, [0], 40_000, 100), *ops[1:]]
    assert recomputed(toy(dear, [1, 3])) == [2]


def test_what_autograd_keeps_although_it_is_overwritten_is_left_to_it() -> None:
    graph = toy([(POINTWISE, [0], 0, 50), (POINTWISE, [1], 0, 50), (IN_PLACE, [1], 0, 0)], [2])
    first, *rest = graph.ops
    first = Op(0, "forward", first.name, 0, first.args, first.outputs, (1,), 0)
    graph = StepGraph(
        graph.machine, graph.layers, (), graph.storages, (first, *rest), (1, 2), graph.outputs, blocks=graph.blocks
    )
    assert recomputed(graph) == []


def test_what_reads_an_input_before_it_is_written_is_kept() -> None:
    ops = [(POINTWISE, [0], 0, 50), (IN_PLACE, [0], 0, 0), (POINTWISE, [0], 0, 50)]
    assert recomputed(toy(ops, [1, 3])) == [2]


def test_a_chain_has_a_link_kept() -> None:
    count = 2 * LONGEST_CHAIN + 10
    found = recomputed(toy([(POINTWISE, [index], 0, 50) for index in range(count)], range(1, count + 1)))
    assert found == [i for i in range(count) if i not in (LONGEST_CHAIN, 2 * LONGEST_CHAIN + 1)]
    writes = [(POINTWISE, [0], 0, 50), *((IN_PLACE, [1], 0, 0) for _ in range(count)), (POINTWISE, [1], 0, 50)]
    assert recomputed(toy(writes, [1, count + 2])) == [count + 1]


NORM = (view(0, 64), None, None, view(1, 4), view(2, 4), True, 0.1, 1e-5)


def normed(training: bool) -> StepGraph:
    args = (*NORM[:5], training, 0.1, 1e-5)
    storages = tuple(
        Storage(i, size, role, born, 1)
        for i, (size, role, born) in enumerate(
            [(256, "input", BEFORE), (16, "buffer", BEFORE), (16, "buffer", BEFORE)]
            + [(size, "activation", 0) for size in (256, 16, 16)]
        )
    )
    outputs = (view(3, 64), view(4, 4), view(5, 4))
    op = Op(0, "forward", "aten.native_batch_norm.default", 0, args, outputs, (3, 4, 5), 0)
    return StepGraph(
        Machine("cpu", "AVX2", 1, "2.13.0"), (Layer(0, "", "Toy", False),), (), storages, (op,), (3, 4, 5), (), ()
    )


def test_a_norms_statistics_are_kept_and_its_result_made_from_them() -> None:
    assert schedule(normed(True))[0].recomputed == (0,)
    assert schedule(normed(False))[0].recomputed == (0, 1, 2)
    values = Values(normed(True))
    assert {value.output for value in values.fixed} == {1, 2}
    assert {value.output for value in values.inputs[0]} == {1, 2}


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("aten.relu_.default", (), True),
        ("aten.bernoulli_.float", (), False),
        ("aten.native_dropout.default", (), False),
        ("aten.mm.out", (), False),
        ("aten.batch_norm_gather_stats_with_counts.default", (), False),
        ("aten.native_layer_norm.default", (), True),
        ("aten._cudnn_rnn.default", (), False),
        ("aten._scaled_dot_product_flash_attention_for_cpu.default", (None, None, None), True),
        ("aten._scaled_dot_product_flash_attention_for_cpu.default", (None, None, None, 0.1), False),
        ("aten._scaled_dot_product_efficient_attention.default", (None, None, None, None, True, 0.0), True),
        ("_c10d_functional.all_reduce.default", (), False),
        ("memplan.pack_mask.default", (), True),
        ("mine.draw.default", (), False),
    ],
)
def test_what_may_be_repeated(name: str, args: tuple[Any, ...], expected: bool) -> None:
    assert is_repeatable(name, args) is expected


def test_the_treatment_names_its_twin_and_counts_no_op_by_itself() -> None:
    assert (TREATMENT.name, TREATMENT.twin, dict(TREATMENT.saved)) == ("recompute", "memplan.layers.recompute", {})
    assert TREATMENT.lossless
