"""What a terminal shows of a sweep: the rows of each method, their smallest peak, what fits, and what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from memplan.methods import METHODS
from memplan.reports.layout import Column, Columns, Paragraph
from memplan.reports.row_files import Row
from memplan.reports.sizes import count, size

#: Reasons of failures that are listed; the file has all.
_SHOWN: Final = 10


def sweep_report(rows: Sequence[Row], out: str, there: int = 0) -> RenderableType:
    """Return what a terminal shows of a sweep's rows, which are in the file ``out``; ``there`` had been made before."""
    failed = [row for row in rows if row["error"] is not None]
    told = [f"{len(rows) - len(failed):,} analysed", f"{len(failed):,} failed"]
    told += [f"{there:,} made before"] if there else []
    parts: list[RenderableType] = [
        Paragraph(Text(f"{count(len(rows), 'row')} in {out}: {', '.join(told)}", style="bold"))
    ]
    if len(failed) < len(rows):
        parts += [Text(), _methods([row for row in rows if row["error"] is None])]
    if failed:
        parts += [Text(), Text("Failed", style="bold"), *_failures(failed)]
    return Group(*parts)


def _methods(rows: Sequence[Row]) -> Columns:
    """Return a line for each method under each runner, stock PyTorch's first."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=_order):
        groups.setdefault((str(row["runner"]), _label(row), str(row["optimizer"])), []).append(row)
    least = [
        min((row for row in group if row["peak_bytes"] is not None), key=_peak, default=None)
        for group in groups.values()
    ]
    budgets = sorted({int(row["budget_bytes"]) for row in rows if row["budget_bytes"] is not None})
    runners, labels, optimizers = (tuple(names) for names in zip(*groups, strict=True))
    several = len(set(optimizers)) > 1
    return Columns(
        (
            Column("", runners, right=False),
            Column("", labels, right=False),
            *([Column("", optimizers, right=False)] if several else []),
            Column("rows", tuple(f"{len(group):,}" for group in groups.values())),
            *(
                Column(f"fit {size(budget)}", tuple(_fitting(group, budget) for group in groups.values()))
                for budget in budgets
            ),
            Column("smallest peak", tuple("" if row is None else size(_peak(row)[0]) for row in least)),
            Column(
                "", tuple("" if row is None else _subject(row) for row in least), right=False, leaves=1, elastic=True
            ),
        )
    )


def _failures(rows: Sequence[Row]) -> Iterator[RenderableType]:
    """Yield a line for each model and reason, the most frequent first."""
    found = Counter((f"{row['model']}: {row['error']}") for row in rows).most_common()
    for text, times in found[:_SHOWN]:
        yield Paragraph(Text(f"{count(times, 'row')}  {text}"), indent=2)
    if len(found) > _SHOWN:
        yield Paragraph(Text(f"...and {len(found) - _SHOWN:,} more"), indent=2)


def _label(row: Row) -> str:
    return f"{row['method']}" if row["k"] is None else f"{row['method']} k={row['k']}"


def _subject(row: Row) -> str:
    words = [f"{row['model']}, batch {row['batch_size']}", *([] if row["input"] is None else [f"{row['input']}"])]
    return ", ".join(words)


def _order(row: Row) -> tuple[int, int, int, str]:
    known = list(METHODS)
    method = known.index(str(row["method"])) if row["method"] in METHODS else len(known)
    return int(row["runner"] != "stock"), method, int(row["k"] or 0), str(row["optimizer"])


def _peak(row: Row) -> tuple[int, str]:
    return int(row["peak_bytes"] or 0), _subject(row)


def _fitting(rows: Sequence[Row], budget: int) -> str:
    asked = [row for row in rows if row["budget_bytes"] == budget]
    return f"{sum(row['fits'] is True for row in asked):,} of {len(asked):,}" if asked else ""
