"""The data flow as networkx sees it, and the blocks judged by its dominators, which finding them does not use."""

from __future__ import annotations

import networkx
import pytest
import torch
from torch import nn

from memplan.graph import to_networkx
from memplan.sources import build, resolve
from memplan.tracing.record import trace


def test_an_edge_goes_from_the_last_writer_to_each_reader() -> None:
    class Joins(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.exp()
            return (y.sin() + y).relu_()

    graph = trace(Joins(), torch.empty(4, 5)).step
    network = to_networkx(graph, phase="forward")
    names = [network.nodes[node]["name"].split(".")[1] for node in network]
    assert names == ["exp", "sin", "add", "relu_"]
    assert sorted(network.edges) == [(0, 1), (0, 2), (1, 2), (2, 3)]
    assert network.edges[0, 1]["bytes"] == 4 * 5 * 4


@pytest.mark.parametrize(
    ("spec", "count"),
    [("mobilenet_v2", 17), ("mobilenet_v3", 15), ("resnet18", 8), ("vit_b_16", 12), ("densenet121", 4)],
)
def test_all_that_reaches_the_output_passes_through_the_end_of_each_block(spec: str, count: int) -> None:
    model = build(resolve(spec, batch_size=2), "meta")
    graph = trace(model.module, model.args).step
    assert len(graph.blocks) == count

    network = to_networkx(graph, phase="forward")
    first = next(op.index for op in graph.ops if op.name == "aten.convolution.default")
    last = max(network)
    dominators = networkx.immediate_dominators(network.subgraph(networkx.descendants(network, first) | {first}), first)
    passed, op = {last}, last
    while op != first:
        op = dominators[op]
        passed.add(op)
    for block in graph.blocks:
        assert passed & set(range(block.first_op, block.last_op + 1)), block
        # Nothing made inside a block is read after it but what its last value op made.
        leaving = {source for source, target in network.edges if block.first_op <= source <= block.last_op < target}
        assert len(leaving) == 1, (block, leaving)
