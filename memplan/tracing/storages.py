"""Bytes of the storages that CPU kernels give their results, for the ops whose fake results say less.

A fake result has the right shape, but a kernel may put it on a larger storage: it reduces a loss into the storage of
the unreduced one, shrinks a result after filling it, or returns a workspace whose size only its library knows. What
autograd then keeps is that storage. Each entry names the source it restates; ``tests/tracing/test_storages.py`` holds
the table to the kernels, and holds the kernels of ops that are not in it to their fakes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

#: From an op's fake result and its arguments to the storage bytes of each result; ``None`` where the fake's are right.
StorageBytes: TypeAlias = Callable[..., tuple[int | None, ...]]

aten: Final = torch.ops.aten

_PAGE_BYTES: Final = 4096
_CACHE_LINE_BYTES: Final = 64
_GATES: Final = 4


def _unreduced(result: Tensor, value: Tensor, target: Tensor, *rest: Any) -> tuple[int]:
    """Return the bytes of the loss before its reduction: the scalar is written into the same storage.

    Source: ATen/native/BinaryOps.cpp ``mse_loss`` and ``smooth_l1_loss`` (the output is resized to a scalar after it
    was allocated), Loss.cpp ``binary_cross_entropy_cpu`` and ``soft_margin_loss``.
    """
    shape = torch.broadcast_shapes(value.shape, target.shape)  # type: ignore[no-untyped-call]
    return (max(shape.numel(), 1) * result.element_size(),)


def _columns(result: Tensor, value: Tensor, *rest: Any) -> tuple[int]:
    """Return the bytes of the larger of input and result: the result begins as one like the input.

    Source: ATen/native/Im2Col.cpp ``im2col_cpu`` and Col2Im.cpp ``col2im_cpu`` (``empty_like``, then a resize).
    """
    return (max(value.numel(), result.numel()) * result.element_size(),)


def _embedding_bag(
    result: tuple[Tensor, ...],
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[int | None, ...]:
    """Return the bytes of the four results: the bags of the indices are counted with one more, then cut, and the sizes
    of the bags take the shape of ``offsets`` before they lose the last one.

    Sums of low-precision or float32 rows need no bags of indices.

    Source: ATen/native/EmbeddingBag.cpp ``make_offset2bag_out``, ``make_bag_size`` and ``is_fast_path``.
    """
    summed = (
        mode == 0
        and weight.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and weight.stride(1) == 1
        and (per_sample_weights is None or per_sample_weights.stride(0) == 1)
        and padding_idx < 0
    )
    size = result[1].element_size()
    return None, 0 if summed else (indices.numel() + 1) * size, offsets.numel() * size, None


def _lstm_layer(
    result: tuple[Tensor, ...], value: Tensor, weight: Tensor, recurrent: Tensor, *rest: Any
) -> tuple[int | None, ...]:
    """Return the bytes of oneDNN's workspace, which is made where gradients are on, in evaluation too.

    It has one part for the gates and one for the hidden state of each moment; then hidden and cell states and the
    gradients of both, each for the first moment and all others of the layer and of its input. A part begins on a page.

    Source: oneDNN 3.12 src/cpu/rnn/rnn_utils.hpp ``set_workspace_sizes`` and ``set_conf``, rnn_utils.cpp
    ``set_offsets`` and ``get_good_ld``; ATen/native/mkldnn/RNN.cpp ``mkldnn_rnn_layer``.
    """
    if not torch.is_grad_enabled():
        return None, None, None, None
    moments, batch, width = value.shape
    hidden, size = recurrent.shape[1], value.element_size()
    widest, cells = max(width, hidden), moments * batch
    states = 2 * (moments + 1) * batch  # of the layer and of its input, with the states before the first moment
    parts = (
        cells * _padded(_GATES * hidden, size) * size,
        cells * _padded(hidden, size) * size,
        states * _padded(widest, size) * size,
        states * hidden * size,
        states * _padded(widest, 4) * 4,  # the gradients are accumulated in float32
        states * _padded(widest, 4) * 4,
        states * hidden * 4,
    )
    return None, None, None, sum(_rounded(part, _PAGE_BYTES) for part in parts)


def _padded(elements: int, size: int) -> int:
    """Return the length of a row: whole cache lines, and one more where rows would alias in the cache."""
    line = _CACHE_LINE_BYTES // size
    length = _rounded(elements, line)
    return length + line if length % 256 == 0 else length


def _rounded(value: int, step: int) -> int:
    return -(-value // step) * step


STORAGE_BYTES: Final[dict[Any, StorageBytes]] = {
    aten.mse_loss.default: _unreduced,
    aten.smooth_l1_loss.default: _unreduced,
    aten.binary_cross_entropy.default: _unreduced,
    aten.soft_margin_loss.default: _unreduced,
    aten.im2col.default: _columns,
    aten.col2im.default: _columns,
    aten._embedding_bag.default: _embedding_bag,
    aten._embedding_bag_forward_only.default: _embedding_bag,
    aten.mkldnn_rnn_layer.default: _lstm_layer,
}
