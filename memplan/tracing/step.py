"""The training step itself: the same few lines run on fake tensors to record and on real ones to verify."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch

from memplan.errors import AnalysisError
from memplan.graph.records import Phase

#: Called with the model's output, returns the scalar to differentiate.
Loss: TypeAlias = Callable[[Any], torch.Tensor]


def run_step(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    loss: Loss | None = None,
    amp: torch.dtype | None = None,
    enter: Callable[[Phase], None] = lambda _: None,
) -> None:
    """Run forward, loss and backward once; the output and the loss live until the backward has ended.

    Gradients must be absent before, as ``optimizer.zero_grad()`` at the top of a loop leaves them. When nothing
    requires a gradient the backward is left out. ``enter`` is told each phase as it begins; ``amp`` runs forward and
    loss under autocast with that dtype. Modes of whoever calls, such as ``torch.no_grad``, do not matter.
    """
    device = next((tensor.device.type for tensor in tensors_in((args, kwargs))), "cpu")
    with gradients_on(), torch.autograd.set_detect_anomaly(False), _not_under_autocast(device):
        enter("forward")
        with contextlib.nullcontext() if amp is None else torch.autocast(device, amp):
            output = model(*args, **kwargs)
            enter("loss")
            value = mean_loss(output) if loss is None else _scalar(loss(output))
        enter("backward")
        if value is not None and value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]


def gradients_on() -> torch.inference_mode:
    """Return a context in which gradients are recorded, whatever surrounds it, and tensors made that can have them."""
    return torch.inference_mode(False)


def _scalar(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value
    shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
    raise AnalysisError(f"the loss gives {shape}, not a scalar tensor; reduce it, for example with .mean()")


def forward_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments from a tensor, a tuple or list of arguments, or a dict of named ones."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the cyclic collector away: it would release storages at moments that differ from run to run."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def mean_loss(output: Any) -> torch.Tensor | None:
    """Return the sum of the means of every float tensor in ``output`` that requires a gradient.

    It reaches every output that can train, auxiliary ones too, and costs one gradient per output and nothing else.

    Raises:
        AnalysisError: there is no float tensor in ``output``.
    """
    floats = [tensor for tensor in tensors_in(output) if tensor.is_floating_point() or tensor.is_complex()]
    if not floats:
        raise AnalysisError(
            f"the model returns {_described(output)} without a float tensor; pass loss=..., a function of its output"
        )
    terms = [tensor.abs().mean() if tensor.is_complex() else tensor.mean() for tensor in floats if tensor.requires_grad]
    return sum(terms[1:], terms[0]) if terms else None


def _described(output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return f"a tensor of {str(output.dtype).removeprefix('torch.')}"
    return "None" if output is None else f"a {type(output).__name__}"


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a model's inputs or output: a tensor, a dataclass, or nested mappings and sequences."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value):
        for entry in dataclasses.fields(value):
            yield from tensors_in(getattr(value, entry.name))


def _not_under_autocast(device: str) -> Any:
    around = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if around else contextlib.nullcontext()
