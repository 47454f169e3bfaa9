"""What a test reads from a page that is open: its data, and the figures that one sees."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

from memplan.units import format_bytes


def data_of(page: Any) -> dict[str, Any]:
    """Return the data that the page was drawn from."""
    return json.loads(page.locator("#memplan-data").text_content())


def series_of(run: dict[str, Any], kinds: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the bytes of each kind alive at each moment, summed up from a run's allocations."""
    count = sum(moments for _, moments in run["phases"])
    changes = {kind: [0] * (count + 1) for kind in kinds}
    given = run["allocations"]
    for size, kind, first, last in zip(given["bytes"], given["kind"], given["first"], given["last"], strict=True):
        changes[kinds[kind]][first] += size
        changes[kinds[kind]][last + 1] -= size
    return {kind: tuple(accumulate(change))[:-1] for kind, change in changes.items()}


def figures(page: Any, selector: str = "body") -> list[int]:
    """Return the exact bytes of all figures in view below ``selector``, each checked against the text that is shown."""
    shown = page.locator(f"{selector} data:visible").evaluate_all(
        "all => all.map(each => [Number(each.value), each.textContent])"
    )
    for size, text in shown:
        assert text == format_bytes(size, unit=text.rpartition(" ")[2])
    return [size for size, _ in shown]


def table(page: Any, selector: str) -> list[list[str]]:
    """Return the texts of the rows of a table's body."""
    return page.locator(f"{selector} tbody tr").evaluate_all(
        "all => all.map(row => [...row.cells].map(c => c.innerText))"
    )


def name_of(node: Any) -> str:
    """Return the name of a block in the graph, which its description begins with."""
    return str(node.locator("title").text_content()).split(",")[0]
