"""What a treatment is: the rule of what a layer keeps under it. Its twin, the layer that does it, is named by path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from memplan.graph.records import Op

#: From an op as stock PyTorch records it to the bytes that autograd keeps from it under the treatment.
SavedRule = Callable[[Op], int]


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is done to one layer or block.

    ``saved`` gives, for each op of stock PyTorch that is treated, the bytes kept in its place, parameters and buffers
    left out; a treatment of whole blocks, of the optimizer or of resident bytes has none. ``twin`` is the module that
    runs it, whose ``REPLACEMENTS`` maps functions of torch to functions of the same signature; these answer
    ``NotImplemented`` where the treatment does not apply.
    """

    name: str
    lossless: bool
    summary: str
    gradients: str
    formula: str
    source: str
    twin: str = ""
    saved: Mapping[str, SavedRule] = field(default_factory=dict)
