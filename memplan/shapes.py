"""Input shapes in and out of text: ``3x224x224``, or ``64`` for a sequence length."""

from __future__ import annotations

import re
from typing import Final

from memplan.errors import UsageError

_SHAPE: Final = re.compile(r"[1-9][0-9]*(x[1-9][0-9]*)*")


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the sizes that ``text`` names, without the batch axis.

    Raises:
        UsageError: ``text`` is not a list of positive integers with ``x`` between them.

    >>> parse_shape("3x224x224"), parse_shape("64")
    ((3, 224, 224), (64,))
    """
    compact = text.strip().lower()
    if _SHAPE.fullmatch(compact) is None:
        raise UsageError(
            f"cannot read {text!r} as an input shape; write the sizes without the batch, such as 3x224x224 or 64"
        )
    return tuple(int(size) for size in compact.split("x"))


def format_shape(shape: tuple[int, ...]) -> str:
    """Return ``shape`` as text that ``parse_shape`` reads.

    >>> format_shape((3, 224, 224))
    '3x224x224'
    """
    return "x".join(map(str, shape))


def choose_shape(
    asked: tuple[int, ...] | None, native: tuple[int, ...], spec: str, *, any_channels: bool = True
) -> tuple[int, ...]:
    """Return the shape that was ``asked`` for, or the model's ``native`` one; both are without the batch axis.

    Raises:
        UsageError: the two differ in their number of axes, or in the first one, the channels, where these are fixed.

    >>> choose_shape(None, (3, 224, 224), "resnet50"), choose_shape((3, 96, 96), (3, 224, 224), "resnet50")
    ((3, 224, 224), (3, 96, 96))
    """
    if asked is None:
        return native
    if len(asked) != len(native) or (asked[0] != native[0] and not any_channels):
        raise UsageError(
            f"--input {format_shape(asked)} is not a shape that {spec} takes; write for example {format_shape(native)}"
        )
    return asked
