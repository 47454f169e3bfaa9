"""Measure real training steps: what autograd keeps, and the peak that the allocator sees."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils import _pytree as pytree

from memplan.graph.records import Phase
from memplan.layers.fused_update import FusedUpdate
from memplan.memory.optimizers import Implementation
from memplan.tracing.step import Loss, run_step, uncollected

_STEP: Final = "memplan::step"

_OPTIMIZERS: Final[Mapping[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """What real steps showed: bytes that autograd kept when the forward ended, and the peak of each step."""

    saved_bytes: int
    peak_bytes: tuple[int, ...]


def measure(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    optimizer: str,
    implementation: Implementation,
    steps: int = 2,
    loss: Loss | None = None,
    amp: torch.dtype | None = None,
) -> Measurement:
    """Run real training steps of ``model``, which is changed by them, and return what they needed.

    A first pass without an update counts saved tensors through hooks, so that the steps measured after it run without
    hooks. The peak is that of the CPU allocator's events, or of CUDA's caching allocator where the model is there; both
    include parameters, buffers and inputs.
    """
    saved_bytes = saved_on_a_real_step(model, args, kwargs, loss=loss, amp=amp)
    for parameter in model.parameters():
        parameter.grad = None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    update = optimizer_of(optimizer, trained, implementation) if trained else None

    def step() -> None:
        if update is not None:
            update.zero_grad()
        run_step(model, args, kwargs, loss=loss, amp=amp)
        if update is not None:
            update.step()

    device = next((tensor.device.type for tensor in _tensors(model, args, kwargs)), "cpu")
    gc.collect()
    with uncollected():
        peaks = _cuda_peaks(step, steps) if device == "cuda" else _cpu_peaks(step, steps, _bytes(model, args, kwargs))
    return Measurement(saved_bytes, tuple(peaks))


def measured_peak(
    step: Callable[[], Any],
    model: torch.nn.Module,
    inputs: Any = (),
    optimizer: torch.optim.Optimizer | None = None,
) -> int:
    """Return the peak of the second of two calls of ``step``, in bytes, as the allocator sees it.

    On the CPU the profiler listens to the allocator's events. What exists before is added: the parameters, buffers and
    gradients of ``model``, the tensors in ``inputs``, and the optimizer's state.

    Args:
        step: one training step, from zeroed gradients to the update.
        model: what it trains.
        inputs: the batch: a tensor, or tensors in tuples, lists and dicts.
        optimizer: who updates, if it has state already.
    """
    device = next((tensor.device.type for tensor in model.parameters()), "cpu")
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    state = [] if optimizer is None else list(optimizer.state.values())
    held = [leaf for leaf in pytree.tree_leaves((inputs, gradients, state)) if isinstance(leaf, torch.Tensor)]
    gc.collect()
    with uncollected():
        peaks = _cuda_peaks(step, 2) if device == "cuda" else _cpu_peaks(step, 2, _bytes(model, tuple(held), {}))
        return list(peaks)[-1]


def optimizer_of(
    name: str, parameters: Sequence[torch.Tensor], implementation: Implementation
) -> torch.optim.Optimizer:
    """Return a real optimizer that hardly moves ``parameters``, updating them as ``implementation`` says."""
    kind, options = _OPTIMIZERS[name]
    if implementation == "in-backward":
        return FusedUpdate(kind, parameters, lr=1e-6, **options)
    how: dict[str, Any] = {"foreach": implementation == "foreach", "fused": implementation == "fused"}
    return kind(parameters, lr=1e-6, **options, **how)  # type: ignore[call-arg]  # what the three have in common


def saved_on_a_real_step(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    loss: Loss | None = None,
    amp: torch.dtype | None = None,
) -> int:
    """Return the bytes of the unique storages that autograd holds when the forward of a real step ends.

    Parameters and buffers are not counted, an input that is kept is.
    """

    class Kept:
        __slots__ = ("__weakref__", "tensor")

        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            alive.add(self)

    alive: weakref.WeakSet[Kept] = weakref.WeakSet()
    own = {storage._cdata for storage in _storages((*model.parameters(), *model.buffers()))}
    kept: dict[int, int] = {}

    def enter(phase: Phase) -> None:
        if phase == "loss":
            kept.update(
                (storage._cdata, storage.nbytes())
                for storage in _storages(tuple(entry.tensor for entry in alive))
                if storage._cdata not in own
            )

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda entry: entry.tensor):
        run_step(model, args, kwargs, loss=loss, amp=amp, enter=enter)
    return sum(kept.values())


def high_water_mark() -> int | None:
    """Return the largest resident set of this process since it was last reset, or ``None`` where Linux is not."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else None


def reset_high_water_mark() -> None:
    """Make the current resident set the high-water mark, where the kernel allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _cpu_peaks(step: Callable[[], None], steps: int, before: int) -> Iterator[int]:
    """Yield the peak of each step: what existed before, and the running sum of the allocator's events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(steps):
            with record_function(_STEP):
                step()
    results = profiler.profiler.kineto_results
    events = list(results.events())
    ends = sorted(event.end_ns() for event in events if event.name() == _STEP)
    alive, peak = before, before
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        while len(ends) > 1 and event.start_ns() > ends[0]:
            yield peak
            ends.pop(0)
            peak = alive
        alive += event.nbytes()
        peak = max(peak, alive)
    yield peak
    for _ in ends[1:]:
        yield alive


def _cuda_peaks(step: Callable[[], None], steps: int) -> Iterator[int]:
    for _ in range(steps):
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        yield torch.cuda.max_memory_allocated()


def _tensors(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    attributes = [value for module in model.modules() for value in vars(module).values()]
    for leaf in pytree.tree_leaves((args, dict(kwargs), attributes)):
        if isinstance(leaf, torch.Tensor):
            yield leaf


def _storages(tensors: Sequence[torch.Tensor]) -> Iterator[torch.UntypedStorage]:
    return (tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided)


def _bytes(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    unique = {storage._cdata: storage.nbytes() for storage in _storages(tuple(_tensors(model, args, kwargs)))}
    return sum(unique.values())
