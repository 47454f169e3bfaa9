"""What oneDNN holds for a float32 convolution on channels-last tensors: activations stay, weights are reordered.

Source: oneDNN 3.12, src/cpu/x64/jit_brgemm_conv_utils.cpp, jit_brgemm_conv_bwd_utils.cpp, jit_avx2_1x1_convolution.hpp,
jit_avx2_convolution.hpp, jit_uni_dw_conv_kernel_utils.cpp. The block of the weights is the outcome of a cost model that
is not repeated here: the widest padding is taken, which over-estimates by less than four registers of channels.
"""

from __future__ import annotations

from memplan.memory.scratch.geometry import Convolution, ceil_div, round_up
from memplan.memory.scratch.primitive import (
    ALIGNMENT,
    BATCH_ELEMENT,
    FLOAT,
    PAGE,
    Primitive,
    booked,
    reducer,
    result_bytes,
    source_bytes,
    weight_bytes,
)
from memplan.memory.scratch.primitive_backward import (
    bias_scratchpad,
    depthwise_weights_accepts,
    direct_weights_accepts,
    halved_blocking,
    strided_accepts,
    strided_input_gradient,
)
from memplan.memory.scratch.primitive_forward import im2col_floats, pointwise_accepts, unit_stride_by_copy


def _primitive(conv: Convolution, weights: int, scratchpad: int) -> Primitive:
    source = source_bytes(conv, "channels_last")
    result = result_bytes(conv, "channels_last")
    return Primitive("channels_last", source, "channels_last", result, "blocked", weights, scratchpad)


def _batch(conv: Convolution, taps: int) -> int:
    """Bytes of the kernel's list of matrix pairs for every thread (key_brgemm_primitive_batch)."""
    elements = ceil_div(round_up(taps * BATCH_ELEMENT, PAGE), BATCH_ELEMENT)
    return booked(conv.threads * elements * BATCH_ELEMENT, PAGE)


def _widest(conv: Convolution, channels: int) -> int:
    """Channels padded to the widest of the one to four registers that the weights' block may have."""
    register = conv.block
    if conv.taps == 1 and channels <= 16 * register and channels % (8 * register) == 0:
        return channels
    blocks = [count * register for count in (1, 2, 3, 4) if count == 1 or (count - 1) * register < channels]
    return max(round_up(channels, block) for block in blocks)


def forward_primitive(conv: Convolution) -> Primitive:
    """brgemm and its depthwise form."""
    if conv.depthwise:
        return _primitive(conv, weight_bytes(conv, conv.block, conv.block), 0)
    weights = conv.groups * conv.group_in * _widest(conv, conv.group_out) * conv.taps * FLOAT
    return _primitive(conv, weights, _batch(conv, conv.taps))


def input_gradient_primitive(conv: Convolution) -> Primitive:
    """brgemm with the weights transposed, or the depthwise kernel."""
    if strided_accepts(conv):
        return strided_input_gradient(conv)
    if conv.depthwise:
        return _primitive(conv, weight_bytes(conv, conv.block, conv.block), 0)
    weights = conv.groups * conv.group_out * _widest(conv, conv.group_in) * conv.taps * FLOAT
    return _primitive(conv, weights, _batch(conv, conv.taps) + ALIGNMENT)


def weight_gradient_primitive(conv: Convolution, bias: bool) -> Primitive:
    """The direct kernels; in this layout they pad each group's channels to whole blocks, also a depthwise one's."""
    block = conv.block
    if depthwise_weights_accepts(conv):
        helpers = conv.threads - 1
        padded = round_up(conv.groups, block)
        scratchpad = booked(padded * conv.taps * helpers * FLOAT)
        scratchpad += booked(conv.groups * helpers * FLOAT) if bias else 0
        return _primitive(conv, weight_bytes(conv, block, block), scratchpad)
    channels = round_up(conv.group_in, block) * round_up(conv.group_out, block)
    if pointwise_accepts(conv):
        weights = conv.groups * channels * conv.taps * FLOAT
        return _primitive(conv, weights, _pointwise_scratchpad(conv, bias))
    if direct_weights_accepts(conv, padded=True):
        flat = conv.in_channels == 3
        in_block = 3 if flat else block
        rows = 3 if flat else round_up(conv.group_in, block)
        weights = conv.groups * rows * round_up(conv.group_out, block) * conv.taps * FLOAT
        jobs = conv.groups * ceil_div(conv.group_in, in_block) * ceil_div(conv.group_out, block)
        scratchpad = reducer(
            conv.threads, conv.taps * in_block * block, jobs, conv.batch * conv.result[0], 1 << 21, every_thread=False
        )
        return _primitive(conv, weights, scratchpad + bias_scratchpad(conv, bias))
    outer = conv.result[1] * conv.result[2] // conv.threads < 256 and (conv.batch != 1 or conv.groups > 2)
    team = conv.threads if outer else 1
    image = conv.group_in * conv.source[0] * conv.source[1] * conv.source[2]
    scratchpad = booked(team * im2col_floats(conv) * FLOAT) + booked(team * weight_bytes(conv) * FLOAT)
    return _primitive(conv, weight_bytes(conv), scratchpad + booked(team * image * FLOAT))


def _pointwise_scratchpad(conv: Convolution, bias: bool) -> int:
    """jit_avx2_1x1_conv_kernel_f32.cpp, backward weights: blockings are cut only where no channel is left over."""
    block = conv.block
    positions = conv.result[0] * conv.result[1] * conv.result[2]
    out_blocks, in_blocks = ceil_div(conv.out_channels, block), ceil_div(conv.in_channels, block)
    out_part = halved_blocking(out_blocks, 32) if conv.out_channels % block == 0 else out_blocks
    cut = conv.in_channels % block == 0 and positions <= 1024
    in_part = halved_blocking(in_blocks, 17) if cut else in_blocks
    job = out_part * in_part * block * block
    jobs = ceil_div(out_blocks, out_part) * ceil_div(in_blocks, in_part)
    scratchpad = reducer(conv.threads, job, jobs, conv.batch * positions, conv.threads * job * 8, every_thread=True)
    if conv.strided and unit_stride_by_copy(conv):
        scratchpad += booked(conv.threads * positions * conv.in_channels * FLOAT)
    return scratchpad + bias_scratchpad(conv, bias)
