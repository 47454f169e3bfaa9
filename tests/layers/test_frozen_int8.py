"""8-bit weights: how far from the original, that they behave as the layer they replace, and what is kept."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from memplan.layers.frozen_int8 import INT8_TYPES, REPLACEMENTS, dequantize_, quantize_
from memplan.methods.treatments.frozen_int8 import TREATMENT
from tests.layers.frozen_cases import faked_bytes, gradients, real_bytes, ruled_bytes

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 4), (3, 6)),
    "linear, sequences": (nn.Linear(6, 4), (2, 5, 6)),
    "linear, one": (nn.Linear(6, 4, bias=False), (6,)),
    "conv 1d": (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 7)),
    "conv, one image": (nn.Conv2d(4, 6, 3), (4, 8, 7)),
    "conv, depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (2, 4, 8, 7)),
    "conv, same": (nn.Conv2d(4, 6, (2, 3), padding="same"), (2, 4, 8, 7)),
    "conv, circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 8, 7)),
    "conv, reflected": (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), (2, 4, 8, 7)),
    "conv 3d": (nn.Conv3d(4, 6, 2, dilation=2), (1, 4, 5, 5, 5)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), (2, 4, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 5)),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5)),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2), (1, 4, 3, 3, 3)),
}


def example(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer with the rounded weights in full, the same in 8 bits, and an input that needs a gradient."""
    layer, shape = LAYERS[name]
    torch.manual_seed(1)
    int8 = copy.deepcopy(layer).to(dtype)
    quantize_(int8)
    full = copy.deepcopy(int8)
    dequantize_(full)
    return full, int8, torch.randn(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_layer_with_rounded_weights(name: str, dtype: torch.dtype) -> None:
    full, int8, x = example(name, dtype)
    assert type(full) is type(LAYERS[name][0])
    assert isinstance(int8, type(full))
    expected, found = full(x), int8(x)
    assert torch.equal(found, expected)
    expected, found = gradients(expected, x, full.bias), gradients(found, x, int8.bias)
    rounding = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", ["linear", "conv", "conv, depthwise", "transposed", "transposed, grouped"])
def test_no_weight_is_off_by_more_than_half_a_step(name: str) -> None:
    layer = copy.deepcopy(LAYERS[name][0])
    original = layer.weight.detach().clone()
    groups, transposed = getattr(layer, "groups", 1), getattr(layer, "transposed", False)
    quantize_(layer)
    assert layer.weight_int8.dtype is torch.int8
    assert layer.weight_scale.dtype is torch.float32
    assert torch.equal(layer.weight_int8.abs().max(), torch.tensor(127, dtype=torch.int8))
    for channel in range(layer.weight_scale.numel()):
        if transposed:
            inputs, outputs = original.shape[0] // groups, original.shape[1]
            group, within = divmod(channel, outputs)
            where: Any = (slice(group * inputs, (group + 1) * inputs), within)
        else:
            where = channel
        step = original[where].abs().max().item() / 127
        assert layer.weight_scale[channel].item() == pytest.approx(step, rel=1e-6)
        assert (layer.weight[where] - original[where]).abs().max().item() <= 0.5 * step * (1 + 1e-4)


def test_the_steps_by_hand() -> None:
    layer = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[254.0, -3.1, 1.2], [0.0, 0.0, 0.0], [-12.7, 0.04, 0.06]]))
    quantize_(layer)
    assert layer.weight_scale.tolist() == pytest.approx([254 / 127, 0, 12.7 / 127])
    assert layer.weight_int8.tolist() == [[127, -2, 1], [0, 0, 0], [-127, 0, 1]]
    assert layer.weight[1].tolist() == [0, 0, 0]
    assert layer.weight[0].tolist() == [254, -4, 2]


@pytest.mark.parametrize("name", ["linear", "transposed, grouped"])
def test_rounding_twice_changes_nothing(name: str) -> None:
    full, int8, _ = example(name, torch.float32)
    quantize_(full)
    assert torch.equal(full.weight_int8, int8.weight_int8)
    torch.testing.assert_close(full.weight_scale, int8.weight_scale, rtol=1e-6, atol=0)


def test_what_a_layer_holds() -> None:
    _, int8, _ = example("conv")
    assert [name for name, _ in int8.named_parameters()] == ["bias"]
    assert set(int8.state_dict()) == {"bias", "weight_int8", "weight_scale"}
    held = sum(buffer.numel() * buffer.element_size() for buffer in int8.buffers())
    assert held == 6 * 4 * 3 * 3 + 4 * 6
    assert not int8.weight.requires_grad
    assert "stride=(2, 2)" in repr(int8)
    assert REPLACEMENTS == {}


