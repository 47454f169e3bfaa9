"""Ways to choose what trains that stock PyTorch runs with ``requires_grad`` alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from memplan.errors import UsageError, did_you_mean
from memplan.graph.records import Layer, Parameter


@dataclass(frozen=True, slots=True)
class Scope:
    """The parts of a model that methods speak of: names of the parameters in the head, and in the k top blocks."""

    layers: tuple[Layer, ...]
    head: frozenset[str]
    top: frozenset[str]


@dataclass(frozen=True, slots=True)
class Method:
    """A named choice of what trains. ``trains`` decides for one parameter, given the parts of its model."""

    name: str
    trains: Callable[[Parameter, Scope], bool]
    summary: str
    source: str
    needs_k: bool = False


def is_norm(layer: Layer) -> bool:
    """Whether a layer normalises, judged by its class name: BatchNorm2d, LayerNorm, GroupNormAct, RMSNorm ..."""
    return "norm" in layer.type.lower() and not layer.container


def _full(parameter: Parameter, scope: Scope) -> bool:
    return True


def _as_is(parameter: Parameter, scope: Scope) -> bool:
    return parameter.trains


def _last(parameter: Parameter, scope: Scope) -> bool:
    return parameter.name in scope.head


def _norm_last(parameter: Parameter, scope: Scope) -> bool:
    return _last(parameter, scope) or is_norm(scope.layers[parameter.layer])


def _bias_last(parameter: Parameter, scope: Scope) -> bool:
    return _last(parameter, scope) or parameter.name.rpartition(".")[2].endswith("bias")


def _top_k(parameter: Parameter, scope: Scope) -> bool:
    return _last(parameter, scope) or parameter.name in scope.top


METHODS: Final[dict[str, Method]] = {
    method.name: method
    for method in (
        Method("full", _full, "everything trains", "plain fine-tuning"),
        Method("norm-last", _norm_last, "norms and the head train", "TinyTL (NeurIPS 2020), FT-Norm+Last"),
        Method(
            "bias-last", _bias_last, "biases and the head train", "TinyTL (NeurIPS 2020), bias-only on stock layers"
        ),
        Method("top-k", _top_k, "the last k blocks and the head train", "MobileTL (AAAI 2023), vanilla", needs_k=True),
        Method("last", _last, "the head trains", "TinyTL (NeurIPS 2020), FT-Last"),
        Method("as-is", _as_is, "what requires a gradient when memplan is given the model", "the user's own choice"),
    )
}


def method_named(name: str) -> Method:
    """Return a method.

    Raises:
        UsageError: there is no such method.
    """
    if name not in METHODS:
        raise UsageError(f"no method {name!r}{did_you_mean(name, METHODS)}; choose from {', '.join(METHODS)}")
    return METHODS[name]
