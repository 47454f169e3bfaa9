"""Records for pages, made by hand on the chain of ``tests.reports.toy`` with the steps that were priced."""

from __future__ import annotations

from dataclasses import replace

from memplan.graph import StepGraph
from memplan.memory import Implementation, price
from memplan.results import Analysis, MethodFootprint, Planned, Verification
from tests.reports import plans, toy

#: Names that HTML, JSON in a script element, a text template or a JavaScript object could take for its own.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><script>alert(3)</script>",
    "{a|b} ${c} {{ d }} &amp; \u2028 end",
    "__proto__",
    "constructor",
)


def method(
    name: str, step: StepGraph, *, implementation: Implementation = "loop", budget_bytes: int | None = None
) -> MethodFootprint:
    """Return a row of an analysis, priced with momentum."""
    footprint = price(step, "momentum", implementation, alive=len(step.storages))
    fits = None if budget_bytes is None else footprint.peak_bytes <= budget_bytes
    return MethodFootprint(name, None, "stock", footprint, fits, implementation=implementation, step=step)


def analysis(length: int = 4, *, budget_bytes: int | None = None) -> Analysis:
    """Return full fine-tuning, the last half, and the last layer with updates in the backward, of a chain."""
    rows = (
        method("full", toy.chain(length), budget_bytes=budget_bytes),
        method("half", toy.chain(length, trained=length // 2), budget_bytes=budget_bytes),
        method("last", toy.chain(length, trained=1), implementation="in-backward", budget_bytes=budget_bytes),
    )
    return Analysis(toy.SETTING, toy.chain(length).blocks, budget_bytes, rows, 0.25)


def planned() -> Planned:
    """Return the plan of ``tests.reports.plans`` with its steps."""
    return plans.planned(step=toy.chain(trained=3), stock_step=toy.chain())


def verification() -> Verification:
    """Return the verification of ``tests.reports.toy`` with the step that was predicted."""
    row = method("full", toy.chain())
    return replace(toy.verification(), footprint=row.footprint, step=row.step)


def hostile() -> Analysis:
    """Return an analysis of a model that is named, and whose layers are named, to do harm."""
    paths = ("", *HOSTILE)
    step = toy.chain(len(HOSTILE))
    layers = tuple(
        replace(layer, path=path, type=path or "Chain") for layer, path in zip(step.layers, paths, strict=True)
    )
    blocks = tuple(replace(block, path=HOSTILE[block.index]) for block in step.blocks)
    named = replace(step, layers=layers, blocks=blocks)
    setting = replace(toy.SETTING, model=HOSTILE[0], origin=HOSTILE[1], inputs=(HOSTILE[2],))
    row = replace(method("full", named), name=HOSTILE[1])
    return Analysis(setting, blocks, None, (row,), 0.25, notes=HOSTILE)
