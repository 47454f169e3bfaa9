# ruff: noqa: ARG001 - all formulas share one signature
"""Scratch of matrix products: a copy of a matrix that BLAS cannot read in place.

Source: PyTorch aten/src/ATen/native/LinearAlgebra.cpp and Blas.cpp (``prepare_matrix``: one axis must have stride one
and the other at least the length of the first).
"""

from __future__ import annotations

from math import prod

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Argument, Machine, TensorView
from memplan.memory.scratch.geometry import tensors


def _matrix_copy(view: TensorView) -> int:
    (rows, columns), (down, across) = view.shape[-2:], view.strides[-2:]
    row_major = (across == 1 or columns == 1) and down >= max(1, columns)
    column_major = (down == 1 or rows == 1) and across >= max(1, rows)
    return 0 if row_major or column_major else rows * columns * item_bytes(view.dtype)


def product(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...], machine: Machine) -> int:
    """mm, addmm, mv and their like; a batched product copies one matrix of the batch at a time."""
    factors = [view for view in tensors(args) if len(view.shape) >= 2 and prod(view.shape) > 1]
    return sum(_matrix_copy(view) for view in factors[-2:])
