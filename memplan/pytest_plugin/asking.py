"""What a test's markers ask for: the options of a check, read before the test runs so that a typo costs nothing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest

from memplan.errors import UsageError, did_you_mean
from memplan.pytest_plugin.settings import Settings


@dataclass(frozen=True, slots=True)
class Marker:
    """One marker: the option of a check that its only positional argument is, as text for an example."""

    option: str
    example: str
    help: str


MARKERS: Final[dict[str, Marker]] = {
    "limit_training_memory": Marker(
        "limit", "64MB", "fail the test if one training step of its model needs more than the size."
    ),
    "max_training_memory_growth": Marker(
        "max_growth", "2%", "fail the test if one training step of its model needs that much more than the baseline."
    ),
}

#: The options of both markers, which are those of memplan.check; those in ``PRICED`` are the fixture's too.
OPTIONS: Final[dict[str, str]] = {
    "model": "name of the test's argument that is the model; by default `model`, or the only module among them",
    "inputs": "name of the argument that the model is called with (by default `inputs` or `example_inputs`), or the"
    " inputs themselves: a tensor, a tuple or a dict of them",
    "limit": "bytes, or text such as `64MB`, that must not be exceeded",
    "of": "what is limited: `peak` (the default), `saved` or `temp`",
    "method": "what trains: a method's name, or a plan; by default `full`",
    "k": "blocks that train, for methods that take it",
    "runner": "`stock` or `memplan`; by default stock for what it can run with `requires_grad` alone",
    "treatments": "further treatments of all layers under memplan's runner",
    "optimizer": "`sgd` (the default), `momentum`, `adam` or `adamw`",
    "foreach": "whether the optimizer updates all parameters together; by default as PyTorch does",
    "max_growth": "how much more than the baseline is allowed: `2%` or `1MB`",
    "min_growth": "bytes up to which growth is let pass, such as `1MB`",
    "baseline": "a verdict or reading that growth is measured from, instead of the file's",
    "strict": "whether what could not be priced fails the test",
    "suggest": "whether ways back under an exceeded limit are looked for; by default they are",
    "name": "how the model is called in sentences; by default its own name",
    "threads": "of the machine that the step is priced for; by default 2",
    "instruction_set": "of that machine: `DEFAULT`, `AVX2` (the default), `AVX512` or `AMX`",
    "progress": "a function that is told what is being done",
    "batch_size": "samples in a batch, where no inputs are given; by default 8",
    "input_shape": "sizes of one sample, such as `(3, 32, 32)`: the inputs are zeros of that shape",
    "classes": "classes of a spec's classifier",
    "dtype": "of a spec's parameters, or of the inputs that are made for a module",
    "weights": "a file of a spec's weights",
    "training": "train or eval mode; by default the module's own, train mode for a spec",
    "amp": "autocast: `bf16` or `fp16`",
    "loss": "a function of the model's output that gives a scalar",
}

#: The options that decide the bytes, without those that judge them.
PRICED: Final = (
    "method",
    "k",
    "runner",
    "treatments",
    "optimizer",
    "foreach",
    "threads",
    "instruction_set",
    "batch_size",
    "input_shape",
    "classes",
    "dtype",
    "weights",
    "training",
    "amp",
    "loss",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the markers of one test ask for: ``options`` of a check without the model and its inputs.

    ``model`` and ``inputs`` are as they were given, ``None`` where they were not.
    """

    options: Mapping[str, Any]
    model: str | None
    inputs: Any


def is_marked(node: pytest.Item) -> bool:
    """Return whether a test has a marker."""
    return any(node.get_closest_marker(name) is not None for name in MARKERS)


def asked_of(node: pytest.Item, settings: Settings) -> Asked | None:
    """Return what the markers of a test ask for; ``None`` where it has none.

    Of several markers of one name the closest counts, whole. What a marker leaves open is as the run's settings say.

    Raises:
        UsageError: a marker cannot be understood.
    """
    marks = {name: mark for name in MARKERS if (mark := node.get_closest_marker(name)) is not None}
    if not marks:
        return None
    options: dict[str, Any] = {}
    for name, mark in marks.items():
        for option, value in _options_of(name, mark).items():
            if option in options:
                raise UsageError(f"{option} is given by both {' and '.join(marks)}; leave it out of one of them")
            options[option] = value
    for name in marks:
        _complete(name, options, settings)
    if options.get("max_growth") is None and settings.max_growth is not None:
        options["max_growth"] = settings.max_growth
    _check(options)
    return Asked(options, options.pop("model", None), options.pop("inputs", None))


def check_options(options: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raise where an option is none of ``known``; ``where`` says who was given it.

    Raises:
        UsageError: it is not.
    """
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) or f"; choose from {', '.join(known)}"
            raise UsageError(f"{where} has no option {option!r}{hint}")


def check_supported(item: pytest.Item) -> None:
    """Raise where the model of a marked test could not be seen.

    Raises:
        UsageError: the test is of a kind that gives nothing back.
    """
    marks = " and ".join(name for name in MARKERS if item.get_closest_marker(name) is not None)
    if not isinstance(item, pytest.Function):
        raise UsageError(f"{marks} can mark test functions, and this is a {type(item).__name__}")
    if inspect.iscoroutinefunction(item.obj) or inspect.isasyncgenfunction(item.obj):
        raise UsageError(f"{marks} cannot mark an async test; use a plain function, or the fixture training_memory")
    if item.cls is not None and any(each.__module__ == "unittest.case" for each in item.cls.__mro__):
        raise UsageError(f"{marks} cannot mark a method of unittest.TestCase, which gives nothing back; use a function")


def _options_of(name: str, mark: pytest.Mark) -> dict[str, Any]:
    marker = MARKERS[name]
    check_options(mark.kwargs, tuple(OPTIONS), name)
    if len(mark.args) > 1:
        raise UsageError(f"{name} takes one {marker.option}, not {len(mark.args)}; write {name}({marker.example!r})")
    if mark.args and marker.option in mark.kwargs:
        raise UsageError(f"{name} is given its {marker.option} twice; leave one of them out")
    given = {marker.option: mark.args[0]} if mark.args else {}
    return {**given, **mark.kwargs}


def _complete(name: str, options: dict[str, Any], settings: Settings) -> None:
    """Fill in what a marker was given no value for.

    Raises:
        UsageError: the run's settings have none either.
    """
    marker = MARKERS[name]
    if options.get(marker.option) is None:
        value = getattr(settings, marker.option)
        if value is None:
            example, ini = f"{name}({marker.example!r})", f"memplan_{marker.option}"
            raise UsageError(f"{name} gives no {marker.option} and {ini} is not set; write {example}, or set it")
        options[marker.option] = value


def _check(options: Mapping[str, Any]) -> None:
    """Raise for sizes and growth that cannot be read; all that needs no model to be checked."""
    from memplan.gate.growth import growth_bytes, parse_growth
    from memplan.units import parse_bytes

    limit, growth, least = (options.get(name) for name in ("limit", "max_growth", "min_growth"))
    if isinstance(limit, str):
        parse_bytes(limit)
    if growth is not None and not isinstance(growth, str):
        raise UsageError(f"max_growth is {growth!r}; write a percentage or a size in quotes, such as '2%' or '1MB'")
    if growth is not None:
        parse_growth(growth)
    if isinstance(least, str):
        growth_bytes(least)
    model = options.get("model")
    if model is not None and not isinstance(model, str):
        raise UsageError(
            f"model is {type(model).__name__}, not the name of an argument; return the model from the test"
        )
