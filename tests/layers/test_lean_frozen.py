"""Layers with frozen weights against stock: the same numbers, and nothing kept but parameters and buffers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memplan.layers.lean_frozen import REPLACEMENTS
from memplan.methods.treatments import bias_only, lean_frozen
from tests.layers.frozen_cases import CASES, Case, Replaced, Treated, faked_bytes, gradients, real_bytes, ruled_bytes
from tests.threads import torch_threads

TREATMENT = lean_frozen.TREATMENT

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def frozen(module: nn.Module, *, bias: bool = True) -> nn.Module:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(bias and name.endswith("bias"))
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_convolution_is_stock(case: Case, dtype: torch.dtype) -> None:
    x, weight, bias = case.tensors(dtype)
    x.requires_grad_()
    bias.requires_grad_()
    stock = case.run(case.function, x, weight, bias)
    lean = case.run(REPLACEMENTS[case.function], x, weight, bias)
    assert torch.equal(lean, stock)
    assert lean.stride() == stock.stride()
    expected, found = gradients(stock, x, bias), gradients(lean, x, bias)
    assert found[0].stride() == expected[0].stride()
    rounding = 1e-10 if dtype is torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize(("x_grad", "bias_grad"), [(True, False), (False, True)])
def test_only_what_is_asked_for_is_computed(x_grad: bool, bias_grad: bool) -> None:
    case = CASES["strided with a rest"]
    x, weight, bias = case.tensors(torch.float64)
    x.requires_grad_(x_grad)
    bias.requires_grad_(bias_grad)
    expected = gradients(case.run(case.function, x, weight, bias), x, bias)
    found = gradients(case.run(REPLACEMENTS[case.function], x, weight, bias), x, bias)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("function", [case.function for case in (CASES["3x3"], CASES["transposed"], CASES["in full"])])
def test_a_trained_weight_or_no_gradient_at_all_is_left_to_stock(function: Any) -> None:
    case = next(case for case in CASES.values() if case.function is function)
    x, weight, bias = case.tensors(torch.float32)
    assert case.run(REPLACEMENTS[function], x, weight, bias) is NotImplemented
    x.requires_grad_()
    assert isinstance(case.run(REPLACEMENTS[function], x, weight, bias), Tensor)
    weight.requires_grad_()
    assert case.run(REPLACEMENTS[function], x, weight, bias) is NotImplemented


def test_what_stock_refuses_is_left_to_stock() -> None:
    x, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3)
    lean = REPLACEMENTS[torch.conv2d]
    assert lean(x[0, 0], weight) is NotImplemented
    assert lean(x, weight, padding="same", stride=2) is NotImplemented
    assert lean(x, weight[0]) is NotImplemented
    assert lean(x.to(torch.complex64), weight.to(torch.complex64)) is NotImplemented
    with pytest.raises(RuntimeError, match="expected input"):
        lean(x[:, :2], weight)


@pytest.mark.parametrize("name", ["3x3", "1x1", "strided with a rest", "depthwise", "grouped", "transposed, grouped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_stays_so(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    x, weight, bias = case.tensors(dtype, channels_last=True)
    x.requires_grad_()
    stock = case.run(case.function, x, weight, bias)
    lean = case.run(REPLACEMENTS[case.function], x, weight, bias)
    assert torch.equal(lean, stock)
    assert lean.stride() == stock.stride()
    (expected,), (found,) = gradients(stock, x), gradients(lean, x)
    rounding = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pointwise_in_one_thread(dtype: torch.dtype) -> None:
    case = CASES["1x1"]
    x, weight, _ = case.tensors(dtype)
    x.requires_grad_()
    with torch_threads(1):
        (expected,) = gradients(torch.conv2d(x, weight), x)
        (found,) = gradients(REPLACEMENTS[torch.conv2d](x, weight), x)
    rounding = 1e-10 if dtype is torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_position_in_channels_last(dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(5, 4, 3, 3, dtype=dtype)
    (expected,) = gradients(torch.conv2d(x, weight), x)
    (found,) = gradients(REPLACEMENTS[torch.conv2d](x, weight), x)
    torch.testing.assert_close(found, expected)
    assert found.stride() == expected.stride() == (36, 1, 12, 4)


def test_gradients_that_are_not_dense() -> None:
    x, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3)
    bias = torch.zeros(4, requires_grad=True)
    expected = torch.autograd.grad(torch.conv2d(x, weight, bias).sum(), (x, bias))
    found = torch.autograd.grad(REPLACEMENTS[torch.conv2d](x, weight, bias).sum(), (x, bias))
    torch.testing.assert_close(found, expected)
    assert found[1].tolist() == [2 * 6 * 6] * 4


def test_no_images() -> None:
    x, weight = torch.randn(0, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3)
    bias = torch.zeros(4, requires_grad=True)
    output = REPLACEMENTS[torch.conv2d](x, weight, bias)
    assert output.shape == (0, 4, 6, 6)
    of_x, of_bias = gradients(output, x, bias)
    assert of_x.shape == (0, 3, 8, 8)
    assert of_bias.tolist() == [0] * 4


def test_nan_and_infinity_pass_as_in_stock() -> None:
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    x[0, 0, 1, 1], x[0, 1, 4, 4], weight[2, 1, 0, 0] = torch.nan, torch.inf, torch.inf
    x.requires_grad_()
    stock, lean = torch.conv2d(x, weight), REPLACEMENTS[torch.conv2d](x, weight)
    torch.testing.assert_close(lean, stock, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(gradients(lean, x), gradients(stock, x), rtol=0, atol=0, equal_nan=True)


def test_a_weight_overwritten_before_the_backward_is_noticed() -> None:
    x, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3)
    output = REPLACEMENTS[torch.conv2d](x, weight)
    weight.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("function", [torch.conv2d, F.batch_norm])
def test_second_derivatives_are_refused(function: Any) -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    rest = (torch.randn(4, 3, 3, 3),) if function is torch.conv2d else (torch.zeros(3), torch.ones(3))
    (of_x,) = torch.autograd.grad((REPLACEMENTS[function](x, *rest) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        of_x.sum().backward()


MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 9, 9)),
    "conv, circular": (nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), (2, 3, 9, 9)),
    "conv, reflected": (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect", stride=2), (2, 3, 9, 9)),
    "conv, same": (nn.Conv2d(3, 8, 4, padding="same"), (2, 3, 9, 9)),
    "conv 1d, replicated": (nn.Conv1d(3, 8, 3, padding="same", padding_mode="replicate"), (2, 3, 9)),
    "conv 3d": (nn.Conv3d(3, 8, 2), (2, 3, 5, 5, 5)),
    "transposed": (nn.ConvTranspose2d(3, 8, 3, stride=2, output_padding=1), (2, 3, 9, 9)),
    "norm 1d": (nn.BatchNorm1d(3), (4, 3)),
    "norm 1d, sequences": (nn.BatchNorm1d(3), (4, 3, 7)),
    "norm": (nn.BatchNorm2d(3), (2, 3, 9, 9)),
    "norm without scale": (nn.BatchNorm2d(3, affine=False), (2, 3, 9, 9)),
    "norm 3d": (nn.BatchNorm3d(3), (2, 3, 4, 4, 4)),
    "instance norm": (nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (2, 3, 9, 9)),
    "instance norm, one": (nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (3, 9)),
}


def example(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A module in eval mode with weights frozen, statistics of its own, and an input that needs a gradient."""
    module, shape = MODULES[name]
    torch.manual_seed(3)
    module = frozen(copy.deepcopy(module).to(dtype).eval())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        for key, buffer in module.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape) + 0.5 * key.endswith("var"))
    return module, torch.randn(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_modules_are_stock(name: str, dtype: torch.dtype) -> None:
    module, x = example(name, dtype)
    bias = getattr(module, "bias", None)
    stock = module(x)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    with Replaced(REPLACEMENTS) as mode:
        lean = module(x)
    assert mode.applied == 1
    assert torch.equal(lean, stock)
    expected, found = gradients(stock, x, bias), gradients(lean, x, bias)
    rounding = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    if "norm" in name and "instance" not in name:
        assert torch.equal(found[0], expected[0])
        assert bias is None or torch.equal(found[1], expected[1])
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", MODULES)
def test_bytes_are_the_rule_s(name: str) -> None:
    module, x = example(name)
    treated = Treated(module, REPLACEMENTS)
    by_padding = x.numel() * 4 if getattr(module, "padding_mode", "") in ("reflect", "replicate") else 0
    assert real_bytes(module, x) >= by_padding + x.numel() * 4
    assert ruled_bytes(TREATMENT, module, x) == 0
    assert real_bytes(treated, x) == faked_bytes(treated, x) == by_padding


@pytest.mark.parametrize("name", ["conv", "conv, same", "transposed", "norm"])
def test_bytes_under_autocast(name: str) -> None:
    module, x = example(name)
    treated, amp = Treated(module, REPLACEMENTS), torch.bfloat16
    assert real_bytes(module, x, amp=amp) >= x.numel() * (4 if name == "norm" else 2)
    assert ruled_bytes(TREATMENT, module, x, amp=amp) == 0
    assert real_bytes(treated, x, amp=amp) == faked_bytes(treated, x, amp=amp) == 0


@pytest.mark.parametrize("name", ["conv", "conv, same", "transposed", "norm"])
def test_autocast_is_stock(name: str) -> None:
    module, x = example(name)
    with torch.autocast("cpu", torch.bfloat16):
        stock = module(x)
        with Replaced(REPLACEMENTS) as mode:
            lean = module(x)
    assert mode.applied == 1
    assert lean.dtype is stock.dtype is (torch.float32 if name == "norm" else torch.bfloat16)
    assert torch.equal(lean, stock)
    expected, found = gradients(stock, x, module.bias), gradients(lean, x, module.bias)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_a_backward_inside_autocast_keeps_the_forward_s_precision() -> None:
    module, x = example("conv")
    lean = REPLACEMENTS[torch.conv2d](x, module.weight, module.bias, 1, 1)
    expected = gradients(module(x), x, module.bias)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(lean, x, module.bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_autocast_of_the_full_spelling_is_left_to_stock() -> None:
    case = CASES["in full"]
    x, weight, _ = case.tensors(torch.float32)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert case.run(REPLACEMENTS[torch.convolution], x, weight, None) is NotImplemented


def test_norm_of_half_precision_input_by_full_precision_parameters() -> None:
    module, x = example("norm")
    x = x.detach().bfloat16().requires_grad_()
    stock = module(x)
    with Replaced(REPLACEMENTS):
        lean = module(x)
    assert torch.equal(lean, stock)
    for found, expected in zip(gradients(lean, x, module.bias), gradients(stock, x, module.bias), strict=True):
        assert found.dtype is expected.dtype
        assert torch.equal(found, expected)


def test_the_scale_of_the_input_gradient_by_hand() -> None:
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.tensor([6.0]).double(), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    mean, variance = torch.tensor([1.0]).double(), torch.tensor([3.0]).double()
    REPLACEMENTS[F.batch_norm](x, mean, variance, weight, bias, eps=1.0).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 6 / (3 + 1) ** 0.5))
    assert bias.grad.tolist() == [2 * 3 * 3]


