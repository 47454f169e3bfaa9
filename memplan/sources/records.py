"""What a user asks for, what is known before a model is built, and what building gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One example input of a model.

    ``shape`` includes the batch axis. A floating input is drawn from a normal distribution, an integer one from
    ``low`` (inclusive) to ``high`` (exclusive: a vocabulary's size, a number of classes), a ``bool`` one is all true.
    ``padded`` entries at the end of the last sample are zero, as in the mask of a batch of unequal sequences.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: int = 0
    high: int = 2
    padded: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """The spec and the options that decide how its model is built and called.

    ``input_shape`` is without the batch axis. An option that is ``None`` is answered by the model's own metadata.
    """

    spec: str
    batch_size: int = 8
    input_shape: tuple[int, ...] | None = None
    classes: int | None = None
    dtype: str | None = None
    weights: Path | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Everything that is known about a model before it is built.

    Args:
        spec: what the user wrote, such as ``mobilenet_v3``.
        name: the model's own name, such as ``mobilenet_v3_large``.
        origin: ``torchvision``, ``timm``, ``transformers``, ``file``, ``import``, or a third party's prefix.
        construct: makes the module with random weights on PyTorch's current default device. It may give the
            module alone, ``(module, inputs)`` or ``(module, args, kwargs)``.
        args: forward's positional inputs, each an ``InputSpec`` or a value to be passed as it is.
        kwargs: forward's keyword inputs, likewise.
        classes: classes that the model's head tells apart; ``None`` when it is not a classifier or nobody knows.
        dtype: what floating parameters and buffers are cast to; ``None`` leaves them as they are built.
        weights: a checkpoint that must fit the module; its values are loaded on ``cpu`` only.
        inputs_from_factory: ``construct`` gives the inputs too, so ``args`` and ``kwargs`` are empty until it ran.
    """

    spec: str
    name: str
    origin: str
    construct: Callable[[], Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    classes: int | None = None
    dtype: str | None = None
    weights: Path | None = None
    inputs_from_factory: bool = False


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A module and the inputs that its forward takes, on one device."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class SourceKind(Protocol):
    """What stands behind a prefix such as ``timm:``.

    Third parties register theirs, any object or module with this function, as a ``memplan.sources`` entry point.
    """

    def resolve(self, name: str, request: Request) -> Source:
        """Return the source that ``name``, the text behind the prefix, stands for; build nothing yet."""
