"""What one oneDNN convolution primitive holds while it runs: layouts it wants, and its scratchpad.

Source: oneDNN 3.12, src/cpu/cpu_convolution_list.cpp (the order in which kernels are tried) and the ``init_conf`` and
``init_scratchpad`` of each kernel in src/cpu/x64 and src/cpu/gemm_convolution_utils.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from memplan.memory.scratch.geometry import Convolution, ceil_div, round_up

FLOAT = 4
PAGE = 4096
ALIGNMENT = 128
BATCH_ELEMENT = 40

Layout = Literal["plain", "blocked", "channels_last"]


@dataclass(frozen=True, slots=True)
class Primitive:
    """One primitive's layout and bytes: its source and destination as it wants them, its weights, its scratchpad."""

    source_layout: Layout
    source: int
    destination_layout: Layout
    destination: int
    weights_layout: Layout
    weights: int
    scratchpad: int


def booked(size: int, alignment: int = ALIGNMENT) -> int:
    """Bytes that the scratchpad registry reserves for one buffer.

    Source: oneDNN src/common/memory_tracking.hpp, ``registry_t::book``.
    """
    return size + max(alignment, ALIGNMENT) if size else 0


def _activation(batch: int, channels: int, spatial: tuple[int, ...], block: int) -> int:
    return batch * round_up(channels, block) * prod(spatial) * FLOAT


def source_bytes(conv: Convolution, layout: Layout) -> int:
    """Bytes of the input in a layout."""
    return _activation(conv.batch, conv.in_channels, conv.source, conv.block if layout == "blocked" else 1)


def result_bytes(conv: Convolution, layout: Layout) -> int:
    """Bytes of the output in a layout."""
    return _activation(conv.batch, conv.out_channels, conv.result, conv.block if layout == "blocked" else 1)


def weight_bytes(conv: Convolution, in_block: int = 1, out_block: int = 1) -> int:
    """Bytes of the weights with both channel axes of each group padded to blocks."""
    if conv.depthwise:
        return round_up(conv.groups, max(in_block, out_block)) * conv.taps * FLOAT
    channels = round_up(conv.group_in, in_block) * round_up(conv.group_out, out_block)
    return conv.groups * channels * conv.taps * FLOAT


def reducer(threads: int, job: int, jobs: int, reduction: int, limit: int, *, every_thread: bool) -> int:
    """Scratchpad bytes of the cross-thread weight reduction; ``job`` in elements.

    Source: oneDNN src/cpu/x64/cpu_reducer.cpp, ``reduce_balancer_t::balance`` and ``init_scratchpad``.
    """
    least = max(1, jobs // threads)
    most = max(1, limit // (threads * job))
    groups = min(jobs // least, threads)
    team = min(threads // groups, reduction)
    per_group = ceil_div(jobs, groups)
    best = jobs * job * reduction
    for candidate in range(least, min(jobs, least + threads * most + 1)):
        some_groups = min(jobs // candidate, threads)
        some_team = min(threads // some_groups, reduction)
        some_jobs = ceil_div(jobs, some_groups)
        if some_team > 1 and some_jobs > most:
            continue
        cost = job * some_jobs * (ceil_div(reduction, some_team) + (some_team != 1))
        if cost < best:
            groups, team, per_group, best = some_groups, some_team, some_jobs, cost
    if team == 1:
        return 0
    space = groups * (team if every_thread else team - 1) * per_group * job * FLOAT
    return booked(space, ALIGNMENT if every_thread else PAGE) + booked(groups * PAGE, PAGE)
