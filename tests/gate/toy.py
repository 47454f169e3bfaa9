"""Verdicts made by hand: bytes that can be added up, and names that want to break out of every format."""

from __future__ import annotations

import dataclasses
from typing import Any

from memplan.gate.growth import parse_growth
from memplan.gate.records import (
    Change,
    Check,
    Failure,
    GateResult,
    LayerPart,
    Limits,
    Place,
    PricedStep,
    Reading,
    Remedy,
    Verdict,
)
from memplan.graph.records import Machine
from memplan.memory import price
from tests.reports.toy import chain

VERSION = "0.1.0"
CONFIG = "ci/memplan gate.toml"
MACHINE = Machine("cpu", "AVX2", 2, "2.13.0")

#: Names of every kind that some format would take for its own syntax.
HOSTILE = (
    "<script>alert(1)</script>",
    "]]><failure/>",
    "a|b||c",
    "two\nlines\r\nand\tmore",
    "null\x00bell\x07escape\x1b[31mred\x9b",
    "::error file=x::boom",
    "##[error]boom",
    "100% %0A done",
    "`code` ``twice`` \\`",
    "*bold* _it_ [link](http://example.org) ![i](x) ~~no~~ # 1. @octocat #1",
    "&amp; &#124; &lt;",
    "\u202egnp.exe\u2066 \u2028 \u200f",
    "half \ud800 pair \ufffe\uffff",
    "emoji 🧠🔥 层层",
    "x" * 300,
    "\"quoted\" 'single' ${x} $(x) {{ x }}",
    "",
)


