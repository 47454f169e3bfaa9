"""Recomputing gives stock's gradients, keeps what its recording says, and lets go of all of it."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from memplan.layers.recompute import Recompute, _Traits
from memplan.memory import price
from memplan.methods.cut import FLOPS_PER_BYTE, ScheduledOp, is_repeatable, schedule
from memplan.sources.packages import import_library
from memplan.tracing.record import trace
from memplan.tracing.step import tensors_in
from memplan.transform.measure import measure, saved_on_a_real_step
from tests.tracing.networks import NETWORKS, forward_of

#: The default, and one at which everything is repeated that can be.
PRICES = (FLOPS_PER_BYTE, 1e9)

#: All that autograd needs of these is an input, a parameter, an output, or handed from block to block.
LEFT_ALONE = {
    "1d and 3d convolutions",
    "dataclass output",
    "input requires grad",
    "no_grad inside",
    "transposed convolution",
}

#: Small ones: activations in place, squeeze-and-excitation, residuals, concatenation, channel shuffles, attention.
MODELS = (
    "torchvision:shufflenet_v2_x0_5",
    "timm:test_efficientnet",
    "timm:test_resnet",
    "timm:test_vit",
    "dense",
)


class Recomputed(nn.Module):
    """A model whose forward runs under a schedule."""

    def __init__(self, model: nn.Module, plan: Sequence[ScheduledOp]) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self.followed = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with Recompute(self.plan) as mode:
            output = self.model(*args, **kwargs)
        self.followed = mode.followed
        return output


def planned(model: nn.Module, inputs: Any, flops_per_byte: float = 1e9, **options: Any) -> tuple[ScheduledOp, ...]:
    return schedule(trace(model, inputs, **options).step, flops_per_byte=flops_per_byte)


def scalar(output: Any) -> Tensor:
    """Return a number on which all that is differentiable in ``output`` has its own influence."""
    terms = []
    for tensor in tensors_in(output):
        if tensor.requires_grad:
            real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            weights = torch.linspace(-1, 1, real.numel(), dtype=real.dtype).view_as(real)
            terms.append((real * weights).sum())
    return sum(terms[1:], terms[0])


def trained(model: nn.Module, args: Any, kwargs: Any, steps: int = 3) -> dict[str, Tensor]:
    """Train ``model`` for some steps; return its last gradients and its state."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        scalar(model(*args, **kwargs)).backward()
        optimizer.step()
    found = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    found.update({f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None})
    return {name.removeprefix("model."): tensor for name, tensor in found.items()}


def double(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.double() if t.dtype is torch.float32 else t, value)


def assert_equal_training(model: nn.Module, inputs: Any, prices: Sequence[float] = PRICES, steps: int = 3) -> list[int]:
    """Train side by side with stock; return how many results each price recomputes."""
    args, kwargs = forward_of(inputs)
    graph = trace(model, inputs).step
    expected = trained(copy.deepcopy(model), args, kwargs, steps)
    counts = []
    for flops_per_byte in prices:
        plan = schedule(graph, flops_per_byte=flops_per_byte)
        counts.append(sum(len(op.recomputed) for op in plan))
        ours = Recomputed(copy.deepcopy(model), plan)
        found = trained(ours, args, kwargs, steps)
        assert ours.followed
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name].to_dense(), tensor.to_dense()), (flops_per_byte, name)
    return counts


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("nothing trains", "complex")])
def test_three_steps_of_a_network_are_stocks_bit_for_bit(name: str) -> None:
    make, make_inputs = NETWORKS[name]
    torch.manual_seed(0)
    model, inputs = make(), make_inputs()
    if name != "plain tensor attribute":  # whose table stays in float32
        model, inputs = model.double(), double(inputs)
    counts = assert_equal_training(model, inputs)
    assert counts == sorted(counts)
    assert bool(counts[-1]) == (name not in LEFT_ALONE)


def test_complex_values_are_kept() -> None:
    make, make_inputs = NETWORKS["complex"]
    assert assert_equal_training(make(), make_inputs(), [1e9]) == [0]


