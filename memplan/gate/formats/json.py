"""A gate's result as JSON that a machine reads: complete, versioned, every quantity an integer number of bytes.

Every key is described in ``docs/gate-formats.md``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from memplan.gate.records import Check, GateResult, Reading, Verdict
from memplan.reports.machine import to_text

GATE_SCHEMA: Final = "memplan.gate/1"


def json_text(result: GateResult, version: str) -> str:
    """Return the JSON text of a gate's result; ``version`` is memplan's."""
    return to_text(gate_to_json(result, version))


def gate_to_json(result: GateResult, version: str) -> dict[str, Any]:
    """Return everything that a gate found, as JSON's own types; ``version`` is memplan's."""
    return {
        "schema": GATE_SCHEMA,
        "memplan": version,
        "holds": result.holds,
        "exit_code": result.exit_code,
        "warn_only": result.warn_only,
        "exit_zero": result.exit_zero,
        "config": result.config,
        "baseline": result.baseline,
        "stale": list(result.stale),
        "notes": list(result.notes),
        "seconds": round(result.seconds, 3),
        "checks": [_verdict(verdict) for verdict in result.verdicts],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    baseline = verdict.baseline
    return {
        **_check(verdict.check),
        "verdict": verdict.word,
        "limit_bytes": verdict.limit_bytes,
        **_reading(verdict.reading),
        "baseline_bytes": None if baseline is None else baseline.bytes,
        "growth_bytes": verdict.growth_bytes,
        "growth_share": verdict.growth_share,
        "failures": [asdict(failure) for failure in verdict.failures],
        "differences": list(verdict.differences),
        "changes": [
            {**asdict(change), "words": list(change.words), "growth_bytes": change.growth_bytes}
            for change in verdict.changes
        ],
        "remedies": [{key: getattr(remedy, key) for key in _REMEDY} for remedy in verdict.remedies],
        "notes": list(verdict.notes),
    }


def _check(check: Check) -> dict[str, Any]:
    limits = check.limits
    return {
        "name": check.name,
        "model": check.model,
        "of": check.of,
        "place": None if check.place is None else asdict(check.place),
        "budget_bytes": limits.budget_bytes,
        "max_growth": None if limits.max_growth is None else limits.max_growth.text,
        "min_growth_bytes": limits.min_growth_bytes,
        "strict": check.strict,
    }


def _reading(reading: Reading | None) -> dict[str, Any]:
    """Return what was found; every key is there, and ``null``, where the model was not analysed."""
    if reading is None:
        return {**dict.fromkeys(_READING), "layers": [], "unpriced": []}
    return {
        **{key: getattr(reading, key) for key in _READING},
        "inputs": list(reading.inputs),
        "machine": asdict(reading.machine),
        "layers": [asdict(part) for part in reading.layers],
        "unpriced": list(reading.unpriced),
    }


#: What is told of a way back.
_REMEDY: Final = ("what", "bytes", "gradients", "command")

#: What is told of a reading beside its layers; its quantity is the check's.
_READING: Final = (
    "bytes",
    "predicted_bytes",
    "lower_bytes",
    "rest_bytes",
    "where",
    "inputs",
    "dtype",
    "method",
    "runner",
    "optimizer",
    "machine",
)
