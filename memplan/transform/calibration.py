"""Calibration data: batches of inputs and targets, as they are given in Python or saved in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from memplan.errors import UsageError
from memplan.tracing.fake import one_line

_KEYS: Final = {"inputs", "targets"}


@dataclass(frozen=True, slots=True)
class Batch:
    """What a model takes, and what its output is held against."""

    inputs: Any
    targets: Any

    def on(self, device: torch.device) -> tuple[Any, Any]:
        """Return inputs and targets on ``device``."""
        return tuple(_mapped(value, lambda tensor: tensor.to(device)) for value in (self.inputs, self.targets))


def batches_of(calibration: Any) -> Iterator[Batch]:
    """Yield the batches of ``calibration``: one ``(inputs, targets)``, or an iterable of such.

    A pair whose second item is a tensor or a dict is one batch, and so is a dict of ``inputs`` and ``targets``.

    Raises:
        UsageError: it is neither.
    """
    if _is_batch(calibration):
        yield _batch(calibration)
        return
    if isinstance(calibration, (Tensor, str, Mapping)) or not isinstance(calibration, Iterable):
        raise UsageError(
            f"calibration data is a pair (inputs, targets) or an iterable of such, not {_kind(calibration)}"
        )
    for position, item in enumerate(calibration):
        if not _is_batch(item):
            raise UsageError(f"batch {position} of the calibration data is {_kind(item)}; give pairs (inputs, targets)")
        yield _batch(item)


def samples_of(batch: Batch) -> Iterator[Batch]:
    """Yield the samples of a batch as batches of one; the batch itself where its tensors have no axis in common."""
    lengths = {tensor.shape[0] if tensor.dim() else None for tensor in _tensors((batch.inputs, batch.targets))}
    length = lengths.pop() if len(lengths) == 1 else None
    if length is None:
        yield batch
        return
    for sample in range(length):

        def cut(tensor: Tensor, sample: int = sample) -> Tensor:
            return tensor[sample : sample + 1]

        yield Batch(_mapped(batch.inputs, cut), _mapped(batch.targets, cut))


def load_calibration(path: str | Path) -> list[Batch]:
    """Return the batches in a file that ``torch.save`` wrote: ``(inputs, targets)``, a dict of both, or a list of such.

    Raises:
        UsageError: there is no such file, or it holds something else.
    """
    file = Path(path)
    advice = f"save tensors with torch.save((inputs, targets), {str(path)!r})"
    if not file.is_file():
        raise UsageError(f"no calibration file {str(path)!r}; {advice}")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"calibration file {str(path)!r} cannot be read: {one_line(error)}; {advice}") from error
    try:
        batches = list(batches_of(found))
    except UsageError as error:
        raise UsageError(f"calibration file {str(path)!r}: {error}; {advice}") from error
    if not batches:
        raise UsageError(f"calibration file {str(path)!r} has no batch; {advice}")
    return batches


def _is_batch(value: Any) -> bool:
    if isinstance(value, Batch):
        return True
    if isinstance(value, Mapping):
        return set(value) == _KEYS
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and isinstance(value[1], (Tensor, Mapping))
        and (not _is_batch(value[1]))
    )


def _batch(value: Any) -> Batch:
    if isinstance(value, Batch):
        return value
    return Batch(value["inputs"], value["targets"]) if isinstance(value, Mapping) else Batch(*value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return ``value`` with ``function`` done to its tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: _mapped(item, function) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_mapped(item, function) for item in value)
    return value


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
