"""recompute: what is cheap to make again is not kept."""

from __future__ import annotations

from typing import Final

from memplan.methods.treatments.record import Treatment

TREATMENT: Final = Treatment(
    name="recompute",
    lossless=True,
    summary="inside a block only a minimum cut is kept; the backward repeats norms, activations and cheap convolutions",
    gradients="as stock's",
    formula="the minimum cut through the values of the recorded forward, with FLOPs at a price in bytes",
    source="Chen et al. (2016), sublinear memory; PyTorch torch/_functorch/partitioners.py, min_cut_rematerialization",
    twin="memplan.layers.recompute",
)
