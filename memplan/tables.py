"""Records as tables: HTML for notebooks, in which no text can act, and aligned columns."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final, TypeAlias

Value: TypeAlias = str | int | None

#: One row: keys are headings. Bytes are integers, so that a table of such rows can be computed with.
Record: TypeAlias = dict[str, Value]

#: Records that are shown; whoever needs all takes the records themselves.
SHOWN: Final = 40

#: What moves a terminal's cursor, breaks a line or turns the direction of writing; half a surrogate pair is no text.
UNSEEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Return ``text`` on one line: blanks for line breaks, and codes for what a reader would not see.

    >>> plain("a\\n b\\x1b[31m")
    'a b\\\\x1b[31m'
    """
    return UNSEEN.sub(seen, " ".join(text.split()))


def seen(found: re.Match[str]) -> str:
    """Return what stands for a character that is not seen: a blank for a line break, else its code."""
    return " " if found[0].isspace() else ascii(found[0])[1:-1]


@dataclass(frozen=True, slots=True)
class Table:
    """A sentence, and records under it that all have the same keys."""

    heading: str
    records: Sequence[Mapping[str, Value]]

    def html(self) -> str:
        """Return the table as HTML; names are text in it, whatever they are.

        >>> Table("<b>", [{"name": "a&b", "saved_bytes": 1_000}]).html().splitlines()[0]
        '<p>&lt;b&gt;</p>'
        """
        rows = [f"<tr>{''.join(map(_cell, record.values()))}</tr>" for record in self._shown]
        head = [f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in self._headings)}</tr>"] if rows else []
        table = ["<table>", "<thead>", *head, "</thead>", "<tbody>", *rows, "</tbody>", "</table>"] if rows else []
        more = [f"<p>{self._more}</p>"] if self._more else []
        return "\n".join([f"<p>{escape(plain(self.heading))}</p>", *table, *more])

    def text(self) -> str:
        """Return the table as lines of aligned columns."""
        rows = [self._headings, *([_written(value) for value in record.values()] for record in self._shown)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        numeric = [any(_is_number(record[name]) for record in self._shown) for name in self._keys]
        lines = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, numeric, strict=True)
            )
            for row in (rows if self.records else [])
        ]
        lines += [self._more] if self._more else []
        return "\n".join([plain(self.heading), *(f"  {line}".rstrip() for line in lines)])

    @property
    def _keys(self) -> list[str]:
        return list(self.records[0]) if self.records else []

    @property
    def _headings(self) -> list[str]:
        return [plain(key.replace("_", " ")) for key in self._keys]

    @property
    def _shown(self) -> Sequence[Mapping[str, Value]]:
        return self.records if len(self.records) <= SHOWN + 1 else self.records[:SHOWN]

    @property
    def _more(self) -> str:
        hidden = len(self.records) - len(self._shown)
        return f"...and {hidden:,} more" if hidden else ""


class Shown(ABC):
    """What notebooks show as a table."""

    __slots__ = ()

    @abstractmethod
    def _table(self) -> Table:
        """Return the table of what it knows."""

    def _repr_html_(self) -> str:
        return self._table().html()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:  # noqa: ARG002 - IPython's
        table = self._table()
        return {"text/plain": table.text(), "text/html": table.html()}


def _cell(value: Value) -> str:
    side = "right" if _is_number(value) else "left"
    return f'<td style="text-align: {side}">{escape(_written(value))}</td>'


def _written(value: Value) -> str:
    """Return a value as tables show it: ``1,000`` for a number, ``yes`` for what is true, nothing for ``None``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else plain(value or "")


def _is_number(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
