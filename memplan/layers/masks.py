"""Operators that pack what a backward pass needs into bits and bytes: one bit per element, one byte per pooling window.

Eight elements share a byte, in the order in which a dense tensor lies in memory. Within a chunk of ``c`` elements bit
``j`` of byte ``i`` belongs to element ``j * ceil(c / 8) + i``: planes, not neighbours, share a byte, so that packing is
a few vectorised additions. The chunks keep the temporaries in cache, and their size known.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false

aten: Final = torch.ops.aten

#: Elements that a CPU thread packs at once: half a megabyte of float32, so that threads meet seldom and cache is kept.
THREAD_ELEMENTS: Final = 1 << 17
#: Elements that any other device packs at once.
DEVICE_ELEMENTS: Final = 1 << 24

_LIBRARY: Final[Any] = torch.library.Library("memplan", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("pack_mask(Tensor x, float? low, float? high, bool closed, bool nan_passes) -> Tensor")
_LIBRARY.define("apply_mask(Tensor grad, Tensor bits, SymInt[] stride, float on, float? off) -> Tensor")
_WINDOW: Final = "SymInt[] size, SymInt[] kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation"
_LIBRARY.define(f"pack_window(Tensor indices, {_WINDOW}) -> Tensor")
_LIBRARY.define(f"unpack_window(Tensor codes, {_WINDOW}) -> Tensor")


def chunk_elements(device: torch.device) -> int:
    """Elements that are packed at once; the twin in ``memplan.memory.scratch.masks`` prices them."""
    return THREAD_ELEMENTS * max(2, torch.get_num_threads()) if device.type == "cpu" else DEVICE_ELEMENTS


def dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """Strides, in elements, in which ``tensor`` is packed: its own where it is dense, else those of a contiguous copy.

    A loss is often summed, so that gradients arrive expanded; memory order is that of the mask then.
    """
    stride = tensor.stride()
    if tensor.is_contiguous() or is_non_overlapping_and_dense_or_false(tensor):
        return stride
    return contiguous_stride(tensor.shape)


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major tensor of ``shape``."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return tuple(reversed(strides))


def _in_memory_order(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor as a vector on the same storage."""
    return tensor.as_strided((tensor.numel(),), (1,))


@cache
def _bit_values(device: torch.device) -> Tensor:
    return torch.bitwise_left_shift(1, torch.arange(8, device=device)).to(torch.uint8).unsqueeze(1)


