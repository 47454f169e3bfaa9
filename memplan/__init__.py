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
    from memplan.application import apply, load_plan, optimizer, restore, trained_parameters
    from memplan.checking import check
    from memplan.errors import AnalysisError, BudgetError, MemplanError, UsageError
    from memplan.front import pareto
    from memplan.gate.records import Reading, Verdict
    from memplan.graph.step_graph import StepGraph
    from memplan.layers.fused_update import FusedUpdate
    from memplan.memory.footprint import Footprint
    from memplan.methods import Method, Plan
    from memplan.methods.treatments.record import Treatment
    from memplan.planning import plan
    from memplan.pruning import prune
    from memplan.results import Analysis, Front, Planned, Verification
    from memplan.sweeping import sweep
    from memplan.tracing.record import StepRecord, trace
    from memplan.transform.apply import plan_of
    from memplan.transform.measure import measured_peak
    from memplan.verification import verify

_HOMES = {
    "analyze": "memplan.analysis",
    "apply": "memplan.application",
    "check": "memplan.checking",
    "load_plan": "memplan.application",
    "measured_peak": "memplan.transform.measure",
    "optimizer": "memplan.application",
    "pareto": "memplan.front",
    "plan": "memplan.planning",
    "prune": "memplan.pruning",
    "plan_of": "memplan.transform.apply",
    "restore": "memplan.application",
    "sweep": "memplan.sweeping",
    "trace": "memplan.tracing.record",
    "trained_parameters": "memplan.application",
    "verify": "memplan.verification",
    "Analysis": "memplan.results",
    "AnalysisError": "memplan.errors",
    "BudgetError": "memplan.errors",
    "Footprint": "memplan.memory.footprint",
    "Front": "memplan.results",
    "FusedUpdate": "memplan.layers.fused_update",
    "MemplanError": "memplan.errors",
    "Method": "memplan.methods",
    "Plan": "memplan.methods",
    "Planned": "memplan.results",
    "Reading": "memplan.gate.records",
    "StepGraph": "memplan.graph.step_graph",
    "StepRecord": "memplan.tracing.record",
    "Treatment": "memplan.methods.treatments.record",
    "UsageError": "memplan.errors",
    "Verdict": "memplan.gate.records",
    "Verification": "memplan.results",
}

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "AnalysisError",
    "BudgetError",
    "Footprint",
    "Front",
    "FusedUpdate",
    "MemplanError",
    "Method",
    "Plan",
    "Planned",
    "Reading",
    "StepGraph",
    "StepRecord",
    "Treatment",
    "UsageError",
    "Verdict",
    "Verification",
    "analyze",
    "apply",
    "check",
    "load_plan",
    "measured_peak",
    "optimizer",
    "pareto",
    "plan",
    "plan_of",
    "prune",
    "restore",
    "sweep",
    "trace",
    "trained_parameters",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'memplan' has no attribute {name!r}")
