"""Importances by hand-made numbers and by gradients of masks; a model that is measured stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memplan.errors import AnalysisError, MemplanError, UsageError
from memplan.graph.channels.records import ChannelGroup
from memplan.transform.importance import IMPORTANCES, importances, lowest
from tests.applied import net, same, state
from tests.transform.channels import group, member, norm


class Two(nn.Module):
    """Two convolutions into one sum, a norm, a depthwise convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.b = nn.Conv2d(3, 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.a(x) + self.b(x)
        if mask is not None:
            y = y * mask[:, None, None]
        y = self.depthwise(self.bn(y).relu())
        z: Tensor = self.head(self.drop(y).mean((2, 3)))
        return z


#: The channels of the sum up to the depthwise convolution, as if that had no weights of its own.
MASKED = group(
    "a", member("a.weight", 0, 4), member("b.weight", 0, 4), *norm("bn", 4), member("depthwise.weight", 0, 4)
)
SUM = group("a", *MASKED.members[:6])
CLASSES = group("head", member("head.weight", 0, 5), member("head.bias", 0, 5))


def two() -> Two:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Two().double()
        model.bn.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        nn.init.uniform_(model.bn.weight, -2, 2)
        return model


def data(samples: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(samples, 3, 6, 6, generator=generator, dtype=torch.float64), torch.arange(samples) % 5


def shares(values: Tensor) -> list[float]:
    return (values / values.sum()).tolist()


# -- by weights --------------------------------------------------------------------------------------------------------


def numbers() -> tuple[nn.Module, ChannelGroup]:
    """Channels 0 to 2 of weights that are counted on fingers; what follows them does not count."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4.0], [1.0, 0.0], [0.0, -2.0]]))
        model[0].bias.fill_(100)
        model[1].weight.copy_(torch.tensor([-1.0, 2.0, 5.0]))
        model[2].weight.fill_(1000)
    return model, group("0", member("0.weight", 0, 3), member("0.bias", 0, 3), *norm("1", 3), member("2.weight", 1, 3))


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("l1", (7 / 10, 1 / 10, 2 / 10)),  # 3 + 4, 1, 2
        ("l2", (5 / 8, 1 / 8, 2 / 8)),  # root of 9 + 16, 1, 2
        ("bn-scale", (1 / 8, 2 / 8, 5 / 8)),
        ("uniform", (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_weights_count_as_said(by: str, expected: tuple[float, ...]) -> None:
    model, channels = numbers()
    found = importances(model, [channels], by)
    assert found.by == by
    assert found.shares["0"] == pytest.approx(expected)
    assert found.without_norm == ()


def test_all_weights_that_make_a_channel_count_and_biases_and_norms_do_not() -> None:
    model = two()
    found = importances(model, [MASKED], "l1").shares["a"]
    assert found == pytest.approx(
        shares(sum(part.weight.detach().abs().sum((1, 2, 3)) for part in (model.a, model.b, model.depthwise)))  # type: ignore[arg-type]
    )
    root = (model.a.weight.detach().square().sum((1, 2, 3)) + model.b.weight.detach().square().sum((1, 2, 3))).sqrt()
    assert importances(model, [SUM], "l2").shares["a"] == pytest.approx(shares(root))


def test_a_channel_has_the_elements_at_its_positions() -> None:
    """Channel c is rows 2c and 2c + 1 from row 2 on."""
    model = nn.Linear(1, 6, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([100.0, 100, 1, 2, 3, 4])[:, None])
    channels = group("it", member("weight", 0, 6, each=2, offset=2, channels=2))
    assert importances(model, [channels], "l1").shares["it"] == pytest.approx((3 / 10, 7 / 10))


def test_the_outputs_of_transposed_convolutions_and_embeddings_are_their_second_axis() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 1, bias=False), nn.Embedding(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2, 3], [1, 1, 1]])[:, :, None, None])
        model[1].weight.copy_(torch.tensor([[0.0, 0, 1], [0, 1, 0]]))
    # 2, 3 and 4 of the convolution, 0, 1 and 1 of the table
    made = group("0", member("0.weight", 1, 3), member("1.weight", 1, 3))
    assert importances(model, [made], "l1").shares["0"] == pytest.approx((2 / 11, 4 / 11, 5 / 11))
    # Its inputs make no channel: all parameters count.
    taken = group("0", member("0.weight", 0, 2))
    assert importances(model, [taken], "l1").shares["0"] == pytest.approx((6 / 9, 3 / 9))


def test_a_group_without_a_norm_is_measured_by_l1_and_named() -> None:
    model, channels = numbers()
    classes = group("2", member("2.weight", 0, 1), member("2.bias", 0, 1))
    found = importances(model, [channels, classes], "bn-scale")
    assert found.without_norm == ("2",)
    assert found.shares["2"] == (1.0,)


def test_a_group_of_zeros_has_equal_shares() -> None:
    model, channels = numbers()
    nn.init.zeros_(model[0].weight)  # type: ignore[index,arg-type]
    assert importances(model, [channels], "l1").shares["0"] == pytest.approx((1 / 3,) * 3)


def test_huge_numbers_have_finite_shares() -> None:
    assert importances(two(), [SUM], lambda *_: [1e308] * 4).shares["a"] == (0.25,) * 4


# -- by data -----------------------------------------------------------------------------------------------------------


def by_mask(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over samples of the squared derivative by a mask on the channels of the sum, by autograd alone."""
    squares = torch.zeros(4, dtype=torch.float64)
    for x, target in zip(inputs, targets, strict=True):
        mask = torch.ones(4, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x[None], mask), target[None]), mask)
        squares += slope.square()
    return squares / len(inputs)


