"""A gate's result in SARIF 2.1.0, which code scanning shows: one result for each failure."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from memplan.gate.formats.contents import blamed, closing, layer_name
from memplan.gate.formats.places import artifact_location
from memplan.gate.records import Failure, FailureKind, GateResult, Place, Verdict
from memplan.reports.machine import to_text
from memplan.tables import plain

SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

#: What each kind of failure is, as a rule: its name, what it says, and what helps.
RULES: Final[dict[FailureKind, tuple[str, str, str]]] = {
    "budget": (
        "MemoryBudget",
        "A training step needs more memory than its budget allows.",
        "Train fewer blocks, take a smaller batch or a treatment that memplan plan finds, or raise the budget.",
    ),
    "growth": (
        "MemoryGrowth",
        "A training step needs more memory than its baseline, by more than is allowed.",
        "Undo what made the layer grow, or accept it: write the baseline again with --update-baseline.",
    ),
    "baseline": (
        "MissingBaseline",
        "A check has no baseline to compare with.",
        "Write it with --update-baseline and commit the file.",
    ),
    "unpriced": (
        "UnpricedMemory",
        "A strict check has parts that memplan cannot price.",
        "Replace what the message names, or take strict from the check.",
    ),
    "analysis": (
        "UnanalysedModel",
        "A check's model could not be analysed.",
        "Correct what the message names.",
    ),
}

_KINDS: Final = tuple(RULES)


def sarif_text(result: GateResult, version: str) -> str:
    """Return the SARIF log as text; ``version`` is memplan's."""
    return to_text(gate_to_sarif(result, version))


def gate_to_sarif(result: GateResult, version: str) -> dict[str, Any]:
    """Return the SARIF log as JSON's own types.

    Limits that fail are warnings with ``warn_only``; a model that could not be analysed is an error all the same.
    """
    driver = {"name": "memplan", "version": version, "rules": [_rule(kind) for kind in _KINDS]}
    invocation = {
        "executionSuccessful": all(verdict.analysed for verdict in result.verdicts),
        "exitCode": result.exit_code,
        "exitCodeDescription": plain(closing(result)),
        "toolExecutionNotifications": [
            {"level": "note", "message": {"text": plain(note)}}
            for note in (*result.notes, *(note for verdict in result.verdicts for note in verdict.notes))
        ],
    }
    results = [_result(verdict, failure, result) for verdict in result.failing() for failure in verdict.failures]
    run = {"tool": {"driver": driver}, "invocations": [invocation], "results": results}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(kind: FailureKind) -> dict[str, Any]:
    name, says, helps = RULES[kind]
    return {
        "id": f"memplan/{kind}",
        "name": name,
        "shortDescription": {"text": says},
        "fullDescription": {"text": says},
        "help": {"text": helps},
        "defaultConfiguration": {"level": "error"},
    }


def _result(verdict: Verdict, failure: Failure, result: GateResult) -> dict[str, Any]:
    check, reading = verdict.check, verdict.reading
    sizes = {
        "limit_bytes": verdict.limit_bytes,
        "bytes": None if reading is None else reading.bytes,
        "baseline_bytes": None if verdict.baseline is None else verdict.baseline.bytes,
        "growth_bytes": verdict.growth_bytes,
    }
    return {
        "ruleId": f"memplan/{failure.kind}",
        "ruleIndex": _KINDS.index(failure.kind),
        "level": "warning" if result.warn_only and verdict.analysed else "error",
        "message": {"text": plain(failure.sentence)},
        "locations": [_location(verdict, failure, result.config)],
        "partialFingerprints": {"memplanCheck/v1": _fingerprint(verdict, failure)},
        "properties": {
            "check": plain(check.name),
            "model": plain(check.model),
            "of": check.of,
            **{name: value for name, value in sizes.items() if value is not None},
        },
    }


def _location(verdict: Verdict, failure: Failure, config: str) -> dict[str, Any]:
    place = verdict.check.place or Place(config)
    physical: dict[str, Any] = {"artifactLocation": artifact_location(place.file)}
    if place.line is not None:
        physical["region"] = {"startLine": place.line}
    location: dict[str, Any] = {"physicalLocation": physical}
    layer = blamed(verdict, failure)
    if layer is not None:
        path = layer_name(layer)
        location["logicalLocations"] = [
            {"name": path.rpartition(".")[2] or path, "fullyQualifiedName": path, "kind": "layer"}
        ]
    return location


def _fingerprint(verdict: Verdict, failure: Failure) -> str:
    """Return what tells a finding from others in every run: neither bytes nor lines, which change."""
    parts = (failure.kind, verdict.check.of, verdict.check.name)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
