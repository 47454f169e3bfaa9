"""What a terminal shows of a plan's file: why this k, what binds, and what each saving bought."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from memplan.memory import Peak
from memplan.reports.console import alive, made_by, place
from memplan.reports.layout import Column, Columns
from memplan.reports.plan import (
    QUANTITIES,
    channel_table,
    kept_channels,
    savings_table,
    segment_table,
    step_lines,
    what_trains,
)
from memplan.reports.plan_file import Account
from memplan.reports.sentences import facts, machine, paragraph, remarks, title
from memplan.reports.sizes import count, elements, flops, size, unit_for
from memplan.units import format_bytes

#: The first thing that counts, for each preference, in words.
_PREFERENCES = {
    "k": "as many blocks as fit, then exact gradients, then nothing pruned, then little work",
    "accuracy-proxy": "exact gradients, then nothing pruned, then as many blocks as fit",
    "speed": "as little work as fits, then as many blocks as fit",
    "memory": "as many blocks as fit, then little memory",
}

#: Gaps below this are the solver's rounding.
_PROVEN = 1e-6


def explain_report(account: Account) -> RenderableType:
    """Return what a terminal shows of a plan's file."""
    plan, setting = account.plan, account.made_for
    parts: list[RenderableType] = [
        facts(setting),
        paragraph(f"optimizer {setting.optimizer}; {account.runner} runs the step; {machine(setting)}"),
        Text(),
        title(f"Why k is {_k(account)}: {what_trains(plan.k, len(account.blocks), account.segments)}"),
        *(paragraph(text, indent=2) for text in _why(account)),
        Text(),
        title(f"What binds: {_binding(account)}"),
        *_peak(account.predicted.peak),
        Text(),
        title("What each segment does"),
        segment_table(account.segments),
        *(paragraph(text, indent=2) for text in step_lines(plan)),
    ]
    if pruned := list(kept_channels(account.segments)):
        parts += [Text(), title("Channels kept"), *channel_table(pruned)]
    if account.savings:
        parts += [Text(), title("What each saving bought"), savings_table(account.savings)]
    parts += [Text(), title("Beside full fine-tuning by stock PyTorch"), _beside(account)]
    parts += [Text(), title("How it was found"), *(paragraph(text, indent=2) for text in _search(account))]
    parts += remarks("note", tuple(dict.fromkeys((*account.remarks, *plan.notes))))
    parts += remarks("as in stock PyTorch, for want of a rule", plan.untreated)
    return Group(*parts)


def _k(account: Account) -> str:
    return "none" if account.plan.k is None else str(account.plan.k)


def _why(account: Account) -> Iterator[str]:
    asked, budget = account.asked, account.budget
    quantity = QUANTITIES[budget.of]
    yield (
        f"the {quantity} is {size(account.predicted.bytes)} of {size(budget.bytes)}, "
        f"{size(account.margin_bytes)} to spare; preferred is {_PREFERENCES[account.prefer]}"
    )
    if asked.k is not None:
        yield f"--k {asked.k} asks for it"
    elif all(segment.trained for segment in account.segments):
        yield "nothing is left that could train"
    for upgrade in account.next:
        more = upgrade.bytes - budget.bytes
        if more > 0:
            yield f"{upgrade.what} would need {size(upgrade.bytes)}, {size(more)} more than the budget"
        else:
            yield f"{upgrade.what} would need {size(upgrade.bytes)}, within the budget: another bound binds"
    bounds = [
        *(["unchanged gradients (--lossless)"] if asked.lossless else []),
        *([f"at least {asked.min_k} blocks (--min-k)"] if asked.min_k is not None else []),
        *([f"at most {asked.max_flops} FLOPs (--max-flops)"] if asked.max_flops is not None else []),
        *([f"no {name} (--forbid)" for name in asked.forbid]),
        *([f"{name} allowed (--allow)" for name in asked.allow]),
        *([f"up to {asked.max_prune:.0%} of channels pruned (--max-prune)"] if asked.max_prune else []),
        *([f"{name} never pruned (--keep)" for name in asked.keep]),
    ]
    if bounds:
        yield f"asked for: {', '.join(bounds)}"


def _binding(account: Account) -> str:
    if account.budget.of == "kept":
        return f"what is kept for the backward, {size(account.predicted.saved_bytes)}"
    return f"the peak, in {place(account.predicted.peak)}"


def _peak(peak: Peak) -> Iterator[RenderableType]:
    unit = unit_for(peak.bytes)
    yield paragraph(alive(peak, unit), indent=2)
    if peak.alive:
        yield Columns(
            (
                Column("", tuple(format_bytes(storage.bytes, unit=unit) for storage in peak.alive)),
                Column("", tuple(storage.kind for storage in peak.alive), right=False),
                Column("", tuple(map(made_by, peak.alive)), right=False, elastic=True),
            ),
            indent=4,
        )


def _beside(account: Account) -> Columns:
    rows = (account.stock, account.predicted)
    unit = unit_for(max(row.peak_bytes for row in rows))
    return Columns(
        (
            Column("", ("stock full", f"{account.runner} {account.plan.label}"), right=False),
            Column("saved", tuple(format_bytes(row.saved_bytes, unit=unit) for row in rows)),
            Column("temp", tuple(format_bytes(row.temp_bytes, unit=unit) for row in rows), leaves=4),
            Column("resident", tuple(format_bytes(row.resident_bytes, unit=unit) for row in rows), leaves=3),
            Column("peak", tuple(format_bytes(row.peak_bytes, unit=unit) for row in rows)),
            Column("trains", tuple(elements(row.trained_parameters) for row in rows), leaves=1),
            Column("FLOPs", tuple(flops(row.flops) for row in rows), leaves=2),
        )
    )


def _search(account: Account) -> Iterator[str]:
    search = account.search
    yield f"reached: {', '.join(f'{name} {_reached(name, value)}' for name, value in search.score)}"
    proof = (
        "proven best by its model"
        if abs(search.gap) <= _PROVEN
        else f"within {search.gap:.2%} of the best, by its model"
    )
    yield f"{search.solver}: {proof}; the recorded step is {search.error:+.2%} off the model's bytes"
    yield (
        f"{count(search.recordings, 'plan')} recorded; the budget was missed and the search tightened "
        f"{'once' if search.repeats == 1 else f'{search.repeats} times'}"
    )


def _reached(aim: str, value: float) -> str:
    if aim == "memory":
        return size(int(value))
    return flops(int(value)).replace(" ", "") if aim == "work" else f"{value:,.6g}"
