"""The option for a page with pictures, which several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from memplan.cli.output import TO_STDOUT
from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan.results import Analysis, Front, Planned, Verification

HTML_OPTION: Final = click.option(
    "--html", "html_file", metavar="FILE.html", help="Write a page with pictures to FILE, which needs nothing else."
)


def check_html(html_file: str | None, **others: str | None) -> None:
    """Raise where the page that is asked for cannot be written, or is another file that is asked for.

    Args:
        html_file: where the page goes, ``None`` where none is asked for.
        **others: the other files by the names of their options, such as ``json``.

    Raises:
        UsageError: it cannot, or is.
    """
    if html_file is None:
        return
    from memplan.reports.files import check_writable

    if html_file == TO_STDOUT:
        raise UsageError("--html - would write the page to standard output; name a file, such as report.html")
    path = Path(html_file)
    check_writable(path)
    for name, other in others.items():
        if other not in (None, TO_STDOUT) and Path(str(other)).resolve() == path.resolve():
            raise UsageError(f"--html and --{name.replace('_', '-')} name the same file {html_file!r}; name two")


def write_html(html_file: str | None, record: Analysis | Planned | Front | Verification) -> None:
    """Write the page of what a command found, whole or not at all; nothing where no page is asked for.

    Raises:
        UsageError: the file cannot be written.
    """
    if html_file is None:
        return
    from memplan import __version__
    from memplan.reports.files import write_whole
    from memplan.reports.html import analysis_page, front_page, planned_page, verification_page
    from memplan.results import Analysis, Front, Planned

    if isinstance(record, Analysis):
        text = analysis_page(record, __version__)
    elif isinstance(record, Planned):
        text = planned_page(record, __version__)
    elif isinstance(record, Front):
        text = front_page(record, __version__)
    else:
        text = verification_page(record, __version__)
    write_whole(Path(html_file), text)
