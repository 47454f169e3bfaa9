"""The command that analyses many models under many settings, on many processors."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from memplan.cli.border import INTERRUPTED
from memplan.cli.options import DEBUG_OPTION, Named, Whole, dtype_names, runner_names, with_options
from memplan.cli.output import print_report, progress_bar, quiet
from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan.reports.row_files import Row

#: Exit code when rows say why their model could not be analysed.
SOME_FAILED: Final = 3

#: Exit code of a command that was asked to end, by a scheduler or ``timeout`` say, as shells have it.
TERMINATED: Final = 143


def _backends() -> Iterable[str]:
    from memplan.workers import BACKENDS

    return BACKENDS


def _several(name: str, metavar: str, text: str) -> Any:
    return click.option(name, metavar=metavar, multiple=True, help=text)


_ASKED: Final = (
    _several("--models", "SPEC,...|@FILE", "Models, or a file with one in each line; repeatable, as all lists are."),
    _several("--batch-sizes", "N,...", "Samples in a batch.  [default: 8]"),
    _several("--inputs", "SHAPE,...", "Inputs without the batch, such as 3x224x224.  [default: the model's own]"),
    _several("--methods", "NAME,...", "What memplan methods lists, or plan for the best plan.  [default: full]"),
    _several("--k", "N,...", "Blocks that train, for methods that take it.  [default: 5]"),
    _several("--budgets", "SIZE,...", "A row for each, which says whether the peak fits."),
    click.option(
        "--runner",
        type=Named("runner", lambda: (*runner_names(), "both")),
        help="Who runs the step.  [default: stock where it can]",
    ),
    click.option("--optimizers", "--optimizer", metavar="NAME,...", multiple=True, help="Who updates.  [default: sgd]"),
    click.option("--classes", type=Whole(), help="Classes of the head."),
    click.option("--dtype", type=Named("dtype", dtype_names), help="Of parameters, buffers and inputs."),
    click.option(
        "--amp", type=Named("autocast dtype", lambda: ("bf16", "fp16")), help="Run forward and loss under autocast."
    ),
    click.option("--train/--eval", "training", default=True, help="Mode of the models.  [default: train]"),
)
_RUN: Final = (
    click.option("--out", metavar="FILE", help="Where rows go as they are made: .jsonl, .csv or .parquet."),
    click.option("--force", is_flag=True, help="Start FILE anew; otherwise the rows that it has are not made again."),
    click.option("--jobs", type=Whole(), help="Processes, or workers of a Ray cluster.  [default: one for each CPU]"),
    click.option(
        "--backend", type=Named("backend", _backends), default="loky", show_default=True, help="Where they are."
    ),
    click.option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster, such as tcp://10.0.0.1:8786."),
    DEBUG_OPTION,
)


@click.command()
@with_options(_ASKED)
@with_options(_RUN)
@click.pass_obj
def sweep(
    switches: dict[str, bool],
    /,
    out: str | None,
    jobs: int | None,
    **options: Any,
) -> int:
    """Analyse every combination of models and settings, a row for each.

    Rows are in FILE as soon as they are made; the same command goes on where an interrupted one stopped. Exits with 0
    when all rows could be analysed, 3 when some say why not, 130 when interrupted, 143 when told to end.
    """
    if out is None:
        raise UsageError("no --out is given; write for example --out rows.jsonl")
    if jobs is not None and options["backend"] == "dask":
        raise UsageError(f"--jobs {jobs} is for this machine and for Ray; a Dask cluster has the workers that it has")
    asked: dict[str, Any] = {name: list(_split(options.pop(name))) for name in ("inputs", "budgets")}
    asked["models"] = list(_models(options.pop("models")))
    asked["methods"] = list(_split(options.pop("methods"))) or ["full"]
    asked["optimizers"] = list(_split(options.pop("optimizers"))) or ["sgd"]
    asked["batch_sizes"] = [_whole("--batch-sizes", text) for text in _split(options.pop("batch_sizes"))] or [8]
    asked["k"] = [_whole("--k", text) for text in _split(options.pop("k"))]
    rows: list[Row] = []
    told = [(0, 0)]

    def tell(done: int, total: int, model: str) -> None:
        told.append((done, total))
        show(done, total, model)

    try:
        with _terminated_as_interrupted(), quiet(switches), progress_bar("rows") as show:
            from joblib import cpu_count

            from memplan.sweeping import sweep as sweep_models

            many = cpu_count() if jobs is None else jobs
            rows.extend(sweep_models(**asked, **options, out=out, jobs=many, progress=tell))
    except KeyboardInterrupt as error:
        same = "the same command, without --force," if options["force"] else "the same command"
        click.echo(f"memplan: interrupted: {_kept(out)} in {out}; {same} makes the others", err=True)
        return TERMINATED if isinstance(error, _Terminated) else INTERRUPTED
    from memplan.reports.sweep import sweep_report

    print_report(sweep_report(rows, out, told[1][0]))
    return SOME_FAILED if any(row["error"] is not None for row in rows) else 0


class _Terminated(KeyboardInterrupt):
    """A request to end, which stops what an interrupt stops."""


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    def end(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _kept(out: str) -> str:
    """Return how many rows a file has, in words; the file knows, whatever an interrupt came into."""
    from memplan.reports.row_files import RowFile
    from memplan.reports.sizes import count
    from memplan.sweeping import COLUMNS

    with RowFile(Path(out), COLUMNS) as file:
        kept = len(file.rows)
    return f"{count(kept, 'row')} {'is' if kept == 1 else 'are'}"


def _split(values: Iterable[str]) -> Iterator[str]:
    """Yield what stands between commas."""
    for value in values:
        yield from (part.strip() for part in value.split(",") if part.strip())


def _whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option}: {text!r} is not a whole number; write for example {option} 1,8") from None


def _models(values: Iterable[str]) -> Iterator[str]:
    """Yield the specs that are given, and those in the files that are.

    Raises:
        UsageError: a file cannot be read.
    """
    for value in _split(values):
        if not value.startswith("@"):
            yield value
            continue
        try:
            lines = Path(value[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UsageError(
                f"cannot read the list of models {value[1:]!r}: {reason}; write one spec a line"
            ) from error
        yield from (spec for line in lines if (spec := line.partition("#")[0].strip()))
