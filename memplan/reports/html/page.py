"""A page: one HTML file with all that it needs, which asks nothing of any network and lets nothing in it be code."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from memplan.reports.html.embedded import to_script
from memplan.reports.html.sections import Heading, Section
from memplan.reports.sizes import elements, flops, size
from memplan.tables import plain
from memplan.units import format_bytes

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

#: Our own scripts, in the order in which they run, as one: each sees the functions of those before it.
SCRIPTS: Final = (
    "record.js",
    "elements.js",
    "later.js",
    "memory.js",
    "moment.js",
    "table.js",
    "bars.js",
    "layers.js",
    "network.js",
    "front.js",
    "sortable.js",
    "gate.js",
    "start.js",
)

#: The library that draws, see ``vendor/README.md``.
LIBRARY: Final = "charts.min.js"

#: Bytes and operations as sentences have them.
_SIZE: Final = re.compile(r"\d[\d,.]* (?:[KMG]?B|[kMGT]?FLOPs)\b")


def page(kind: str, heading: Heading, sections: Sequence[Section], data: dict[str, Any], version: str) -> str:
    """Return the text of a page, the same for the same record.

    Args:
        kind: what the page is about, in two or three words.
        heading: the lines at the top.
        sections: the parts, in their order.
        data: what the pictures are drawn from, see :mod:`memplan.reports.html.embedded`.
        version: memplan's.
    """
    library = _asset("vendor", LIBRARY)
    script = "\n".join(_asset("assets", name) for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}}})();\n'
    style = _asset("assets", "page.css")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"script-src {_digest(library)} {_digest(script)}; style-src {_digest(style)}"
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            kind=kind,
            heading=heading,
            sections=sections,
            data=to_script(data),
            version=version,
            library=library,
            script=script,
            style=style,
            policy=policy,
        )
    )


def _digest(text: str) -> str:
    """Return what a content security policy calls an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _shown(value: Any) -> Any:
    """Return what a template shows of a value: of a text that is not HTML already nothing that one would not see."""
    return plain(value) if type(value) is str else value


@cache
def _asset(folder: str, name: str) -> str:
    return (files("memplan.reports.html") / folder / name).read_text(encoding="utf-8")


def _in_unit(size_bytes: int, *, unit: str) -> str:
    """Return ``size_bytes`` in the unit of a table, or in its own where that would read as zero.

    >>> _in_unit(64_000, unit="MB"), _in_unit(48_200, unit="MB"), _in_unit(0, unit="MB")
    ('0.1 MB', '48.2 KB', '0.0 MB')
    """
    text = format_bytes(size_bytes, unit=unit)
    return size(size_bytes) if size_bytes and text.startswith("0.0 ") else text


def _unbroken(text: str) -> Markup:
    """Return a sentence as HTML, in which no line ends between a number and its unit."""
    from markupsafe import Markup, escape

    return Markup(_SIZE.sub(r'<span class="size">\g<0></span>', str(escape(plain(text)))))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda name: _asset("templates", name)),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "bytes": _in_unit,
        "size": size,
        "elements": elements,
        "flops": flops,
        "unbroken": _unbroken,
    }
    return environment
