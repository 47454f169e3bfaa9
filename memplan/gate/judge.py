"""Hold a reading to its limits: one sentence for each that fails, with the layer that is to blame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from memplan.gate.changes import changes_between, differences_between, first_change
from memplan.gate.records import Change, Check, Failure, Limits, Reading, Verdict, layer_name
from memplan.memory.parts import Measurand
from memplan.reports.sizes import size

#: How each quantity is called in a sentence.
QUANTITIES: Final[dict[Measurand, str]] = {
    "peak": "peak",
    "saved": "saved bytes",
    "temp": "temporary bytes",
}


def judged(
    check: Check,
    reading: Reading,
    baseline: Reading | None = None,
    *,
    require_baseline: bool = False,
    accept_growth: bool = False,
) -> Verdict:
    """Return the verdict on a reading, against a budget and against what the baseline says of the same check.

    Growth is not limited where it is accepted. A baseline of another quantity is none.
    """
    limits = replace(check.limits, max_growth=None) if accept_growth else check.limits
    other = baseline is not None and baseline.of != reading.of
    note: tuple[str, ...] = ()
    if baseline is not None and other:
        what = f"{QUANTITIES[baseline.of]}, not of its {QUANTITIES[reading.of]}"
        note = (f"{check.name}: the baseline is of its {what}: growth is not checked; write it with --update-baseline",)
        baseline = None
    changes = () if baseline is None else changes_between(baseline, reading)
    verdict = Verdict(
        check=check,
        reading=reading,
        baseline=baseline,
        limit_bytes=limit_of(limits, baseline),
        differences=() if baseline is None else tuple(differences_between(baseline, reading)),
        changes=changes,
    )
    verdict = replace(verdict, failures=tuple(_failures(verdict, limits, require_baseline)))
    compared = () if accept_growth else _comparison(verdict, missing=not other)
    return replace(verdict, notes=(*note, *compared, *_notes(verdict)))


def unanalysed(check: Check, reason: str, baseline: Reading | None = None) -> Verdict:
    """Return the verdict on a check whose model could not be analysed."""
    where = "" if check.place is None else f"{check.place}: "
    limit = limit_of(check.limits, baseline)
    return Verdict(check, None, baseline, limit, failures=(Failure("analysis", f"{where}{reason}"),))


def limit_of(limits: Limits, baseline: Reading | None) -> int | None:
    """Return the most bytes that a budget and a growth limit allow together; ``None`` where neither does."""
    allowed = [] if limits.budget_bytes is None else [limits.budget_bytes]
    if baseline is not None and limits.max_growth is not None:
        allowed.append(baseline.bytes + max(limits.max_growth.of(baseline.bytes), limits.min_growth_bytes))
    return min(allowed, default=None)


def growth_text(growth_bytes: int, before_bytes: int) -> str:
    """Return a change in bytes and in percent, signed.

    >>> growth_text(1_500_000, 100_000_000), growth_text(-200, 400), growth_text(0, 400)
    ('+1.5 MB (+1.50 %)', '-200 B (-50.00 %)', '0 B (0 %)')
    """
    if not growth_bytes:
        return "0 B (0 %)"
    sign = "-" if growth_bytes < 0 else "+"
    share = f" ({growth_bytes / before_bytes:+.2%})".replace("%", " %") if before_bytes else ""
    return f"{sign}{size(abs(growth_bytes))}{share}"


def _failures(verdict: Verdict, limits: Limits, require_baseline: bool) -> Iterator[Failure]:
    check, reading, baseline = verdict.check, verdict.reading, verdict.baseline
    assert reading is not None
    what = QUANTITIES[reading.of]
    budget = limits.budget_bytes
    if budget is not None and reading.bytes > budget:
        largest = max(reading.layers, key=lambda part: part.bytes, default=None)
        blame = (
            "" if largest is None else f"; the largest part, {size(largest.bytes)}, is of {layer_name(largest.layer)}"
        )
        already = (
            f"; the baseline's {size(baseline.bytes)} are above it already"
            if baseline is not None and baseline.bytes > budget
            else ""
        )
        more = size(reading.bytes - budget)
        yield Failure(
            "budget",
            f"the {what} of {check.name} is {size(reading.bytes)}, {more} above the budget of {size(budget)}"
            f"{blame}{already}",
        )
    if baseline is not None and limits.max_growth is not None:
        growth = reading.bytes - baseline.bytes
        if growth > limits.max_growth.of(baseline.bytes) and growth > limits.min_growth_bytes:
            yield Failure(
                "growth",
                f"the {what} of {check.name} grew from {size(baseline.bytes)} to {size(reading.bytes)}: "
                f"{growth_text(growth, baseline.bytes)}, where {limits.max_growth.text} is allowed{_blame(verdict)}",
            )
    if baseline is None and require_baseline:
        yield Failure("baseline", f"{check.name} has no baseline to compare with; write it with --update-baseline")
    if check.strict and reading.unpriced:
        yield Failure("unpriced", f"{check.name} is strict and not all is priced: {'; '.join(reading.unpriced)}")


def _blame(verdict: Verdict) -> str:
    grown = next((change for change in verdict.changes if change.growth_bytes > 0), None)
    if grown is None:
        return ""
    blame = f"; {layer_name(grown.layer)} grew most: +{size(grown.growth_bytes)}{_told(grown)}"
    if verdict.differences:
        return f"{blame}; what is asked differs: {'; '.join(verdict.differences)}"
    assert verdict.baseline is not None
    assert verdict.reading is not None
    first = first_change(verdict.changes, verdict.baseline, verdict.reading)
    if first is None or first.layer == grown.layer:
        return blame
    return f"{blame}; the first that differs is {layer_name(first.layer)}{_told(first)}"


def _told(change: Change) -> str:
    return f" ({', '.join(change.words)})" if change.words else ""


def _comparison(verdict: Verdict, *, missing: bool) -> Iterator[str]:
    """Yield what the baseline lacks, or has otherwise; where a check fails, its details have that."""
    check = verdict.check
    if missing and verdict.baseline is None and check.limits.max_growth is not None:
        yield f"{check.name}: no baseline, so that its growth is not checked; write it with --update-baseline"
    # Another torch is said once, for all checks.
    others = [each for each in verdict.differences if not each.startswith("torch ")]
    if verdict.holds and others:
        yield f"{check.name}: the baseline is of another setting: {'; '.join(others)}; accept it with --update-baseline"


def _notes(verdict: Verdict) -> Iterator[str]:
    check, reading = verdict.check, verdict.reading
    assert reading is not None
    if not check.strict and reading.unpriced:
        yield f"{check.name}: not priced: {'; '.join(reading.unpriced)}"
    if check.limits.budget_bytes is None and check.limits.max_growth is None:
        yield f"{check.name}: no limit is given; add a budget or max-growth"