@cache
def _one(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(1, dtype=dtype, device=device)


def _fill_passing(
    out: Tensor, x: Tensor, low: float | None, high: float | None, closed: bool, nan_passes: bool
) -> None:
    """Write 1 to ``out`` where ``x`` lies between the bounds, else 0.

    Comparisons write the dtype of ``x``: those that write bool are not vectorised.
    """
    if nan_passes:
        one = _one(x.dtype, x.device).expand_as(x)
        if high is None:
            aten.threshold_backward.grad_input(one, x, low, grad_input=out)
        else:
            aten.hardtanh_backward.grad_input(one, x, low, high, grad_input=out)
        return
    above, below = (torch.ge, torch.le) if closed else (torch.gt, torch.lt)
    if low is not None:
        above(x, low, out=out)
        if high is not None:
            out.mul_(below(x, high, out=torch.empty_like(x)))
    elif high is not None:
        below(x, high, out=out)


def _pack_mask(x: Tensor, low: float | None, high: float | None, closed: bool, nan_passes: bool) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        count = x.numel()
        bits = torch.empty((count + 7) // 8, dtype=torch.uint8, device=x.device)
        if not count:
            return bits
        flat = _in_memory_order(x if dense_stride(x) == x.stride() else x.contiguous())
        chunk = min(count, chunk_elements(x.device))
        buffer = torch.empty(8 * ((chunk + 7) // 8), dtype=x.dtype, device=x.device)
        size = 0
        for start in range(0, count, chunk):
            if size != min(chunk, count - start):  # the first chunk, and a shorter last one
                size = min(chunk, count - start)
                width = (size + 7) // 8
                passing = buffer.narrow(0, 0, size)
                if size % 8:
                    buffer.narrow(0, size, 8 * width - size).zero_()
                upper, lower = buffer.narrow(0, 0, 8 * width).chunk(2)
                upper_half, lower_half = upper.chunk(2)
                first, second = upper_half.chunk(2)
            _fill_passing(passing, flat.narrow(0, start, size), low, high, closed, nan_passes)
            upper.add_(lower, alpha=16)
            upper_half.add_(lower_half, alpha=4)
            bits.narrow(0, start // 8, width).copy_(first.add_(second, alpha=2))
        return bits


def _apply_mask(grad: Tensor, bits: Tensor, stride: Sequence[int], on: float, off: float | None) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        result = torch.empty_strided(grad.shape, stride, dtype=grad.dtype, device=grad.device)
        count = grad.numel()
        if not count:
            return result
        source = grad if grad.stride() == tuple(stride) else result.copy_(grad)
        flat, out = _in_memory_order(source), _in_memory_order(result)
        chunk = min(count, chunk_elements(grad.device))
        plane_buffer = torch.empty(8 * ((chunk + 7) // 8), dtype=torch.uint8, device=grad.device)
        buffer = torch.empty(chunk, dtype=grad.dtype, device=grad.device)
        bit_values = _bit_values(grad.device)
        size = 0
        for start in range(0, count, chunk):
            if size != min(chunk, count - start):  # the first chunk, and a shorter last one
                size = min(chunk, count - start)
                width = (size + 7) // 8
                planes = plane_buffer.narrow(0, 0, 8 * width).view(8, width)
                unpacked, passing = plane_buffer.narrow(0, 0, size), buffer.narrow(0, 0, size)
            torch.bitwise_and(bits.narrow(0, start // 8, width), bit_values, out=planes)
            passing.copy_(unpacked)
            given, part = flat.narrow(0, start, size), out.narrow(0, start, size)
            if off is None:
                aten.threshold_backward.grad_input(given, passing, 0, grad_input=part)
            else:
                aten.leaky_relu_backward.grad_input(given, passing, off, False, grad_input=part)
            if on != 1:
                part.mul_(on)
        return result


def _offsets(size: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """How far behind its window's first element each element of the window lies in the plane, by code."""
    offsets = [0]
    for taps, spread, step in zip(kernel, dilation, contiguous_stride(size), strict=True):
        offsets = [offset + tap * spread * step for offset in offsets for tap in range(taps)]
    return offsets


def _corners(
    out_size: Sequence[int], size: Sequence[int], stride: Sequence[int], padding: Sequence[int], device: torch.device
) -> Tensor:
    """Where in its plane of the input each window begins; without strides windows are those of adaptive pooling."""
    corners = torch.zeros((), dtype=torch.int64, device=device)
    steps = contiguous_stride(size)
    for axis, (count, extent, step) in enumerate(zip(out_size, size, steps, strict=True)):
        starts = torch.arange(count, device=device)
        if stride:
            starts.mul_(stride[axis]).sub_(padding[axis])
        else:
            starts.mul_(extent).floor_divide_(count)
        corners = corners.unsqueeze(-1) + starts.mul_(step)
    return corners.flatten()


def plane_layout(tensor: Tensor, axes: int) -> tuple[int, int, int]:
    """Factors of a dense tensor in memory order: planes before, positions within, channels after (channels-last)."""
    positions = 1
    for extent in tensor.shape[tensor.dim() - axes :]:
        positions *= extent
    if tensor.is_contiguous():
        return tensor.numel() // max(1, positions), positions, 1
    return tensor.shape[0], positions, tensor.shape[1]


def _tiles(planes: int, positions: int, channels: int, chunk: int) -> Iterator[tuple[slice, slice]]:
    """Pieces, contiguous in memory, of about ``chunk`` elements; the first is the largest."""
    whole = chunk // (positions * channels)
    step = positions if whole else max(1, chunk // channels)
    for plane in range(0, planes, max(1, whole)):
        for position in range(0, positions, step):
            yield slice(plane, plane + max(1, whole)), slice(position, position + step)


def _pack_window(
    indices: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        codes = torch.empty_like(indices, dtype=torch.uint8)
        if not indices.numel():
            return codes
        layout = plane_layout(indices, len(size))
        corners = _corners(indices.shape[-len(size) :], size, stride, padding, indices.device).view(1, -1, 1)
        offsets = _offsets(size, kernel, dilation)
        numbers = bytearray(offsets[-1] + 1)
        for code, offset in enumerate(offsets):  # where two codes share an offset, either leads back to the same index
            numbers[offset] = code
        table = torch.frombuffer(numbers, dtype=torch.uint8).to(indices.device)
        given, packed = _in_memory_order(indices).view(layout), _in_memory_order(codes).view(layout)
        buffer = None
        for plane, position in _tiles(*layout, chunk_elements(indices.device)):
            part = given[plane, position]
            buffer = torch.empty(part.numel(), dtype=torch.int64, device=part.device) if buffer is None else buffer
            behind = buffer[: part.numel()]
            torch.sub(part, corners[:, position], out=behind.view(part.shape))
            torch.index_select(table, 0, behind, out=packed[plane, position].view(-1))
        return codes


def _unpack_window(
    codes: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        indices = torch.empty_like(codes, dtype=torch.int64)
        if not codes.numel():
            return indices
        layout = plane_layout(codes, len(size))
        corners = _corners(codes.shape[-len(size) :], size, stride, padding, codes.device).view(1, -1, 1)
        table = torch.frombuffer(array("q", _offsets(size, kernel, dilation)), dtype=torch.int64).to(codes.device)
        given, unpacked = _in_memory_order(codes).view(layout), _in_memory_order(indices).view(layout)
        buffer = None
        for plane, position in _tiles(*layout, chunk_elements(codes.device)):
            part, out = given[plane, position], unpacked[plane, position]
            buffer = torch.empty(part.numel(), dtype=torch.int32, device=part.device) if buffer is None else buffer
            code = buffer[: part.numel()].copy_(part.reshape(-1))
            torch.index_select(table, 0, code, out=out.view(-1))
            out.add_(corners[:, position])
        return indices


def _pack_mask_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty((x.numel() + 7) // 8, dtype=torch.uint8, device=x.device)


def _apply_mask_fake(grad: Tensor, _: Tensor, stride: Sequence[int], *__: Any) -> Tensor:
    return torch.empty_strided(grad.shape, stride, dtype=grad.dtype, device=grad.device)


def _pack_window_fake(indices: Tensor, *_: Sequence[int]) -> Tensor:
    return torch.empty_like(indices, dtype=torch.uint8)


def _unpack_window_fake(codes: Tensor, *_: Sequence[int]) -> Tensor:
    return torch.empty_like(codes, dtype=torch.int64)


for _name, _kernel, _fake in (
    ("pack_mask", _pack_mask, _pack_mask_fake),
    ("apply_mask", _apply_mask, _apply_mask_fake),
    ("pack_window", _pack_window, _pack_window_fake),
    ("unpack_window", _unpack_window, _unpack_window_fake),
):
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"memplan::{_name}", _fake, lib=_LIBRARY)

#: Bits of a tensor: where it lies between the bounds, ``closed`` or open; None is no bound. Without ``nan_passes`` NaN
#: gives 0; with it the bounds are open and ``low`` is given.
pack_mask: Final = torch.ops.memplan.pack_mask.default
#: A gradient of the given strides: times ``on`` where the bit is 1, else times ``off * on``, or exactly 0 for None.
apply_mask: Final = torch.ops.memplan.apply_mask.default
#: One byte for each int64 index of a pooling result: its number in the window.
pack_window: Final = torch.ops.memplan.pack_window.default
#: The int64 indices that ``pack_window`` was given.
unpack_window: Final = torch.ops.memplan.unpack_window.default
