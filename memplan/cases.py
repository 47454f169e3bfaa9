"""What a sweep asks: the product of models and settings, one case for each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, TypeVar

from memplan.errors import UsageError, did_you_mean, known
from memplan.memory.optimizers import optimizer_rule
from memplan.methods import METHODS
from memplan.methods.method import RUNNERS, runners_of
from memplan.setting import budget_in_bytes
from memplan.shapes import format_shape, parse_shape
from memplan.sources import DTYPES
from memplan.subject import AMP_DTYPES

T = TypeVar("T")

#: The method that is memplan's planner, which answers for a budget.
PLAN: Final = "plan"


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of one row. ``None`` is the model's own input, classes and dtype, and k's default."""

    model: str
    batch_size: int
    input: str | None
    classes: int | None
    dtype: str | None
    amp: str | None
    mode: str
    optimizer: str
    method: str
    k: int | None
    runner: str
    budget_bytes: int | None


def cases_for(
    models: str | Sequence[str],
    *,
    batch_sizes: int | Sequence[int] = 8,
    inputs: str | Sequence[str] = (),
    methods: str | Sequence[str] = "full",
    k: int | Sequence[int] = (),
    budgets: int | str | Sequence[int | str] = (),
    runner: str | None = None,
    optimizers: str | Sequence[str] = "sgd",
    classes: int | None = None,
    dtype: str | None = None,
    amp: str | None = None,
    training: bool = True,
) -> tuple[Case, ...]:
    """Return a case for each combination, models first; what is given twice counts once.

    Args: see :func:`memplan.sweeping.sweep`.

    Raises:
        UsageError: a name or size that cannot be understood, or nothing to combine.
    """
    optimizers = _some("optimizer", "sgd", _texts(optimizers))
    for name in optimizers:
        optimizer_rule(name)
    subjects: Iterator[tuple[Any, ...]] = product(
        _some("model", "resnet50", tuple(map(_spec, _texts(models)))),
        _some("batch size", "8", _numbers("batch size", batch_sizes, 1)),
        dict.fromkeys(format_shape(parse_shape(shape)) for shape in _texts(inputs)) or (None,),
        (classes,),
        (_known("dtype", dtype, DTYPES),),
        (_known("autocast dtype", amp, tuple(AMP_DTYPES)),),
        ("train" if training else "eval",),
        optimizers,
    )
    ways: tuple[tuple[Any, ...], ...] = tuple(
        _ways(
            _some("method", "full", _texts(methods)),
            _numbers("k", k, 0),
            _known("runner", runner, (*RUNNERS, "both")),
            _budgets(budgets),
        )
    )
    return tuple(Case(*subject, *way) for subject in subjects for way in ways)


def _ways(
    methods: Sequence[str], k: Sequence[int], runner: str | None, budgets: Sequence[int]
) -> Iterator[tuple[str, int | None, str, int | None]]:
    """Yield what is asked about each model: method, k, runner and budget."""
    for name in methods:
        if name not in (*METHODS, PLAN):
            hint = did_you_mean(name, (*METHODS, PLAN)) or f"; choose from {', '.join((*METHODS, PLAN))}"
            raise UsageError(f"no method {name!r}{hint}")
    takers = [name for name, method in METHODS.items() if method.needs_k]
    if k and not set(takers) & set(methods):
        raise UsageError(f"k {k[0]} needs a method that trains k blocks; add {' or '.join(takers)}")
    if PLAN in methods and not budgets:
        raise UsageError("method plan needs a budget; write for example --budgets 64MB")
    able = [name for name in methods if runner != "stock" or name == PLAN or METHODS[name].flags]
    if not able:
        raise UsageError(f"stock PyTorch cannot run {', '.join(methods)} by requires_grad alone; use runner memplan")
    for name in able:
        counts = k if k and name in takers else (None,)
        yield from product((name,), counts, _runners(name, runner), budgets or (None,))


def _runners(name: str, runner: str | None) -> tuple[str, ...]:
    if name != PLAN:
        return runners_of(METHODS[name], runner)
    return RUNNERS if runner == "both" else ("memplan" if runner is None else runner,)


def _texts(values: str | Sequence[str]) -> tuple[str, ...]:
    """Return the values, or the one value, each once."""
    return tuple(dict.fromkeys([values] if isinstance(values, str) else values))


def _spec(model: str) -> str:
    try:
        model.encode()
    except UnicodeEncodeError:
        raise UsageError(f"model {model!a} is no UTF-8, which files of rows are; rename its file") from None
    return model


def _numbers(what: str, values: int | Sequence[int], least: int) -> tuple[int, ...]:
    several = tuple(dict.fromkeys([values] if isinstance(values, int) else values))
    for value in several:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{what} must be at least {least}, not {value!r}")
    return several


def _budgets(values: int | str | Sequence[int | str]) -> tuple[int, ...]:
    sizes = map(budget_in_bytes, [values] if isinstance(values, (int, str)) else values)
    return tuple(dict.fromkeys(size for size in sizes if size is not None))


def _some(what: str, example: str, values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise UsageError(f"no {what} is given; write for example {example}")
    return values


def _known(what: str, name: str | None, names: Sequence[str]) -> str | None:
    return None if name is None else known(what, name, names)