def test_fisher_is_the_squared_derivative_by_a_mask_on_the_channels() -> None:
    model, (inputs, targets) = two(), data()
    expected = shares(by_mask(copy.deepcopy(model).eval(), inputs, targets))
    assert importances(model, [SUM], "fisher", (inputs, targets)).shares["a"] == pytest.approx(expected, rel=1e-9)
    # In whatever batches the samples come.
    batches = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    assert importances(model, [SUM], "fisher", iter(batches)).shares["a"] == pytest.approx(expected, rel=1e-9)


def test_taylor_is_weight_times_gradient_by_hand() -> None:
    """y = w1 x1 + w2 x2 per output, squared error against 0, so dL/dw = 2 x y / 2 outputs."""
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
    channels = group("it", member("weight", 0, 2))
    x, zero = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    # y = 5 and 1; |w x y| = 5 + 20 and 3 + 2
    assert importances(model, [channels], "taylor", (x, zero)).shares["it"] == pytest.approx((25 / 30, 5 / 30))
    # A second batch with x = (1, 0): y = 1 and 3; 1 + 0 and 9 + 0
    other = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    found = importances(model, [channels], "taylor", [(x, zero), (other, zero)])
    assert found.shares["it"] == pytest.approx((26 / 40, 14 / 40))
    # The two as one batch: the mean of both gradients, 2 and -1 of opposite sign in one place, |w g| = 3 + 10, 6 + 1
    both = importances(model, [channels], "taylor", (torch.cat([x, other]), torch.cat([zero, zero])))
    assert both.shares["it"] == pytest.approx((13 / 20, 7 / 20))


def test_taylor_counts_every_weight_that_makes_the_channel() -> None:
    model, (inputs, targets) = two(), data()
    alike = copy.deepcopy(model).eval()
    F.cross_entropy(alike(inputs), targets).backward()
    expected = sum((part.weight * part.weight.grad).abs().sum((1, 2, 3)) for part in (alike.a, alike.b))  # type: ignore[operator]
    assert importances(model, [SUM], "taylor", (inputs, targets)).shares["a"] == pytest.approx(
        shares(expected.detach()),  # type: ignore[union-attr]
        rel=1e-9,
    )


def test_a_loss_of_ones_own_counts() -> None:
    model, (inputs, targets) = two(), data()

    def first_class(output: Tensor, targets: Tensor) -> Tensor:
        assert targets.shape == (6,)
        return output[:, 0].sum()

    found = importances(model, [CLASSES], "taylor", (inputs, targets), loss=first_class)
    assert found.shares["head"] == (1.0, 0.0, 0.0, 0.0, 0.0)


