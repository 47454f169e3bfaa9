"""Untrusted text in Markdown: shown as it is, and neither formatting, nor linking, nor calling anybody.

What is no plain word stands in ``<code>``, with every sign that Markdown or HTML knows written as an entity.
"""

from __future__ import annotations

import re
from typing import Final

from memplan.tables import plain

#: The longest name that is shown whole.
_NAME: Final = 120

_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}

_PLAIN_NAME: Final = re.compile(r"[\w.,:;/()+=%\-]+(?: [\w.,:;/()+=%\-]+)*", re.ASCII)
_SIGNS: Final = re.compile(r"[!-/:-@\[-`{-~]")
_SIGNS_IN_TEXT: Final = re.compile(r"[&<>|`*_\[\]~\\$!]")

#: What addresses somebody, refers to an issue, becomes a link by itself, or begins a list or a heading: with an
#: invisible sign in between it does not. Nothing at all would make a heading of the line above.
_REFERENCES: Final = re.compile(
    r"(?<=[@#])(?=\w)|(?<=GH-)(?=\d)|(?<=:)(?=//)|(?<=www)(?=\.)|^(?=[-+=#]|\d{1,9}[.)](?:\s|$)|$)", re.IGNORECASE
)
_JOINER: Final = "\u2060"


def code(text: str) -> str:
    """Return an untrusted name as Markdown shows it in a table, a list or a heading.

    >>> code("features.0"), code("a|b")
    ('`features.0`', '<code>a&#124;b</code>')
    """
    name = _short(plain(text))
    if _PLAIN_NAME.fullmatch(name) and "://" not in name:
        return f"`{name}`"
    return code_html(text)


def code_html(text: str) -> str:
    """Return a name as HTML: Markdown is not read inside of a summary."""
    name = _short(plain(text)) or " "
    return f"<code>{_SIGNS.sub(_entity, name)}</code>"


def prose(text: str) -> str:
    """Return an untrusted sentence as Markdown shows it: nothing in it formats, links or calls anybody."""
    return _SIGNS_IN_TEXT.sub(_entity, _REFERENCES.sub(_JOINER, plain(text))).replace(_JOINER, f"&#{ord(_JOINER)};")


def _entity(found: re.Match[str]) -> str:
    return _ENTITIES.get(found[0]) or f"&#{ord(found[0])};"


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 23]}...{name[-20:]}"
