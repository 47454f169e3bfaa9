"""What goes to the user: reports and JSON on stdout or in files, progress on stderr, nothing of the libraries'."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from memplan.errors import AnalysisError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

#: The name that stands for stdout where a file is asked for.
TO_STDOUT: Final = "-"

#: Exit code when whoever reads stdout has gone, as shells have it for a broken pipe.
READER_GONE: Final = 141


def check_output(file: str | None) -> None:
    """Raise where the file that is asked for cannot be written."""
    if file is not None and file != TO_STDOUT:
        from memplan.reports.files import check_writable

        check_writable(Path(file))


def check_new(out: str, *, replace: bool) -> None:
    """Raise where the file that is asked for is there already.

    Raises:
        UsageError: it is.
    """
    if Path(out).exists() and not replace:
        raise UsageError(f"{out!r} is there already; name another file, or add --force")


def write_to_copy(heading: str, lines: Iterable[str]) -> None:
    """Write lines that are to be copied, and so neither wrapped nor cut, under an empty line and a heading."""
    write_stdout("".join(f"{line}\n" for line in ("", heading, *(f"  {line}" for line in lines))))


def write_text(file: str, contents: str | bytes) -> None:
    """Write text to stdout or, whole or not at all, to a file; bytes go to a file."""
    if file == TO_STDOUT and isinstance(contents, str):
        write_stdout(contents)
    else:
        from memplan.reports.files import write_whole

        write_whole(Path(file), contents)


class _Screen(io.StringIO):
    """Text that is to go to stdout, and what rich asks a terminal, answered as stdout would."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return _encoding()

    def isatty(self) -> bool:
        return sys.stdout is not None and sys.stdout.isatty()


def print_report(report: RenderableType) -> None:
    """Print a report: plain where nobody watches or ``NO_COLOR`` is set."""
    from rich.console import Console

    screen = _Screen()
    plain = bool(os.environ.get("NO_COLOR"))
    console = Console(file=screen, markup=False, emoji=False, highlight=False, color_system=None if plain else "auto")
    console.print(report)
    write_stdout(screen.getvalue())


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def write_stdout(text: str) -> None:
    """Write to stdout, where it is open; a reader that has gone away ends the command without a word."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text.encode(_encoding(), "replace").decode(_encoding()))
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
        raise click.exceptions.Exit(READER_GONE) from None
    except OSError as error:
        _drop_stdout()
        raise UsageError(f"cannot write to standard output: {error.strerror or error}") from error


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, so that Python does not fail on it while it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def quiet(switches: dict[str, bool]) -> Iterator[None]:
    """Keep libraries' warnings, logs and output away from the report; ``--debug`` shows them, on stderr.

    Errors that libraries log are left out too: torch logs a traceback of what memplan then tells in one line.
    """
    from memplan.descriptors import STDERR, stdout_away
    from memplan.sources.quiet import quietly

    with contextlib.ExitStack() as stack:
        stack.enter_context(stdout_away(STDERR if switches["debug"] else None))
        if switches["debug"]:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("default")
        else:
            stack.enter_context(quietly())
            stack.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.CRITICAL)
        try:
            yield
        except SystemExit as error:
            raise AnalysisError(f"the model's own code exits ({error.code}); remove its call of exit") from error


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield a function that tells what is being done, on a terminal and after the first second only."""
    from memplan.reports.progress import Progress

    progress = Progress(sys.stderr)
    try:
        yield progress.tell
    finally:
        progress.close()


@contextlib.contextmanager
def progress_bar(noun: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function that tells how many are done, of how many, and which: a bar, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(noun), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
