"""Rules and layers are twins: on every layer of real models a treatment keeps what its rule says, to the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from memplan.graph.records import Op, TensorView
from memplan.graph.step_graph import StepGraph
from memplan.layers.frozen_int8 import quantize_
from memplan.layers.lite_residual import LiteResidual
from memplan.layers.tune import tuned_convolution
from memplan.methods import METHODS, Structure
from memplan.methods.lean import INT8_LAYERS
from memplan.methods.structure import CONVOLUTION
from memplan.methods.treatments import TREATMENTS
from memplan.methods.treatments.record import Treatment
from memplan.steps import Steps
from memplan.subject import subject_of
from tests.activation import Activation
from tests.corpus import CORPUS
from tests.layers.frozen_cases import Replaced
from tests.test_accuracy import needs

#: Together they have every kind of op that default tests must meet.
QUICK: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mobilenet_v3", {"input_shape": (3, 64, 64)}),
    ("mobilenet_v2", {"input_shape": (3, 64, 64)}),
    ("torchvision:shufflenet_v2_x0_5", {"input_shape": (3, 64, 64)}),
    ("hf:distilbert", {"input_shape": (16,)}),
)

#: Treatments of blocks, of the optimizer or of the order of work: real steps of whole models show what they keep.
WHOLE = {"recompute", "prefix-microbatch", "fused-update", "top-k", "prune"}

#: Treatments of more than one op, for which this file has tests of their own.
SEVERAL = {"tune", "lite-residual"}

RULED = [treatment for treatment in TREATMENTS.values() if treatment.saved and treatment.name not in SEVERAL]

#: How a model calls what is recorded as these ops, given the op's arguments.
CALLS: Mapping[str, Callable[..., Any]] = {
    "aten.relu": torch.relu,
    "aten.relu_": torch.relu_,
    "aten.hardtanh": F.hardtanh,
    "aten.hardtanh_": partial(F.hardtanh, inplace=True),
    "aten.leaky_relu": F.leaky_relu,
    "aten.leaky_relu_": partial(F.leaky_relu, inplace=True),
    "aten.threshold": F.threshold,
    "aten.threshold_": partial(F.threshold, inplace=True),
    "aten.hardsigmoid": F.hardsigmoid,
    "aten.hardsigmoid_": partial(F.hardsigmoid, inplace=True),
    "aten.hardswish": F.hardswish,
    "aten.hardswish_": partial(F.hardswish, inplace=True),
    "aten.silu": F.silu,
    "aten.silu_": partial(F.silu, inplace=True),
    "aten.gelu": lambda x, approximate: F.gelu(x, approximate=approximate),
    "aten.gelu_": lambda x, approximate: torch._C._nn.gelu_(x, approximate=approximate),
    "aten.clamp": torch.clamp,
    "aten.clamp_": torch.clamp_,
    "aten.clamp_min": torch.clamp_min,
    "aten.clamp_min_": torch.clamp_min_,
    "aten.clamp_max": torch.clamp_max,
    "aten.clamp_max_": torch.clamp_max_,
    # The draws are recorded, with the share that stays.
    "aten.bernoulli_": lambda noise, share, generator: F.dropout(noise, 1 - share),
    "aten.native_dropout": lambda x, share, train: torch.dropout(x, share, train),
    "aten.max_pool2d_with_indices": F.max_pool2d,
    "aten.max_pool3d_with_indices": F.max_pool3d,
    "aten.adaptive_max_pool2d": F.adaptive_max_pool2d,
    "aten.adaptive_max_pool3d": F.adaptive_max_pool3d,
    "aten.convolution": lambda *args: _convolution(*args),
    "aten.native_batch_norm": lambda *args: torch.batch_norm(*args, False),
    "aten.cudnn_batch_norm": lambda *args: torch.batch_norm(*args, True),
    "aten.addmm": lambda bias, x, weight: F.linear(x, weight.t(), bias),
    "aten.mm": lambda x, weight: F.linear(x, weight.t()),
}

#: Devices other than the CPU record these in place of others.
ELSEWHERE = {"aten.native_dropout.default", "aten.cudnn_batch_norm.default"}


@dataclass(frozen=True)
class Signature:
    """What decides the bytes of a call: the op and its arguments, tensors by shape, strides and dtype."""

    name: str
    args: tuple[Any, ...]

    def tensors(self) -> tuple[Any, ...]:
        """The arguments with fresh tensors; the mode that is on decides whether they are fake."""
        return tuple(_made(argument) for argument in self.args)


def recorded(spec: str, **options: Any) -> StepGraph:
    return Steps(subject_of(spec, batch_size=2, **options)).step(METHODS["full"])


cached = cache(lambda spec, shape: recorded(spec, **({"input_shape": shape} if shape else {})))


def step_of(spec: str, options: Mapping[str, Any]) -> StepGraph:
    needs(spec)
    return cached(spec, options.get("input_shape"))  # type: ignore[no-any-return]


def ruled_calls(graph: StepGraph, treatment: Treatment) -> Iterator[tuple[Signature, int]]:
    """Each call of the forward that the treatment has a rule for, once, with the rule's bytes."""
    met = set()
    for op in graph.ops:
        if op.phase != "forward" or op.name not in treatment.saved or not _applies(op, graph, treatment):
            continue
        signature = Signature(op.name, tuple(_described(argument) for argument in op.args))
        if signature not in met:
            met.add(signature)
            yield signature, treatment.saved[op.name](op)


