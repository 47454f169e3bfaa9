"""Options and the types of their values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from memplan.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    IntType = click.ParamType[int]
    StrType = click.ParamType[str]
else:
    IntType = StrType = click.ParamType

Command = TypeVar("Command", bound=Callable[..., Any])


class Whole(IntType):
    """A whole number; whether it is a sensible one is for the function that takes it."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number; write for example 8", param, ctx)


class Share(click.ParamType):  # type: ignore[type-arg]
    """A part of a whole; whether it is a sensible one is for the function that takes it."""

    name = "SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number; write for example 0.3", param, ctx)


class WholeOrAuto(click.ParamType):  # type: ignore[type-arg]
    """A whole number, or ``auto``."""

    name = "N|auto"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002  # click's
        """Return what help shows."""
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return the number, or ``auto``."""
        if value == "auto":
            return "auto"
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor auto; write for example 8", param, ctx)


class Named(StrType):
    """One of a table's names, which are looked up when help or an answer is wanted, not when memplan starts."""

    def __init__(self, name: str, known: Callable[[], Iterable[str]]) -> None:
        self.name = name
        self._known = known

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002  # click's
        """Return the names, as help shows them."""
        return f"[{'|'.join(self._known())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """Return the name, or raise with the closest ones."""
        known = list(self._known())
        if value in known:
            return str(value)
        hint = did_you_mean(value, known) or f"; choose one of {', '.join(known)}"
        raise UsageError(f"no {self.name} {value!r}{hint}")


def runner_names() -> Iterable[str]:
    """Return who can run a step."""
    from memplan.methods.method import RUNNERS

    return RUNNERS


def dtype_names() -> Iterable[str]:
    """Return the names of dtypes."""
    from memplan.sources import DTYPES

    return DTYPES


def optimizer_names() -> Iterable[str]:
    """Return the names of all optimizers."""
    from memplan.memory import OPTIMIZERS

    return OPTIMIZERS


def method_names() -> Iterable[str]:
    """Return the names of all methods."""
    from memplan.methods import METHODS

    return METHODS


def method_names_and_all() -> Iterable[str]:
    """Return the names of all methods, and the word for all of them."""
    return (*method_names(), "all")


def accountings() -> Iterable[str]:
    """Return the published ways to count."""
    from memplan.memory.accounting import ACCOUNTINGS

    return ACCOUNTINGS


def instruction_sets() -> Iterable[str]:
    """Return the instruction sets that PyTorch has kernels for."""
    from memplan.graph.records import INSTRUCTION_SETS

    return INSTRUCTION_SETS


def sorts() -> Iterable[str]:
    """Return what layers can be sorted by."""
    from memplan.reports.layers import SORTS

    return SORTS


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001  # click's
    ctx.obj["debug"] = ctx.obj["debug"] or value


DEBUG_OPTION: Final = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Show tracebacks and the libraries' warnings.",
)
_MODEL: Final = click.argument("model")
_ABOUT_MODEL: Final = (
    click.option("--input", "input_shape", metavar="SHAPE", help="Input without the batch, such as 3x224x224 or 64."),
    click.option("--classes", type=Whole(), help="Classes of the head."),
    click.option("--dtype", type=Named("dtype", dtype_names), help="Of parameters, buffers and inputs."),
    click.option("--weights", metavar="FILE", help="Local .pt, .pth or .safetensors file that must fit the model."),
    click.option("--train/--eval", "training", default=None, help="Mode of the model.  [default: train]"),
    click.option(
        "--amp", type=Named("autocast dtype", lambda: ("bf16", "fp16")), help="Run forward and loss under autocast."
    ),
    click.option("--loss", metavar="SPEC", help="Function of the output: module:attr or file.py:attr."),
    DEBUG_OPTION,
)
MODEL_OPTIONS: Final = (
    _MODEL,
    click.option("--batch-size", type=Whole(), default=8, show_default=True, help="Samples in a batch."),
    *_ABOUT_MODEL,
)
PLANNED_MODEL_OPTIONS: Final = (
    _MODEL,
    click.option(
        "--batch-size",
        type=WholeOrAuto(),
        default=8,
        show_default=True,
        help="Samples in a batch; auto is as many as fit.",
    ),
    *_ABOUT_MODEL,
)
PLAN_ARGUMENT: Final = click.argument("plan_file", metavar="[PLAN]", required=False)
STEP_OPTIONS: Final = (
    click.option(
        "--optimizer", type=Named("optimizer", optimizer_names), default="sgd", show_default=True, help="Who updates."
    ),
    click.option("--foreach/--no-foreach", default=None, help="Update all parameters at once, or one by one."),
)
MACHINE_OPTIONS: Final = (
    click.option("--threads", type=Whole(), help="Of the machine that steps are priced for.  [default: as here]"),
    click.option(
        "--instruction-set",
        type=Named("instruction set", instruction_sets),
        help="Of that machine, whose kernels take more or less scratch.  [default: as here]",
    ),
)
#: The measures of a channel's importance, which torch is needed to look up.
IMPORTANCES: Final = ("l1", "l2", "bn-scale", "taylor", "fisher", "uniform")

#: Those that need data.
NEED_DATA: Final = ("taylor", "fisher")


class Importance(Named):
    """A measure's name, or a function of one's own."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or raise with the closest ones."""
        return value if ":" in value else super().convert(value, param, ctx)


