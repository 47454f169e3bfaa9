"""frozen-int8: frozen weights are stored in 8 bits and dequantized at use."""

from __future__ import annotations

from typing import Final

from memplan.methods.treatments.lean_frozen import nothing
from memplan.methods.treatments.record import Treatment

TREATMENT: Final = Treatment(
    name="frozen-int8",
    lossless=False,
    summary="frozen weights of convolutions and linear layers are 8-bit buffers with a scale per output channel",
    gradients="exact, of the network with the rounded weights, each at most half a step from the original",
    formula="0: 8-bit weight and scale are buffers, of |W| + 4 * output channels bytes instead of 4 * |W|; in each "
    "pass one layer's weight is there in full while the layer runs",
    source="TinyTL (NeurIPS 2020), section 4.1; MobileTL (AAAI 2023), section 4.1",
    twin="memplan.layers.frozen_int8",
    saved={
        "aten.convolution.default": nothing,
        "aten.addmm.default": nothing,
        "aten.mm.default": nothing,
    },
)
