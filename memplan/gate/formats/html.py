"""A gate's result as one HTML page: the verdict, all checks, and what each is made of, now and in the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from memplan.gate.formats.contents import (
    closing,
    layer_name,
    layer_rows,
    named,
    shown_bytes,
    shown_share,
    signed,
    ways_back,
    word_of,
)
from memplan.gate.judge import QUANTITIES
from memplan.gate.records import Check, Failure, GateResult, LayerPart, Reading, Verdict
from memplan.reports.html.embedded import Run, Texts, runs_to_data
from memplan.reports.html.page import page
from memplan.reports.html.sections import (
    Figure,
    Heading,
    Section,
    Table,
    about_section,
    memory_section,
    network_section,
    sentence,
    summary_section,
)
from memplan.reports.sizes import count
from memplan.tables import plain

#: What the figures of the page mean.
WORDS: Final = (
    ("now", "the upper estimate, which limits are held against"),
    ("limit", "the most that budget and growth allow together"),
    ("baseline", "the upper estimate that growth is measured from"),
    ("predicted", "what the layers, the batch and the optimizer add up to; a little less than now"),
)


def html_text(result: GateResult, version: str) -> str:
    """Return the page of a gate's result; ``version`` is memplan's."""
    runs = tuple(_runs(result))
    sections = tuple(_sections(result, runs, version))
    return page("Memory gate", _heading(result), sections, _data(result, runs), plain(version))


@dataclass(frozen=True, slots=True)
class Meter:
    """Bars on one scale, in percent of its width: what is needed now and was before, and where each limit lies."""

    now: str
    baseline: str | None
    limits: tuple[tuple[str, str], ...]
    over: bool


def _heading(result: GateResult) -> Heading:
    against = "no baseline" if result.baseline is None else f"baseline {plain(result.baseline)}"
    return Heading(plain(result.config), (count(len(result.verdicts), "check"), against))


def _sections(result: GateResult, runs: tuple[Run, ...], version: str) -> Iterator[Section]:
    yield _summary(result)
    if result.verdicts:
        yield Section("checks", "All checks", {"checks": tuple(_rows(result))})
        if runs:
            yield memory_section([run.label for run in runs], "limit")
        details = tuple(_details(place, verdict, result) for place, verdict in enumerate(result.verdicts))
        yield Section("verdicts", "Check by check", {"checks": details})
        if runs:
            yield network_section()
    yield about_section(
        _facts(result, version),
        assumptions=("Sizes are upper estimates for the machine that is named, so that every machine gives the same.",),
        remarks=_remarks(result),
        words=WORDS,
    )


def _summary(result: GateResult) -> Section:
    good = True if result.holds else None if result.exit_code == 0 else False
    first, rest = named([_said(failure) for verdict in result.failing() for failure in verdict.failures])
    loud = () if result.baseline is not None else tuple(map(plain, result.notes[:1]))
    more = (f"...and {len(rest):,} more",) if rest else ()
    return summary_section(closing(result), (*loud, *first, *more), _figures(result), good=good)


def _said(failure: Failure) -> str:
    """Return a failure's sentence; that of a model that was not analysed begins with a path, which stays as it is."""
    said = plain(failure.sentence)
    return said if failure.kind == "analysis" else sentence(said)


def _nearest(result: GateResult) -> int | None:
    """Return the place of the check that is the farthest above its limit, or the nearest to it, if any has one."""
    measured = [
        (verdict.reading.bytes / verdict.limit_bytes, -place)
        for place, verdict in enumerate(result.verdicts)
        if verdict.reading is not None and verdict.limit_bytes
    ]
    return -max(measured)[1] if measured else None


def _figures(result: GateResult) -> Iterator[Figure]:
    """Yield what the check that is the farthest above its limit, or the nearest to it, needs and may need."""
    place = _nearest(result)
    if place is None:
        return
    verdict = result.verdicts[place]
    reading, limit = verdict.reading, verdict.limit_bytes
    assert reading is not None
    assert limit is not None
    spare = limit - reading.bytes
    about = f"{shown_bytes(spare)} to spare" if spare >= 0 else f"{shown_bytes(-spare)} above the limit"
    name = plain(verdict.check.name)
    yield Figure(f"{QUANTITIES[reading.of]} of {name}", reading.bytes, about)
    yield Figure(f"limit of {name}", limit)
    if verdict.baseline is not None:
        yield Figure(f"baseline of {name}", verdict.baseline.bytes, _growth(verdict) or "")


