"""The layers of a step's forward as the papers see them: convolutions, linear layers, norms, activations, gates."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final, Literal, TypeAlias

from memplan.graph.records import Op, TensorView
from memplan.graph.step_graph import StepGraph

Kind: TypeAlias = Literal["convolution", "linear", "norm", "relu", "relu6", "hardswish", "smooth", "gate"]

#: Op -> kind; an in-place op is of the kind of the one without the underscore.
KINDS: Final[dict[str, Kind]] = {
    "convolution": "convolution",
    "addmm": "linear",
    "mm": "linear",
    "native_batch_norm": "norm",
    "cudnn_batch_norm": "norm",
    "native_group_norm": "norm",
    "native_layer_norm": "norm",
    "relu": "relu",
    "leaky_relu": "relu",
    "hardtanh": "relu6",
    "hardswish": "hardswish",
    "hardsigmoid": "smooth",
    "sigmoid": "smooth",
    "tanh": "smooth",
    "silu": "smooth",
    "gelu": "smooth",
    "mish": "smooth",
    "elu": "smooth",
    "mul": "gate",
}

#: Place of the weight among the arguments; a product's is whichever is made of parameters.
_WEIGHT_PLACES: Final = {"convolution": 1, "native_batch_norm": 1, "cudnn_batch_norm": 1, "native_group_norm": 1}
_LAYER_NORM_WEIGHT: Final = 2
_GROUPS_PLACE: Final = 8
_TRAINING_PLACE: Final = 5


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a layer. Sizes count elements of the whole batch; ``channels`` is the input's second axis.

    ``weight_trains`` is about the weight, not the bias. ``differentiated`` says that something trains below, so that
    the gradient of its input is needed. ``needs_input`` says that this gradient uses the input itself, which no
    accounting counts for a norm whose weight is frozen.
    """

    op: int
    kind: Kind
    layer: int
    input_elements: int
    output_elements: int
    channels: int
    groups: int
    weight_trains: bool
    differentiated: bool
    needs_input: bool


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of a forward in order, and the names of the ops that keep something and are of no kind."""

    calls: tuple[Call, ...]
    others: tuple[str, ...]


def calls_of(graph: StepGraph) -> Calls:
    """Return the calls of the forward of a recorded step."""
    fixed = {storage.index for storage in graph.storages if storage.role in ("parameter", "buffer")}
    trained = {parameter.storage for parameter in graph.parameters if parameter.trains}
    made_of_parameters = set(fixed)
    requiring = set(trained)
    found: list[Call] = []
    others: dict[str, None] = {}
    for op in graph.ops:
        if op.phase != "forward":
            break
        given = [view.storage for view in op.inputs]
        call = _call(op, made_of_parameters, requiring)
        if call is not None:
            found.append(call)
        elif op.saves and not made_of_parameters.issuperset(given) and packet(op) != "clone":
            # A clone is of the activation that follows in place, which is counted itself.
            others[op.name] = None
        made = [view.storage for view in op.outputs if view is not None]
        if given and made_of_parameters.issuperset(given):
            made_of_parameters.update(made)
        if not requiring.isdisjoint(given):
            requiring.update(made)
    return Calls(tuple(found), tuple(others))


def packet(op: Op) -> str:
    """Return an op's name without namespace, overload, or the underscore of the in-place variant.

    >>> packet(Op(0, "forward", "aten.relu_.default", 0, (), (), (), 0))
    'relu'
    """
    return op.name.split(".")[1].removesuffix("_") if op.name.count(".") else op.name


def _call(op: Op, made_of_parameters: set[int], requiring: set[int]) -> Call | None:
    name = packet(op)
    kind = KINDS.get(name)
    if kind is None or not op.outputs or op.outputs[0] is None:
        return None
    inputs = [view for view in op.inputs if view.storage not in made_of_parameters]
    if not inputs or (kind == "gate" and len({prod(view.shape) for view in inputs}) != 2):
        return None
    weight = _weight(op, name, made_of_parameters)
    if kind == "linear" and weight is None:
        return None
    x = max(inputs, key=lambda view: prod(view.shape))
    differentiated = any(view.storage in requiring for view in inputs)
    return Call(
        op=op.index,
        kind=kind,
        layer=op.layer,
        input_elements=prod(x.shape),
        output_elements=prod(op.outputs[0].shape),
        channels=x.shape[1] if len(x.shape) > 1 else 1,
        groups=_integer(op, _GROUPS_PLACE) if kind == "convolution" else 1,
        weight_trains=weight is not None and weight.storage in requiring,
        differentiated=differentiated,
        needs_input=differentiated and (kind == "norm") and (name != "native_batch_norm" or _is_training(op)),
    )


def _weight(op: Op, name: str, made_of_parameters: set[int]) -> TensorView | None:
    if name in ("addmm", "mm"):
        factors = [value for value in op.args[-3:] if isinstance(value, TensorView)][-2:]
        return next((view for view in factors if view.storage in made_of_parameters), None)
    place = _LAYER_NORM_WEIGHT if name == "native_layer_norm" else _WEIGHT_PLACES.get(name, len(op.args))
    weight = op.args[place] if place < len(op.args) else None
    return weight if isinstance(weight, TensorView) else None


def _integer(op: Op, place: int) -> int:
    value = op.args[place] if place < len(op.args) else 1
    return value if isinstance(value, int) else 1


def _is_training(op: Op) -> bool:
    return len(op.args) > _TRAINING_PLACE and op.args[_TRAINING_PLACE] is True
