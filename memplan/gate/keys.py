"""The keys of a configuration: how each value is read, and what the reference says of it."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from memplan.errors import UsageError, did_you_mean
from memplan.gate.baseline import BASELINE_FILE
from memplan.gate.growth import Growth, growth_bytes, parse_growth
from memplan.gate.records import INSTRUCTION_SET, THREADS
from memplan.graph.records import INSTRUCTION_SETS
from memplan.memory import OPTIMIZERS
from memplan.memory.parts import MEASURANDS
from memplan.methods import METHODS
from memplan.methods.method import RUNNERS
from memplan.shapes import parse_shape
from memplan.units import MOST_BYTES, parse_bytes


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"is {value!r}, not a text")
    if "\0" in value:
        raise UsageError(f"is {value!r}, with a null character, which no name or file has; take it out")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"is {value!r}, not true or false")
    return value


def _count(least: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"is {value!r}, not a whole number from {least} on")
        if value > MOST_BYTES:
            raise UsageError(f"is {reprlib.repr(value)}; write at most {MOST_BYTES:,}")
        return value

    return read


def _named(known: Mapping[str, Any] | tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            hint = did_you_mean(str(value), known) or f"; choose one of {', '.join(known)}"
            raise UsageError(f"is {value!r}, which is none{hint}")
        return value

    return read


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"is {value!r}, not a list of texts")
    return tuple(value)


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return _count(1)(value)
    if not isinstance(value, str):
        raise UsageError(f'is {value!r}; write whole bytes, or a size in quotes, such as "64MB"')
    return parse_bytes(value)


def _growth(value: Any) -> Growth:
    if not isinstance(value, str):
        raise UsageError(f'is {value!r}; write a percentage or a size in quotes, such as "2%" or "1MB"')
    return parse_growth(value)


def _growth_bytes(value: Any) -> int:
    return _count(0)(value) if isinstance(value, int) else growth_bytes(_text(value))


def _shape(value: Any) -> tuple[int, ...]:
    return parse_shape(_text(value))


@dataclass(frozen=True, slots=True)
class Key:
    """One key: how its value is read, and what docs/gate-reference.md says of it.

    ``default`` is what leaving the key out means; ``None`` where that is no value of its own.
    """

    read: Callable[[Any], Any]
    takes: str
    meaning: str
    default: str | int | None = None


def _choice(known: Mapping[str, Any] | tuple[str, ...], meaning: str, default: str | None = None) -> Key:
    return Key(_named(known), ", ".join(f"`{name}`" for name in known), meaning, default)


#: Keys of a check; any of them but the name may be a shared default too.
CHECK_KEYS: Final[dict[str, Key]] = {
    "name": Key(_text, "text", "its own name in reports and in the baseline; the model's spec where it is left out"),
    "model": Key(_text, "spec", "the model; the one key that every check needs"),
    "of": _choice(MEASURANDS, "the quantity that is limited", "peak"),
    "budget": Key(_size, "size", "bytes that may not be exceeded"),
    "max-growth": Key(_growth, "percentage or size", "how much more than in the baseline is allowed"),
    "min-growth": Key(_growth_bytes, "size", "growth up to which nothing fails, whatever max-growth says", 0),
    "method": _choice(METHODS, "what trains", "full"),
    "k": Key(_count(0), "whole number", "blocks that train, for methods that take it", 5),
    "treatments": Key(_texts, "list of texts", "further treatments of all layers, for memplan's runner"),
    "plan": Key(_text, "file", "a plan that memplan plan wrote; it stands for method, k and treatments"),
    "runner": _choice(RUNNERS, "who runs the step; stock where it can, where it is left out"),
    "optimizer": _choice(OPTIMIZERS, "who updates", "sgd"),
    "foreach": Key(_flag, "true or false", "whether the optimizer updates all parameters at once", False),
    "batch-size": Key(_count(1), "whole number", "samples in a batch", 8),
    "input": Key(_shape, "shape", "one sample's input, such as 3x224x224; the model's own where it is left out"),
    "classes": Key(_count(1), "whole number", "classes of the head; the model's own where it is left out"),
    "dtype": Key(_text, "dtype", "of parameters, buffers and inputs; the model's own where it is left out"),
    "weights": Key(_text, "file", "a checkpoint that must fit the model"),
    "train": Key(_flag, "true or false", "train mode, or eval mode", True),
    "amp": _choice(("bf16", "fp16"), "dtype that forward and loss run in, by autocast"),
    "loss": Key(_text, "spec", "function of the model's output; its mean where it is left out"),
    "strict": Key(_flag, "true or false", "whether what could not be priced fails the check", False),
}

#: Keys of the gate itself.
GATE_KEYS: Final[dict[str, Key]] = {
    "baseline": Key(_text, "file", "what growth is measured from", BASELINE_FILE),
    "threads": Key(_count(1), "whole number", "threads of the machine that steps are priced for", THREADS),
    "instruction-set": _choice(INSTRUCTION_SETS, "kernels of that machine", INSTRUCTION_SET),
    "jobs": Key(_count(1), "whole number", "models that are analysed at a time, each in a process", 1),
    "require-baseline": Key(_flag, "true or false", "whether a check without a baseline fails", False),
}