def _rows(result: GateResult) -> Iterator[dict[str, Any]]:
    for place, verdict in enumerate(result.verdicts):
        reading, baseline = verdict.reading, verdict.baseline
        yield {
            "place": place,
            "name": plain(verdict.check.name),
            "of": verdict.check.of,
            "limit": verdict.limit_bytes,
            "now": None if reading is None else reading.bytes,
            "baseline": None if baseline is None else baseline.bytes,
            "growth_bytes": verdict.growth_bytes,
            "growth": None if verdict.growth_bytes is None else signed(verdict.growth_bytes),
            "share": _share(verdict),
            "meter": _meter(verdict),
            "word": word_of(verdict, result),
        }


def _details(place: int, verdict: Verdict, result: GateResult) -> dict[str, Any]:
    reading = verdict.reading
    return {
        "place": place,
        "name": plain(verdict.check.name),
        "word": word_of(verdict, result),
        "sentences": [_said(failure) for failure in verdict.failures],
        "facts": tuple(_check_facts(verdict.check, reading)),
        "sizes": tuple((name, size) for name, size in _sizes(verdict) if size is not None),
        "meter": _meter(verdict),
        "drawn": reading is not None,
        "compared": reading is not None and verdict.baseline is not None,
        "layers": None if reading is None else _layers(reading),
        "differences": [plain(each) for each in verdict.differences],
        "changes": [
            {
                "layer": layer_name(change.layer),
                "type": plain(change.type),
                "before": change.before_bytes,
                "after": change.after_bytes,
                "growth_bytes": change.growth_bytes,
                "growth": signed(change.growth_bytes),
                "words": plain(", ".join(change.words)),
            }
            for change in verdict.changes
        ],
        "ways_back": ways_back(verdict) if verdict.sought else "",
        "remedies": [
            {
                "bytes": remedy.bytes,
                "gradients": remedy.gradients,
                "what": plain(remedy.what),
                "command": None if remedy.command is None else plain(remedy.command),
            }
            for remedy in verdict.remedies
        ],
        "notes": [plain(note) for note in verdict.notes],
    }


def _sizes(verdict: Verdict) -> Iterator[tuple[str, int | None]]:
    reading = verdict.reading
    yield "now", None if reading is None else reading.bytes
    yield "predicted", None if reading is None else reading.predicted_bytes
    yield "lower estimate", None if reading is None else reading.lower_bytes
    yield "limit", verdict.limit_bytes
    yield "budget", verdict.check.limits.budget_bytes
    yield "baseline", None if verdict.baseline is None else verdict.baseline.bytes


def _check_facts(check: Check, reading: Reading | None) -> Iterator[tuple[str, str]]:
    yield "model", plain(check.model)
    yield "quantity", QUANTITIES[check.of]
    if check.place is not None:
        yield "written in", plain(str(check.place))
    if check.limits.max_growth is not None:
        yield "growth allowed", plain(check.limits.max_growth.text)
    if check.limits.min_growth_bytes:
        yield "growth that never fails", shown_bytes(check.limits.min_growth_bytes)
    if check.strict:
        yield "strict", "fails where anything could not be priced"
    if reading is not None:
        yield "moment", plain(reading.where)
        yield "inputs", plain(", ".join(reading.inputs))
        yield "parameters in", plain(reading.dtype)
        yield "method", plain(f"{reading.runner} {reading.method}")
        yield "optimizer", plain(reading.optimizer)


def _layers(reading: Reading) -> Table:
    rows = layer_rows(reading)
    return Table(
        f"The largest layers of the {QUANTITIES[reading.of]}",
        ("layer", "type", "bytes", "share"),
        (False, False, True, True),
        tuple((row.name, row.type, shown_bytes(row.bytes), shown_share(row.share)) for row in rows),
    )


def _share(verdict: Verdict) -> str | None:
    share = verdict.growth_share
    return None if share is None else f"{share:+.2%}".replace("%", " %") if share else "0 %"


def _growth(verdict: Verdict) -> str | None:
    if verdict.growth_bytes is None:
        return None
    share = _share(verdict)
    return f"{signed(verdict.growth_bytes)}{'' if share is None else f' ({share})'} since then"