@pytest.mark.parametrize("function", [torch.batch_norm, torch.instance_norm])
def test_norms_called_without_the_functional_layer(function: Any) -> None:
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    weight, bias, mean, variance = torch.randn(3), torch.randn(3).requires_grad_(), torch.randn(3), torch.rand(3) + 1
    stock = function(x, weight, bias, mean.clone(), variance.clone(), False, 0.1, 1e-5, True)
    lean = REPLACEMENTS[function](x, weight, bias, mean, variance, False, 0.1, 1e-5, True)
    assert torch.equal(lean, stock)
    torch.testing.assert_close(gradients(lean, x, bias), gradients(stock, x, bias))


def test_an_instance_norm_used_twice() -> None:
    module, x = example("instance norm")
    expected = gradients(module(x), x, module.bias)
    with Replaced(REPLACEMENTS):
        first, second = module(x), module(x)
    torch.testing.assert_close(gradients(first, x, module.bias), expected)
    torch.testing.assert_close(gradients(second, x, module.bias), expected)


def test_norms_in_channels_last_and_of_nothing() -> None:
    module, x = example("norm")
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    lean = Treated(module, REPLACEMENTS)(x)
    assert lean.stride() == module(x).stride() == (3 * 81, 1, 27, 3)
    assert torch.equal(*(gradients(output, x)[0] for output in (lean, module(x))))
    empty = torch.randn(0, 3, 9, 9, requires_grad=True)
    expected, found = (gradients(each(empty), empty, module.bias) for each in (module, Treated(module, REPLACEMENTS)))
    assert found[0].shape == expected[0].shape
    assert found[1].tolist() == expected[1].tolist() == [0] * 3


