"""The line of a configuration's file that an entry is written in, as far as the text tells it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

#: Strings of several lines, and what could be taken for the beginning of one.
_STRINGS: Final = re.compile(
    r"""(?P<several>\"{3}(?:\\.|[^\\])*?\"{3}|'{3}.*?'{3})|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*""", re.DOTALL
)


def line_of(text: str, table: Sequence[str], key: str | None = None, *, number: int | None = None) -> int | None:
    """Return the line, from 1 on, of a table's heading or of a key in it; ``None`` where it is not written that way.

    ``number`` counts the tables of an array, from 0 on.

    >>> line_of('[gate]\\nk = 1\\n[[gate.checks]]\\nname = "a"\\n', ("gate", "checks"), "name", number=0)
    4
    """
    path = r"\s*\.\s*".join(rf"[\"']?{re.escape(part)}[\"']?" for part in table)
    one, two = (r"\[", r"\]") if number is None else (r"\[\[", r"\]\]")
    heading = re.compile(rf"^\s*{one}\s*{path}\s*{two}\s*(#.*)?$")
    # What stands in a string is neither a heading nor a key.
    lines = _STRINGS.sub(lambda found: "\n" * found[0].count("\n") if found["several"] else found[0], text).split("\n")
    starts = [place for place, line in enumerate(lines) if heading.match(line)]
    if not table:
        start, inside = -1, lines
    elif len(starts) > (number or 0):
        start = starts[number or 0]
        inside = lines[start + 1 :]
    else:
        return None
    if key is None:
        return start + 1
    written = re.compile(rf"^\s*[\"']?{re.escape(key)}[\"']?\s*(\.|=)")
    for place, line in enumerate(inside, start + 2):
        if re.match(r"^\s*\[\[?\s*[A-Za-z0-9_\"'.\- ]+\]\]?\s*(#.*)?$", line):
            break
        if written.match(line):
            return place
    return start + 1 if table else None
