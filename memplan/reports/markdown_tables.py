"""The parts of Markdown reports: tables, lists of remarks, and details that are folded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from memplan.graph.records import Block
from memplan.memory import Footprint, LayerFootprint
from memplan.memory.accounting import Accounted
from memplan.reports.bars import BlockRun, block_bytes
from memplan.reports.console import DEFAULT_ALIVE, alive, at_peak, made_by, place
from memplan.reports.layers import total_bytes
from memplan.reports.markdown_signs import code, prose
from memplan.reports.sizes import count, elements, flops, size, unit_for
from memplan.results import MethodFootprint, PlannedSegment, Saving
from memplan.units import format_bytes

#: Layers and remarks that are named; the JSON has them all.
_NAMED: Final = 10

#: Rows of a table without an end of its own, such as blocks or points; the JSON has them all.
ROWS: Final = 50


@dataclass(frozen=True, slots=True)
class Cells:
    """A heading and the cells under it, which are Markdown; ``right`` for numbers."""

    heading: str
    cells: Sequence[str]
    right: bool = True


def table_lines(*columns: Cells) -> list[str]:
    """Return the lines of a table."""
    heads = " | ".join(column.heading for column in columns)
    sides = "|".join("--:" if column.right else "---" for column in columns)
    rows = (" | ".join(cells) for cells in zip(*(column.cells for column in columns), strict=True))
    return [f"| {heads} |", f"|{sides}|", *(f"| {row} |" for row in rows)]


def folded(summary: str, lines: Iterable[str]) -> list[str]:
    """Return lines that are shown when somebody opens their summary."""
    return [f"<details><summary>{prose(summary)}</summary>", "", *lines, "", "</details>", ""]


def more_lines(hidden: int, noun: str) -> list[str]:
    """Return what stands under a table that is not whole."""
    return ["", f"...and {count(hidden, noun)} more"] if hidden else []


def remark_lines(word: str, sentences: Sequence[str]) -> list[str]:
    """Return sentences as a list, each behind a word; only the first are named."""
    named = sentences if len(sentences) <= _NAMED + 1 else sentences[:_NAMED]
    hidden = len(sentences) - len(named)
    lines = [f"- {word}{prose(sentence)}" for sentence in named]
    lines += [f"- {word}...and {hidden:,} more"] if hidden else []
    return [*lines, ""] if lines else []


def named_treatments(treatments: Sequence[str], nothing: str = "") -> str:
    """Return treatments in a row, or ``nothing`` where there is none."""
    return prose(", ".join(treatments)) if treatments else nothing


def footprint_columns(prints: Sequence[Footprint]) -> Iterator[Cells]:
    """Yield the columns that tell footprints apart: bytes by kind, what trains, and the work."""
    unit = unit_for(max((footprint.peak_bytes for footprint in prints), default=0))
    for kind in ("saved", "temp", "resident", "peak"):
        yield Cells(kind, [format_bytes(getattr(each, f"{kind}_bytes"), unit=unit) for each in prints])
    yield Cells("trains", [elements(each.trained_parameters) for each in prints])
    yield Cells("FLOPs", [flops(each.flops_forward + each.flops_backward) for each in prints])


def accounted_details(rows: Sequence[tuple[MethodFootprint, Accounted]]) -> list[str]:
    """Return the bytes by a paper's own way to count, folded."""
    unit = unit_for(max(account.total_bytes for _, account in rows))
    kinds = (
        ("kept", "kept_bytes"),
        ("peak", "peak_bytes"),
        ("parameters", "parameter_bytes"),
        ("total", "total_bytes"),
    )
    lines = table_lines(
        Cells("", [prose(f"{method.runner} {method.label}") for method, _ in rows], right=False),
        *(Cells(name, [format_bytes(getattr(account, key), unit=unit) for _, account in rows]) for name, key in kinds),
    )
    notes = list(dict.fromkeys(note for _, account in rows for note in account.notes))
    title = f"By the accounting of {rows[0][1].accounting}, which is not what PyTorch needs"
    return folded(title, [*lines, "", *remark_lines("", notes)])


def peak_details(run: BlockRun) -> list[str]:
    """Return where a run peaks and the largest storages there, folded."""
    peak = run.footprint.peak
    unit = unit_for(peak.bytes)
    alive_there = at_peak(run.footprint)
    named = alive_there if len(alive_there) <= DEFAULT_ALIVE + 1 else alive_there[:DEFAULT_ALIVE]
    rows = [(format_bytes(each.bytes, unit=unit), each.kind, prose(made_by(each))) for each in named]
    if rest := alive_there[len(named) :]:
        size_bytes = sum(storage.bytes for storage in rest)
        rows.append((format_bytes(size_bytes, unit=unit), "", f"...and {len(rest):,} more"))
    lines = table_lines(
        Cells("bytes", [size for size, _, _ in rows]),
        Cells("kind", [kind for _, kind, _ in rows], right=False),
        Cells("made by", [maker for _, _, maker in rows], right=False),
    )
    return folded(f"Where {run.label} peaks: {place(peak)}", [prose(alive(peak, unit)), "", *lines])