def test_norms_that_need_their_input_are_left_to_stock() -> None:
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    mean, variance, scale = torch.zeros(3), torch.ones(3), torch.ones(3)
    norm, instance = REPLACEMENTS[F.batch_norm], REPLACEMENTS[F.instance_norm]
    assert norm(x, mean, variance, training=True) is NotImplemented
    assert norm(x, mean, variance, scale.clone().requires_grad_()) is NotImplemented
    assert norm(x, None, None, training=False) is NotImplemented
    assert norm(x.detach(), mean, variance, scale) is NotImplemented
    assert instance(x, mean, variance) is NotImplemented
    assert isinstance(norm(x, mean, variance, scale), Tensor)


def test_the_rule_of_a_norm_in_training_is_stock_s() -> None:
    module = frozen(nn.BatchNorm2d(3))
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    expected = 4 * 2 * 3 * 9 * 9 + 2 * 4 * 3  # the input, and the mean and deviation of the batch
    assert ruled_bytes(TREATMENT, module, x) == expected
    assert real_bytes(Treated(module, REPLACEMENTS), x) == faked_bytes(Treated(module, REPLACEMENTS), x) == expected


def test_a_frozen_linear_layer_keeps_no_input_in_stock() -> None:
    module = frozen(nn.Linear(6, 4))
    assert real_bytes(module, torch.randn(5, 3, 6, requires_grad=True)) == 0


def test_nothing_is_replaced_without_gradients() -> None:
    module, x = example("conv")
    with torch.no_grad(), Replaced(REPLACEMENTS) as mode:
        assert not module(x).requires_grad
    assert mode.applied == 0


def test_bias_only_is_lean_frozen_s_twin() -> None:
    rule = bias_only.TREATMENT
    assert (rule.twin, rule.lossless) == (TREATMENT.twin, False)
    assert rule.saved is TREATMENT.saved
