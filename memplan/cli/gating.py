"""The command that holds every configured check to its limits, for continuous integration."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from memplan import __version__
from memplan.cli.files import check_not_read, file_options, take_files
from memplan.cli.options import DEBUG_OPTION, Named, Whole, method_names, optimizer_names, runner_names, with_options
from memplan.cli.output import TO_STDOUT, check_output, print_report, progress_bar, quiet, write_stdout, write_text
from memplan.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from memplan.gate.records import GateResult


def _formats() -> Iterable[str]:
    from memplan.gate.formats import FORMATS

    return FORMATS


def _measurands() -> Iterable[str]:
    from memplan.memory.parts import MEASURANDS

    return MEASURANDS


def _over(name: str, key: str, **options: Any) -> Any:
    """Return an option that takes the place of a key of every check, on the command line or in the environment."""
    own = key.replace("-", "_")
    return click.option(name, f"over_{own}", envvar=f"MEMPLAN_{own.upper()}", **options)


#: Options that take the place of what the configuration says, of every check or of the gate.
_OVERRIDES: Final = (
    _over("--budget", "budget", metavar="SIZE", help="Bytes that no check may exceed."),
    _over("--max-growth", "max-growth", metavar="N%|SIZE", help="Growth that is allowed: 2% or 1MB."),
    _over("--min-growth", "min-growth", metavar="SIZE", help="Growth up to which nothing fails."),
    _over("--of", "of", type=Named("quantity", _measurands), help="What is limited."),
    _over("--batch-size", "batch-size", type=Whole(), help="Samples in a batch."),
    _over("--method", "method", type=Named("method", method_names), help="What trains."),
    _over("--k", "k", type=Whole(), help="Blocks that train, for methods that take it."),
    _over("--runner", "runner", type=Named("runner", runner_names), help="Who runs the step."),
    _over("--optimizer", "optimizer", type=Named("optimizer", optimizer_names), help="Who updates."),
    _over("--strict/--no-strict", "strict", default=None, help="Fail where anything could not be priced."),
    _over("--threads", "threads", type=Whole(), help="Of the machine that steps are priced for."),
    _over("--instruction-set", "instruction-set", metavar="NAME", help="Of that machine: AVX2, AVX512 ..."),
    _over("--jobs", "jobs", type=Whole(), help="Models that are analysed at a time, each in a process.  [default: 1]"),
    _over("--baseline", "baseline", metavar="FILE", help="What growth is measured from."),
    _over("--require-baseline/--no-require-baseline", "require-baseline", default=None, help="Fail without one."),
)


@click.command()
@click.argument("names", metavar="[CHECK]...", nargs=-1)
@click.option(
    "--config", metavar="FILE", envvar="MEMPLAN_CONFIG", help="TOML with [tool.memplan].  [default: pyproject.toml]"
)
@with_options(_OVERRIDES)
@click.option("--baseline-ref", metavar="REF", envvar="MEMPLAN_BASELINE_REF", help="Git revision it is read from.")
@click.option("--update-baseline", is_flag=True, help="Accept what is needed now, and write the baseline.")
@click.option(
    "--format", "form", type=Named("format", _formats), default="console", show_default=True, help="Of what is printed."
)
@click.option("--out", "outs", metavar="FORMAT=FILE", multiple=True, help="Write a format to a file; repeatable.")
@with_options(file_options("html"))
@click.option("--suggest/--no-suggest", default=True, help="Look for ways back under a limit.  [default: suggest]")
@click.option("--warn-only", is_flag=True, help="Tell limits that fail as warnings, and exit with 0.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 whatever fails.")
@with_options((DEBUG_OPTION,))
@click.pass_obj
def gate(
    switches: dict[str, bool],
    /,
    names: tuple[str, ...],
    config: str | None,
    form: str,
    outs: tuple[str, ...],
    baseline_ref: str | None,
    update_baseline: bool,
    **options: Any,
) -> int:
    """Hold a project's checks to their memory limits.

    All of them, or the CHECKs that are named. They are written in pyproject.toml, under [[tool.memplan.checks]]. What
    is compared is the upper estimate, for a named machine, so that the bytes are the same everywhere. The command line
    comes before the environment (MEMPLAN_MAX_GROWTH and so on), that before the file. Exits with 0 when all hold, 1
    when a check fails, 2 when the configuration is wrong, 3 when a model cannot be analysed.
    """
    files = _files(outs, take_files(options))
    over = {name: options.pop(name) for name in list(options) if name.startswith("over_")}
    overrides = {
        name.removeprefix("over_").replace("_", "-"): value for name, value in over.items() if value is not None
    }
    if update_baseline and baseline_ref is not None:
        raise UsageError("--update-baseline writes the file, --baseline-ref reads a revision; leave one of them out")
    from memplan.gate.config import read_configuration

    configuration = read_configuration(None if config is None else Path(config), overrides, only=names)
    reads = (configuration.file, configuration.baseline, *(check.plan for check in configuration.checks))
    for file in files.values():
        check_not_read(file, (*reads, *(check.model for check in configuration.checks)))
    if update_baseline:
        check_output(str(configuration.baseline))
    with quiet(switches), progress_bar("checks") as progress:
        from memplan.gating import gate as run_gate

        result = run_gate(
            configuration,
            update_baseline=update_baseline,
            baseline_ref=baseline_ref,
            progress=progress,
            with_steps="html" in (form, *files),
            **options,
        )
    _tell(result, form, files)
    return result.exit_code


def _files(outs: Iterable[str], own: Mapping[str, str]) -> dict[str, str]:
    """Return the file of each format that is written to one; ``own`` are those that have an option of their own.

    Raises:
        UsageError: a format is unknown, or a file cannot be written or is named twice.
    """
    files = dict(own)
    for out in outs:
        form, equals, file = out.partition("=")
        if not equals or not file:
            raise UsageError(f"--out {out!r} names no format and file; write for example --out junit=report.xml")
        if form not in _formats():
            hint = did_you_mean(form, _formats()) or f"; choose one of {', '.join(_formats())}"
            raise UsageError(f"--out {out!r}: no format {form!r}{hint}")
        if file == TO_STDOUT:
            raise UsageError(f"--out {out!r}: stdout has the one report of --format; write --format {form}")
        if form in files or Path(file).resolve() in [Path(other).resolve() for other in files.values()]:
            raise UsageError(f"--out {out!r}: the format or the file is named twice; name each once")
        check_output(file)
        files[form] = file
    return files


def _tell(result: GateResult, form: str, files: Mapping[str, str]) -> None:
    from memplan.gate.formats import FORMATS

    if form == "console":
        from memplan.gate.formats.console import gate_report

        print_report(gate_report(result))
    else:
        write_stdout(FORMATS[form](result, __version__))
    # The verdict is known by now: a file that cannot be written after all hides neither it nor the other files.
    failed = [error for each, file in files.items() if (error := _written(file, FORMATS[each](result, __version__)))]
    if os.environ.get("GITHUB_ACTIONS") == "true":
        _tell_github(result, annotated=form == "github")
    if failed:
        raise failed[0]


def _written(file: str, text: str) -> UsageError | None:
    """Write a file; return why it could not be written."""
    try:
        write_text(file, text)
    except UsageError as error:
        return error
    return None


def _tell_github(result: GateResult, *, annotated: bool) -> None:
    """Annotate the pull request and write the job's summary; on stderr, so that what stdout is read for stays whole."""
    from memplan.gate.formats.github import annotations
    from memplan.gate.formats.markdown import summary

    if not annotated:
        click.echo(annotations(result), nl=False, err=True)
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if file:
        try:
            with open(file, "a", encoding="utf-8") as page:
                page.write(summary(result, __version__, used_bytes=page.tell()))
        except OSError as error:
            print(f"memplan: cannot write the job's summary {file!r}: {error.strerror}", file=sys.stderr)