def check_importance(importance: str, calibration: str | None) -> None:
    """Raise where a measure of importance lacks its data, or has data that it does not use.

    Raises:
        UsageError: it does.
    """
    if importance in NEED_DATA and calibration is None:
        raise UsageError(f"importance {importance!r} needs data; give --calibration FILE")
    if calibration is not None and importance not in NEED_DATA and ":" not in importance:
        raise UsageError(f"--calibration is for importance taylor or fisher, not {importance}; leave one of them out")


def calibration_from(file: str | None) -> Any:
    """Return the batches in a file, or ``None`` where none is given.

    Raises:
        UsageError: the file holds no batches.
    """
    if file is None:
        return None
    from memplan.transform.calibration import load_calibration

    return load_calibration(file)


PRUNING_OPTIONS: Final = (
    click.option(
        "--round-to", type=Whole(), default=8, show_default=True, help="Channels are kept in multiples of this."
    ),
    click.option(
        "--importance",
        type=Importance("importance", lambda: IMPORTANCES),
        default="l1",
        show_default=True,
        help="Which channels stay, or package.module:function.",
    ),
    click.option(
        "--calibration", metavar="FILE", help="Inputs and targets that torch.save wrote, for taylor and fisher."
    ),
    click.option("--keep", metavar="LAYER", multiple=True, help="A layer that is never pruned; repeatable."),
)
BARS_OPTION: Final = click.option("--bars", is_flag=True, help="Show saved and temp of each block as bars.")
METHOD_OPTION: Final = click.option(
    "--method", type=Named("method", method_names), default="full", show_default=True, help="What trains."
)
K_OPTION: Final = click.option("--k", type=Whole(), help="Blocks that train, from the output.  [default: 5]")
RUNNER_OPTION: Final = click.option(
    "--runner",
    type=Named("runner", runner_names),
    help="PyTorch with requires_grad alone, or what memplan apply gives.  [default: stock where it can]",
)
TREATMENT_OPTION: Final = click.option(
    "--treatment",
    "treatments",
    metavar="NAME",
    multiple=True,
    help="A further treatment of all layers, such as frozen-int8 or package.module:ATTRIBUTE; repeatable.",
)


def with_options(options: Iterable[Callable[[Any], Any]]) -> Callable[[Command], Command]:
    """Return a decorator that adds options to a command, in their order."""

    def add(command: Command) -> Command:
        for option in reversed(list(options)):
            command = option(command)
        return command

    return add


def subject_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as the library's functions take them."""
    shape, loss = options["input_shape"], options["loss"]
    if shape is not None:
        from memplan.shapes import parse_shape

        options["input_shape"] = parse_shape(shape)
    if loss is not None:
        from memplan.sources.from_python import import_function

        options["loss"] = import_function(loss, "--loss")
    return options


@contextlib.contextmanager
def machine_asked(options: dict[str, Any]) -> Iterator[None]:
    """Take the options of the machine out of ``options``, and price steps for it while the context lasts."""
    threads, instruction_set = options.pop("threads"), options.pop("instruction_set")
    if threads is None and instruction_set is None:
        yield
        return
    import torch

    from memplan.tracing.machine import machine_of, named_machine

    here = machine_of(torch.device("cpu"))
    with named_machine(here.threads if threads is None else threads, instruction_set or here.instruction_set):
        yield


def check_k(k: tuple[int, ...], methods: Iterable[str]) -> None:
    """Raise where a k is given and no method takes it."""
    from memplan.methods import METHODS

    takers = [name for name, method in METHODS.items() if method.needs_k]
    if k and methods != "all" and not set(takers) & set(methods):
        raise UsageError(f"--k {k[0]} needs a method that trains k blocks; add --method {' or '.join(takers)}")


def check_runner(runner: str | None, methods: Iterable[str]) -> None:
    """Raise where stock PyTorch is asked to run what it cannot, and nothing else."""
    from memplan.methods import METHODS

    if runner == "stock" and methods != "all" and not any(METHODS[name].flags for name in methods):
        named = ", ".join(methods)
        raise UsageError(f"stock PyTorch cannot run {named} by requires_grad alone; use --runner memplan")