def layer(
    name: str, part_bytes: int, kind: str = "Conv2d", *, output: str = "8x64x56x56", trains: bool = True
) -> LayerPart:
    """Return a layer's part of a quantity, most of it saved."""
    return LayerPart(name, kind, output, trains, part_bytes, part_bytes // 2, part_bytes // 4, part_bytes // 4)


def reading(*layers: LayerPart, rest_bytes: int = 0, of: Any = "peak", margin_bytes: int = 0, **more: Any) -> Reading:
    """Return a reading that its layers and ``rest_bytes`` add up to; limits are held to ``margin_bytes`` above it."""
    predicted = sum(part.bytes for part in layers) + rest_bytes
    facts: dict[str, Any] = {
        "of": of,
        "bytes": predicted + margin_bytes,
        "predicted_bytes": predicted,
        "lower_bytes": predicted - margin_bytes,
        "where": "backward of features.0, convolution",
        "model": "toynet",
        "inputs": ("8x3x64x64 float32",),
        "dtype": "float32",
        "method": "full",
        "runner": "stock",
        "optimizer": "sgd",
        "machine": MACHINE,
        "rest_bytes": rest_bytes,
        "layers": layers,
    }
    return Reading(**{**facts, **more})


def check(name: str, line: int | None = 7, *, budget_bytes: int | None = None, max_growth: str | None = None) -> Check:
    """Return a check of the configuration's file."""
    growth = None if max_growth is None else parse_growth(max_growth)
    return Check(name, "toynet.py:toynet", limits=Limits(budget_bytes, growth), place=Place(CONFIG, line))


#: Fourteen layers of 14 MB down to 1 MB: 105 MB, of which the last four are 4 + 3 + 2 + 1 = 10 MB.
DEEP = tuple(layer(f"features.{number}", (14 - number) * 1_000_000) for number in range(14))

REMEDIES = (
    Remedy("keep one bit for each ReLU (bitmask)", 52_000_000, "exact", "memplan plan toynet --treatment bitmask"),
    Remedy(
        "recompute norms and activations in features.0 to features.9",
        50_500_000,
        "exact",
        "memplan plan toynet.py:toynet --batch-size 8 --treatment bitmask --treatment recompute --out 'a plan.json'",
    ),
    Remedy("halve the batch", 32_000_000, "approximate"),
)


def over_budget() -> Verdict:
    """Return a check with a peak of 107 MB, 1 MB of it margin, above 64 MB; every layer was half as large before.

    It was 53.5 MB: 105 / 2 of the layers and 1 MB of the batch. Growth allows 2 % more, 54.57 MB.
    """
    before = reading(
        *(dataclasses.replace(part, bytes=part.bytes // 2, output="8x32x56x56") for part in DEEP),
        rest_bytes=1_000_000,
    )
    return Verdict(
        check=check("deep/stock", budget_bytes=64_000_000, max_growth="2%"),
        reading=reading(*DEEP, rest_bytes=1_000_000, margin_bytes=1_000_000, inputs=("16x3x64x64 float32",)),
        baseline=before,
        limit_bytes=54_570_000,
        failures=(
            Failure("budget", "the peak of deep/stock is 107.0 MB, 43.0 MB above the budget of 64.0 MB"),
            Failure("growth", "the peak of deep/stock grew from 53.5 MB to 107.0 MB, where 2% is allowed"),
        ),
        differences=("inputs 8x3x64x64 float32 -> 16x3x64x64 float32",),
        changes=tuple(
            Change(part.layer, part.type, part.bytes // 2, part.bytes, ("output 8x32x56x56 -> 8x64x56x56",))
            for part in DEEP
        ),
        remedies=REMEDIES,
        sought=True,
    )


def holding() -> Verdict:
    """Return a check whose saved bytes, 6 MB of 8 MB, are what they were."""
    now = reading(layer("features.0", 4_000_000), layer("classifier", 2_000_000, "Linear"), of="saved")
    small = dataclasses.replace(check("small/saved", 12, budget_bytes=8_000_000, max_growth="0"), of="saved")
    return Verdict(small, now, now, limit_bytes=6_000_000)


def grown() -> Verdict:
    """Return a check that grew from 3,000,000 to 3,400,000 bytes, where 100,000 more are allowed.

    One layer trains now, one is new, one is gone.
    """
    before = reading(
        layer("stem", 1_000_000, trains=False), layer("head", 1_500_000, "Linear"), layer("old", 500_000, "ReLU")
    )
    return Verdict(
        check=check("growing", 20, max_growth="100KB"),
        reading=reading(layer("stem", 1_800_000), layer("head", 1_500_000, "Linear"), layer("new", 100_000, "GELU")),
        baseline=before,
        limit_bytes=3_100_000,
        failures=(Failure("growth", "the peak of growing grew from 3.0 MB to 3.4 MB, where 100KB is allowed"),),
        changes=(
            Change("stem", "Conv2d", 1_000_000, 1_800_000, ("trains now",)),
            Change("new", "GELU", None, 100_000, ("new",)),
            Change("old", "ReLU", 500_000, None, ("gone",)),
        ),
    )


def broken() -> Verdict:
    """Return a check whose model could not be analysed."""
    reason = f"{CONFIG}:31: no model 'toynett' in toynet.py; did you mean 'toynet'?"
    return Verdict(check("broken", 31, budget_bytes=1_000_000), None, failures=(Failure("analysis", reason),))


def fresh() -> Verdict:
    """Return a check that is in no baseline: its growth cannot be checked."""
    note = "fresh: no baseline, so that its growth is not checked"
    return Verdict(check("fresh", None, max_growth="1%"), reading(layer("", 12_345, "Net")), notes=(note,))


def mixed(**more: Any) -> GateResult:
    """Return the result of five checks: two fail, one is broken, two hold."""
    facts: dict[str, Any] = {"baseline": "memplan-baseline.json", "stale": ("gone", "forgotten"), "seconds": 4.25}
    verdicts = (over_budget(), holding(), grown(), broken(), fresh())
    return GateResult(verdicts, CONFIG, **{**facts, **more})


def without_baseline(**more: Any) -> GateResult:
    """Return a result where no baseline was found, which its first note says."""
    notes = ("there is no baseline 'memplan-baseline.json'; write it with --update-baseline", "a second note")
    return GateResult((fresh(),), CONFIG, notes=notes, seconds=0.5, **more)


def hostile(name: str, **more: Any) -> GateResult:
    """Return a result where every text that comes from outside is ``name``: one check fails, one holds, one breaks."""
    part = dataclasses.replace(layer(name, 3_000_000, name), output=name)
    now = reading(part, layer("other", 1_000_000), where=name, model=name, inputs=(name,), unpriced=(name,))
    before = reading(layer(name, 2_000_000, name), where=name, model=name)
    limit = dataclasses.replace(check(name, budget_bytes=1_500_000), model=name, place=Place(name, 3))
    failing = Verdict(
        check=limit,
        reading=now,
        baseline=before,
        limit_bytes=1_500_000,
        failures=(Failure("budget", name), Failure("growth", f"the peak of {name} grew by {name}")),
        differences=(name,),
        changes=(Change(name, name, 2_000_000, 3_000_000, (name,)), Change("other", "Conv2d", None, 1_000_000)),
        remedies=(Remedy(name, 1_000_000, "exact", f"memplan plan {name}"),),
        sought=True,
        notes=(name,),
    )
    holds = Verdict(dataclasses.replace(limit, limits=Limits(5_000_000)), now, before, 5_000_000)
    breaks = Verdict(limit, None, failures=(Failure("analysis", name),))
    return GateResult((failing, holds, breaks), name, name, (name,), (name,), **more)


def many(failing: int, holding: int = 0) -> GateResult:
    """Return a result of checks that fail, 2 MB of 1 MB, and then checks that hold, 2 MB of 3 MB."""
    now = reading(layer("features.0", 2_000_000))
    bad = [f"check{place:04}" for place in range(failing)]
    verdicts = [
        Verdict(
            check(name, place + 1, budget_bytes=1_000_000),
            now,
            limit_bytes=1_000_000,
            failures=(Failure("budget", f"the peak of {name} is 2.0 MB, 1.0 MB above the budget of 1.0 MB"),),
        )
        for place, name in enumerate(bad)
    ]
    verdicts += [
        Verdict(check(f"good{place:04}", place + 1, budget_bytes=3_000_000), now, limit_bytes=3_000_000)
        for place in range(holding)
    ]
    return GateResult(tuple(verdicts), CONFIG, "memplan-baseline.json", seconds=1.0)


def empty() -> GateResult:
    """Return the result of no checks."""
    return GateResult((), CONFIG)


def with_steps() -> GateResult:
    """Return two models' checks with their steps: a peak that fails, with two ways back, and saved bytes that hold."""
    now, back, other = priced("stock full"), priced("memplan half", trained=2), priced("stock full", length=2)
    size = now.footprint.peak_bytes
    failing = Verdict(
        check=check("wide", 7, budget_bytes=size - 1),
        reading=reading(layer("layers.0", size)),
        limit_bytes=size - 1,
        failures=(Failure("budget", "the peak of wide is too large"),),
        remedies=(
            Remedy("train half", back.footprint.peak_bytes, "exact", step=back),
            Remedy("halve the batch", size // 2, "exact"),
        ),
        sought=True,
        step=now,
    )
    saved = other.footprint.saved_bytes
    holds = Verdict(
        check=dataclasses.replace(check("small", 12, budget_bytes=saved), of="saved"),
        reading=reading(layer("layers.0", saved), of="saved"),
        limit_bytes=saved,
        step=other,
    )
    return GateResult((holds, broken(), failing), CONFIG)


def priced(label: str, *, length: int = 4, trained: int | None = None) -> PricedStep:
    """Return the step of a chain of layers."""
    graph = chain(length, trained=trained)
    return PricedStep(label, graph, price(graph, "sgd", "loop", alive=len(graph.storages)), "loop")


def all_hold() -> GateResult:
    """Return a result where both checks hold."""
    return GateResult((holding(), fresh()), CONFIG, "memplan-baseline.json", seconds=0.25)
