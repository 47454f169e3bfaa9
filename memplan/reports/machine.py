"""Records as JSON that a machine reads: complete, versioned, every quantity an integer number of bytes.

Every key is described in ``docs/json.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from itertools import groupby
from typing import Any, Final

from memplan.memory import Footprint, Peak, Timeline
from memplan.memory.accounting import Accounted
from memplan.results import Analysis, MethodFootprint, Planned, Setting, Verification

ANALYSIS_SCHEMA: Final = "memplan.analysis/1"
VERIFICATION_SCHEMA: Final = "memplan.verification/1"


def analysis_to_json(analysis: Analysis, version: str) -> dict[str, Any]:
    """Return everything that an analysis knows, as JSON's own types; ``version`` is memplan's."""
    return {
        "schema": ANALYSIS_SCHEMA,
        "memplan": version,
        **_setting(analysis.setting),
        "runner": _shared_runner(analysis),
        "budget_bytes": analysis.budget_bytes,
        "fits": None if analysis.budget_bytes is None else analysis.fits,
        "parameters": analysis.methods[0].footprint.parameters if analysis.methods else 0,
        "recording_seconds": round(analysis.seconds, 3),
        "blocks": [{"index": block.index, "path": block.path, "type": block.type} for block in analysis.blocks],
        "methods": [_method(method) for method in analysis.methods],
        "suggestion": None if analysis.suggestion is None else _suggestion(analysis.suggestion),
        "no_suggestion": analysis.no_suggestion,
        "notes": list(analysis.notes),
        "unpriced": list(analysis.unpriced),
        "untreated": list(analysis.untreated),
    }


def _suggestion(planned: Planned) -> dict[str, Any]:
    plan = planned.plan
    return {
        "k": plan.k,
        "trained_parameters": planned.footprint.trained_parameters,
        "peak_bytes": planned.bytes,
        "margin_bytes": planned.margin_bytes,
        "gradients": plan.gradients,
        "treatments": list(plan.treatments),
        "prefix_samples": None if plan.microbatch is None else plan.microbatch.samples,
        "flops": planned.footprint.flops_forward + planned.footprint.flops_backward,
        "next": [{"what": upgrade.what, "bytes": upgrade.bytes} for upgrade in planned.next],
    }


def verification_to_json(verification: Verification, version: str) -> dict[str, Any]:
    """Return everything that a verification knows, as JSON's own types; ``version`` is memplan's."""
    low, high = verification.tolerance
    return {
        "schema": VERIFICATION_SCHEMA,
        "memplan": version,
        **_setting(verification.setting),
        "runner": verification.runner,
        "method": verification.method,
        "quantity": verification.quantity,
        "predicted_saved_bytes": verification.predicted_saved_bytes,
        "measured_saved_bytes": verification.measured_saved_bytes,
        "saved_equal": verification.saved_equal,
        "steps": [
            {
                "number": step.number,
                "predicted_peak_bytes": step.predicted_bytes,
                "measured_peak_bytes": step.measured_bytes,
                "error": step.error,
            }
            for step in verification.steps
        ],
        "tolerance": {"low": low, "high": high},
        "holds": verification.holds,
        "budget_bytes": None if verification.budget is None else verification.budget.bytes,
        "budget_of": None if verification.budget is None else verification.budget.of,
        "budgeted_bytes": verification.budgeted_bytes,
        "fits": verification.fits,
        "rss_bytes": verification.rss_bytes,
        "rss_before_bytes": verification.rss_before_bytes,
        "notes": list(verification.notes),
    }


def to_text(data: dict[str, Any]) -> str:
    """Return JSON text, indented, with what holds no other container on one line: one layer, one line."""
    return "".join(_written(data, 0)) + "\n"


def _written(value: Any, depth: int) -> Iterator[str]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(child, (dict, list)) and child for child in children):
        yield json.dumps(value)
        return
    inner = "  " * (depth + 1)
    yield "{" if isinstance(value, dict) else "["
    for place, child in enumerate(value):
        yield f"{',' if place else ''}\n{inner}"
        if isinstance(value, dict):
            yield f"{json.dumps(child)}: "
            child = value[child]
        yield from _written(child, depth + 1)
    yield f"\n{'  ' * depth}{'}' if isinstance(value, dict) else ']'}"


def _setting(setting: Setting) -> dict[str, Any]:
    return {
        "model": setting.model,
        "origin": setting.origin,
        "batch_size": setting.batch_size,
        "inputs": list(setting.inputs),
        "dtype": setting.dtype,
        "amp": setting.amp,
        "training": setting.training,
        "optimizer": setting.optimizer,
        "optimizer_implementation": setting.implementation,
        "torch": setting.machine.torch,
        "device": setting.machine.device,
        "instruction_set": setting.machine.instruction_set,
        "threads": setting.machine.threads,
    }


def _shared_runner(analysis: Analysis) -> str | None:
    runners = {method.runner for method in analysis.methods}
    return runners.pop() if len(runners) == 1 else None


def _method(method: MethodFootprint) -> dict[str, Any]:
    footprint = method.footprint
    return {
        "name": method.name,
        "k": method.k,
        "runner": method.runner,
        "gradients": method.gradients,
        "optimizer_implementation": method.implementation,
        "treatments": [] if method.plan is None else list(method.plan.treatments),
        "saved_bytes": footprint.saved_bytes,
        "temp_bytes": footprint.temp_bytes,
        "resident_bytes": footprint.resident_bytes,
        "peak_bytes": footprint.peak_bytes,
        "first_step_peak_bytes": footprint.first_step_peak_bytes,
        "fits": method.fits,
        "trained_parameters": footprint.trained_parameters,
        "flops_forward": footprint.flops_forward,
        "flops_backward": footprint.flops_backward,
        "composition": _fields(footprint.composition),
        "peak": _peak(footprint.peak),
        "layers": _layers(footprint),
        "timeline": _timeline(footprint.timeline),
        "unpriced": list(footprint.unpriced),
        "untreated": [] if method.plan is None else list(method.plan.untreated),
        "accounting": None if method.accounted is None else _accounted(method.accounted),
    }


def _accounted(accounted: Accounted) -> dict[str, Any]:
    row = _fields(accounted)
    row["layers"] = [_fields(layer) for layer in accounted.layers]
    row["notes"], row["uncounted"] = list(accounted.notes), list(accounted.uncounted)
    return row


def _peak(peak: Peak) -> dict[str, Any]:
    row = _fields(peak)
    row["alive"] = [_fields(storage) for storage in peak.alive]
    return row


def _layers(footprint: Footprint) -> list[dict[str, Any]]:
    rows = []
    for layer in footprint.layers:
        row = _fields(layer)
        rows.append({"name": row.pop("path"), **row})
    return rows


def _timeline(timeline: Timeline) -> dict[str, Any]:
    return {
        "phases": [{"phase": phase, "moments": len(list(run))} for phase, run in groupby(timeline.phases)],
        **{f"{kind}_bytes": list(getattr(timeline, kind)) for kind in ("resident", "saved", "temp", "scratch")},
    }


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}
