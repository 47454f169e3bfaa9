"""The files that a command may write beside its report: checked before the work, written whole after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from memplan.cli.output import TO_STDOUT, write_text
from memplan.errors import UsageError


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file: a name for it in an example, what it is good for, and whether it may go to stdout."""

    example: str
    help: str
    to_stdout: bool = False

    @property
    def metavar(self) -> str:
        """What help shows for the file's name."""
        return "FILE|-" if self.to_stdout else f"FILE{Path(self.example).suffix}"


#: What each option writes, by its name.
KINDS: Final[dict[str, FileKind]] = {
    "json": FileKind("report.json", "Write JSON to FILE; - is stdout.", to_stdout=True),
    "markdown": FileKind("report.md", "Write Markdown for a pull request to FILE; - is stdout.", to_stdout=True),
    "html": FileKind("report.html", "Write a page with pictures, which needs nothing else."),
    "snapshot": FileKind("step.pickle", "Write the step for PyTorch's memory viewer."),
    "trace": FileKind("step.json", "Write the step for Perfetto or chrome://tracing."),
    "dot": FileKind("network.dot", "Write the network of blocks for Graphviz."),
    "graphml": FileKind("network.graphml", "Write the network of layers for Gephi, yEd or networkx."),
    "flamegraph": FileKind("peak.txt", "Write the bytes at the peak by module, for flamegraph.pl or speedscope."),
    "svg": FileKind("front.svg", "Draw the front; needs matplotlib."),
    "png": FileKind("front.png", "The same as pixels."),
}

#: Those that tell a result, and those that show one step to the viewers of others.
REPORTS: Final = ("json", "markdown", "html")
VIEWERS: Final = ("snapshot", "trace", "dot", "graphml", "flamegraph")

#: What writes each file, called when it is wanted.
Contents = Mapping[str, Callable[[], str | bytes]]


def file_options(*names: str) -> tuple[Callable[[Any], Any], ...]:
    """Return the options for files of these kinds."""
    return tuple(
        click.option(f"--{name}", f"{name}_file", metavar=KINDS[name].metavar, help=KINDS[name].help) for name in names
    )


def take_files(
    options: dict[str, Any], reads: Iterable[str | Path | None] = (), **others: str | None
) -> dict[str, str]:
    """Take the files out of a command's options and return them by kind, so that nobody waits in vain.

    Args:
        options: of the command; those of :func:`file_options` are taken out.
        reads: specs and files that the command reads, and so must not write.
        **others: further files that the command writes, by the names of their options.

    Raises:
        UsageError: a file cannot be written or is one that is read, or two options name the same one.
    """
    from memplan.reports.files import check_writable

    taken = {name: options.pop(f"{name}_file", None) for name in KINDS}
    files = {name: file for name, file in taken.items() if file is not None}
    named: dict[str, str] = {}
    for name, file in {**{name: file for name, file in others.items() if file is not None}, **files}.items():
        if file == TO_STDOUT and name in KINDS and not KINDS[name].to_stdout:
            raise UsageError(
                f"--{name} cannot be written to standard output; name a file, such as {KINDS[name].example}"
            )
        if file != TO_STDOUT:
            check_writable(Path(file))
            check_not_read(file, reads)
        place = file if file == TO_STDOUT else str(Path(file).resolve())
        if place in named:
            raise UsageError(f"--{named[place]} and --{name} name the same file {file!r}; name two")
        named[place] = name
    return files


def check_not_read(file: str, reads: Iterable[str | Path | None]) -> None:
    """Raise where a file that is to be written is one that the command reads.

    Args:
        file: what is to be written.
        reads: files, or specs such as ``net.py:make``.

    Raises:
        UsageError: it is.
    """
    for read in reads:
        if read is not None and Path(file).resolve() in (
            Path(read).resolve(),
            Path(str(read).partition(":")[0]).resolve(),
        ):
            raise UsageError(f"{file!r} would be written over, and is what the command reads; name another file")


def write_files(files: Mapping[str, str], contents: Contents, label: str = "") -> None:
    """Write the files that :func:`take_files` returned, each whole or not at all.

    ``label`` says whose step a viewer's file shows, where there are several; it is told on stderr.

    Raises:
        UsageError: a file cannot be written.
    """
    for name, file in files.items():
        write_text(file, contents[name]())
        if label and name in VIEWERS:
            click.echo(f"wrote {file}: --{name} of {label}", err=True)
