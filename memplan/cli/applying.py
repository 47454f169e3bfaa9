"""The command that makes a planned model and writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from memplan.cli.from_plan import PlanGiven, check_model, notes_on, plan_given
from memplan.cli.options import (
    K_OPTION,
    MODEL_OPTIONS,
    PLAN_ARGUMENT,
    STEP_OPTIONS,
    TREATMENT_OPTION,
    Named,
    Whole,
    check_k,
    method_names,
    subject_options,
    with_options,
)
from memplan.cli.output import print_report, progress_line, quiet, write_to_copy
from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan.memory import Footprint

WEIGHTS_FILE: Final = "model.pt"


@click.command()
@with_options((*MODEL_OPTIONS, PLAN_ARGUMENT))
@with_options(STEP_OPTIONS)
@click.option(
    "--method",
    type=Named("method", method_names),
    default="lossless",
    show_default=True,
    help="What trains, and how.",
)
@with_options((K_OPTION, TREATMENT_OPTION))
@click.option("--out", metavar="DIR", help=f"Directory for plan.json and {WEIGHTS_FILE}.")
@click.option("--force", is_flag=True, help="Replace the files in DIR.")
@click.option("--seed", type=Whole(), default=0, show_default=True, help="Of random weights.")
@click.pass_obj
def apply(
    switches: dict[str, bool],
    /,
    model: str,
    plan_file: str | None,
    method: str,
    k: int | None,
    treatments: tuple[str, ...],
    out: str | None,
    force: bool,
    seed: int,
    **options: Any,
) -> None:
    """Make MODEL train as a method or a PLAN file says.

    Its plan and weights are written to a directory, to be loaded by memplan.load_plan and torch.load. Weights are
    random unless --weights gives them. Batch size, input and optimizer are the plan's unless others are given.
    """
    from memplan.methods.plan import PLAN_FILE
    from memplan.reports.files import check_folder

    if out is None:
        raise UsageError("no --out is given; name a directory for the plan and the weights, such as --out plan")
    folder = Path(out)
    check_folder(folder, (PLAN_FILE, WEIGHTS_FILE), replace=force)
    given = None if plan_file is None else plan_given(plan_file, options)
    if given is None:
        check_k(() if k is None else (k,), (method,))
    if not 0 <= seed < 2**63:
        raise UsageError(f"a seed is a number from 0 to 2**63 - 1, not {seed}")
    optimizer, foreach = options.pop("optimizer"), options.pop("foreach")
    options = subject_options(options)
    python = _python(model, out, optimizer, options)
    with quiet(switches), progress_line() as progress:
        import torch

        from memplan.application import planned_by
        from memplan.memory import price
        from memplan.methods import METHODS
        from memplan.methods.plan import plan_to_json
        from memplan.reports.files import write_folder
        from memplan.results import MethodFootprint
        from memplan.setting import implementation_of, setting_of
        from memplan.steps import PlannedStep, Steps
        from memplan.subject import subject_of
        from memplan.transform.apply import apply_

        about = subject_of(model, **options)
        if given is not None:
            check_model(given, about)
        progress(f"building {about.name}")
        steps = Steps(about)
        how = implementation_of(foreach, steps.model.device.type)
        setting = setting_of(about, steps, optimizer, how)
        progress(f"recording {about.name}: stock full")
        full = price(steps.step(METHODS["full"]), optimizer, how)
        progress(f"recording {about.name}: memplan {method if given is None else given.plan.label}")
        notes: tuple[str, ...] = ()
        if given is None:
            made = planned_by(steps, method, k=k, treatments=treatments, optimizer=optimizer, implementation=how)
            text = plan_to_json(made.plan)
        else:
            made = PlannedStep(given.plan, steps.run(given.plan), "in-backward" if given.plan.fused_update else how)
            text, notes = given.text, (*given.notes, *notes_on(given.account, setting))
        plan = made.plan
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = apply_(about.built("cpu")[0], plan).state_dict()
        progress(f"writing {out}")

        def write_plan(path: Path) -> None:
            path.write_text(text, encoding="utf-8")

        def write_weights(path: Path) -> None:
            torch.save(state, path)

        write_folder(folder, {PLAN_FILE: write_plan, WEIGHTS_FILE: write_weights}, replace=force)
        rows = (
            MethodFootprint("full", None, "stock", full, None),
            MethodFootprint(
                plan.method,
                plan.k,
                "memplan",
                price(made.step, optimizer, made.implementation),
                None,
                plan.gradients,
                made.implementation,
                plan=plan,
            ),
        )
    from memplan.reports.planned import planned_report

    weights = options["weights"] or f"random (--seed {seed}); give --weights for trained ones"
    print_report(planned_report(setting, rows, str(weights)))
    if given is not None:
        from memplan.reports.plan import notes_report

        print_report(notes_report((*notes, *_beyond(given, rows[1].footprint))))
    write_to_copy("In Python:", python)


def _beyond(given: PlanGiven, footprint: Footprint) -> Iterator[str]:
    """Yield by how much a plan's step exceeds its budget here, with a larger batch say."""
    from memplan.planner.costs import quantity_of
    from memplan.reports.sizes import size

    if given.account is not None:
        budget = given.account.budget
        needed = quantity_of(footprint, budget.of)
        if needed > budget.bytes:
            more = size(needed - budget.bytes)
            yield f"this step needs {size(needed)}, {more} more than the plan's budget of {size(budget.bytes)}"


def _python(model: str, out: str, optimizer: str, options: dict[str, Any]) -> tuple[str, ...]:
    """Return the lines that load what was written; ``options`` are what decides the model's parameters."""
    told = "".join(f", {name}={options[name]!r}" for name in ("input_shape", "classes", "dtype") if options[name])
    kind = "sgd" if optimizer == "momentum" else optimizer
    more = ", momentum=0.9" if optimizer == "momentum" else ""
    return (
        f"model = memplan.apply({model!r}, memplan.load_plan({out!r}){told})",
        f"model.load_state_dict(torch.load({f'{out}/{WEIGHTS_FILE}'!r}))",
        f"optimizer = memplan.optimizer(model, {kind!r}, lr=0.01{more})",
    )