def _applies(op: Op, graph: StepGraph, treatment: Treatment) -> bool:
    if treatment.name == "frozen-int8":
        parameters = {parameter.storage: parameter for parameter in graph.parameters}
        weights = [parameters[view.storage] for view in op.inputs if view.storage in parameters]
        own = {f"{graph.layers[op.layer].path}.weight", f"{graph.layers[op.layer].path}.bias"}
        return graph.layers[op.layer].type in INT8_LAYERS and bool(weights) and {w.name for w in weights} <= own
    source = op.args[0]
    assert isinstance(source, TensorView)
    if op.name == "aten.bernoulli_.float":
        # What shares its draws between elements is no dropout of torch's, and multiplies by what it keeps itself.
        following = graph.ops[op.index + 1]
        return "Dropout" in graph.layers[op.layer].type and following.name.startswith("aten.div_")
    return source.dtype in ("float64", "float32", "float16", "bfloat16")


def _described(argument: Any) -> Any:
    return (
        TensorView(0, argument.shape, argument.strides, argument.dtype)
        if isinstance(argument, TensorView)
        else argument
    )


def _made(argument: Any) -> Any:
    if not isinstance(argument, TensorView):
        return list(argument) if isinstance(argument, tuple) else argument
    tensor = torch.empty_strided(argument.shape, argument.strides, dtype=getattr(torch, argument.dtype))
    return tensor.fill_(0.5)


def kept_bytes(treatment: Treatment, signature: Signature, mode: AbstractContextManager[Any]) -> int:
    """Bytes of the storages that autograd keeps of one call under the treatment; parameters and buffers left out."""
    with mode:
        args = signature.tensors()
        if treatment.name == "frozen-int8":
            return _kept(*_stored_in_8_bits(signature, args))
        call = CALLS[signature.name.rpartition(".")[0]]
        replaced = Replaced(import_module(treatment.twin).REPLACEMENTS)
        source, *others = args
        others = [nn.Parameter(value, requires_grad=False) if isinstance(value, Tensor) else value for value in others]

        def run(x: Tensor) -> Any:
            with replaced:
                return call(x, *others)

        return _kept(run, source, others)


def _kept(run: Callable[[Tensor], Any], source: Tensor, own: list[Any]) -> int:
    activation = Activation.apply(source.requires_grad_())
    excluded = {value.untyped_storage()._cdata for value in own if isinstance(value, Tensor)}
    kept: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage()._cdata, tensor), lambda tensor: tensor
    ):
        result = run(activation)
    found = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in excluded)
    del result
    return found


def _stored_in_8_bits(signature: Signature, args: tuple[Any, ...]) -> tuple[Callable[[Tensor], Any], Tensor, list[Any]]:
    layer: Any
    if signature.name == CONVOLUTION:
        source, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
        axes = weight.dim() - 2
        kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{axes}d")
        channels = (
            (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
        )
        how = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation), "groups": groups}
        more = {"output_padding": tuple(output_padding)} if transposed else {}
        layer = kind(*channels, tuple(weight.shape[2:]), bias=bias is not None, dtype=weight.dtype, **how, **more)
    else:
        *before, source, weight = (argument for argument in args if isinstance(argument, Tensor))
        layer = nn.Linear(*weight.shape, bias=bool(before), dtype=weight.dtype)
    layer.requires_grad_(False)
    quantize_(layer)
    return layer, source, [*layer.parameters(), *layer.buffers()]


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    axes = weight.dim() - 2
    if transposed:
        function = getattr(torch, f"conv_transpose{axes}d")
        return function(x, weight, bias, stride, padding, output_padding, groups, dilation)  # type: ignore[no-any-return]
    return getattr(torch, f"conv{axes}d")(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]


def agree(treatment: Treatment, graph: StepGraph) -> int:
    """Compare every ruled call of a model; return how many there were."""
    number = 0
    for signature, ruled in ruled_calls(graph, treatment):
        number += 1
        for mode in (FakeTensorMode(), nullcontext()):
            assert kept_bytes(treatment, signature, mode) == ruled, (treatment.name, signature, mode)
    return number


