"""prefix-microbatch: the frozen prefix runs a few samples at a time, without a graph."""

from __future__ import annotations

from typing import Final

from memplan.methods.treatments.record import Treatment

TREATMENT: Final = Treatment(
    name="prefix-microbatch",
    lossless=True,
    summary="the frozen prefix runs m samples at a time; what follows sees the whole batch",
    gradients="as stock's, where no layer of the prefix mixes samples or draws random numbers; refused otherwise",
    formula="temp of the prefix: one output for the whole batch, and m / batch of everything else",
    source="memplan; gradient accumulation's micro-batches, of a forward that needs no backward",
    twin="memplan.transform.microbatch",
)
