"""Which oneDNN kernels run a float32 convolution's gradients on plain (row-major) tensors, and what they hold.

Source: oneDNN 3.12, src/cpu/cpu_convolution_list.cpp and the ``init_conf`` of the kernel that each function names.
"""

from __future__ import annotations

from memplan.memory.scratch.geometry import Convolution, ceil_div, round_up
from memplan.memory.scratch.primitive import (
    BATCH_ELEMENT,
    FLOAT,
    PAGE,
    Layout,
    Primitive,
    booked,
    reducer,
    result_bytes,
    source_bytes,
    weight_bytes,
)
from memplan.memory.scratch.primitive_forward import (
    channels_block,
    im2col_floats,
    pointwise_accepts,
    unit_stride_by_copy,
)

#: Vector registers that the direct input-gradient kernel may use for results (AVX2).
REGISTERS = 15


def _primitive(
    conv: Convolution, source: Layout, destination: Layout, weights: tuple[Layout, int, int], scratchpad: int
) -> Primitive:
    layout, in_block, out_block = weights
    return Primitive(
        source,
        source_bytes(conv, source),
        destination,
        result_bytes(conv, destination),
        layout,
        weight_bytes(conv, in_block, out_block),
        scratchpad,
    )


def input_gradient_primitive(conv: Convolution) -> Primitive:
    """The kernel that computes the gradient of the input."""
    block = conv.block
    if strided_accepts(conv):
        return strided_input_gradient(conv)
    if (conv.depthwise and conv.rank < 3 and not conv.dilated) or pointwise_accepts(conv) or _direct_accepts(conv):
        return _primitive(conv, "blocked", "blocked", ("blocked", block, block), 0)
    columns = im2col_floats(conv)
    return _primitive(conv, "plain", "plain", ("plain", 1, 1), booked(_team(conv) * columns * FLOAT))


def strided_accepts(conv: Convolution) -> bool:
    """jit_brgemm_conv_bwd_utils.cpp, ``init_jcp``: strided, not dilated, no groups of few channels."""
    return conv.strided and not conv.dilated and not (conv.groups > 1 and conv.group_out <= conv.block)


def _direct_accepts(conv: Convolution) -> bool:
    """jit_avx2_conv_kernel_f32.cpp, backward data ``init_conf``."""
    refused = (
        (conv.dilated and conv.strided)
        or (conv.in_channels < conv.block and conv.kernel[2] > 3 and conv.stride[2] > 1)
        or conv.stride[1] != conv.stride[2]
        or conv.stride[0] != 1
    )
    return channels_block(conv) and not conv.kernel_outside and not refused and _registers_suffice(conv)