@pytest.mark.parametrize("treatment", RULED, ids=lambda treatment: treatment.name)
def test_a_treatment_keeps_what_its_rule_says_in_real_layers(treatment: Treatment) -> None:
    assert sum(agree(treatment, step_of(spec, options)) for spec, options in QUICK) > 10


@pytest.mark.corpus
@pytest.mark.parametrize("spec", CORPUS)
def test_every_treatment_keeps_what_its_rule_says_in_every_layer_of_the_corpus(spec: str) -> None:
    needs(spec)
    graph = recorded(spec)
    for treatment in RULED:
        agree(treatment, graph)
    agree_when_tuned(graph)
    agree_with_branches(graph)


def test_every_rule_can_be_called_and_every_treatment_is_tried() -> None:
    assert {name.rpartition(".")[0] for treatment in RULED for name in treatment.saved} == set(CALLS)
    assert {treatment.name for treatment in RULED} | WHOLE | SEVERAL == set(TREATMENTS)


def test_a_wrong_rule_is_found() -> None:
    from dataclasses import replace

    wrong = {name: (lambda op: 1) for name in TREATMENTS["bitmask"].saved}
    with pytest.raises(AssertionError, match="bitmask"):
        agree(replace(TREATMENTS["bitmask"], saved=wrong), step_of(*QUICK[0]))


# -- tune: a convolution and the norm behind it ------------------------------------------------------------------------


def agree_when_tuned(graph: StepGraph) -> int:
    """A convolution that runs with its norm folded in keeps what the rule says: its input."""
    rule = TREATMENTS["tune"].saved[CONVOLUTION]
    by_path = {layer.path: layer.index for layer in graph.layers}
    convolutions = {by_path[pair.convolution] for pair in Structure(graph).tuned_pairs()}
    met = set()
    for op in graph.ops:
        if op.phase != "forward" or op.layer not in convolutions or op.name != CONVOLUTION:
            continue
        signature = Signature(op.name, tuple(_described(argument) for argument in op.args))
        if signature in met:
            continue
        met.add(signature)
        for mode in (FakeTensorMode(), nullcontext()):
            assert _kept_when_tuned(signature, mode) == rule(op), (signature, mode)
    return len(met)


def _kept_when_tuned(signature: Signature, mode: AbstractContextManager[Any]) -> int:
    with mode:
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = signature.tensors()
        channels = weight.shape[1] * groups if transposed else weight.shape[0]
        numbers = {name: nn.Parameter(torch.ones(channels)) for name in ("gamma", "beta")}
        statistics = {name: torch.ones(channels) for name in ("running_mean", "running_var")}
        weight = nn.Parameter(weight)
        name = f"conv{'_transpose' if transposed else ''}{weight.dim() - 2}d"
        order = (output_padding, groups, dilation) if transposed else (dilation, groups)

        def run(given: Tensor) -> Any:
            how = (stride, padding, *order)
            return tuned_convolution(getattr(torch, name), given, weight, bias, *how, **numbers, **statistics)

        # Of a part of a tensor autograd keeps the whole: what the part takes is the rule's.
        x = x.clone()
        return _kept(run, x, [weight, bias, *numbers.values(), *statistics.values()])


def test_a_tuned_convolution_keeps_its_input_in_real_layers() -> None:
    assert sum(agree_when_tuned(step_of(spec, options)) for spec, options in QUICK) > 50


# -- lite-residual: a branch beside a block ----------------------------------------------------------------------------


def agree_with_branches(graph: StepGraph) -> int:
    shapes = {}
    structure = Structure(graph)
    for block, branch in zip(_mapped(structure), structure.lite_branches(), strict=True):
        shapes[branch.shape, block] = None
    for shape, (given, size) in shapes:
        for mode in (FakeTensorMode(), nullcontext()):
            with mode:
                branch = LiteResidual(shape)
                own = [*branch.parameters(), *branch.buffers()]
                x = torch.empty(given)
                assert _kept(partial(_beside, branch, size), x, own) == shape.saved_bytes(given[0]), shape
    return len(shapes)


def _beside(branch: LiteResidual, size: tuple[int, ...], x: Tensor) -> Tensor:
    return branch(x, size)  # type: ignore[no-any-return]


def _mapped(structure: Structure) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The input's shape and the result's size of each block that has a branch."""
    graph = structure.graph
    with_branch = {branch.path for branch in structure.lite_branches()}
    for block in graph.blocks:
        if block.path in with_branch:
            entry, leaving = structure._entry_of(block), graph.ops[block.last_op].outputs[0]
            assert entry is not None
            assert leaving is not None
            yield entry.shape, leaving.shape[2:]


def test_a_branch_keeps_what_its_shape_says_beside_real_blocks() -> None:
    assert sum(agree_with_branches(step_of(spec, options)) for spec, options in QUICK) > 10
