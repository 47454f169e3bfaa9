"""StepGraph: one recorded training step, free of torch."""

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
    "from_json",
    "to_json",
]
