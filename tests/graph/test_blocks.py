"""Blocks of networks drawn by hand, whose answer is plain to see, and of real ones, whose answer is known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest

from memplan.graph import Block, StepGraph
from memplan.graph.head import head_layers, layers_above, layers_in_block, parameters_used
from tests.graph.toy import Toy, blocks_of, numbered, paths_of

RESIDUAL = {"blocks": "Sequential", "blocks.#": "Residual"}


def residual(toy: Toy, path: str, value: int) -> int:
    return toy.add(path, value, toy.conv(f"{path}.conv2", toy.conv(f"{path}.conv1", value)))


def residual_net(count: int) -> StepGraph:
    """Return a stem, ``count`` residual blocks of three ops each and a head."""
    toy = Toy(RESIDUAL)
    value = toy.conv("stem", toy.input)
    for path in numbered("blocks", count):
        value = residual(toy, path, value)
    return toy.graph(toy.conv("head", value))


def head_of(graph: StepGraph) -> list[str]:
    head = head_layers(graph.layers, graph.ops, graph.storages, graph.parameters, blocks_of(graph))
    return [graph.layers[layer].path for layer in head]


def above(graph: StepGraph, count: int) -> set[str]:
    layers = layers_above(count, blocks_of(graph), graph.ops, graph.parameters)
    return {graph.layers[layer].path for layer in layers}


@pytest.mark.parametrize("count", [2, 3, 10])
def test_every_residual_block_is_a_block(count: int) -> None:
    assert blocks_of(residual_net(count)) == tuple(
        Block(i, f"blocks.{i}", "Residual", first_op=1 + 3 * i, last_op=3 + 3 * i) for i in range(count)
    )


def test_one_linear_layer_is_only_a_head() -> None:
    toy = Toy({})
    graph = toy.graph(toy.conv("fc", toy.input))
    assert blocks_of(graph) == ()
    assert head_of(graph) == ["fc"]


def test_a_model_that_is_one_leaf_has_itself_as_head() -> None:
    toy = Toy({})
    graph = toy.graph(toy.conv("", toy.input))
    assert (blocks_of(graph), head_of(graph)) == ((), [""])


def test_a_model_without_parameters_has_neither_blocks_nor_head() -> None:
    toy = Toy({})
    graph = toy.graph(toy.op("relu", toy.input))
    assert (blocks_of(graph), head_of(graph)) == ((), [])


def test_a_chain_of_leaves_has_its_weighted_layers_as_blocks() -> None:
    toy = Toy({"features": "Sequential", "classifier": "Sequential"})
    value = toy.input
    for path in numbered("features", 6):
        value = toy.conv(path, value) if int(path[-1]) % 2 == 0 else toy.relu_(path, value)
    graph = toy.graph(toy.conv("classifier.1", toy.conv("classifier.0", value)))
    assert paths_of(graph) == ["features.0", "features.2", "features.4"]
    assert head_of(graph) == ["classifier", "classifier.0", "classifier.1"]


def test_the_head_of_a_net_that_is_one_list_is_its_last_layer() -> None:
    toy = Toy({"net": "Sequential"})
    value = toy.input
    for path in numbered("net", 3):
        value = toy.conv(path, value)
    graph = toy.graph(value)
    assert (paths_of(graph), head_of(graph)) == (["net.0", "net.1"], ["net.2"])


def test_a_chain_of_composites_has_its_repeated_units_as_blocks() -> None:
    types = {"features.#.depthwise": "ConvNorm", "features.#.pointwise": "ConvNorm", "stem": "ConvNorm"}
    toy = Toy(types | {"features": "Sequential", "features.#": "Separable"})
    value = toy.norm("stem.norm", toy.conv("stem.conv", toy.input))
    for path in numbered("features", 4):
        for part in ("depthwise", "pointwise"):
            value = toy.norm(f"{path}.{part}.norm", toy.conv(f"{path}.{part}.conv", value))
    assert paths_of(toy.graph(toy.conv("fc", value))) == list(numbered("features", 4))


def test_a_unit_may_be_a_nameless_list_of_different_layers() -> None:
    toy = Toy({"net": "Sequential", "net.#": "Sequential"} | {f"net.{i}.{j}": "Conv" for i in range(4) for j in (0, 2)})
    value = toy.norm("net.0.1", toy.conv("net.0.0", toy.input))
    for path in ("net.1", "net.2", "net.3"):
        for start in (0, 2):
            value = toy.norm(f"{path}.{start + 1}", toy.conv(f"{path}.{start}", value))
    assert paths_of(toy.graph(toy.conv("fc", value))) == ["net.1", "net.2", "net.3"]


def test_stages_are_seen_through_whatever_their_class() -> None:
    toy = Toy(
        {"stages": "ModuleList", "stages.#": "Stage", "stages.#.blocks": "ModuleList", "stages.#.blocks.#": "Block"}
    )
    value, expected = toy.conv("stem", toy.input), []
    for stage, depth in enumerate((1, 3, 2)):
        value = toy.conv(f"stages.{stage}.down", value)
        for path in numbered(f"stages.{stage}.blocks", depth):
            value = residual(toy, path, value)
            expected.append(path)
    assert paths_of(toy.graph(toy.conv("head", value))) == expected


def test_a_diamond_is_one_block() -> None:
    toy = Toy({"mix": "Inception"})
    value = toy.conv("stem", toy.input)
    left, right = toy.conv("mix.left", value), toy.conv("mix.right", value)
    graph = toy.graph(toy.conv("fc", toy.op("mix", left, right, name="aten.cat.default")))
    assert paths_of(graph) == ["mix"]


def test_a_dense_block_is_one_block_because_its_layers_read_all_before() -> None:
    toy = Toy({"a": "Dense", "b": "Dense", "a.#": "DenseLayer", "b.#": "DenseLayer"})
    value = toy.conv("stem", toy.input)
    for block in "ab":
        values = [value]
        for path in numbered(block, 5):
            values.append(toy.conv(f"{path}.conv", toy.op(path, *values, name="aten.cat.default")))
        value = toy.op(block, *values, name="aten.cat.default")
        value = toy.conv(f"transition{block}.conv", value)
    assert paths_of(toy.graph(toy.conv("fc", value))) == ["a", "b"]


def test_a_block_without_the_residual_of_its_class_is_a_block_too() -> None:
    toy = Toy(RESIDUAL)
    value = toy.conv("stem", toy.input)
    value = toy.conv("blocks.0.conv2", toy.conv("blocks.0.conv1", value))
    value = residual(toy, "blocks.1", residual(toy, "blocks.2", value))
    assert paths_of(toy.graph(toy.conv("head", value))) == ["blocks.0", "blocks.2", "blocks.1"]


def test_a_gate_is_neither_a_block_nor_a_branch() -> None:
    toy = Toy({"units": "Sequential", "units.#": "Unit", "units.#.gate": "SqueezeExcite"})
    value = toy.conv("stem", toy.input)
    for path in numbered("units", 3):
        value = toy.conv(f"{path}.conv", value)
        weight = toy.conv(f"{path}.gate.conv", toy.op(f"{path}.gate.pool", value))
        value = toy.op(f"{path}.gate", value, weight, name="aten.mul.Tensor")
    assert paths_of(toy.graph(toy.conv("fc", value))) == list(numbered("units", 3))


def test_an_activation_written_as_a_product_is_no_branch() -> None:
    toy = Toy({"blocks": "Sequential", "blocks.#": "Residual", "last": "ConvSwish"})
    value = toy.conv("stem", toy.input)
    for path in numbered("blocks", 2):
        value = residual(toy, path, value)
    value = toy.conv("last.conv", value)
    value = toy.op("last", value, toy.op("last", value, name="aten.sigmoid.default"), name="aten.mul.Tensor")
    assert paths_of(toy.graph(toy.conv("fc", value))) == ["blocks.0", "blocks.1"]


def test_what_enters_all_layers_of_a_decoder_is_not_an_entry() -> None:
    types = {"encoder": "Encoder", "encoder.#": "EncoderLayer", "decoder": "Decoder", "decoder.#": "DecoderLayer"}
    toy = Toy(types)
    mask, value = toy.mask(), toy.conv("stem", toy.input)
    for path in numbered("encoder", 2):
        value = toy.add(path, value, toy.conv(f"{path}.fc", toy.add(path, value, mask)))
    context, value = toy.norm("encoder.norm", value), toy.conv("embed", toy.input)
    for path in numbered("decoder", 3):
        crossed = toy.op(
            f"{path}", toy.conv(f"{path}.q", value), toy.conv(f"{path}.kv", context), name="aten.bmm.default"
        )
        value = toy.add(path, value, crossed)
    graph = toy.graph(toy.conv("head", value))
    assert paths_of(graph) == [*numbered("encoder", 2), *numbered("decoder", 3)]
    assert head_of(graph) == ["head"]


def test_several_values_handed_on_together_count_as_one() -> None:
    toy = Toy({"blocks.#": "DualPath", "blocks": "Sequential"})
    left = right = toy.conv("stem", toy.input)
    for path in numbered("blocks", 3):
        mixed = toy.conv(f"{path}.conv", toy.add(path, left, right))
        left, right = toy.add(path, left, mixed), toy.op(path, right, mixed, name="aten.cat.default")
    assert paths_of(toy.graph(toy.conv("fc", toy.add("", left, right)))) == list(numbered("blocks", 3))


def test_cells_that_read_the_two_before_them_are_blocks_for_want_of_others() -> None:
    toy = Toy({"cells": "ModuleList", "cells.#": "Cell"})
    before = value = toy.conv("stem", toy.input)
    for path in numbered("cells", 4):
        made = toy.add(path, toy.conv(f"{path}.a", value), toy.conv(f"{path}.b", before))
        before, value = value, made
    assert paths_of(toy.graph(toy.conv("fc", value))) == list(numbered("cells", 4))


def test_a_network_of_skips_from_end_to_end_has_its_repeated_units_as_blocks() -> None:
    toy = Toy({"down": "ModuleList", "down.#": "Double", "up": "ModuleList", "up.#": "Up", "up.#.double": "Double"})
    value, skips = toy.input, []
    for path in numbered("down", 4):
        value = toy.conv(f"{path}.second", toy.conv(f"{path}.first", value))
        skips.append(value)
    for path, skip in zip(numbered("up", 3), skips[2::-1], strict=True):
        value = toy.op(path, toy.conv(f"{path}.raise", value), skip, name="aten.cat.default")
        value = toy.conv(f"{path}.double.second", toy.conv(f"{path}.double.first", value))
    expected = [*numbered("down", 4), *(f"{path}.double" for path in numbered("up", 3))]
    assert paths_of(toy.graph(toy.conv("out", value))) == expected


def test_an_embedding_is_no_block() -> None:
    toy = Toy({})
    value = toy.conv("lstm", toy.conv("embedding", toy.ids()))
    assert paths_of(toy.graph(toy.conv("fc", value))) == ["lstm"]


def test_a_fixed_series_of_branches_is_one_block() -> None:
    types = {"blocks": "Sequential", "blocks.#": "Block", "blocks.#.attention": "Residual", "blocks.#.mlp": "Residual"}
    toy = Toy(types)
    value = toy.conv("stem", toy.input)
    for path in numbered("blocks", 3):
        for part in ("attention", "mlp"):
            value = residual(toy, f"{path}.{part}", value)
    assert paths_of(toy.graph(toy.conv("fc", value))) == list(numbered("blocks", 3))


def test_branches_met_once_are_blocks_between_blocks_and_not_around_them() -> None:
    toy = Toy({"stem": "Stem", "neck": "Neck", "pool": "Reduction"} | {f"{i}": "Residual" for i in "abcd"})
    value = toy.input
    for path in ("stem", "a", "b", "pool", "c", "d", "neck"):
        value = residual(toy, path, value)
    assert paths_of(toy.graph(toy.conv("fc", value))) == ["a", "b", "pool", "c", "d"]


def test_the_first_block_of_a_list_need_not_be_of_the_class_of_the_others() -> None:
    toy = Toy({"blocks": "Sequential", "blocks.0": "Separable", "blocks.#": "Residual", "blocks.3": "ConvNorm"})
    value = toy.conv("stem", toy.input)
    value = toy.conv("blocks.0.point", toy.conv("blocks.0.depth", value))
    for path in ("blocks.1", "blocks.2"):
        value = residual(toy, path, value)
    value = toy.norm("blocks.3.norm", toy.conv("blocks.3.conv", value))
    assert paths_of(toy.graph(toy.conv("fc", value))) == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_module_called_many_times_in_a_row_is_one_block() -> None:
    toy = Toy({"layer": "TransformerLayer"})
    value = toy.conv("embed", toy.input)
    for _ in range(4):
        value = residual(toy, "layer", value)
    graph = toy.graph(toy.conv("classifier", value))
    assert blocks_of(graph) == (Block(0, "layer", "TransformerLayer", first_op=1, last_op=12),)


def test_modules_called_in_turns_cannot_be_told_apart() -> None:
    toy = Toy({"a": "Residual", "b": "Residual"})
    value = toy.conv("stem", toy.input)
    for path in "abab":
        value = residual(toy, path, value)
    blocks = blocks_of(toy.graph(toy.conv("fc", value)))
    assert all(one.last_op < other.first_op for one, other in pairwise(blocks))


def test_an_activation_that_all_blocks_share_does_not_join_them() -> None:
    toy = Toy(RESIDUAL)
    value = toy.conv("stem", toy.input)
    for path in numbered("blocks", 3):
        inner = toy.op("blocks.0.act", toy.conv(f"{path}.conv1", value))
        value = toy.add(path, value, toy.conv(f"{path}.conv2", inner))
    graph = toy.graph(toy.conv("head", value))
    assert [(block.first_op, block.last_op) for block in blocks_of(graph)] == [(1, 4), (5, 8), (9, 12)]


def test_views_and_writes_in_place_stay_with_their_value() -> None:
    toy = Toy(RESIDUAL)
    value = toy.conv("stem", toy.input)
    for path in numbered("blocks", 3):
        toy.view(f"{path}.flatten", value)
        inner = toy.relu_(f"{path}.act", toy.conv(f"{path}.conv1", value))
        value = toy.relu_(f"{path}.act", toy.add(path, value, toy.conv(f"{path}.conv2", inner)))
    assert paths_of(toy.graph(toy.conv("head", value))) == list(numbered("blocks", 3))


def test_every_output_has_its_head() -> None:
    toy = Toy(RESIDUAL | {"aux": "Aux"})
    value, aux = toy.conv("stem", toy.input), 0
    for path in numbered("blocks", 3):
        value = residual(toy, path, value)
        aux = aux or toy.conv("aux.fc", toy.conv("aux.conv", value))
    graph = toy.graph(toy.conv("fc", value), aux)
    assert paths_of(graph) == list(numbered("blocks", 3))
    assert head_of(graph) == ["aux", "aux.conv", "aux.fc", "fc"]


def test_a_network_that_ends_in_a_block_has_no_head() -> None:
    toy = Toy(RESIDUAL)
    value = toy.conv("stem", toy.input)
    for path in numbered("blocks", 3):
        value = residual(toy, path, value)
    graph = toy.graph(value)
    assert (paths_of(graph), head_of(graph)) == (list(numbered("blocks", 3)), [])


def test_layers_above_are_those_whose_parameters_are_used_there() -> None:
    toy = Toy(RESIDUAL)
    value = toy.conv("", toy.conv("stem", toy.input))  # the second is a class token of the network itself
    for path in numbered("blocks", 3):
        value = residual(toy, path, value)
    graph = toy.graph(toy.conv("head", toy.op("", toy.conv("last", value))))
    top = {"blocks.2", "blocks.2.conv1", "blocks.2.conv2", "last", "head"}
    assert above(graph, 0) == set()
    assert above(graph, 1) == top
    every = {f"blocks.{number}{part}" for number in range(3) for part in ("", ".conv1", ".conv2")} | top
    assert above(graph, 3) == above(graph, 9) == every


def test_a_tied_weight_is_used_by_both_its_layers() -> None:
    toy = Toy(RESIDUAL)
    value = toy.conv("embed", toy.input)
    for path in numbered("blocks", 2):
        value = residual(toy, path, value)
    graph = toy.graph(toy.conv("head", value, tied="embed"))
    head = head_layers(graph.layers, graph.ops, graph.storages, graph.parameters, blocks_of(graph))
    used = parameters_used(graph.ops, graph.parameters, layers=head)
    assert [graph.layers[layer].path for layer in head] == ["head"]
    assert [graph.parameters[parameter].name for parameter in used] == ["embed.weight"]
    assert "embed" in above(graph, 1)


def test_the_layers_of_a_block_are_those_under_its_path() -> None:
    graph = residual_net(11)
    inside = layers_in_block(blocks_of(graph)[1], graph.layers)
    assert [graph.layers[layer].path for layer in inside] == ["blocks.1", "blocks.1.conv1", "blocks.1.conv2"]


def opcodes(run: Callable[[], object]) -> int:
    """Return how many opcodes Python runs: work that, unlike seconds, is the same on a busy machine."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def test_ten_times_the_blocks_are_ten_times_the_work() -> None:
    few, many = residual_net(50), residual_net(500)
    assert len(blocks_of(many)) == 500
    assert 9 < opcodes(lambda: blocks_of(many)) / opcodes(lambda: blocks_of(few)) < 11