def model_of(spec: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    torchvision, timm = import_library("torchvision.models"), import_library("timm")
    source, _, name = spec.partition(":")
    if source == "dense":
        model = torchvision.DenseNet(8, (4, 3), 8, num_classes=10)
    else:
        options = {"img_size": 32} if name == "test_vit" else {}
        model = torchvision.get_model(name) if source == "torchvision" else timm.create_model(name, **options)
    return model, (torch.randn(2, 3, 32, 32),)


@pytest.mark.parametrize("spec", MODELS)
def test_two_steps_of_a_model_are_stocks_bit_for_bit(spec: str) -> None:
    model, inputs = model_of(spec)
    assert assert_equal_training(model.double(), double(inputs), [FLOPS_PER_BYTE, 1e9], steps=2)[0] > 10


@pytest.mark.corpus
@pytest.mark.parametrize(
    "spec",
    sorted(line for line in set((Path(__file__).parents[1] / "corpus.txt").read_text().split("\n")) if ":" in line),
)
def test_a_step_of_a_model_of_the_corpus_is_stocks(spec: str) -> None:
    from memplan.subject import subject_of

    torch.manual_seed(0)
    model, args, kwargs = subject_of(spec, batch_size=2).built("cpu")
    graph = trace(model, kwargs or args).step
    expected = trained(copy.deepcopy(model), args, kwargs, steps=1)
    ours = Recomputed(model, schedule(graph))
    found = trained(ours, args, kwargs, steps=1)
    # transformers leaves a mask of ones out when it can read it, which it cannot while it is recorded.
    assert ours.followed or spec.startswith("hf:")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=0.0, msg=name)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes_and_memory_formats_are_stocks(dtype: torch.dtype, layout: torch.memory_format) -> None:
    model, inputs = model_of("timm:test_efficientnet")
    model = model.to(dtype=dtype, memory_format=layout)
    image = inputs[0].to(dtype=dtype, memory_format=layout)
    assert_equal_training(model, (image,), [1e9])


@pytest.mark.parametrize("inside", [False, True])
def test_a_backward_under_autocast_repeats_what_ran(inside: bool) -> None:
    class Mixed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                x = self[0](x)  # in float32, whatever is around the backward
            return self[2](F.silu(self[1](F.silu(x))))

    torch.manual_seed(0)
    stock, x = Mixed(*(nn.Linear(16, 16) for _ in range(3))), torch.randn(8, 16)
    ours = Recomputed(copy.deepcopy(stock), planned(stock, (x,), amp=torch.bfloat16))
    assert sum(len(op.recomputed) for op in ours.plan) >= 3
    gradients = []
    for model in (stock, ours):
        with torch.autocast("cpu", torch.bfloat16):
            loss = scalar(model(x))
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert ours.followed
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class Written(nn.Module):
    """A value is used, overwritten, and then both versions meet, the later one first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).sigmoid() * 3 - 1
        doubled = y * 2
        y.neg_()
        y[:, ::2].mul_(0.5)
        return self.last(torch.add(y, doubled).tanh() * y.exp())


def test_a_value_that_was_overwritten_is_made_again_as_it_was() -> None:
    torch.manual_seed(0)
    assert assert_equal_training(Written().double(), (torch.randn(4, 8).double(),))[-1] > 5


class Diamonds(nn.Module):
    """Each level needs the one before twice: without sharing, 2 ** 40 ops would be repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        for _ in range(20):
            x = x.sigmoid() + x
            y = x * 0.5
            x = torch.cat([y, y.relu_()], 1)[:, 2:6] - x
        return self.linear(x.tanh())


def test_what_is_needed_twice_is_repeated_once() -> None:
    torch.manual_seed(0)
    model = Diamonds().double()
    x = torch.randn(3, 4).double()
    plan = planned(model, (x,))
    with Recompute([ScheduledOp(op.name, tuple(range(1)) if is_pointwise(op.name) else ()) for op in plan]) as mode:
        output = model(x)
    assert mode.followed
    scalar(output).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    scalar(model(x)).backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(found, model.parameters(), strict=True))


def is_pointwise(name: str) -> bool:
    return name.split(".")[1] in ("sigmoid", "add", "mul", "relu_", "cat", "sub", "tanh")


def test_a_long_chain_is_broken_and_does_not_exhaust_the_stack() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            for _ in range(250):
                x = (x * 0.999).sin()
            return self.linear(x.tanh())

    assert assert_equal_training(Chain().double(), (torch.randn(3, 4).double(),), [1e9], steps=1)[0] > 100


