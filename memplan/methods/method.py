"""A method: a named choice of what trains, and of the treatments that deliver its savings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from memplan.errors import UsageError
from memplan.graph.records import Layer, Parameter
from memplan.methods.plan import Gradients, Plan
from memplan.methods.structure import Structure

#: Who runs the step: PyTorch as it is, or what ``memplan.apply`` gives.
RUNNERS: Final = ("stock", "memplan")


@dataclass(frozen=True, slots=True)
class Scope:
    """The parts of a model that methods speak of.

    ``head`` and ``top`` are names of parameters, in the head and in the k top blocks; ``internal_norms`` are layers.
    """

    layers: tuple[Layer, ...]
    head: frozenset[str]
    top: frozenset[str]
    internal_norms: frozenset[int] = frozenset()


#: Decides for one parameter whether it trains, given the parts of its model.
Choice: TypeAlias = Callable[[Parameter, Scope], bool]

#: Completes a plan that says what trains, for a model recorded under stock PyTorch with just that training.
Treat: TypeAlias = Callable[[Plan, Structure], Plan]


@dataclass(frozen=True, slots=True)
class Method:
    """A named way to fine-tune.

    ``trains`` decides for one parameter; ``treat`` adds what memplan's runner does to the layers, ``None`` for nothing.
    ``changes`` says in words how the gradients differ from plain training, ``needs`` what a model must have.
    ``flags`` says whether stock PyTorch can run the method with ``requires_grad`` alone, ``any_recording`` whether
    ``treat`` can read any recording of the model in place of one in which just this trains, and ``recomputes`` whether
    a schedule of recomputation is to be found.
    """

    name: str
    trains: Choice
    summary: str
    source: str
    needs_k: bool = False
    treat: Treat | None = None
    gradients: Gradients = "exact"
    changes: str = "nothing"
    needs: str = "nothing"
    flags: bool = True
    any_recording: bool = False
    recomputes: bool = False


def in_head(parameter: Parameter, scope: Scope) -> bool:
    """Whether a parameter belongs to the head."""
    return parameter.name in scope.head


def is_bias(parameter: Parameter) -> bool:
    """Whether a parameter is a bias or a norm's shift, judged by its name."""
    return parameter.name.rpartition(".")[2].endswith("bias")


def runners_of(method: Method, runner: str | None = None, treatments: Sequence[str] = ()) -> tuple[str, ...]:
    """Return who runs ``method``, as asked, or by default; ``treatments`` beside its own need memplan.

    Raises:
        UsageError: stock PyTorch is asked for, and cannot run it.
    """
    if runner == "stock" and treatments:
        raise UsageError(f"stock PyTorch cannot do {treatments[0]}; leave out the runner, or the treatment")
    if runner is None and treatments:
        return ("memplan",)
    if runner == "stock" and not method.flags:
        raise UsageError(f"stock PyTorch cannot run {method.name} by requires_grad alone; leave out the runner")
    if runner is None:
        return ("stock",) if method.flags else ("memplan",)
    return (("stock",) if method.flags else ()) + ("memplan",) if runner == "both" else (runner,)
