"""top-k: only the last k blocks and the head train."""

from __future__ import annotations

from typing import Final

from memplan.methods.treatments.record import Treatment

TREATMENT: Final = Treatment(
    name="top-k",
    lossless=False,
    summary="only the last k blocks and the head train; nothing is kept below them",
    gradients="exact for what trains; the rest has none",
    formula="0 for every layer below the lowest trained block",
    source="MobileTL (AAAI 2023), section 3",
)