def test_draws_are_not_repeated() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5), nn.RReLU(), nn.Linear(32, 32), nn.Dropout1d(0.3, True))
    plan = planned(model, (torch.randn(16, 32),))
    assert not [op for op in plan if "bernoulli" in op.name and op.recomputed]
    assert_equal_training(model, (torch.randn(16, 32),))


def test_running_statistics_move_once_also_through_a_shared_norm() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            for conv in self.convs:
                x = F.hardswish(self.norm(conv(x)))
            return x

    torch.manual_seed(0)
    model = Shared()
    assert assert_equal_training(model, (torch.randn(4, 3, 6, 6),))[-1] >= 4
    assert model.norm.num_batches_tracked == 0  # training was on copies


@pytest.mark.parametrize("name", ["one relu object, in place", "views", "transformer layer", "functional calls"])
def test_the_recording_says_what_is_kept_and_the_peak(name: str) -> None:
    make, make_inputs = NETWORKS[name]
    torch.manual_seed(0)
    model, inputs = make(), make_inputs()
    args, kwargs = forward_of(inputs)
    stock = trace(model, inputs).step
    ours = Recomputed(model, schedule(stock))
    predicted = price(trace(ours, inputs).step, "sgd")
    real = measure(ours, args, kwargs, optimizer="sgd", implementation="foreach")
    assert ours.followed
    assert predicted.saved_bytes == real.saved_bytes < price(stock, "sgd").saved_bytes
    assert abs(predicted.peak_bytes - real.peak_bytes[-1]) <= 0.01 * real.peak_bytes[-1]


def test_only_convolution_outputs_and_statistics_are_kept() -> None:
    model = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Hardswish()) for _ in range(3))
    )
    x = torch.randn(4, 8, 16, 16)
    plan = planned(model, (x,), FLOPS_PER_BYTE)
    # The input, three outputs of convolutions, three times mean and deviation of 8 channels; stock keeps each
    # activation and each norm's result too.
    image = 4 * 4 * 8 * 16 * 16
    assert saved_on_a_real_step(Recomputed(model, plan), (x,), {}) == 4 * image + 3 * 2 * 8 * 4
    assert saved_on_a_real_step(model, (x,), {}) == 9 * image + 3 * 2 * 8 * 4


# -- autograd's ways -------------------------------------------------------------------------------------------------


class Smooth(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(F.softplus(self.first(x)) * torch.sigmoid(x)))


def smooth() -> tuple[Smooth, Tensor, tuple[ScheduledOp, ...]]:
    torch.manual_seed(0)
    model, x = Smooth().double(), torch.randn(5, 8).double().requires_grad_()
    plan = planned(model, (x,))
    assert sum(len(op.recomputed) for op in plan) >= 3
    return model, x, plan


def gradients(model: nn.Module, inputs: Sequence[Tensor], compute: Callable[[], Tensor]) -> list[Tensor]:
    wanted = [*model.parameters(), *inputs]
    return [g for g in torch.autograd.grad(compute(), wanted, allow_unused=True) if g is not None]


def equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) > 0 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_gradient_can_be_differentiated_again() -> None:
    model, x, plan = smooth()

    def penalty(run: nn.Module) -> Tensor:
        (slope,) = torch.autograd.grad(run(x).sum(), x, create_graph=True)
        return slope.pow(2).sum()

    assert equal(
        gradients(model, [x], lambda: penalty(Recomputed(model, plan))), gradients(model, [x], lambda: penalty(model))
    )


def test_backward_can_run_twice_over_a_retained_graph() -> None:
    model, x, plan = smooth()
    loss = Recomputed(model, plan)(x).sum()
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert equal(first, torch.autograd.grad(loss, parameters))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, parameters)


def test_two_forwards_before_their_backward_are_apart() -> None:
    model, x, plan = smooth()
    other = torch.randn_like(x)
    run = Recomputed(model, plan)
    assert equal(
        gradients(model, [x], lambda: (run(x) * run(other)).sum()),
        gradients(model, [x], lambda: (model(x) * model(other)).sum()),
    )


