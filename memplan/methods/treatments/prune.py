"""prune: the least important channels of a group go, from every layer that makes or takes them."""

from __future__ import annotations

from typing import Final

from memplan.methods.treatments.record import Treatment

TREATMENT: Final = Treatment(
    name="prune",
    lossless=False,
    summary="the least important channels of the groups that set the peak are dropped before training",
    gradients="exact, of the smaller network, which computes something else than the original",
    formula="what stock keeps of the layers at their new sizes: |x| falls with the share of its channels that go",
    source="Yoosefi, Mousavi, Daneshtalab et al., Activation Memory Reduction (FMEC 2023), "
    "doi 10.1109/FMEC59375.2023.10306182; of it the abstract is public",
)
