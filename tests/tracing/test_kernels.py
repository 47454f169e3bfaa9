"""memplan's fake kernels against the real ones: the same results, in shape, strides and dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from memplan.sources import build, resolve
from memplan.tracing import recorder
from memplan.tracing.kernels import KERNELS
from memplan.tracing.record import trace

SHAPES = [(4, 8, 6, 5), (1, 3, 1, 1), (2, 5), (3, 7, 9)]


def cases(name: str, value: Any) -> list[tuple[Any, ...]]:
    channels = value.shape[1]
    vector = torch.ones(channels)
    if "layer_norm" in name:
        axes = [value.shape[-1:], value.shape[1:]]
        if "backward" not in name:
            return [(value, shape, torch.ones(shape), torch.ones(shape), 1e-5) for shape in axes]
        masks = [(True, True, True), (False, True, True), (True, False, False)]
        return [
            (torch.ones_like(value), value, shape, *_moments(value, shape), torch.ones(shape), torch.ones(shape), mask)
            for shape in axes
            for mask in masks
        ]
    if "convolution" in name:
        return list(_convolutions(name, value))
    if "batch_norm_backward" in name:
        masks = [(True, True, True), (False, True, True), (True, False, False), (True, False, True)]
        return [
            (torch.ones_like(value), value, weight, vector, vector, vector, vector, training, 1e-5, mask)
            for mask in masks
            for training in (True, False)
            for weight in (vector, None)
        ]
    if "batch_norm" in name:
        return [(value, vector, vector, vector, vector, training, 0.1, 1e-5) for training in (True, False)]
    if "threshold_backward" in name:
        return [(torch.ones_like(value), value, 0)]
    if "hardtanh_backward" in name:
        return [(torch.ones_like(value), value, -1.0, 1.0)]
    if "backward" in name:
        return [(torch.ones_like(value), value)]
    return [(value,)]


def _moments(value: torch.Tensor, shape: Any) -> tuple[torch.Tensor, torch.Tensor]:
    _, mean, deviation = torch.ops.aten.native_layer_norm.default(value, shape, None, None, 1e-5)
    return mean, deviation


def _convolutions(name: str, value: torch.Tensor) -> Iterator[tuple[Any, ...]]:
    axes = value.dim() - 2
    if axes == 0:
        return
    for kernel, stride, padding, dilation, groups, bias in [
        (1, 1, 0, 1, 1, True),
        (3, 2, 1, 1, 1, False),
        (3, 1, 2, 2, value.shape[1], True),
        (1, 1, 0, 1, value.shape[1], True),
    ]:
        weight = torch.ones(2 * value.shape[1], value.shape[1] // groups, *[kernel] * axes, dtype=value.dtype)
        how = ([stride] * axes, [padding] * axes, [dilation] * axes, False, [0] * axes, groups)
        offset = torch.ones(len(weight), dtype=value.dtype) if bias else None
        if "backward" not in name:
            yield value, weight, offset, *how
            continue
        gradient = torch.ones_like(torch.ops.aten.convolution.default(value, weight, offset, *how))
        # Weight and bias together: asked for one, the real kernel makes both and autograd drops the other.
        for mask in [(True, True, True), (False, True, True), (True, False, False)]:
            yield gradient, value, weight, [len(weight)], *how, mask


def described(result: Any) -> list[Any]:
    results = result if isinstance(result, (tuple, list)) else [result]
    return [one if one is None else (tuple(one.shape), one.stride(), one.dtype, one.device.type) for one in results]


@pytest.mark.parametrize("op", KERNELS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_kernel_gives_what_the_real_one_gives(op: Any, shape: tuple[int, ...]) -> None:
    def empty(shape: tuple[int, ...], strides: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device)

    for args in cases(str(op), torch.ones(shape)):
        ours, real = described(KERNELS[op](empty, *args)), described(op(*args))
        assert ours == real


@pytest.mark.parametrize("op", [op for op in KERNELS if "batch_norm" in str(op)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms_of_low_precision_and_channels_last(
    op: Any, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    def empty(shape: tuple[int, ...], strides: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device)

    value = torch.ones(4, 8, 6, 5, dtype=dtype).to(memory_format=memory_format)
    for args in cases(str(op), value):
        assert described(KERNELS[op](empty, *args)) == described(op(*args))


@pytest.mark.parametrize("op", [op for op in KERNELS if "batch_norm" not in str(op)], ids=str)
@pytest.mark.parametrize(
    "value",
    [torch.empty(4, 8, 6, 5).to(memory_format=torch.channels_last), torch.empty(4, 8, 6, 5, dtype=torch.bfloat16)],
    ids=["channels last", "bfloat16"],
)
def test_what_is_not_plain_is_left_to_pytorch(op: Any, value: torch.Tensor) -> None:
    for args in cases(str(op), value):
        assert KERNELS[op](None, *args) is None


@pytest.mark.parametrize(
    ("spec", "options"),
    [("mobilenet_v3", {}), ("vit_b_16", {}), ("torchvision:swin_t", {}), ("googlenet", {"amp": torch.bfloat16})],
)
def test_a_whole_step_is_recorded_the_same_without_them(
    spec: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(resolve(spec, batch_size=2), "meta")
    ours = trace(model.module, model.args, **options).step
    monkeypatch.setattr(recorder, "KERNELS", {op: kernel for op, kernel in KERNELS.items() if "norm" in str(op)})
    monkeypatch.setattr(recorder, "META_KERNELS", frozenset())
    assert trace(model.module, model.args, **options).step == ours