def test_a_gradient_inside_the_forward_leaves_the_schedule_in_step() -> None:
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Smooth().double()

        def forward(self, x: Tensor) -> Tensor:
            energy = self.inner(x)
            (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
            return (energy * force.tanh().sigmoid()).sum()

    torch.manual_seed(0)
    model, x = Energy(), torch.randn(5, 8).double().requires_grad_()
    run = Recomputed(model, planned(model, (x,)))
    assert equal(gradients(model, [x], lambda: run(x)), gradients(model, [x], lambda: model(x)))
    assert run.followed


def test_hooks_set_outside_see_what_is_kept() -> None:
    model, x, plan = smooth()
    expected = gradients(model, [x], lambda: model(x).sum())
    run = Recomputed(model, plan)
    with torch.autograd.graph.save_on_cpu():
        assert equal(gradients(model, [x], lambda: run(x).sum()), expected)
    assert run.followed


def test_checkpoint_may_wrap_it() -> None:
    model, x, plan = smooth()
    run = Recomputed(model, plan)
    found = gradients(model, [x], lambda: torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False).sum())
    assert equal(found, gradients(model, [x], lambda: model(x).sum()))


def test_writing_to_what_is_kept_is_an_error() -> None:
    class Exposed(Smooth):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.first(x)
            return hidden, self.last(F.silu(hidden))

    model, x = Exposed().double(), torch.randn(5, 8).double()
    hidden, output = Recomputed(model, planned(model, (x,), FLOPS_PER_BYTE))(x)
    with torch.no_grad():
        hidden.add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*\(5, 8\) is at version 1; expected"):
        output.sum().backward()


def test_another_forward_than_the_schedules_keeps_everything() -> None:
    _, x, plan = smooth()
    other = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).double()
    run = Recomputed(other, plan[3:])
    assert equal(gradients(other, [x], lambda: run(x).sum()), gradients(other, [x], lambda: other(x).sum()))
    assert not run.followed


def test_an_exception_leaves_no_mode_and_no_hooks_behind() -> None:
    model, x, plan = smooth()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Recomputed(model, plan)(x[:, :3])
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    assert torch._C._len_torch_dispatch_stack() == 0


def test_everything_is_released_without_the_collector() -> None:
    model, x, plan = smooth()
    gc.collect()
    gc.disable()
    try:
        made: list[weakref.ref[Any]] = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                made.extend(
                    weakref.ref(t.untyped_storage()) for t in pytree.tree_leaves(result) if isinstance(t, Tensor)
                )
                return result

        with Watch():
            loss = Recomputed(model, plan)(x).sum()
            torch.autograd.grad(loss, [x])
        del loss
        assert len(made) > 10
        own = {p.untyped_storage()._cdata for p in (*model.parameters(), x)}
        assert not [s for reference in made if (s := reference()) is not None and s._cdata not in own]
        made.clear()
        with Watch():
            Recomputed(model, plan)(x)  # and where no backward follows
        assert not [s for reference in made if (s := reference()) is not None and s._cdata not in own]
    finally:
        gc.enable()


def test_sparse_and_inference_tensors_pass_through() -> None:
    class Odd(Smooth):
        def __init__(self) -> None:
            super().__init__()
            with torch.inference_mode():
                self.shift = torch.ones(8)
            self.adjacency = torch.eye(5).to_sparse()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.sparse.mm(self.adjacency, x + self.shift))

    model, x = Odd(), torch.randn(5, 8)
    run = Recomputed(model, planned(Smooth(), (x,)))
    names = [op.name for op in run.plan]
    run.plan = [ScheduledOp("aten.add.Tensor", (0,)), ScheduledOp("aten._sparse_mm.default", ()), *run.plan]
    assert names
    assert equal(gradients(model, [], lambda: run(x).sum()), gradients(model, [], lambda: model(x).sum()))


def test_no_op_that_draws_or_writes_aside_is_called_repeatable() -> None:
    checked = 0
    names = {schema.name.split("::")[1] for schema in torch._C._jit_get_all_schemas() if schema.name[:6] == "aten::"}
    # Every op there is, not only those that something has used by now.
    for packet in (getattr(torch.ops.aten, name, None) for name in sorted(names)):
        if not isinstance(packet, torch._ops.OpOverloadPacket):
            continue
        for func in (getattr(packet, overload) for overload in packet.overloads()):
            if not _Traits(func).repeatable and func._schema.arguments and not func._overloadname.endswith("out"):
                random = torch.Tag.nondeterministic_seeded in func.tags
                if random:
                    checked += 1
                    assert not is_repeatable(str(func), (0.5,) * len(func._schema.arguments)), func
    assert checked > 50
