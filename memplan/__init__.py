"""memplan: what one training step of a PyTorch model needs in memory, layer by layer, before it is run.

    import memplan
    analysis = memplan.analyze("mobilenet_v3", methods=("full", "last"), budget="64MB")
    print(analysis["last"].peak_bytes)

Importing memplan imports neither torch nor any model library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memplan.analysis import analyze
    from memplan.errors import AnalysisError, MemplanError, UsageError
    from memplan.graph.step_graph import StepGraph
    from memplan.memory.footprint import Footprint
    from memplan.results import Analysis, Verification
    from memplan.tracing.record import StepRecord, trace
    from memplan.verification import verify

_HOMES = {
    "analyze": "memplan.analysis",
    "trace": "memplan.tracing.record",
    "verify": "memplan.verification",
    "Analysis": "memplan.results",
    "AnalysisError": "memplan.errors",
    "Footprint": "memplan.memory.footprint",
    "MemplanError": "memplan.errors",
    "StepGraph": "memplan.graph.step_graph",
    "StepRecord": "memplan.tracing.record",
    "UsageError": "memplan.errors",
    "Verification": "memplan.results",
}

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "AnalysisError",
    "Footprint",
    "MemplanError",
    "StepGraph",
    "StepRecord",
    "UsageError",
    "Verification",
    "analyze",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'memplan' has no attribute {name!r}")