def _meter(verdict: Verdict) -> Meter | None:
    reading, baseline, limit = verdict.reading, verdict.baseline, verdict.limit_bytes
    if reading is None:
        return None
    # Where growth is the stricter limit, the budget is a line of its own.
    budget = verdict.check.limits.budget_bytes
    lines = {"limit": limit, **({} if budget == limit else {"budget": budget})}
    before = None if baseline is None else baseline.bytes
    sizes = [size for size in (reading.bytes, before, *lines.values()) if size is not None]
    whole = max(*sizes, 1) * 1.04

    def width(size_bytes: int) -> str:
        return f"{100 * size_bytes / whole:.2f}%"

    return Meter(
        width(reading.bytes),
        None if before is None else width(before),
        tuple((name, width(size)) for name, size in lines.items() if size is not None),
        limit is not None and reading.bytes > limit,
    )


def _facts(result: GateResult, version: str) -> Iterator[tuple[str, str]]:
    yield "configuration", plain(result.config)
    yield "baseline", "none" if result.baseline is None else plain(result.baseline)
    yield "checked in", f"{result.seconds:.1f} s"
    machines = dict.fromkeys(verdict.reading.machine for verdict in result.verdicts if verdict.reading is not None)
    for machine in machines:
        yield "device", plain(" ".join(filter(None, (machine.device, machine.instruction_set))))
        yield "threads", str(machine.threads)
        yield "torch", plain(machine.torch)
    yield "memplan", plain(version)


def _remarks(result: GateResult) -> Iterator[tuple[str, str]]:
    yield from (("note", plain(note)) for note in result.notes)
    yield from (("stale entry of the baseline, of no check", plain(name)) for name in result.stale)
    for verdict in result.verdicts:
        yield from (("note", plain(note)) for note in verdict.notes)
        if verdict.reading is not None:
            yield from (
                (f"not priced in {plain(verdict.check.name)}", plain(text)) for text in verdict.reading.unpriced
            )


def _data(result: GateResult, runs: tuple[Run, ...]) -> dict[str, Any]:
    texts = Texts()
    checks = [_check_data(verdict, texts) for verdict in result.verdicts]
    # Shown first are the check that is nearest to its limit, and the first way back.
    check = _nearest(result)
    nearest = [place for place, run in enumerate(runs) if run.model == check][:2]
    data = runs_to_data(runs, (), chosen=nearest or range(len(runs))[:1], texts=texts)
    return {**data, "gate": {"checks": checks}}


def _runs(result: GateResult) -> Iterator[Run]:
    """Yield the steps that verdicts have, each check's own before its ways back."""
    for place, verdict in enumerate(result.verdicts):
        check = verdict.check
        limit = verdict.limit_bytes if check.of == "peak" else None
        for step in (verdict.step, *(remedy.step for remedy in verdict.remedies)):
            if step is not None:
                yield Run(
                    plain(f"{check.name}: {step.label}"),
                    step.footprint,
                    check.optimizer,
                    step.implementation,
                    step.plan,
                    step.graph,
                    limit,
                    place,
                )


def _check_data(verdict: Verdict, texts: Texts) -> dict[str, Any] | None:
    """Return the layers of now and of the baseline as columns; ``None`` where the model was not analysed."""
    reading, baseline = verdict.reading, verdict.baseline
    if reading is None:
        return None
    now = {part.layer: part for part in reading.layers}
    before = {} if baseline is None else {part.layer: part for part in baseline.layers}
    paths = list(dict.fromkeys((*now, *before)))
    shown = [now.get(path) or before[path] for path in paths]
    return {
        "holds": verdict.holds,
        "of": QUANTITIES[reading.of],
        "predicted_bytes": reading.predicted_bytes,
        "rest_bytes": reading.rest_bytes,
        "before_predicted_bytes": None if baseline is None else baseline.predicted_bytes,
        "before_rest_bytes": None if baseline is None else baseline.rest_bytes,
        "layer": texts.places(map(plain, paths)),
        "type": texts.places(plain(part.type) for part in shown),
        "output": texts.places(plain(part.output) for part in shown),
        "bytes": _column("bytes", now, paths),
        "before_bytes": _column("bytes", before, paths),
        **{f"{kind}_bytes": _column(f"{kind}_bytes", now, paths) for kind in ("saved", "temp", "held")},
    }


def _column(name: str, parts: dict[str, LayerPart], paths: Iterable[str]) -> list[int | None]:
    return [getattr(parts[path], name) if path in parts else None for path in paths]
