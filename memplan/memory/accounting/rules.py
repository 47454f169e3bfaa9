"""The rules of the two published accountings: what a layer keeps for the backward, and what it needs to compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from memplan.memory.accounting.calls import Call
from memplan.memory.accounting.records import AccountingName

#: Bytes of an activation and of a parameter that trains, and of one that is frozen: 32 and 8 bits.
FLOAT_BYTES: Final = 4
FROZEN_BYTES: Final = 1

#: From a call, and whether its activation keeps signs only, to the bytes that wait for the backward.
KeptRule: TypeAlias = Callable[[Call, bool], int]


def mask_bytes(elements: int, bits: int = 1) -> int:
    """Return the bytes of ``bits`` for each element, rounded up.

    >>> mask_bytes(9), mask_bytes(9, 2)
    (2, 3)
    """
    return -(-elements * bits // 8)


def tinytl_kept(call: Call, masked: bool) -> int:
    """Return the bytes that TinyTL counts as kept by a call in a step that needs a backward.

    A weight that trains keeps its input; a ReLU keeps one bit per element and a smooth activation its input, whether
    or not a gradient passes it.
    """
    if call.kind in ("convolution", "linear", "norm"):
        return FLOAT_BYTES * call.input_elements if call.weight_trains else 0
    if call.kind in ("relu", "relu6") or (masked and call.kind == "hardswish"):
        return mask_bytes(call.input_elements)
    return 0 if call.kind == "gate" else FLOAT_BYTES * call.input_elements


def mobiletl_kept(call: Call, masked: bool) -> int:
    """Return the bytes that MobileTL counts as kept by a call.

    ReLU6 keeps two bits per element, ReLU one, hard-swish its input, and with ``masked`` each keeps one; a norm keeps a
    float per channel beside its input, a gate (squeeze-and-excite) the map that it scales.
    """
    if call.kind in ("convolution", "linear"):
        return FLOAT_BYTES * call.input_elements if call.weight_trains else 0
    if call.kind == "norm":
        return FLOAT_BYTES * (call.input_elements + call.channels) if call.weight_trains else 0
    if not call.differentiated:
        return 0
    if call.kind == "relu" or (masked and call.kind in ("relu6", "hardswish")):
        return mask_bytes(call.input_elements)
    if call.kind == "relu6":
        return mask_bytes(call.input_elements, 2)
    return FLOAT_BYTES * call.input_elements


def temp_bytes(call: Call) -> int:
    """Return the bytes that a call needs while it computes, by TinyTL's rule: its input, and for a product its output.

    A grouped convolution's output counts by one group; pooling, upsampling, sums and gates count nothing.
    """
    if call.kind == "convolution":
        return FLOAT_BYTES * call.input_elements + FLOAT_BYTES * call.output_elements // call.groups
    if call.kind == "linear":
        return FLOAT_BYTES * (call.input_elements + call.output_elements)
    return 0 if call.kind == "gate" else FLOAT_BYTES * call.input_elements


@dataclass(frozen=True, slots=True)
class Accounting:
    """A published accounting: its rule of what is kept, and whether its total is of the peak or of what is kept."""

    name: AccountingName
    kept: KeptRule
    of_peak: bool
    source: str


ACCOUNTINGS: Final[dict[str, Accounting]] = {
    accounting.name: accounting
    for accounting in (
        Accounting("tinytl", tinytl_kept, True, "TinyTL (NeurIPS 2020), memory_cost_profiler.py"),
        Accounting("mobiletl", mobiletl_kept, False, "MobileTL (AAAI 2023), decoded from its figures"),
    )
}
