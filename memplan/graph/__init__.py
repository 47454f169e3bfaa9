"""StepGraph: one recorded training step, free of torch."""

from memplan.graph.blocks import find_blocks
from memplan.graph.head import head_layers, layers_above, layers_in_block, parameters_used
from memplan.graph.network import to_networkx
from memplan.graph.records import Block, Layer, Machine, Op, Parameter, Phase, Role, Storage, TensorView
from memplan.graph.serial import from_json, to_json
from memplan.graph.step_graph import StepGraph

__all__ = [
    "Block",
    "Layer",
    "Machine",
    "Op",
    "Parameter",
    "Phase",
    "Role",
    "StepGraph",
    "Storage",
    "TensorView",
    "find_blocks",
    "from_json",
    "head_layers",
    "layers_above",
    "layers_in_block",
    "parameters_used",
    "to_json",
    "to_networkx",
]
