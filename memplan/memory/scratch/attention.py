# ruff: noqa: ARG001 - all formulas share one signature
"""Scratch of the flash attention kernels: one tile of scores per thread.

Source: PyTorch aten/src/ATen/native/cpu/FlashAttentionKernel.cpp, ``cpu_flash_attention`` and its backward.
"""

from __future__ import annotations

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Argument, Machine, TensorView
from memplan.memory.scratch.geometry import copy_bytes, tensor

KEY_TILE = 512
ACCUMULATOR = 4


def _query_tile(queries: int) -> int:
    """Rows of queries that one thread takes at a time."""
    if queries >= 768:
        return 256
    return 64 if queries >= 192 else 32


def _tiles(query: TensorView, key: TensorView) -> tuple[int, int]:
    queries, keys = query.shape[-2], key.shape[-2]
    return min(_query_tile(queries), queries), min(KEY_TILE, keys)


def _heads_inside(axes: tuple[int, ...]) -> tuple[int, ...]:
    """(batch, heads, positions, features) as (batch, positions, heads, features), the order the kernel works in."""
    return (*axes[:-3], axes[-2], axes[-3], axes[-1])


def _accumulator(dtype: str) -> int:
    return 8 if dtype == "float64" else ACCUMULATOR


def flash_forward(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """query, key, value, ...: scores, their row maxima and sums, and an accumulator of the result."""
    query, key = tensor(args, 0), tensor(args, 1)
    if query is None or key is None:
        return 0
    rows, columns = _tiles(query, key)
    tile = rows * columns + 2 * rows + rows * query.shape[-1]
    reduced = rows * (columns + columns % 2) * 2 if item_bytes(query.dtype) == 2 else 0
    return machine.threads * (tile * _accumulator(query.dtype) + reduced)


def flash_backward(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """grad_out, query, key, ...: scores and their gradient for every thread, row sums, a dense grad_out."""
    gradient, query, key = tensor(args, 0), tensor(args, 1), tensor(args, 2)
    if gradient is None or query is None or key is None:
        return 0
    rows, columns = _tiles(query, key)
    by_position = TensorView(
        gradient.storage, _heads_inside(gradient.shape), _heads_inside(gradient.strides), gradient.dtype
    )
    scores = machine.threads * rows * columns * 2 * _accumulator(query.dtype)
    reduced = machine.threads * rows * columns * 2 * 2 if item_bytes(query.dtype) == 2 else 0
    return copy_bytes(by_position) + scores + reduced + rows * _accumulator(query.dtype)
