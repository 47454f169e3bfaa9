"""What is shown of a network that was pruned to a peak: the answer first, then which channels it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from memplan.reports.layout import Column, Columns
from memplan.reports.sentences import facts, machine, paragraph, remarks, title
from memplan.reports.sizes import count, elements, unit_for
from memplan.results import Bottleneck, PruneResult, ShrunkGroup
from memplan.units import format_bytes

PRUNED_SCHEMA: Final = "memplan.pruned/1"

#: Layers that are listed as those that set the peak; the first ones tell most.
_SHOWN_BOTTLENECKS: Final = 12

#: What a peak is, in words, by counting.
_PEAKS: Final = {
    "tinytl": "what one layer needs for its input and output, by TinyTL's count, which is not what PyTorch needs",
    "real": "the allocator's, of the step in which the head alone trains",
}


def pruned_report(pruned: PruneResult) -> RenderableType:
    """Return what a terminal shows of a pruned network."""
    parts: list[RenderableType] = [
        facts(pruned.setting),
        paragraph(f"{machine(pruned.setting)}; pruned in {pruned.seconds:.1f} s"),
        Text(),
        title(
            f"Pruned: the peak{_per(pruned)} falls from {_size(pruned.before.peak_bytes)} to "
            f"{_size(pruned.after.peak_bytes)} ({_change(pruned.before.peak_bytes, pruned.after.peak_bytes)})",
            "bold green",
        ),
        *(paragraph(text, indent=2) for text in _facts_of(pruned)),
        Text(),
        title("Channels kept"),
        _channels(pruned.groups),
        Text(),
        title("What set the peak, in order"),
        *_bottlenecks(pruned.bottlenecks),
        *remarks("note", pruned.notes),
    ]
    return Group(*parts)


def pruned_to_json(pruned: PruneResult, version: str) -> dict[str, Any]:
    """Return everything that is known of a pruned network but its plan's indices, as JSON's own types.

    ``version`` is memplan's.
    """
    return {
        "schema": PRUNED_SCHEMA,
        "memplan": version,
        "made_for": {**asdict(pruned.setting), "inputs": list(pruned.setting.inputs)},
        "counting": pruned.counting,
        "samples": pruned.samples,
        "target_bytes": pruned.target_bytes,
        "before": asdict(pruned.before),
        "after": asdict(pruned.after),
        "importance": pruned.importance,
        "importance_lost": pruned.lost,
        "groups_measured": pruned.groups_measured,
        "groups": [asdict(group) for group in pruned.groups],
        "bottlenecks": [asdict(bottleneck) for bottleneck in pruned.bottlenecks],
        "seconds": round(pruned.seconds, 3),
        "notes": list(pruned.notes),
    }


def _facts_of(pruned: PruneResult) -> Iterator[str]:
    before, after = pruned.before, pruned.after
    yield f"the target is {_size(pruned.target_bytes)}; the largest need is now {after.peak_layer or '(model)'}'s"
    yield f"a peak is {_PEAKS[pruned.counting]}"
    if pruned.counting == "tinytl":
        yield (
            f"total, of parameters and {count(pruned.samples, 'such peak')}: {_size(before.total_bytes, 1)} to "
            f"{_size(after.total_bytes, 1)} ({_change(before.total_bytes, after.total_bytes)})"
        )
    gone = sum(group.channels - group.kept for group in pruned.groups)
    yield (
        f"{elements(before.parameters)} parameters to {elements(after.parameters)}; "
        f"{count(gone, 'channel')} of {count(len(pruned.groups), 'group')} went"
    )
    yield (
        f"importance lost: {pruned.lost:.1%}, the mean over {count(pruned.groups_measured, 'group')}, by "
        f"{pruned.importance}"
    )


def _channels(groups: Sequence[ShrunkGroup]) -> Columns:
    return Columns(
        (
            Column("", tuple(group.name for group in groups), right=False, elastic=True),
            Column("kept", tuple(str(group.kept) for group in groups)),
            Column("of", tuple(str(group.channels) for group in groups)),
            Column("importance lost", tuple(f"{group.lost:.1%}" for group in groups), leaves=1),
        )
    )


def _bottlenecks(found: Sequence[Bottleneck]) -> Iterator[RenderableType]:
    shown = found[:_SHOWN_BOTTLENECKS] if len(found) > _SHOWN_BOTTLENECKS + 1 else found
    yield Columns(
        (
            Column("", tuple(each.layer or "(model)" for each in shown), right=False, elastic=True),
            Column("peak", tuple(_size(each.peak_bytes) for each in shown)),
        )
    )
    if len(shown) < len(found):
        yield paragraph(f"...and {len(found) - len(shown)} more", indent=2)


def _per(pruned: PruneResult) -> str:
    return " per sample" if pruned.counting == "tinytl" else ""


def _size(size_bytes: int, digits: int = 3) -> str:
    unit = unit_for(size_bytes)
    return format_bytes(size_bytes, unit=unit, digits=digits if unit == "MB" else 1)


def _change(before: int, after: int) -> str:
    return f"{after / before - 1:+.1%}"