def _registers_suffice(conv: Convolution) -> bool:
    """Whether some row length fits the fifteen registers although the window overlaps the row's ends."""
    step, width, extent = conv.stride[2], conv.source[2], conv.extents[2]
    blocks = ceil_div(conv.group_in, conv.block)
    front = max(0, extent - 1 - conv.padding[2]) // step * step
    best, row = 0, 0
    for count in (count for count in (1, 2, 3, 4) if blocks % count == 0):
        for length in range(step, width + step, step):
            reach = min(length, width)
            if length * count + length // step > REGISTERS or (front > reach and reach != width):
                continue
            products = ceil_div(reach, step) * count
            if products > best or (products == best and row < reach):
                best, row = products, reach
    if not best:
        return False
    tail = width % row
    back = max(0, (extent - 1 - conv.end_padding[2] - tail) // step) * step
    whole = width <= row
    return back <= row and (whole or (row % step == 0 and conv.end_padding[2] + tail >= 0))


def _overrun(extent: int, padding: int, step: int) -> int:
    return max(0, extent - 1 - padding) // step


def strided_input_gradient(conv: Convolution) -> Primitive:
    """brgconv_strided: channels-last activations and a zero-padded copy of the output gradient for every thread.

    Source: jit_brgemm_conv_bwd_utils.cpp, ``init_conf`` and ``init_scratchpad``.
    """
    block = conv.block
    padded = 1
    for out, extent, front, back, step in zip(
        conv.result, conv.extents, conv.padding, conv.end_padding, conv.stride, strict=True
    ):
        padded *= out + _overrun(extent, front, step) + _overrun(extent, back, step)
    channels = conv.groups * conv.group_out
    batch = ceil_div(round_up(conv.taps * BATCH_ELEMENT, PAGE), BATCH_ELEMENT) * BATCH_ELEMENT
    scratchpad = (
        booked(conv.threads * batch, PAGE)
        + booked(conv.threads * round_up(padded * channels, PAGE) * FLOAT, PAGE)
        + booked(conv.threads * PAGE, PAGE)
    )
    if conv.source[2] % conv.stride[2]:
        row = round_up(conv.source[2], conv.stride[2]) * conv.stride[2] * conv.in_channels
        scratchpad += booked(conv.threads * round_up(row, PAGE) * FLOAT, PAGE)
    in_block = block if conv.group_in <= block else 2 * block
    return _primitive(conv, "channels_last", "channels_last", ("blocked", in_block, 1), scratchpad)


def weight_gradient_primitive(conv: Convolution, bias: bool) -> Primitive:
    """The kernel that computes the gradients of the weight and the bias."""
    block = conv.block
    if depthwise_weights_accepts(conv):
        return _primitive(conv, "blocked", "blocked", ("blocked", block, block), _depthwise_scratchpad(conv, bias))
    if pointwise_accepts(conv):
        return _primitive(conv, "blocked", "blocked", ("blocked", block, block), _pointwise_scratchpad(conv, bias))
    if direct_weights_accepts(conv):
        flat = conv.in_channels == 3
        weights: tuple[Layout, int, int] = ("blocked", 1 if flat else block, block)
        return _primitive(conv, "plain" if flat else "blocked", "blocked", weights, _direct_scratchpad(conv, bias))
    team = _weights_team(conv)
    # The registry books the weights' size in bytes as if it counted floats, hence the second factor.
    scratchpad = booked(team * weight_bytes(conv) * FLOAT) + booked(team * im2col_floats(conv) * FLOAT)
    return _primitive(conv, "plain", "plain", ("plain", 1, 1), scratchpad)


def depthwise_weights_accepts(conv: Convolution) -> bool:
    """jit_uni_dw_conv_kernel_utils.cpp, backward weights: windows of width three at most, little padding."""
    most = [taps // 2 for taps in conv.kernel]
    end = [max(0, pad) for pad in conv.end_padding]
    least = conv.kernel[1] + (-conv.padding[1]) % conv.stride[1]
    stepped = all(pad <= 1 or pad % conv.stride[1] == 0 for pad in (conv.padding[1], end[1]))
    return (
        conv.depthwise
        and conv.rank < 3
        and not conv.dilated
        and conv.stride[2] <= conv.kernel[2] <= 3
        and all(conv.padding[axis] <= most[axis] and end[axis] <= most[axis] for axis in (1, 2))
        and conv.source[1] >= least
        and stepped
    )


def _depthwise_scratchpad(conv: Convolution, bias: bool) -> int:
    padded = round_up(conv.groups, conv.block)
    team = min(max(1, conv.threads // min(padded // conv.block, conv.threads)), conv.batch)
    if team == 1:
        return 0
    return booked(padded * conv.taps * (team - 1) * FLOAT) + (booked(padded * (team - 1) * FLOAT) if bias else 0)


def halved_blocking(blocks: int, limit: int) -> int:
    """A count of blocks divided by two or three until it is within a limit or neither divides it."""
    while blocks > limit and (blocks % 2 == 0 or blocks % 3 == 0):
        blocks //= 2 if blocks % 2 == 0 else 3
    return blocks


def bias_scratchpad(conv: Convolution, bias: bool) -> int:
    """Scratchpad of a bias gradient: its cross-thread reduction, and a copy padded to blocks."""
    if not bias:
        return 0
    blocks = conv.groups * ceil_div(conv.group_out, conv.block)
    padded = conv.groups * round_up(conv.group_out, conv.block)
    reduction = reducer(conv.threads, conv.block, blocks, conv.batch, 1 << 21, every_thread=False)
    return reduction + (booked(padded * FLOAT) if conv.group_out % conv.block else 0)


def _pointwise_scratchpad(conv: Convolution, bias: bool) -> int:
    """jit_avx2_1x1_convolution.hpp, backward weights ``init_balancers``."""
    out_blocks, in_blocks = ceil_div(conv.out_channels, conv.block), ceil_div(conv.in_channels, conv.block)
    out_part, in_part = halved_blocking(out_blocks, 32), halved_blocking(in_blocks, 9)
    job = out_part * in_part * conv.block * conv.block
    jobs = ceil_div(out_blocks, out_part) * ceil_div(in_blocks, in_part)
    positions = conv.result[0] * conv.result[1] * conv.result[2]
    scratchpad = reducer(conv.threads, job, jobs, conv.batch * positions, conv.threads * job * 8, every_thread=True)
    if conv.strided and unit_stride_by_copy(conv):
        scratchpad += booked(conv.threads * in_part * positions * conv.block * FLOAT)
    return scratchpad + bias_scratchpad(conv, bias)


def direct_weights_accepts(conv: Convolution, padded: bool = False) -> bool:
    """jit_avx2_conv_kernel_f32.cpp, backward weights ``init_conf``."""
    ends = [max(0, pad) for pad in conv.end_padding]
    within = all(
        conv.padding[axis] < conv.extents[axis] and ends[axis] < conv.extents[axis] for axis in (1, 2)
    ) and not (conv.padding[0] or ends[0])
    blocks = channels_block(conv) or (padded and not (conv.group_in == 3 and conv.groups > 1))
    return (
        blocks
        and within
        and not conv.dilated
        and conv.kernel[2] < 14
        and conv.kernel[1] <= conv.source[1]
        and conv.kernel[0] <= conv.source[0]
    )


def _direct_scratchpad(conv: Convolution, bias: bool) -> int:
    """jit_avx2_convolution.hpp, backward weights ``init_balancers``."""
    in_block = conv.group_in if conv.in_channels == 3 else conv.block
    jobs = conv.groups * ceil_div(conv.group_in, in_block) * ceil_div(conv.group_out, conv.block)
    job = conv.taps * in_block * conv.block
    reduction = conv.batch * conv.result[0]
    return reducer(conv.threads, job, jobs, reduction, 1 << 21, every_thread=False) + bias_scratchpad(conv, bias)


def _team(conv: Convolution) -> int:
    """Threads that each hold columns in the matrix kernel's input gradient (gemm_convolution_utils.cpp)."""
    several = conv.batch != 1 or conv.groups > 2
    positions = conv.result[1] * conv.result[2]
    outer = (positions // conv.threads < 512 or conv.taps < 64) and several
    return conv.threads if outer else 1


def _weights_team(conv: Convolution) -> int:
    """Threads that each hold columns in the matrix kernel's weight gradient (gemm_convolution_utils.cpp)."""
    outer = conv.result[1] * conv.result[2] // conv.threads < 256 and (conv.batch != 1 or conv.groups > 2)
    return conv.threads if outer else 1