@pytest.mark.parametrize("name", ["linear", "conv", "transposed"])
def test_copies_pickles_and_states(name: str) -> None:
    _, int8, x = example(name)
    stored = io.BytesIO()
    torch.save(int8, stored)
    stored.seek(0)
    fresh = copy.deepcopy(LAYERS[name][0]).double()
    quantize_(fresh)
    fresh.load_state_dict(int8.state_dict())
    for other in (copy.deepcopy(int8), pickle.loads(pickle.dumps(int8)), torch.load(stored, weights_only=False), fresh):
        assert type(other) is type(int8)
        assert torch.equal(other(x), int8(x))


def test_data_types_change_the_weight_and_not_the_scale() -> None:
    _, int8, _ = example("conv", torch.float32)
    scale, weight = int8.weight_scale.clone(), int8.weight
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        int8.to(dtype)
        assert int8.weight.dtype is int8.bias.dtype is dtype
        assert torch.equal(int8.weight_scale, scale)
        assert int8.weight_scale.dtype is torch.float32
    assert torch.equal(int8.weight, weight)


def test_meta_and_fake_tensors() -> None:
    with torch.device("meta"):
        layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 2))
    for child in layer:
        quantize_(child)
    assert layer(torch.empty(2, 3, 7, 7, device="meta")).shape == (2, 4, 5, 2)
    dequantize_(layer[0])
    assert layer[0].weight.device.type == "meta"
    with FakeTensorMode():
        conv = nn.ConvTranspose2d(4, 6, 3, groups=2)
        quantize_(conv)
        x = torch.randn(2, 4, 5, 5, requires_grad=True)
        conv(x).sum().backward()
        assert x.grad.shape == (2, 4, 5, 5)


@pytest.mark.parametrize(("amp", "name"), [(None, name) for name in LAYERS] + [(torch.bfloat16, "conv")], ids=str)
def test_bytes_are_the_rule_s(amp: torch.dtype | None, name: str) -> None:
    full, int8, x = example(name, torch.float32)
    if x.ndim == 1:
        x = x.detach()[None].requires_grad_()
    by_padding = x.numel() * 4 if name == "conv, reflected" else 0
    assert ruled_bytes(TREATMENT, full, x, amp=amp) == 0
    assert real_bytes(int8, x, amp=amp) == faked_bytes(int8, x, amp=amp) == by_padding


@pytest.mark.parametrize("name", ["linear, sequences", "conv", "transposed, grouped"])
def test_autocast_is_the_layer_with_rounded_weights(name: str) -> None:
    full, int8, x = example(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = full(x), int8(x)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, expected)
    expected, found = gradients(expected, x, full.bias), gradients(found, x, int8.bias)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=4e-2)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_a_backward_inside_autocast_keeps_the_forward_s_precision(name: str) -> None:
    full, int8, x = example(name, torch.float32)
    expected, output = gradients(full(x), x, full.bias), int8(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(output, x, int8.bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_only_the_bias_trains() -> None:
    _, int8, x = example("conv")
    int8(x.detach()).sum().backward()
    assert int8.bias.grad.tolist() == [2 * 4 * 4] * 6
    with torch.no_grad():
        assert not int8(x).requires_grad


def test_an_output_size_asked_for() -> None:
    full, int8, x = example("transposed")
    assert torch.equal(int8(x, output_size=[11, 11]), full(x, output_size=[11, 11]))
    with pytest.raises(ValueError, match="output size"):
        int8(x, output_size=[20, 20])


def test_complex_input_is_refused_as_stock_refuses_it() -> None:
    _, int8, x = example("conv")
    with pytest.raises(RuntimeError, match="should be the same"):
        int8(x.to(torch.complex128))


def test_layers_that_have_no_8_bit_form() -> None:
    class Own(nn.Linear):
        pass

    for layer in (Own(2, 2), nn.Embedding(2, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))):
        with pytest.raises(TypeError, match="no 8-bit form of"):
            quantize_(layer)
    layer = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="Linear has no 8-bit weight"):
        dequantize_(layer)
    quantize_(layer)
    with pytest.raises(TypeError, match="no 8-bit form of Int8Linear"):
        quantize_(layer)
    with pytest.raises(TypeError, match="made from a layer"):
        INT8_TYPES[nn.Linear](2, 2)
