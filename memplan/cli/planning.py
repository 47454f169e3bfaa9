"""The commands about plans: find one, show the front of all, explain one, compare two."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click

from memplan.cli.contents import of_front, of_plan
from memplan.cli.files import REPORTS, VIEWERS, file_options, take_files, write_files
from memplan.cli.options import (
    BARS_OPTION,
    MACHINE_OPTIONS,
    MODEL_OPTIONS,
    PLANNED_MODEL_OPTIONS,
    PRUNING_OPTIONS,
    STEP_OPTIONS,
    Named,
    Share,
    Whole,
    calibration_from,
    check_importance,
    machine_asked,
    runner_names,
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


def _treatments() -> Iterable[str]:
    from memplan.planner.terms import CHOSEN

    return CHOSEN


def _preferences() -> Iterable[str]:
    from memplan.planner.records import ORDERS

    return ORDERS


QUANTITY: Final = Named("quantity", lambda: ("peak", "activations", "kept"))
TERMS: Final = (
    click.option("--lossless", is_flag=True, help="Only what leaves the gradients as they are."),
    click.option(
        "--allow", type=Named("treatment", _treatments), multiple=True, help="A further treatment; repeatable."
    ),
    click.option(
        "--forbid", type=Named("treatment", _treatments), multiple=True, help="A treatment to do without; repeatable."
    ),
)


@click.command()
@with_options(PLANNED_MODEL_OPTIONS)
@with_options((*STEP_OPTIONS, *MACHINE_OPTIONS))
@click.option("--budget", metavar="SIZE", help="Bytes that must not be exceeded: 64MB is 64,000,000, 64MiB more.")
@click.option("--budget-of", type=QUANTITY, default="peak", show_default=True, help="What the budget is on.")
@click.option(
    "--prefer", type=Named("preference", _preferences), default="k", show_default=True, help="What counts most."
)
@click.option(
    "--runner",
    type=Named("runner", runner_names),
    default="memplan",
    show_default=True,
    help="Who runs the step: PyTorch with requires_grad alone, or what memplan apply gives.",
)
@with_options(TERMS)
@click.option("--k", type=Whole(), help="Blocks that train, from the output.  [default: as many as fit]")
@click.option("--min-k", type=Whole(), help="Blocks that must train.")
@click.option("--max-flops", metavar="FLOPS|Nx", help="Of a step: a number such as 30G, or 1.1x of stock full.")
@click.option("--max-prune", type=Share(), help="Of a layer's channels that may be pruned, such as 0.3.")
@with_options(PRUNING_OPTIONS)
@click.option("--fix", type=Named("quantity to fix", lambda: ("batch-size",)), help="Keep the batch size: the default.")
@click.option("--out", metavar="FILE", help="Write the plan, to be explained, verified and applied.")
@click.option("--force", is_flag=True, help="Replace FILE.")
@with_options((BARS_OPTION, *file_options(*REPORTS, *VIEWERS)))
@click.pass_obj
def plan(
    switches: dict[str, bool],
    /,
    model: str,
    budget: str | None,
    fix: str | None,
    out: str | None,
    force: bool,
    bars: bool,
    **options: Any,
) -> None:
    """Find the best plan for MODEL within a budget.

    Exits with 1 when nothing that is allowed fits. What is printed is the plan's own recorded step.
    """
    files = take_files(options, (model,), out=out)
    if budget is None:
        raise UsageError("no --budget is given; write for example --budget 64MB")
    if out is not None:
        check_new(out, replace=force)
    _check(options, fix)
    asked = _asked(model, options)
    with quiet(switches), progress_line() as progress, machine_asked(options):
        from memplan.planning import plan as find_plan

        calibration = calibration_from(options.pop("calibration"))
        planned = find_plan(
            model, budget=budget, calibration=calibration, progress=progress, **subject_options(options)
        )
    from memplan.reports.plan_file import Asked, plan_file

    told = Asked(**asked)
    if out is not None:
        from memplan.reports.files import write_whole

        write_whole(Path(out), plan_file(planned, told))
    write_files(files, of_plan(planned, told))
    if TO_STDOUT not in files.values():
        from memplan.reports.plan import plan_report

        print_report(plan_report(planned, bars=bars))
        if out is not None:
            file = shlex.quote(out)
            both = f"{shlex.quote(model)} {file}"
            lines = (f"memplan explain {file}", f"memplan verify {both}", f"memplan apply {both} --out DIR")
            write_to_copy(f"Written to {out}:", lines)


@click.command()
@with_options(MODEL_OPTIONS)
@with_options((*STEP_OPTIONS, *MACHINE_OPTIONS))
@click.option("--of", type=QUANTITY, default="peak", show_default=True, help="What of the memory counts.")
@with_options(TERMS)
@click.option("--points", type=Whole(), default=16, show_default=True, help="Plans at most; each is recorded.")
@with_options(file_options("svg", "png", *REPORTS))
@click.pass_obj
def pareto(
    switches: dict[str, bool],
    /,
    model: str,
    **options: Any,
) -> None:
    """Show memory against k, FLOPs and exact gradients for MODEL.

    Each point is a plan that no other plan beats in all of them, with the bytes of its own recorded step.
    """
    files = take_files(options, (model,))
    if pictures := [file for name, file in files.items() if name in ("svg", "png")]:
        from memplan.reports.front_picture import check_pictures

        for file in pictures:
            if Path(file).exists() and not Path(file).is_file():
                raise UsageError(f"cannot draw to {file!r}: it is no regular file; name another one")
        check_pictures()
    with quiet(switches), progress_line() as progress, machine_asked(options):
        from memplan.front import pareto as find_front

        front = find_front(model, progress=progress, **subject_options(options))
    write_files(files, of_front(front))
    if TO_STDOUT not in files.values():
        from memplan.reports.front import front_report

        print_report(front_report(front))


@click.command()
@click.argument("plan")
def explain(plan: str) -> None:
    """Explain a PLAN file: why this k, and what each saving bought."""
    from memplan.reports.explain import explain_report
    from memplan.reports.plan_file import read_account

    print_report(explain_report(read_account(plan)))


@click.command()
@click.argument("first")
@click.argument("second")
def diff(first: str, second: str) -> int:
    """Show what differs between two plan files.

    Exits with 0 when nothing does and 1 when something does, as diff does.
    """
    from memplan.reports.diff import diff_report, differences
    from memplan.reports.plan_file import read_plan

    found = differences(*(read_plan(path)[:2] for path in (first, second)))
    print_report(diff_report(found, (first, second)))
    return 1 if found else 0


def _check(options: dict[str, Any], fix: str | None) -> None:
    """Raise where options contradict each other or cannot be read, before a model is built.

    Raises:
        UsageError: they do.
    """
    from memplan.planner.terms import flops_limit, terms_of

    importance, calibration = options["importance"], options["calibration"]
    if fix is not None and options["batch_size"] == "auto":
        raise UsageError("--fix batch-size is given with --batch-size auto; leave one of them out")
    if options["runner"] == "stock":
        lossy = [f"--allow {name}" for name in options["allow"]] + (["--max-prune"] if options["max_prune"] else [])
        if lossy:
            raise UsageError(f"--runner stock cannot do {lossy[0]}; use --runner memplan, or leave it out")
    terms = terms_of(**{name: options[name] for name in ("lossless", "allow", "forbid", "max_prune")})
    check_importance(importance, calibration)
    if (calibration is not None or options["keep"]) and not terms.max_prune:
        what = "--calibration" if calibration is not None else "--keep"
        raise UsageError(f"{what} is about pruning, which is not allowed; add --max-prune 0.3")
    flops_limit(options["max_flops"], 1)


def _asked(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return what a plan's file says of the request, before options are resolved."""
    from memplan.shapes import parse_shape

    model_options = ("classes", "dtype", "weights", "loss")
    bounds = ("k", "min_k", "max_flops", "max_prune", "lossless", "allow", "forbid", "keep")
    shape = options["input_shape"]
    return {
        "spec": model,
        "input_shape": None if shape is None else parse_shape(shape),
        "importance": options["importance"] if options["max_prune"] or "prune" in options["allow"] else None,
        **{name: options[name] for name in (*model_options, *bounds)},
    }
