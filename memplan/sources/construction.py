"""Build a source's module and example inputs, on the meta device or on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from memplan.errors import AnalysisError, MemplanError, UsageError
from memplan.sources.meta import move_to_meta, on_meta, same_random_state
from memplan.sources.quiet import first_line, quietly
from memplan.sources.records import BuiltModel, InputSpec, Source
from memplan.sources.weights import fit_weights

Device = Literal["meta", "cpu"]
Forward = tuple[tuple[Any, ...], dict[str, Any]]
"""How forward is called: positional and keyword arguments."""


def build(source: Source, device: Device) -> BuiltModel:
    """Return the module of ``source`` and its inputs on ``device``.

    On ``meta`` nothing is allocated or computed and no random number is drawn, unless the constructor cannot run
    there: then it runs on the CPU, the random state is put back, and the module is moved to meta. On ``cpu`` weights
    are random, drawn from torch's current generator, and then those of ``source.weights``.

    Raises:
        UsageError: neither the request nor the factory gives inputs.
        AnalysisError: the constructor raises or gives no module, or the weights do not fit it.
    """
    if device == "meta":
        module, forward = _unpack(source, _construct_on_meta(source))
        move_to_meta(module)
    else:
        module, forward = _unpack(source, _construct(source))
    if source.dtype is not None:
        _cast(module, getattr(torch, source.dtype))
    if source.weights is not None:
        fit_weights(module, source.weights, source.name)
    if not source.inputs_from_factory:
        forward = (source.args, dict(source.kwargs))
    elif forward is None:
        raise UsageError(
            f"the input of {source.spec} is not known; give --input, such as --input 3x224x224, "
            "or let the factory return (module, inputs)"
        )
    args, kwargs = _materialise(forward, device, source.dtype)
    return BuiltModel(module, args, kwargs)


def build_module(source: Source, device: Device) -> nn.Module:
    """Return the module of ``source`` on ``device``, as ``build`` does."""
    return build(source, device).module


def make_inputs(source: Source, device: Device) -> Forward:
    """Return positional and keyword inputs on ``device``: drawn at random, or the factory's own (which runs it)."""
    if source.inputs_from_factory:
        built = build(source, device)
        return built.args, dict(built.kwargs)
    return _materialise((source.args, dict(source.kwargs)), device, source.dtype)


def _construct_on_meta(source: Source) -> Any:
    with same_random_state():
        try:
            with quietly(), on_meta():
                return source.construct()
        except (Exception, SystemExit):
            # Some constructors need values: RegNet's widths, a schedule's .item(), data read through numpy.
            return _construct(source)


def _construct(source: Source) -> Any:
    try:
        with quietly():
            return source.construct()
    except MemplanError:
        raise
    except (Exception, SystemExit) as error:
        raise AnalysisError(f"{source.spec} cannot be built: {type(error).__name__}: {first_line(error)}") from error


def _unpack(source: Source, built: Any) -> tuple[nn.Module, Forward | None]:
    """Return the module that a constructor gave, and its inputs if it gave any."""
    parts = built if isinstance(built, tuple) else (built,)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], nn.Module):
        raise AnalysisError(
            f"{source.spec} gives {_describe(built)}, not a torch.nn.Module; "
            "return the module, (module, inputs) or (module, args, kwargs)"
        )
    if len(parts) == 1:
        return parts[0], None
    if len(parts) == 2 and isinstance(parts[1], Mapping):
        return parts[0], ((), dict(parts[1]))
    args = tuple(parts[1]) if isinstance(parts[1], (tuple, list)) else (parts[1],)
    return parts[0], (args, dict(parts[2]) if len(parts) == 3 else {})


def _describe(built: Any) -> str:
    if isinstance(built, tuple):
        return f"({', '.join(type(part).__name__ for part in built)})"
    return "None" if built is None else type(built).__name__


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Give the floating parameters and buffers of ``module`` this dtype; complex and integer ones keep theirs."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


def _materialise(forward: Forward, device: Device, dtype: str | None) -> Forward:
    """Return the inputs as tensors on ``device``; a factory's floating ones are cast to ``dtype`` if it is given."""

    def place(tensor: Tensor) -> Tensor:
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, dtype))
        if tensor.is_meta and device != "meta":
            return _draw(InputSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")), device)
        return tensor.to(device)

    drawn = tree_map_only(InputSpec, lambda spec: _draw(spec, device), forward)
    args, kwargs = tree_map_only(Tensor, place, drawn)
    return args, kwargs


def _draw(spec: InputSpec, device: Device) -> Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if device == "meta":
        return torch.empty(spec.shape, dtype=dtype, device="meta")
    if dtype == torch.bool:
        drawn = torch.ones(spec.shape, dtype=dtype)
    elif dtype.is_floating_point or dtype.is_complex:
        drawn = torch.randn(spec.shape, dtype=dtype)
    else:
        drawn = torch.randint(spec.low, spec.high, spec.shape, dtype=dtype)
    if spec.padded:
        drawn[-1, -spec.padded :] = 0
    return drawn
