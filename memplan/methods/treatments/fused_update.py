"""fused-update: no parameter keeps its gradient."""

from __future__ import annotations

from typing import Final

from memplan.methods.treatments.record import Treatment

TREATMENT: Final = Treatment(
    name="fused-update",
    lossless=True,
    summary="the optimizer updates each parameter inside the backward and lets go of its gradient",
    gradients="stock's, bit for bit, and so are the updated parameters; none is left to read after the backward",
    formula="a gradient lives up to the op that completes it and through its own update; saved bytes are stock's",
    source="Lv et al., Full Parameter Fine-tuning for Large Language Models with Limited Resources (LOMO), 2023; "
    "torch.Tensor.register_post_accumulate_grad_hook",
    twin="memplan.layers.fused_update",
)
