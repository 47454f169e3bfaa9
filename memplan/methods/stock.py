"""Ways to choose what trains that stock PyTorch runs with ``requires_grad`` alone; memplan keeps less for them."""

from __future__ import annotations

from typing import Final

from memplan.graph.records import Parameter
from memplan.methods.lean import with_lean_layers, with_microbatch
from memplan.methods.method import Method, Scope, in_head, is_bias
from memplan.methods.plan import Plan
from memplan.methods.structure import Structure, is_norm


def everything(parameter: Parameter, scope: Scope) -> bool:
    """Every parameter trains."""
    return True


def _as_is(parameter: Parameter, scope: Scope) -> bool:
    return parameter.trains


def _norm_last(parameter: Parameter, scope: Scope) -> bool:
    return in_head(parameter, scope) or is_norm(scope.layers[parameter.layer])


def bias_last(parameter: Parameter, scope: Scope) -> bool:
    """Biases, norms' shifts and the head train."""
    return in_head(parameter, scope) or is_bias(parameter)


def top_k(parameter: Parameter, scope: Scope) -> bool:
    """The k top blocks, what runs after them, and the head train."""
    return in_head(parameter, scope) or parameter.name in scope.top


def _with_prefix(plan: Plan, structure: Structure) -> Plan:
    return with_microbatch(with_lean_layers(plan, structure), structure)


STOCK_METHODS: Final = (
    Method("full", everything, "everything trains", "plain fine-tuning", treat=with_lean_layers),
    Method(
        "norm-last",
        _norm_last,
        "norms and the head train",
        "TinyTL (NeurIPS 2020), FT-Norm+Last",
        treat=with_lean_layers,
    ),
    Method(
        "bias-last",
        bias_last,
        "biases and the head train",
        "TinyTL (NeurIPS 2020), bias-only on stock layers",
        treat=with_lean_layers,
    ),
    Method(
        "top-k",
        top_k,
        "the last k blocks and the head train",
        "MobileTL (AAAI 2023), vanilla",
        needs_k=True,
        treat=_with_prefix,
    ),
    Method("last", in_head, "the head trains", "TinyTL (NeurIPS 2020), FT-Last", treat=_with_prefix),
    Method(
        "as-is",
        _as_is,
        "what requires a gradient when memplan is given the model",
        "the user's own choice",
        treat=with_lean_layers,
    ),
)
