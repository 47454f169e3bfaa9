"""The command that prunes a network until the peak of its forward is low enough."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from memplan.cli.contents import of_pruning
from memplan.cli.files import file_options, take_files, write_files
from memplan.cli.options import (
    MODEL_OPTIONS,
    PRUNING_OPTIONS,
    Named,
    Share,
    calibration_from,
    check_importance,
    subject_options,
    with_options,
)
from memplan.cli.output import (
    TO_STDOUT,
    check_new,
    print_report,
    progress_line,
    quiet,
    write_to_copy,
)
from memplan.errors import UsageError


def _countings() -> Iterable[str]:
    from memplan.planner.counting import COUNTINGS

    return COUNTINGS


@click.command()
@with_options(MODEL_OPTIONS)
@click.option("--target-peak", "target", metavar="SIZE|-N%", help="The peak to reach: 2MB, or -65% of the present one.")
@click.option(
    "--counting",
    type=Named("counting", _countings),
    default="tinytl",
    show_default=True,
    help="A layer's input and output for one sample, or the allocator's peak of a step.",
)
@click.option("--max-prune", type=Share(), help="Of a layer's channels that may go, such as 0.5.")
@with_options(PRUNING_OPTIONS)
@click.option("--out", metavar="FILE", help="Write the plan, to be verified and applied.")
@click.option("--force", is_flag=True, help="Replace FILE.")
@with_options(file_options("json"))
@click.pass_obj
def prune(
    switches: dict[str, bool],
    /,
    model: str,
    target: str | None,
    importance: str,
    calibration: str | None,
    out: str | None,
    force: bool,
    **options: Any,
) -> None:
    """Prune the channels that set the peak of MODEL's forward.

    They go from the layer that needs most, until another one does, and so on. Everything trains in what is left. Exits
    with 1 when the target cannot be reached.
    """
    files = take_files(options, (model,), out=out)
    if target is None:
        raise UsageError("no --target-peak is given; write for example --target-peak -65%")
    if out is not None:
        check_new(out, replace=force)
    check_importance(importance, calibration)
    with quiet(switches), progress_line() as progress:
        from memplan.methods.plan import plan_to_json
        from memplan.pruning import prune as prune_model

        pruned = prune_model(
            model,
            target=target,
            importance=importance,
            calibration=calibration_from(calibration),
            progress=progress,
            **subject_options(options),
        )
    if out is not None:
        from memplan.reports.files import write_whole

        write_whole(Path(out), plan_to_json(pruned.plan))
    write_files(files, of_pruning(pruned))
    if TO_STDOUT not in files.values():
        from memplan.reports.pruned import pruned_report

        print_report(pruned_report(pruned))
        if out is not None:
            both = f"{shlex.quote(model)} {shlex.quote(out)}"
            write_to_copy(f"Written to {out}:", (f"memplan verify {both}", f"memplan apply {both} --out DIR"))
