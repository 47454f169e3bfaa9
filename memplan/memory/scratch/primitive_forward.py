"""Which oneDNN kernel runs a float32 forward convolution on plain (row-major) tensors, and what it holds.

Source: oneDNN 3.12, src/cpu/cpu_convolution_list.cpp and the ``init_conf`` of the kernel that each function names.
"""

from __future__ import annotations

from memplan.memory.scratch.geometry import Convolution, ceil_div, round_up
from memplan.memory.scratch.primitive import (
    FLOAT,
    Primitive,
    booked,
    result_bytes,
    source_bytes,
    weight_bytes,
)

#: Second-level cache of one core where this was measured.
CACHE_BYTES = 512 * 1024


def forward_primitive(conv: Convolution, bias: bool) -> Primitive:
    """The kernel that is tried first and accepts this forward convolution."""
    if depthwise_accepts(conv):
        return _depthwise(conv, bias)
    if pointwise_accepts(conv):
        return _pointwise(conv, bias)
    if _direct_accepts(conv):
        return _direct(conv, bias)
    return _matrix(conv)


def depthwise_accepts(conv: Convolution) -> bool:
    """jit_uni_dw_conv_kernel_utils.cpp, forward: 2-d, one channel per group, windows that touch the input."""
    unroll = min(6 if conv.block == 16 else 4, conv.result[2])
    tail = conv.result[2] % unroll
    overrun = (conv.result[2] - tail - 1) * conv.stride[2] + conv.extents[2] - conv.source[2] - conv.padding[2]
    fits = conv.padding[2] <= unroll and overrun <= unroll
    return conv.depthwise and conv.rank < 3 and not conv.kernel_outside and fits


def unit_stride_by_copy(conv: Convolution) -> bool:
    """Whether a strided 1x1 kernel may copy its input to unit stride (jit_uni_1x1_conv_utils.hpp, ``rtus_prepare``)."""
    exact = all(out * step == size for out, step, size in zip(conv.result, conv.stride, conv.source, strict=True))
    return conv.rank < 3 and exact


def pointwise_accepts(conv: Convolution) -> bool:
    """jit_avx2_1x1_conv_kernel_f32.cpp: one group, 1x1 window, no padding."""
    plain = conv.groups == 1 and conv.taps == 1 and not any(conv.padding)
    return plain and (not conv.strided or unit_stride_by_copy(conv))


def channels_block(conv: Convolution) -> bool:
    """Whether both channel counts of a group fill blocks, or may be padded to do so."""
    return conv.groups == 1 or (conv.group_in % conv.block == 0 and conv.group_out % conv.block == 0)


def _direct_accepts(conv: Convolution) -> bool:
    """jit_avx2_conv_kernel_f32.cpp, forward ``init_conf``."""
    unroll = min(3, conv.result[2])
    wide = conv.kernel[2] > 7 and (conv.padding[1] or conv.padding[2]) and (conv.stride[1], conv.stride[2]) != (1, 1)
    flat_groups = conv.in_channels < conv.block and conv.group_out % conv.block == 0
    blocks = channels_block(conv) or flat_groups
    return blocks and not conv.kernel_outside and conv.padding[2] <= unroll and not wide


def _all_blocked(conv: Convolution, scratchpad: int) -> Primitive:
    """The primitive whose source, result and weights are all in blocks of channels."""
    return Primitive(
        "blocked",
        source_bytes(conv, "blocked"),
        "blocked",
        result_bytes(conv, "blocked"),
        "blocked",
        weight_bytes(conv, conv.block, conv.block),
        scratchpad,
    )


def _depthwise(conv: Convolution, bias: bool) -> Primitive:
    padded = round_up(conv.groups, conv.block)
    scratchpad = booked(padded * FLOAT) if bias and padded != conv.groups else 0
    return _all_blocked(conv, scratchpad)


def padded_bias(conv: Convolution, bias: bool) -> int:
    """Scratchpad for a bias whose channels do not fill the last block."""
    padded = round_up(conv.out_channels, conv.block)
    return booked(padded * FLOAT) if bias and padded != conv.out_channels else 0


def _pointwise(conv: Convolution, bias: bool) -> Primitive:
    scratchpad = padded_bias(conv, bias)
    if conv.strided:
        space = ceil_div(conv.in_channels, conv.block) * conv.block * conv.result[1] * conv.result[2]
        scratchpad += booked(conv.threads * space * FLOAT)
    return _all_blocked(conv, scratchpad)


def _direct(conv: Convolution, bias: bool) -> Primitive:
    flat = conv.in_channels < conv.block
    return Primitive(
        "plain" if flat else "blocked",
        source_bytes(conv, "plain" if flat else "blocked"),
        "blocked",
        result_bytes(conv, "blocked"),
        "blocked",
        weight_bytes(conv, 1 if flat else conv.block, conv.block),
        padded_bias(conv, bias),
    )


def im2col_floats(conv: Convolution) -> int:
    """Elements of one image's unrolled windows; 0 if the input can be used as it is (gemm_convolution_utils.cpp)."""
    same = conv.result == conv.source and conv.taps == 1 and not conv.strided
    return 0 if same else conv.group_in * conv.taps * conv.result[1] * conv.result[2]


def _matrix(conv: Convolution) -> Primitive:
    """gemm_convolution_utils.cpp: columns are cut so that a thread's part fits its cache; that is the bound taken."""
    columns = im2col_floats(conv)
    scratchpad = booked(conv.threads * min(columns * FLOAT, CACHE_BYTES))
    return Primitive(
        "plain",
        source_bytes(conv, "plain"),
        "plain",
        result_bytes(conv, "plain"),
        "plain",
        weight_bytes(conv),
        scratchpad,
    )
