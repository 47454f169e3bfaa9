"""What a recording says about networks small enough to count by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memplan
from memplan.graph import from_json, to_json
from memplan.graph.step_graph import StepGraph
from memplan.tracing.record import trace
from tests.tracing.networks import (
    NETWORKS,
    Checkpointed,
    CustomFunction,
    LoopOverOneLinear,
    OneReluForAll,
    TiedEmbedding,
)


def _names(graph: StepGraph, phase: str) -> list[str]:
    return [op.name for op in graph.ops if op.phase == phase]


def test_a_chain_of_linears_saves_the_input_of_each() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 30), nn.Linear(30, 5))
    graph = trace(model, torch.empty(4, 10)).step
    assert graph.saved_bytes == 4 * (10 + 20 + 30) * 4
    assert graph.flops("forward") == 2 * 4 * (10 * 20 + 20 * 30 + 30 * 5)
    # The first layer's input needs no gradient, so that its backward is one product instead of two.
    assert graph.flops("backward") == 2 * 4 * (10 * 20 + 2 * 20 * 30 + 2 * 30 * 5)


def test_a_linear_with_a_frozen_weight_drops_its_input_and_a_convolution_does_not() -> None:
    linear = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 30))
    linear[1].weight.requires_grad_(False)
    assert trace(linear, torch.empty(4, 10)).step.saved_bytes == 4 * 10 * 4

    convolution = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    convolution[1].weight.requires_grad_(False)
    kept = trace(convolution, torch.empty(4, 3, 6, 6)).step.saved_bytes
    assert kept == 4 * (3 + 8) * 6 * 6 * 4


@pytest.mark.parametrize("inplace", [True, False])
def test_relu_saves_the_same_in_place_or_not_and_charges_a_shared_storage_once(inplace: bool) -> None:
    graph = trace(OneReluForAll(inplace), torch.empty(2, 8, 10, 10)).step
    image = 2 * 8 * 10 * 10 * 4
    statistics = 2 * 8 * 4
    # input, then for each of four layers the convolution's result (for the norm), the relu's and the norm's statistics
    assert graph.saved_bytes == image + 4 * (2 * image + statistics)
    by_layer: dict[str, int] = {}
    for storage, layer in graph.charged_layers.items():
        path = graph.layers[layer].path
        by_layer[path] = by_layer.get(path, 0) + graph.storages[storage].bytes
    assert by_layer["relu"] == 4 * image
    assert by_layer["norms.2"] == image + statistics
    assert sum(by_layer.values()) == graph.saved_bytes


def test_a_module_called_five_times_has_one_layer_and_five_activations() -> None:
    graph = trace(LoopOverOneLinear(), torch.empty(32, 64)).step
    assert [layer.path for layer in graph.layers] == ["", "linear"]
    assert graph.saved_bytes == (1 + 5) * 32 * 64 * 4
    assert [parameter.name for parameter in graph.parameters] == ["linear.weight", "linear.bias"]


def test_a_tied_weight_counts_once_and_has_one_gradient() -> None:
    graph = trace(TiedEmbedding(), torch.zeros(4, 12, dtype=torch.int64)).step
    assert [parameter.name for parameter in graph.parameters] == ["embedding.weight", "mix.weight", "mix.bias"]
    gradients = [storage for storage in graph.storages if storage.role == "gradient"]
    assert sorted(storage.bytes for storage in gradients) == [32 * 4, 32 * 32 * 4, 500 * 32 * 4]


def test_backward_ops_carry_the_layer_of_their_forward() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish())
    graph = trace(model, torch.empty(2, 3, 8, 8)).step
    layer_of = {op.name: graph.layers[op.layer].path for op in graph.ops if op.phase == "backward"}
    assert layer_of["aten.convolution_backward.default"] == "0"
    assert layer_of["aten.native_batch_norm_backward.default"] == "1"
    assert layer_of["aten.hardswish_backward.default"] == "2"


def test_ops_that_checkpointing_repeats_in_backward_carry_their_own_layer() -> None:
    graph = trace(Checkpointed(False), torch.empty(2, 8, 8, 8)).step
    repeated = {
        graph.layers[op.layer].path for op in graph.ops if op.phase == "backward" and "native_batch_norm.d" in op.name
    }
    assert repeated == {"parts.1.1", "parts.2.1"}


@pytest.mark.parametrize(
    "joins",
    [
        lambda y: (y.exp() + y.sin() + y.view(3, 1).view(3).cos()).sum(),
        lambda y: (y.exp().view(3, 1).sin().view(3) + y.exp()).sum(),
        lambda y: (y + y.relu() + y.sin()).sum(),
        lambda y: sum(part * part for part in y.exp().chunk(3)).sum(),
        lambda y: (y * y * y.tanh()).sum(),
        lambda y: y.sum() + y.exp().sum() + y.mean(),
        lambda y: y.exp().sum() * y.sum(),
        lambda y: (y[None, :].expand(4, 3).sin() + y).sum() + y[:2].cos().sum(),
    ],
)
def test_gradients_meet_in_place_exactly_where_the_engine_adds_in_place(joins: Any) -> None:
    class Joins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return joins(x * self.weight)

    model, x = Joins(), torch.ones(3)
    recorded = [name.split(".")[1] for name in _names(trace(model, x, loss=lambda loss: loss).step, "backward")]
    loss = model(x)
    with torch.profiler.profile() as profiler:
        loss.backward()
    real = [event.name.removeprefix("aten::") for event in profiler.events() if event.name.startswith("aten::add")]
    assert sorted(name for name in recorded if name.startswith("add")) == sorted(real)


def test_the_record_is_the_same_whatever_the_hash_seed_or_the_run() -> None:
    model, x = OneReluForAll(True), torch.empty(2, 8, 10, 10)
    assert trace(model, x).step == trace(model, x).step


def test_an_fx_graph_holds_the_step_with_its_data_flow() -> None:
    record = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.empty(2, 4))
    calls = [node for node in record.graph.nodes if node.op == "call_function"]
    assert [str(node.target) for node in calls] == [op.name for op in record.step.ops]
    relu = next(node for node in calls if str(node.target) == "aten.relu.default")
    assert str(relu.args[0].target) == "aten.addmm.default"
    given = [node.name for node in record.graph.nodes if node.op == "placeholder"]
    assert given == ["_0_weight", "_0_bias", "input_0"]


def test_a_step_survives_json_and_prints_one_op_per_line() -> None:
    graph = trace(*_network("views")).step
    assert from_json(to_json(graph)) == graph
    assert len(str(graph).splitlines()) == len(graph.ops)
    assert "linear" in next(graph.lines())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_callers_model_and_random_state_are_left_alone(name: str) -> None:
    model, inputs = _network(name)
    mode = [module.training for module in model.modules()]
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    before = {name: (id(tensor), tensor.detach().clone(), tensor.requires_grad) for name, tensor in tensors.items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    everywhere = len(torch.nn.modules.module._global_forward_hooks)
    random = torch.get_rng_state()

    trace(model, inputs)

    assert torch.equal(random, torch.get_rng_state())
    assert [module.training for module in model.modules()] == mode
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert len(torch.nn.modules.module._global_forward_hooks) == everywhere
    after = dict((*model.named_parameters(), *model.named_buffers()))
    assert after.keys() == before.keys()
    for key, tensor in after.items():
        identity, value, required = before[key]
        assert id(tensor) == identity
        assert torch.equal(tensor.detach(), value)
        assert tensor.requires_grad == required
        assert tensor.grad is None


def test_a_failing_model_is_left_alone_too_and_the_layer_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(7, 2))
    everywhere = len(torch.nn.modules.module._global_forward_hooks)
    with pytest.raises(Exception, match=r"ran up to layer '2' \(Linear\)") as caught:
        trace(model, torch.empty(2, 3, 8, 8))
    assert "\n" not in str(caught.value)
    assert len(torch.nn.modules.module._global_forward_hooks) == everywhere
    assert all(parameter.grad is None for parameter in model.parameters())


def test_control_flow_on_values_is_refused_with_the_layer() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(Exception, match=r"layer '1' \(Branches\) needs the values of a tensor"):
        trace(nn.Sequential(nn.Linear(4, 4), Branches()), torch.empty(2, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own, on import
def test_a_compiled_model_is_recorded_as_the_eager_one() -> None:
    model, x = OneReluForAll(True), torch.empty(2, 8, 10, 10)
    assert trace(torch.compile(model), x).step == trace(model, x).step


def test_a_model_on_meta_gives_the_same_record() -> None:
    with torch.device("meta"):
        on_meta = OneReluForAll(True)
        x = torch.empty(2, 8, 10, 10)
    assert trace(on_meta, x).step == trace(OneReluForAll(True), torch.empty(2, 8, 10, 10)).step


def test_tensors_kept_on_a_functions_context_are_named() -> None:
    analysis = memplan.analyze(CustomFunction(), torch.empty(32, 64))
    # exp(x) of 32 samples and 256 features, on an attribute of the context
    assert analysis["full"].unhooked_bytes == 32 * 256 * 4
    assert analysis.notes == (
        "full keeps 32.8 KB for its backward that autograd's hooks do not see, made in (model); they count as temp",
    )
    assert trace(LoopOverOneLinear(), torch.empty(32, 64)).step.unhooked == ()


def test_autocast_saves_low_precision_copies() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    full = trace(model, torch.empty(128, 64)).step
    half = trace(model, torch.empty(128, 64), amp=torch.bfloat16).step
    assert full.saved_bytes == 128 * 64 * (4 + 4)
    # The inputs in bfloat16, and the weights' casts that the products keep: the second for its input's gradient too.
    assert half.saved_bytes == 128 * 64 * (2 + 2) + 64 * 64 * 2


def test_sparse_gradients_are_named_as_unpriced() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 8, sparse=True)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.table(tokens)

    assert trace(Lookup(), torch.zeros(4, dtype=torch.int64)).step.unpriced == ("tensors of layout torch.sparse_coo",)


def _network(name: str) -> tuple[nn.Module, Any]:
    make, inputs_of = NETWORKS[name]
    torch.manual_seed(0)
    return make(), inputs_of()


def test_a_layer_without_a_shape_is_named() -> None:
    net = nn.Sequential(nn.ReLU(), nn.LazyLinear(4))
    with pytest.raises(memplan.AnalysisError, match=r"^layer '1' \(LazyLinear\) has no shape yet; run the model once"):
        memplan.analyze(net, torch.zeros(2, 4))
    verdict = memplan.check(nn.LazyLinear(4), torch.zeros(2, 4), limit="64MB")
    assert [each.sentence for each in verdict.failures] == [
        "the model (LazyLinear) has no shape yet; run the model once before"
    ]
    net(torch.zeros(2, 4))
    assert memplan.check(net, torch.zeros(2, 4), limit="64MB").holds


def test_a_forward_that_exits_is_told() -> None:
    class Exits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise SystemExit("no\nGPU")

    with pytest.raises(
        memplan.AnalysisError, match=r"^the model's own code exits \(no GPU\); remove its call of exit$"
    ):
        memplan.analyze(Exits(), torch.zeros(2, 4))
