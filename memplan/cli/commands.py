"""The commands of memplan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from memplan import __version__
from memplan.cli.applying import apply
from memplan.cli.border import Commands
from memplan.cli.contents import of_analysis, of_verification, viewed_analysis
from memplan.cli.files import REPORTS, VIEWERS, file_options, take_files, write_files
from memplan.cli.from_plan import PlanGiven, check_model, notes_on, plan_given
from memplan.cli.gating import gate
from memplan.cli.options import (
    BARS_OPTION,
    K_OPTION,
    MACHINE_OPTIONS,
    METHOD_OPTION,
    MODEL_OPTIONS,
    PLAN_ARGUMENT,
    RUNNER_OPTION,
    STEP_OPTIONS,
    TREATMENT_OPTION,
    Named,
    Whole,
    accountings,
    check_k,
    check_runner,
    machine_asked,
    method_names_and_all,
    sorts,
    subject_options,
    with_options,
)
from memplan.cli.output import TO_STDOUT, print_report, progress_line, quiet, write_stdout
from memplan.cli.planning import diff, explain, pareto, plan
from memplan.cli.pruning import prune
from memplan.cli.sweeping import sweep
from memplan.errors import AnalysisError, UsageError

if TYPE_CHECKING:
    from memplan.results import Analysis, Verification

#: The methods that ``analyze`` lists when none is asked for: what flags alone do, and what is most worth applying.
DEFAULT_METHODS: Final = ("full", "top-k", "last", "lossless", "mobiletl", "tinytl-bias", "tune")


#: The same beside the plan for a budget.
METHODS_FOR_A_BUDGET: Final = ("full", "last", "lossless", "mobiletl", "tinytl-bias")


@click.group(
    name="memplan", cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message="memplan %(version)s")
def main() -> None:
    """What one training step of a PyTorch model needs in memory, before it is run.

    MODEL is a name (mobilenet_v3, resnet50), torchvision:NAME, timm:NAME, hf:MODEL_TYPE, a directory with a
    config.json, path/to/file.py:FACTORY or package.module:FACTORY.

    Exit codes: 0 something listed fits, or no budget is given; 1 nothing fits, a limit is exceeded, a measurement is
    outside the tolerance or the budget, or two plans differ; 2 the request is not understood or its output cannot be
    written; 3 a model cannot be analysed; 130 interrupted.
    """


@main.command()
@with_options(MODEL_OPTIONS)
@with_options((*STEP_OPTIONS, *MACHINE_OPTIONS))
@click.option("--budget", metavar="SIZE", help="Bytes that the peak must not exceed: 64MB is 64,000,000, 64MiB more.")
@click.option(
    "--method",
    "methods",
    type=Named("method", method_names_and_all),
    multiple=True,
    help="What trains, and how; repeatable; all is every method under both runners.  [default: a choice]",
)
@click.option(
    "--k", type=Whole(), multiple=True, help="Blocks that top-k and mobiletl train; repeatable.  [default: 5]"
)
@with_options((RUNNER_OPTION, TREATMENT_OPTION))
@click.option(
    "--accounting", type=Named("accounting", accountings), help="A paper's own way to count, beside the real bytes."
)
@click.option("--top", type=Whole(), help="Layers to list, and storages at the peak.")
@click.option("--sort", type=Named("order", sorts), default="saved", show_default=True, help="Which layers come first.")
@click.option("--strict", is_flag=True, help="Fail when anything could not be attributed or priced.")
@with_options((BARS_OPTION, *file_options(*REPORTS, *VIEWERS)))
@click.pass_obj
def analyze(
    switches: dict[str, bool],
    /,
    model: str,
    methods: tuple[str, ...],
    k: tuple[int, ...],
    treatments: tuple[str, ...],
    top: int | None,
    sort: str,
    strict: bool,
    bars: bool,
    **options: Any,
) -> int:
    """Show what MODEL needs, and whether it fits a budget.

    Bytes are those of one training step in steady state, for each way to fine-tune, run by stock PyTorch or by what
    memplan apply gives; nothing is run or downloaded.
    """
    files = take_files(options, (model,))
    if top is not None and top < 0:
        raise UsageError(f"--top must be 0 or more, not {top}")
    usual = DEFAULT_METHODS if options["budget"] is None else METHODS_FOR_A_BUDGET
    chosen = "all" if "all" in methods else methods or usual
    check_k(k, chosen)
    check_runner(options["runner"], chosen)
    with quiet(switches), progress_line() as progress, machine_asked(options):
        from memplan.analysis import analyze as analyze_model

        analysis: Analysis = analyze_model(
            model,
            methods=chosen,
            k=k or None,
            treatments=treatments,
            suggest=options["budget"] is not None,
            lenient=not methods,
            progress=progress,
            **subject_options(options),
        )
    write_files(files, of_analysis(analysis), label=viewed_analysis(analysis).label)
    if TO_STDOUT not in files.values():
        from memplan.reports.console import analysis_report

        print_report(analysis_report(analysis, top=top, sort=sort, bars=bars))
        if analysis.suggestion is not None or analysis.no_suggestion is not None:
            from memplan.reports.plan import suggestion_report

            print_report(suggestion_report(analysis, model))
    if strict and analysis.unpriced:
        raise AnalysisError(f"--strict: not priced: {'; '.join(analysis.unpriced)}")
    if strict and analysis.untreated:
        raise AnalysisError(f"--strict: without a rule, kept as stock does: {'; '.join(analysis.untreated)}")
    return 0 if analysis.fits else 1


@main.command()
@with_options((*MODEL_OPTIONS, PLAN_ARGUMENT))
@with_options(STEP_OPTIONS)
@with_options((METHOD_OPTION, K_OPTION, RUNNER_OPTION, TREATMENT_OPTION))
@click.option("--steps", type=Whole(), default=2, show_default=True, help="Real steps to run.")
@click.option("--rss", is_flag=True, help="Show the process's high-water mark too.")
@click.option("--seed", type=Whole(), default=0, show_default=True, help="Of random weights and inputs.")
@with_options(file_options(*REPORTS, *VIEWERS))
@click.pass_obj
def verify(
    switches: dict[str, bool],
    /,
    model: str,
    plan_file: str | None,
    method: str,
    k: int | None,
    treatments: tuple[str, ...],
    **options: Any,
) -> int:
    """Run real steps of MODEL, or of a PLAN file for it.

    What is measured is compared with the prediction: exits with 1 when saved bytes differ, a peak from the second step
    on is outside the tolerance, or a step does not fit the plan's budget. Batch size, input and optimizer are the
    plan's unless others are given.
    """
    files = take_files(options, (model, plan_file))
    given = None if plan_file is None else plan_given(plan_file, options)
    if given is None:
        check_k(() if k is None else (k,), (method,))
        check_runner(options["runner"], (method,))
    options = subject_options(options)
    with quiet(switches), progress_line() as progress:
        from memplan.verification import verify as verify_model

        if given is None:
            verification = verify_model(model, method=method, k=k, treatments=treatments, progress=progress, **options)
        else:
            verification = _verified(model, given, options, progress)
    write_files(files, of_verification(verification))
    if TO_STDOUT not in files.values():
        from memplan.reports.console import verification_report

        print_report(verification_report(verification))
    return 0 if verification.holds and verification.fits is not False else 1


def _verified(model: str, given: PlanGiven, options: dict[str, Any], progress: Callable[[str], None]) -> Verification:
    """Run the steps of a plan; what it was made for and is not as it was is among the notes."""
    from memplan.subject import subject_of
    from memplan.verification import verify as verify_model

    own = ("optimizer", "foreach", "steps", "rss", "seed", "runner")
    check_model(given, subject_of(model, **{name: value for name, value in options.items() if name not in own}))
    account = given.account
    if account is not None:
        options = {
            **options,
            "runner": account.runner,
            "budget": account.budget.bytes,
            "budget_of": account.budget.of,
        }
    found = verify_model(model, method=given.plan, progress=progress, **options)
    return replace(found, notes=(*given.notes, *notes_on(account, found.setting), *found.notes))


@main.command()
@with_options(MODEL_OPTIONS)
@with_options((METHOD_OPTION, K_OPTION, RUNNER_OPTION, TREATMENT_OPTION, *file_options("json")))
@click.pass_obj
def trace(
    switches: dict[str, bool],
    /,
    model: str,
    method: str,
    k: int | None,
    runner: str | None,
    treatments: tuple[str, ...],
    **options: Any,
) -> None:
    """Print the recorded step of MODEL, one operator per line."""
    files = take_files(options, (model,))
    check_k(() if k is None else (k,), (method,))
    check_runner(runner, (method,))
    with quiet(switches), progress_line() as progress:
        from memplan.methods import method_named
        from memplan.methods.method import runners_of
        from memplan.steps import Steps
        from memplan.subject import subject_of

        subject = subject_of(model, **subject_options(options))
        progress(f"recording {subject.name}: {method}")
        chosen = method_named(method)
        steps = Steps(subject)
        (who,) = runners_of(chosen, runner, treatments)
        step = steps.by_runner(who, chosen, steps.settled_k(chosen, k), treatments=treatments).step
    if files:
        from memplan.graph import to_json

        write_files(files, {"json": lambda: to_json(step)})
    else:
        write_stdout(f"{step}\n")


@main.command()
def methods() -> None:
    """List the methods: what trains, what changes, and the source."""
    from memplan.reports.console import methods_report

    print_report(methods_report())


for command in (apply, plan, pareto, explain, diff, prune, gate, sweep):
    main.add_command(command)
