"""bias-only: weights are frozen, biases train (TinyTL)."""

from __future__ import annotations

from typing import Final

from memplan.methods.treatments.lean_frozen import SAVED
from memplan.methods.treatments.record import Treatment

TREATMENT: Final = Treatment(
    name="bias-only",
    lossless=False,
    summary="weights are frozen and biases train, and no layer keeps an input for a gradient nobody asks for",
    gradients="exact, of the biases alone",
    formula="0 for every convolution and for norms with running statistics, as lean-frozen; a norm with statistics of "
    "its input keeps it, though TinyTL counts 0 for it",
    source="TinyTL (NeurIPS 2020), section 3.1",
    twin="memplan.layers.lean_frozen",
    saved=SAVED,
)
