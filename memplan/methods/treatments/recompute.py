"""recompute: inside a block, what is cheap to make again is not kept."""

from __future__ import annotations

from typing import Final

from memplan.methods.treatments.record import Treatment

TREATMENT: Final = Treatment(
    name="recompute",
    lossless=True,
    summary="inside a block a minimum cut of values is kept, and what the backward needs is made again from them",
    gradients="stock's, bit for bit where the kernels give the same result twice",
    formula="the bytes of the cut: keeping costs a value's bytes, repeating an op its FLOPs at a price per byte",
    source="Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016; the minimum cut as in PyTorch, "
    "torch/_functorch/partitioners.py, min_cut_rematerialization_partition",
    twin="memplan.layers.recompute",
)
