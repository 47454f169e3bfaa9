# ruff: noqa: ARG001 - all formulas share one signature
"""Scratch of the operators that pack masks: buffers of one chunk, whatever the size of the tensor.

Source: memplan/layers/masks.py; checked against measurements.
"""

from __future__ import annotations

from math import prod

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Argument, Machine, TensorView
from memplan.memory.scratch.geometry import ceil_div, integers, is_contiguous, is_dense, tensor, tensor_bytes

Outputs = tuple[TensorView | None, ...]

#: Elements that one thread packs at once, and the fewest threads that a chunk is made for.
THREAD_ELEMENTS = 1 << 17
LEAST_THREADS = 2

INT64_BYTES = 8
INT32_BYTES = 4


def pack_mask(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """x, low, high, closed, nan_passes: a dense copy of x, and one chunk of it; two chunks to compare two bounds."""
    source = tensor(args, 0)
    if source is None:
        return 0
    elements = min(prod(source.shape), _chunk_elements(machine))
    _, low, high, _, nan_passes = args
    second = elements if low is not None and high is not None and not nan_passes else 0
    copy = 0 if is_dense(source) else tensor_bytes(source)
    return copy + (_padded(elements) + second) * item_bytes(source.dtype)


def apply_mask(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """grad, bits, ...: one chunk of bits as bytes, and as numbers of the gradient's dtype."""
    gradient = tensor(args, 0)
    if gradient is None:
        return 0
    elements = min(prod(gradient.shape), _chunk_elements(machine))
    return _padded(elements) + elements * item_bytes(gradient.dtype)


def pack_window(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """indices, size, ...: where each window begins, and one piece of the indices relative to it."""
    return _windows(args, machine, INT64_BYTES)


def unpack_window(args: tuple[Argument, ...], outputs: Outputs, machine: Machine) -> int:
    """codes, size, ...: where each window begins, and one piece of the codes as int32."""
    return _windows(args, machine, INT32_BYTES)


def _windows(args: tuple[Argument, ...], machine: Machine, buffer_item: int) -> int:
    source = tensor(args, 0)
    if source is None or not prod(source.shape):
        return 0
    out_size = source.shape[-len(integers(args[1])) :]
    positions, building, corners = prod(out_size), 0, 1
    for count in out_size:
        building = max(building, corners + count + corners * count)
        corners *= count
    channels = 1 if is_contiguous(source) else source.shape[1]
    planes = prod(source.shape) // (positions * channels)
    chunk = _chunk_elements(machine)
    whole = chunk // (positions * channels)
    piece = min(whole, planes) * positions if whole else min(positions, max(1, chunk // channels))
    return max(building * INT64_BYTES, positions * INT64_BYTES + piece * channels * buffer_item)


def _chunk_elements(machine: Machine) -> int:
    return THREAD_ELEMENTS * max(LEAST_THREADS, machine.threads)


def _padded(elements: int) -> int:
    return 8 * ceil_div(elements, 8)
