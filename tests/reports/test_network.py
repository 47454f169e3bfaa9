"""The network as a graph: edges by hand, sums that are the footprint's, and texts that other programs read back."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import networkx
import pytest
import torch
from torch import nn

import memplan
from memplan.graph import Block, StepGraph, TensorView
from memplan.memory import Footprint, price
from memplan.methods import Plan
from memplan.methods.cut import ScheduledOp
from memplan.methods.plan import LiteBranch, Microbatch, TreatedLayer, TunedPair
from memplan.methods.pruning import PrunedAxis, PrunedGroup
from memplan.methods.treatments.lite_residual import LiteShape
from memplan.reports.network import block_network, layer_network, to_dot, to_graphml
from tests.graph.toy import Toy
from tests.planner.toy import FLOPS, RESULTS, WEIGHTS, step

TYPES = {"blocks": "ModuleList", "blocks.#": "Residual", "blocks.#.conv1": "Conv2d", "head": "Linear"}


def residual(*, count: int = 2) -> StepGraph:
    """A stem, blocks that add what two convolutions make of what comes in, one activation between them, and a head."""
    toy = Toy(TYPES)
    x = toy.conv("stem", toy.input)
    for place in range(count):
        y = toy.conv(f"blocks.{place}.conv1", x)
        y = toy.relu_(f"blocks.{place}.act", y)
        y = toy.conv(f"blocks.{place}.conv2", y)
        x = toy.relu_(f"blocks.{place}.act", toy.add(f"blocks.{place}", x, y))
    return toy.graph(toy.conv("head", x))


def footprint(graph: StepGraph) -> Footprint:
    """Price a toy as if no kernel took scratch: its ops have no arguments but tensors."""
    return price(dataclasses.replace(graph, ops=tuple(dataclasses.replace(op, name="toy.op") for op in graph.ops)))


def named_edges(network: networkx.DiGraph[int]) -> set[tuple[str, str]]:
    names = networkx.get_node_attributes(network, "name")
    return {(names[source], names[target]) for source, target in network.edges}


def by_name(network: networkx.DiGraph[int]) -> dict[str, dict[str, Any]]:
    return {attributes["name"]: attributes for _, attributes in network.nodes(data=True)}


def test_a_residual_block_has_the_edge_around_it() -> None:
    graph = residual(count=1)
    network = layer_network(graph, footprint(graph))
    assert named_edges(network) == {
        ("stem", "blocks.0.conv1"),
        ("stem", "blocks.0"),  # around
        ("blocks.0.conv1", "blocks.0.act"),
        ("blocks.0.act", "blocks.0.conv2"),
        ("blocks.0.conv2", "blocks.0"),
        ("blocks.0", "blocks.0.act (2)"),
        ("blocks.0.act (2)", "head"),
    }
    assert list(network) == list(range(len(network)))
    assert networkx.is_directed_acyclic_graph(network)


def test_blocks_are_single_nodes_in_a_row() -> None:
    graph = residual(count=3)
    network = block_network(graph, footprint(graph))
    assert [attributes["name"] for _, attributes in network.nodes(data=True)] == [
        "stem",
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "head",
    ]
    assert set(network.edges) == {(0, 1), (1, 2), (2, 3), (3, 4)}
    assert [attributes["block"] for _, attributes in network.nodes(data=True)] == [
        "",
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "",
    ]
    layers = by_name(layer_network(graph, footprint(graph)))
    assert layers["blocks.1.conv1"]["block"] == layers["blocks.1"]["block"] == "blocks.1"
    assert layers["stem"]["block"] == layers["head"]["block"] == ""


def test_an_edge_that_skips_a_block_is_drawn() -> None:
    toy = Toy(TYPES)
    x = toy.conv("stem", toy.input)
    y = toy.add("blocks.0", x, toy.conv("blocks.0.conv1", x))
    z = toy.add("blocks.1", y, toy.conv("blocks.1.conv1", y))
    graph = toy.graph(toy.conv("head", toy.add("", z, x)))
    blocks = [("blocks.0", 1, 2), ("blocks.1", 3, 4)]
    found = [Block(place, path, "Residual", first, last) for place, (path, first, last) in enumerate(blocks)]
    network = block_network(graph, footprint(graph), blocks=found)
    assert named_edges(network) == {
        ("stem", "blocks.0"),
        ("blocks.0", "blocks.1"),
        ("blocks.1", "(model)"),
        ("stem", "(model)"),
        ("(model)", "head"),
    }


def test_attributes_are_the_footprints() -> None:
    graph = step()
    priced = price(graph, "adam")
    for network in (layer_network(graph, priced, optimizer="adam"), block_network(graph, priced, optimizer="adam")):
        nodes = by_name(network)
        assert list(nodes) == ["stem", "blocks.0", "blocks.1", "head"]
        assert [node["flops_forward"] for node in nodes.values()] == list(FLOPS)
        # Weight, gradient, two moments and a counter.
        assert [node["resident_bytes"] for node in nodes.values()] == [4 * size + 4 for size in WEIGHTS]
        # Each keeps what comes in: the input, and the results but the last.
        assert [node["saved_bytes"] for node in nodes.values()] == [100, *RESULTS[:3]]
        assert [edge["bytes"] for _, _, edge in network.edges(data=True)] == list(RESULTS[:3])
        temp = {layer.path: layer.temp_bytes for layer in priced.layers}
        assert {name: node["temp_bytes"] for name, node in nodes.items()} == {name: temp[name] for name in nodes}
        assert all(node["trained"] and not node["frozen"] for node in nodes.values())


def test_what_no_gradient_reaches_is_frozen_and_what_has_no_parameters_is_neither() -> None:
    graph = residual(count=1)
    parameters = (dataclasses.replace(each, trains=each.name == "head.weight") for each in graph.parameters)
    graph = dataclasses.replace(graph, parameters=tuple(parameters))
    nodes = by_name(layer_network(graph, footprint(graph)))
    assert {name for name, node in nodes.items() if node["trained"]} == {"head"}
    assert {name for name, node in nodes.items() if node["frozen"]} == {"stem", "blocks.0.conv1", "blocks.0.conv2"}


def test_a_plan_marks_its_nodes() -> None:
    graph = residual(count=2)
    forward = [op.name for op in graph.ops if op.phase == "forward"]
    assert forward[6] == "aten.convolution.default"  # the first of the second block
    plan = Plan(
        method="made up",
        k=1,
        trained=("head.weight",),
        layers=(TreatedLayer("", ("bitmask",)), TreatedLayer("blocks.1", ("lean-frozen",))),
        tuned=(TunedPair("stem", "blocks.0.act"),),
        int8=("blocks.0.conv2",),
        lite=(LiteBranch("blocks.1", LiteShape(4, 4, 4, 3, 1, 1, None, "batch")),),
        pruned=(PrunedGroup("g", 4, (1,), (PrunedAxis("blocks.0.conv1.weight", 0, 4, (1,)),)),),
        # Of the ops behind the prefix, which ends with the first block, those of the second block's convolutions.
        schedule=tuple(
            ScheduledOp(name, (0,) if name == "aten.convolution.default" and place < 9 else ())
            for place, name in enumerate(forward)
            if place >= 6
        ),
        microbatch=Microbatch("blocks.0", 1),
    )
    nodes = by_name(layer_network(graph, footprint(graph), plan))
    assert {name: node["treatments"] for name, node in nodes.items()} == {
        "stem": "bitmask, tune, prefix-microbatch",
        "blocks.0.conv1": "bitmask, prefix-microbatch",
        "blocks.0.act": "bitmask, tune, prefix-microbatch",
        "blocks.0.conv2": "bitmask, frozen-int8, prefix-microbatch",
        "blocks.0": "bitmask, prefix-microbatch",
        "blocks.0.act (2)": "bitmask, tune, prefix-microbatch",
        "blocks.1.conv1": "lean-frozen, lite-residual, recompute",
        "blocks.1.act": "lean-frozen, lite-residual",
        "blocks.1.conv2": "lean-frozen, lite-residual, recompute",
        "blocks.1": "lean-frozen, lite-residual",
        "blocks.1.act (2)": "lean-frozen, lite-residual",
        "head": "bitmask",
    }
    assert {name for name, node in nodes.items() if node["recomputed"]} == {"blocks.1.conv1", "blocks.1.conv2"}
    assert {name for name, node in nodes.items() if node["pruned"]} == {"blocks.0.conv1"}
    blocks = by_name(block_network(graph, footprint(graph), plan))
    assert blocks["blocks.0"]["pruned"]
    assert blocks["blocks.1"]["recomputed"]
    assert blocks["blocks.0"]["treatments"] == "bitmask, tune, frozen-int8, prefix-microbatch"


def test_parts_of_a_batch_are_one_node() -> None:
    """Twice the same layers on data of their own, each result copied into its half of what the head reads."""
    toy = Toy(TYPES)
    whole = None
    for place in range(2):
        part = toy.conv("blocks.0.conv1", toy.conv("stem", toy.input))
        if whole is None:
            whole = toy.op("blocks.0.conv1", name="aten.new_empty.default")
        given, made = (TensorView(storage, (2, 2), (2, 1), "float32") for storage in (whole, part))
        half = dataclasses.replace(given, shape=(1, 2), offset=2 * place)
        toy._append("aten.slice.Tensor", "blocks.0.conv1", (given,), half)
        toy._append("aten.copy_.default", "blocks.0.conv1", (half, made), half)
    assert whole is not None
    graph = toy.graph(toy.conv("head", whole))
    storages = tuple(dataclasses.replace(storage, bytes=4 * 2 * 2) for storage in graph.storages)
    graph = dataclasses.replace(graph, storages=storages)
    network = layer_network(graph, footprint(graph))
    assert named_edges(network) == {("stem", "blocks.0.conv1"), ("blocks.0.conv1", "head")}
    # The first layer's result of both parts; the whole, once.
    assert [edge["bytes"] for _, _, edge in network.edges(data=True)] == [2 * 16, 16]


def test_two_networks_with_shared_layers_make_no_circle() -> None:
    """One runs a before b, the other b before a: with one node for each there would be a circle."""
    toy = Toy({})
    first = toy.op("", toy.conv("b", toy.conv("a", toy.input)))
    second = toy.conv("a", toy.conv("b", toy.input))
    graph = toy.graph(toy.conv("head", toy.add("", first, second)))
    network = layer_network(graph, footprint(graph))
    assert networkx.is_directed_acyclic_graph(network)
    assert named_edges(network) == {
        ("a", "b"),
        ("b", "(model)"),
        ("b (2)", "a (2)"),
        ("(model)", "(model) (2)"),
        ("a (2)", "(model) (2)"),
        ("(model) (2)", "head"),
    }


def test_a_layer_on_two_inputs_is_one_node_even_if_it_counts_its_calls() -> None:
    toy = Toy({})
    counter = toy.ids()
    made = []
    for place in range(2):
        x = toy.conv(f"stem{place}", toy.input)
        view = TensorView(counter, (), (), "int64")
        toy._append("aten.add_.Tensor", "norm", (view,), view)
        made.append(toy.norm("norm", x))
    graph = toy.graph(toy.conv("head", toy.add("", *made)))
    roles = (dataclasses.replace(s, role="buffer" if s.index == counter else s.role) for s in graph.storages)
    graph = dataclasses.replace(graph, storages=tuple(roles))
    assert named_edges(layer_network(graph, footprint(graph))) == {
        ("stem0", "norm"),
        ("stem1", "norm"),
        ("norm", "(model)"),
        ("(model)", "head"),
    }


def test_another_look_at_the_input_is_handed_on() -> None:
    toy = Toy({})
    graph = toy.graph(toy.conv("head", toy.view("flat", toy.input)))
    assert named_edges(layer_network(graph, footprint(graph))) == {("flat", "head")}


def edges_of(module: nn.Module, *shape: int) -> set[tuple[str, str]]:
    (full,) = memplan.analyze(module, torch.empty(shape), methods=("full",)).methods
    assert full.step is not None
    return named_edges(layer_network(full.step, full.footprint))


def test_the_residuals_of_a_transformer_are_from_where_the_values_are() -> None:
    """Attention turns what it reads and a linear layer flattens it: both look for themselves."""
    edges = edges_of(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2), 2, 6, 16)
    assert {
        ("layers.0.norm2", "layers.1"),
        ("layers.0.norm2", "layers.1.self_attn"),
        ("layers.1.dropout1", "layers.1"),
        ("layers.1.norm1", "layers.1 (3)"),
    } <= edges
    assert not edges & {("layers.1.self_attn", "layers.1"), ("layers.1.linear1", "layers.1 (3)")}


def test_layers_that_flatten_the_same_value_for_themselves_hand_nothing_to_each_other() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.query, self.key = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(x)
            return x + self.query(x) * self.key(x)

    assert edges_of(Products(), 2, 3, 8) == {
        ("norm", "query"),
        ("norm", "key"),
        ("norm", "(model)"),
        ("query", "(model)"),
        ("key", "(model)"),
    }


def test_a_view_that_a_layer_makes_anew_of_what_it_reads_is_still_the_writers() -> None:
    """Attention without a batch adds an axis, and its linear layer takes it away again."""

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            return x + self.attention(x, x, x)[0]

    assert edges_of(Alone(), 5, 8) == {("embed", "attention"), ("embed", "(model)"), ("attention", "(model)")}


def test_modules_that_only_look_stay_in_the_chain() -> None:
    chain = nn.Sequential(nn.Linear(8, 12), nn.Unflatten(1, (3, 4)), nn.Flatten(), nn.Linear(12, 4))
    assert edges_of(chain, 2, 8) == {("0", "1"), ("1", "2"), ("2", "3")}


def test_a_part_of_a_look_is_from_who_looked() -> None:
    class ClassToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.tokens, self.head = nn.Conv2d(1, 4, 2), nn.Flatten(2), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.tokens(self.embed(x))[:, :, 0])

    assert edges_of(ClassToken(), 2, 1, 4, 4) == {("embed", "tokens"), ("tokens", "head")}


def test_what_is_written_into_a_look_is_from_the_writer_then() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.flat, self.head = nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.relu(self.flat(self.stem(x))))

    assert edges_of(Fixed(), 2, 1, 4, 4) == {("stem", "flat"), ("flat", "relu"), ("relu", "head")}


PLAIN = ("plain", 'say "hi"', "back\\slash \\N", "<b>&amp;</b>", "]]>", "{a|b}", "-> 1", "é", "a\\x00")

#: Names, each with how GraphML has it and how a line of a label does.
NAMES = [
    *((name, name, name) for name in PLAIN),
    ("a\nb\tc", "a\nb\tc", "a b c"),
    ("a\r\nb", "a\\r\nb", "a\\r b"),
    ("a\u202eb\u2066", "a\u202eb\u2066", "a\\u202eb\\u2066"),
    ("\x7f\x9b", "\x7f\x9b", "\\x7f\\x9b"),
    *(
        (signs, codes, codes)
        for signs, codes in [
            ("\x00\x08", "\\x00\\x08"),
            ("\x1b[31m", "\\x1b[31m"),
            ("\x85\u2028é", "\\x85\\u2028é"),
            ("\ud800\ufffe", "\\ud800\\ufffe"),
        ]
    ),
]


def with_names(name: str) -> StepGraph:
    graph = residual(count=2)
    layers = tuple(
        dataclasses.replace(layer, path=layer.path and f"{name}.{layer.path}", type=f"{name}T")
        for layer in graph.layers
    )
    return dataclasses.replace(graph, layers=layers)


@pytest.mark.parametrize(("name", "read_back"), [(name, read_back) for name, read_back, _ in NAMES])
def test_graphml_is_read_back(name: str, read_back: str) -> None:
    graph = with_names(name)
    network = layer_network(graph, footprint(graph))
    text = to_graphml(network)
    text.encode("utf-8")
    read = networkx.parse_graphml(text, node_type=int)
    assert set(read.edges) == set(network.edges)
    assert {node: dict(attributes) for node, attributes in read.nodes(data=True)} == {
        node: {key: value.replace(name, read_back) if isinstance(value, str) else value for key, value in said.items()}
        for node, said in network.nodes(data=True)
    }


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # pydot calls pyparsing by its old names
@pytest.mark.parametrize(("name", "shown"), [(name, shown) for name, _, shown in NAMES])
def test_dot_is_read_back(name: str, shown: str) -> None:
    pydot = pytest.importorskip("pydot")
    graph = with_names(name)
    network = block_network(graph, footprint(graph))
    text = to_dot(network)
    text.encode("utf-8")
    (read,) = pydot.graph_from_dot_data(text)
    assert {(int(edge.get_source()), int(edge.get_destination())) for edge in read.get_edges()} == set(network.edges)
    labels = {int(node.get_name()): node.get_label() for node in read.get_nodes() if node.get_name().isdigit()}
    for node, attributes in network.nodes(data=True):
        lines = unquoted(labels[node])
        assert lines[:2] == [attributes["name"].replace(name, shown), attributes["type"].replace(name, shown)]


def unquoted(label: str) -> list[str]:
    r"""Return the lines of a label as Graphviz draws them: ``\n`` ends one, any other escaped sign is itself."""
    assert label[0] == label[-1] == '"'
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], label[1:-1]).split("\n")


def test_dot_says_what_a_node_is() -> None:
    graph = step()
    parameters = (dataclasses.replace(each, trains=each.name != "stem.w") for each in graph.parameters)
    graph = dataclasses.replace(graph, parameters=tuple(parameters))
    plan = Plan("made up", 1, (), schedule=(ScheduledOp("toy.op", ()), *[ScheduledOp("toy.op", (0,))] * 3))
    lines = to_dot(block_network(graph, price(graph), plan)).splitlines()
    assert lines[0] == "digraph {"
    assert lines[-1] == "}"
    # 100 bytes of input kept; beside it, as the stem's backward runs, 40 of the gradient of its result.
    assert '  0 [label="stem\\nScale\\nsaved 100 B, temp 40 B, resident 16 B", ' in lines[3]
    assert 'fillcolor="#e6e6e6", style="filled", peripheries="1"];' in lines[3]
    assert 'label="blocks.0\\nScale\\nsaved 40 B' in lines[4]
    assert '\\nrecompute", fillcolor="#cfe3f7", style="filled", peripheries="2"];' in lines[4]
    assert '  0 -> 1 [label="40 B"];' in lines


def test_the_networks_of_a_resnet18_add_up() -> None:
    from memplan.methods import method_named
    from memplan.steps import Steps
    from memplan.subject import subject_of

    steps = Steps(subject_of("resnet18", batch_size=2, input_shape=(3, 64, 64)))
    graph = steps.step(method_named("full"))
    priced = price(graph, "adam")
    stays = priced.composition
    for network in (
        block_network(graph, priced, optimizer="adam", blocks=steps.blocks),
        layer_network(graph, priced, optimizer="adam", blocks=steps.blocks),
    ):
        nodes = by_name(network)
        total = {
            quantity: sum(node[quantity] for node in nodes.values())
            for quantity in ("saved_bytes", "resident_bytes", "flops_forward", "flops_backward")
        }
        assert total == {
            "saved_bytes": priced.saved_bytes,
            "resident_bytes": stays.parameter_bytes + stays.gradient_bytes + stays.state_bytes,
            "flops_forward": priced.flops_forward,
            "flops_backward": priced.flops_backward,
        }
    # The gradients of the weight and of what came in, each as much as the forward; nobody asks for the batch's.
    for name, times in (("conv1", 1), ("layer3.0.conv2", 2), ("layer4.0.downsample.0", 2), ("fc", 2)):
        assert nodes[name]["flops_backward"] == times * nodes[name]["flops_forward"] > 0
    edges = named_edges(network)
    # A block without and one with a convolution beside the path.
    assert {("layer1.0.relu (2)", "layer1.1.conv1"), ("layer1.0.relu (2)", "layer1.1")} <= edges
    assert ("layer1.1.bn2", "layer1.1") in edges
    assert {("layer1.1.relu (2)", "layer2.0.downsample.0"), ("layer2.0.downsample.1", "layer2.0")} <= edges
    assert ("layer1.1.relu (2)", "layer2.0") not in edges


def test_a_prefix_in_parts_has_one_node_for_each_block() -> None:
    from memplan.methods import method_named
    from memplan.steps import Steps
    from memplan.subject import subject_of

    steps = Steps(subject_of("mobilenet_v3_small", batch_size=4, input_shape=(3, 64, 64)))
    plan = dataclasses.replace(
        steps.planned(method_named("mobiletl"), 2).plan, microbatch=Microbatch("features.9", 1), fused_update=True
    )
    graph = steps.run(plan)
    priced = price(graph, "sgd", "in-backward")
    network = block_network(graph, priced, plan, blocks=steps.blocks)
    nodes = by_name(network)
    assert list(nodes) == [*(f"features.{place}" for place in range(13)), "avgpool", "(model)", "classifier"]
    assert list(network.edges) == [(node, node + 1) for node in range(15)]
    in_parts = [name for name, node in nodes.items() if "prefix-microbatch" in node["treatments"]]
    assert in_parts == [f"features.{place}" for place in range(10)]
    assert sum(node["flops_forward"] for node in nodes.values()) == priced.flops_forward
