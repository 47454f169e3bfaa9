"""What a planned step keeps as stock PyTorch does, because no treatment has a rule for it."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from memplan.graph.step_graph import StepGraph
from memplan.methods.structure import CONVOLUTION
from memplan.methods.treatments import TREATMENTS
from memplan.units import format_bytes

#: Products whose inputs are needed by what trains in them: to keep these is the method's choice.
_PRODUCTS: Final = frozenset({CONVOLUTION, "aten.addmm.default", "aten.mm.default", "aten.bmm.default"})

#: Shares of the saved bytes below this are not worth a word.
_LEAST_SHARE: Final = 0.01


def untreated(step: StepGraph) -> tuple[str, ...]:
    """Return a phrase for each op without a rule that keeps more than a hundredth of the step's saved bytes."""
    ruled = {name for treatment in TREATMENTS.values() for name in treatment.saved} | _PRODUCTS
    saved = frozenset(step.saved)
    kept: dict[str, int] = defaultdict(int)
    charged: set[int] = set()
    for op in step.ops:
        if op.phase != "forward" or not op.name.startswith("aten."):
            continue
        for storage in op.saves:
            if storage in saved and storage not in charged:
                charged.add(storage)
                if op.name not in ruled:
                    kept[op.name] += step.storages[storage].bytes
    found = sorted(kept.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        f"{name.removeprefix('aten.').removesuffix('.default')} keeps {_shown(size)}"
        for name, size in found
        if size > _LEAST_SHARE * step.saved_bytes
    )


def _shown(size: int) -> str:
    return format_bytes(size, unit="MB" if size >= 100_000 else "KB")