def block_details(runs: Sequence[BlockRun], blocks: Sequence[Block]) -> list[str]:
    """Return saved bytes and the largest temp of each block in each run, folded; the last row is all of them."""
    rows = block_bytes(runs, blocks)
    shown = rows[:ROWS]
    columns = [Cells("block", [*(code(row.name) for row in shown), "all"], right=False)]
    unit = unit_for(max(sum(sizes) for sizes in zip(*(row.saved_bytes for row in rows), strict=True)) if rows else 0)
    for number, run in enumerate(runs):
        saved = [row.saved_bytes[number] for row in rows]
        temp = [row.temp_bytes[number] for row in rows]
        kept = [format_bytes(size_bytes, unit=unit) for size_bytes in (*saved[:ROWS], sum(saved))]
        most = [format_bytes(size_bytes, unit=unit) for size_bytes in (*temp[:ROWS], max(temp, default=0))]
        columns += [
            Cells(f"saved, {prose(run.label)}", kept),
            Cells(f"temp, {prose(run.label)}", [*most[:-1], f"max {most[-1]}"]),
        ]
    return folded("Blocks", [*table_lines(*columns), *more_lines(len(rows) - len(shown), "row")])


def layer_details(run: BlockRun) -> list[str]:
    """Return the layers that keep most, folded; the last row is all of them."""
    rows = sorted(run.footprint.layers, key=lambda layer: -layer.saved_bytes)
    shown = rows if len(rows) <= _NAMED + 1 else rows[:_NAMED]
    hidden = len(rows) - len(shown)
    unit = unit_for(max(map(total_bytes, rows), default=0))

    def sizes(heading: str, quantity: Callable[[LayerFootprint], int]) -> Cells:
        values = (*map(quantity, shown), sum(map(quantity, rows)))
        return Cells(heading, [format_bytes(value, unit=unit) for value in values])

    temps = [format_bytes(layer.temp_bytes, unit=unit) for layer in shown]
    largest = max((layer.temp_bytes for layer in rows), default=0)
    everything = f"all (...and {hidden:,} more)" if hidden else "all"
    lines = table_lines(
        Cells("layer", [*(code(layer.path or "(model)") for layer in shown), everything], right=False),
        Cells("type", [*(code(layer.type) for layer in shown), ""], right=False),
        sizes("saved", lambda layer: layer.saved_bytes),
        Cells("temp", [*temps, f"max {format_bytes(largest, unit=unit)}"]),
        sizes("gradient", lambda layer: layer.gradient_bytes),
        sizes("parameters", lambda layer: layer.parameter_bytes),
        sizes("state", lambda layer: layer.state_bytes),
    )
    return folded(f"Layers of {run.label}, by saved", lines)


def segment_details(segments: Sequence[PlannedSegment]) -> list[str]:
    """Return what a plan does to each segment, folded."""
    rows = segments[:ROWS]
    unit = unit_for(max((row.kept_bytes for row in segments), default=0))
    lines = table_lines(
        Cells("segment", [code(row.name) for row in rows], right=False),
        Cells("trains", ["yes" if row.trained else "no" for row in rows], right=False),
        Cells("keeps", [format_bytes(row.kept_bytes, unit=unit) for row in rows]),
        Cells("treatments", [named_treatments(row.treatments) for row in rows], right=False),
    )
    return folded("What each segment does", [*lines, *more_lines(len(segments) - len(rows), "segment")])


def channel_details(groups: Sequence[tuple[str, int, int]]) -> list[str]:
    """Return the groups that lose channels, folded; nothing where there is none."""
    rows = groups[:ROWS]
    lines = table_lines(
        Cells("group", [code(name) for name, _, _ in rows], right=False),
        Cells("kept", [f"{kept:,}" for _, kept, _ in rows]),
        Cells("of", [f"{channels:,}" for _, _, channels in rows]),
    )
    return folded("Channels kept", [*lines, *more_lines(len(groups) - len(rows), "group")]) if rows else []


def saving_details(savings: Sequence[Saving]) -> list[str]:
    """Return what each treatment bought, folded, the largest first; nothing where there is none."""
    rows = sorted(savings, key=lambda saving: -saving.bytes)
    lines = table_lines(
        Cells("", [prose(saving.treatment) for saving in rows], right=False),
        Cells("without it", [f"{'+' if saving.bytes >= 0 else '-'}{size(abs(saving.bytes))}" for saving in rows]),
        Cells("gradients", ["change" if saving.changes_gradients else "unchanged" for saving in rows], right=False),
    )
    return folded("What each saving bought", lines) if rows else []