class Words(nn.Module):
    """Takes named inputs, gives a record with ``logits`` for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, tokens: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.table(tokens)) * scale[:, None, None]}


def test_named_inputs_and_classes_of_each_token_are_taken() -> None:
    model = Words().double()
    tokens, scale = torch.arange(6).reshape(2, 3), torch.tensor([1.0, 0.0], dtype=torch.float64)
    channels = group("table", member("table.weight", 1, 4), member("head.weight", 1, 4))
    found = importances(model, [channels], "taylor", ({"tokens": tokens, "scale": scale}, tokens)).shares["table"]
    # The second sample counts nothing.
    logits = model.head(model.table(tokens[0]))
    slope = torch.autograd.grad(F.cross_entropy(logits, tokens[0]), model.table.weight)[0]
    assert found == pytest.approx(shares((slope * model.table.weight).abs().sum(0).detach()), rel=1e-9)
    per_sample = importances(
        model, [channels], "fisher", [{"inputs": {"tokens": tokens, "scale": scale}, "targets": tokens}]
    )
    assert per_sample.shares["table"] == pytest.approx(
        shares((slope * model.table.weight).sum(0).square().detach()), rel=1e-9
    )


@pytest.mark.parametrize("by", IMPORTANCES)
@pytest.mark.parametrize("grad", [True, False])
def test_the_users_model_is_not_touched(by: str, grad: bool) -> None:
    model, (inputs, targets) = two(), data()
    model.b.eval()
    model.a.weight.requires_grad_(False)
    F.cross_entropy(model(inputs), targets).backward()
    before = state(model)
    grads = [
        (parameter.grad, None if parameter.grad is None else parameter.grad.clone()) for parameter in model.parameters()
    ]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    with torch.set_grad_enabled(grad), torch.inference_mode(not grad):
        found = importances(model, [MASKED, CLASSES], by, (inputs, targets))
    assert [len(values) for values in found.shares.values()] == [4, 5]
    assert all(sum(values) == pytest.approx(1) for values in found.shares.values())
    assert same(before, model)
    for parameter, (was, value) in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is was
        assert was is None or (value is not None and torch.equal(was, value))
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)


def test_measuring_twice_gives_the_same_and_frozen_weights_count() -> None:
    model, (inputs, targets) = two().requires_grad_(False), data()
    first, second = (importances(model, [MASKED, CLASSES], "taylor", (inputs, targets)) for _ in range(2))
    assert first == second
    assert first == importances(two(), [MASKED, CLASSES], "taylor", (inputs, targets))
    assert lowest(first, MASKED, 3) == lowest(second, MASKED, 3)


# -- by the user's own measure -----------------------------------------------------------------------------------------


def bias_sizes(module: nn.Module, channels: ChannelGroup) -> Tensor:
    return module.get_submodule(channels.name).bias.detach().abs()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("by", [bias_sizes, "tests.transform.test_importance:bias_sizes"])
def test_a_measure_of_ones_own_counts(by: Any) -> None:
    model = two()
    found = importances(model, [CLASSES], by)
    assert found.by == (by if isinstance(by, str) else "bias_sizes")
    assert found.shares["head"] == pytest.approx(shares(model.head.bias.detach().abs()))


# -- what cannot be measured -------------------------------------------------------------------------------------------


def broken(value: float) -> nn.Module:
    model = two()
    model.a.weight.data[2, 0, 0, 0] = value
    return model


def measured(by: Any = "l1", calibration: Any = None, model: nn.Module | None = None, **options: Any) -> Any:
    channels = options.pop("channels", [MASKED])
    return importances(two() if model is None else model, channels, by, calibration, **options)


X, Y = data()

#: What is asked -> error and line.
REFUSED: dict[str, tuple[Callable[[], Any], type[MemplanError], str]] = {
    "an unknown measure": (lambda: measured("tailor"), UsageError, "no importance 'tailor'; did you mean 'taylor'?"),
    "nothing like a measure": (
        lambda: measured("x"),
        UsageError,
        "no importance 'x'; choose from l1, l2, bn-scale, taylor, fisher, uniform",
    ),
    "no data": (
        lambda: measured("taylor"),
        UsageError,
        "importance 'taylor' needs data; give calibration=(inputs, targets) or --calibration FILE",
    ),
    "a function that is not there": (
        lambda: measured("tests.applied:nothing"),
        UsageError,
        "no importance 'tests.applied:nothing': module 'tests.applied' has no attribute 'nothing'; "
        "name an importable function",
    ),
    "no function": (
        lambda: measured("tests.applied:PLANS"),
        UsageError,
        "importance 'tests.applied:PLANS' is a dict, not a function; name a function",
    ),
    "too few numbers": (
        lambda: measured(bias_sizes, channels=[group("head", member("a.weight", 0, 4))]),
        UsageError,
        "importance bias_sizes gives 5 numbers for the 4 channels of group 'head'; return one for each",
    ),
    "no numbers": (
        lambda: measured(lambda *_: None),
        UsageError,
        "importance <lambda> gives no numbers for group 'a': TypeError: 'NoneType' object is not iterable; "
        "return a sequence of floats",
    ),
    "numbers below 0": (
        lambda: measured(lambda *_: [1, -2, 1, 1]),
        UsageError,
        "importance <lambda> gives -2.0 for a channel of group 'a'; return numbers from 0 on",
    ),
    "no finite numbers": (
        lambda: measured(lambda *_: [1, 1, float("nan"), 1]),
        AnalysisError,
        "channel 2 of group 'a' has the importance nan by <lambda>; check the weights and the data for numbers that "
        "are not finite",
    ),
    "a weight that is not finite": (
        lambda: measured("l2", model=broken(float("inf"))),
        AnalysisError,
        "channel 2 of group 'a' has the importance inf by l2; check the weights and the data for numbers that are not "
        "finite",
    ),
    "gradients that are not finite": (
        lambda: measured("fisher", (X * float("nan"), Y)),
        AnalysisError,
        "channel 0 of group 'a' has the importance nan by fisher; check the weights and the data for numbers that are "
        "not finite",
    ),
    "another model": (
        lambda: measured(model=net()),
        AnalysisError,
        "this Net has no tensor 'a.weight'; give the groups of this model",
    ),
    "another size": (
        lambda: measured(channels=[group("a", member("a.weight", 0, 5))]),
        AnalysisError,
        "'a.weight' of this Two has the shape (4, 3, 3, 3), not 5 along axis 0; give the groups of this model",
    ),
    "no weights": (
        lambda: measured(model=two().to("meta")),
        AnalysisError,
        "'a.weight' of this Two has no data to measure; load weights, or use uniform",
    ),
    "inputs of another shape": (
        lambda: measured("taylor", (torch.zeros(2, 5, 6, 6), Y[:2])),
        AnalysisError,
        "the model fails on the calibration data: RuntimeError: ",
    ),
    "classes beyond": (
        lambda: measured("taylor", (X, Y + 3)),
        AnalysisError,
        "the model fails on the calibration data: IndexError: Target ",
    ),
    "targets of another shape": (
        lambda: measured("taylor", (X, torch.zeros(6, 4))),
        UsageError,
        "the calibration's targets have the shape (6, 4) and the outputs (6, 5); "
        "give targets of the outputs' shape, or whole numbers for classes",
    ),
    "targets of no tensor": (
        lambda: measured("taylor", (X, {"boxes": Y})),
        UsageError,
        "the default loss takes a tensor from the model and a tensor of targets, not Tensor and dict; "
        "give loss=..., a function of output and targets",
    ),
    "a loss of many numbers": (
        lambda: measured("taylor", (X, Y), loss=lambda output, targets: output),
        UsageError,
        "the calibration's loss gives no scalar tensor; reduce it, for example with .mean()",
    ),
    "a loss of nothing": (
        lambda: measured("taylor", (X, Y), loss=lambda output, targets: torch.zeros(())),
        AnalysisError,
        "the loss on the calibration data depends on no weight; give another loss",
    ),
    "inputs alone": (
        lambda: measured("taylor", X),
        UsageError,
        "calibration data is a pair (inputs, targets) or an iterable of such, not a Tensor",
    ),
    "inputs alone, in batches": (
        lambda: measured("taylor", [X, X, X]),
        UsageError,
        "batch 0 of the calibration data is a Tensor; give pairs (inputs, targets)",
    ),
    "no batch": (
        lambda: measured("taylor", []),
        UsageError,
        "the calibration data has no batch; give at least one (inputs, targets)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_told_in_one_line(case: str) -> None:
    ask, error, line = REFUSED[case]
    with pytest.raises(error) as info:
        ask()
    assert type(info.value) is error
    assert "\n" not in str(info.value)
    assert str(info.value) == line or (line.endswith(" ") and str(info.value).startswith(line))


def test_uniform_needs_no_data() -> None:
    assert importances(two().to("meta"), [MASKED], "uniform").shares["a"] == (0.25,) * 4
