"""A model on fake tensors: a copy that has every shape and no data, so that the user's model is never touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from memplan.errors import AnalysisError, MemplanError, UsageError
from memplan.graph.records import Layer
from memplan.tracing.recorder import Recorder
from memplan.tracing.step import gradients_on


@dataclass(frozen=True, slots=True)
class FakeModel:
    """A copy of a model and its inputs on fake tensors of one device."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    mode: FakeTensorMode
    device: torch.device

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the input tensors with names to show."""
        for position, leaf in enumerate(pytree.tree_leaves((self.args, self.kwargs))):
            if isinstance(leaf, torch.Tensor):
                yield f"input_{position}", leaf

    @contextmanager
    def explained(self, recorder: Recorder, layers: tuple[Layer, ...]) -> Iterator[None]:
        """Turn whatever a step raises into one line that names the layer reached."""
        try:
            yield
        except MemplanError:
            raise
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise AnalysisError(
                f"{_place(recorder, layers)} needs the values of a tensor ({error.func}), which a recording does not "
                "have; give the branch or shape as a constant, or analyse the part of the model before it"
            ) from error
        except SystemExit as error:
            text = " ".join(str(error).split())
            raise AnalysisError(f"the model's own code exits ({text}); remove its call of exit") from error
        except Exception as error:
            raise AnalysisError(
                f"the model fails in its {recorder.phase}: ran up to {_place(recorder, layers)}, then "
                f"{one_line(error)}; check the input's shape and dtype"
            ) from error


def one_line(error: Exception) -> str:
    """Return the error's type and the first line of its message; PyTorch puts C++ frames into the others."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {' '.join(lines[0].split())}" if lines else type(error).__name__


def _place(recorder: Recorder, layers: tuple[Layer, ...]) -> str:
    layer = layers[recorder.layer]
    return f"layer {layer.path!r} ({layer.type})" if layer.path else f"the model's own forward ({layer.type})"


def fake_model(
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    device: str | None = None,
) -> FakeModel:
    """Return a fake copy of ``module`` and its example inputs on ``device``; the originals are not touched.

    A compiled module is replaced by the module it was compiled from. Without ``device`` the copy is where the module
    is, on the CPU for one on meta.

    Raises:
        AnalysisError: the module cannot be copied or has layers without a shape, or this PyTorch has no such device.
    """
    module = getattr(module, "_orig_mod", module)
    _check_shaped(module)
    target = _device(module, device)
    mode = FakeTensorMode()
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        memo[id(tensor)] = _fake(tensor, mode, target)
    for tensor in pytree.tree_leaves((args, dict(kwargs or {}))):
        if isinstance(tensor, torch.Tensor):
            memo.setdefault(id(tensor), _fake(tensor, mode, target))
    try:
        with _FakeCopies(mode, target):
            copied = copy.deepcopy((module, args, dict(kwargs or {})), memo)
    except Exception as error:
        raise AnalysisError(
            f"cannot copy the model: {one_line(error)}; remove what cannot be deep-copied from its attributes"
        ) from error
    return FakeModel(*copied, mode=mode, device=target)


def _check_shaped(module: torch.nn.Module) -> None:
    for path, layer in module.named_modules():
        if any(map(is_lazy, (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))):
            place = f"layer {path!r} ({type(layer).__name__})" if path else f"the model ({type(layer).__name__})"
            raise AnalysisError(f"{place} has no shape yet; run the model once before")


def _device(module: torch.nn.Module, asked: str | None) -> torch.device:
    if asked is None:
        own = next((tensor.device.type for tensor in (*module.parameters(), *module.buffers())), "cpu")
        return torch.device("cpu" if own == "meta" else own)
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(f"no device {asked!r}; choose cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"memplan does not know the kernels of {asked!r}; choose cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        # Autograd asks the driver even for fake tensors.
        raise AnalysisError("a step for cuda can be recorded only where PyTorch finds a GPU; choose cpu")
    return device


class _FakeCopies(TorchFunctionMode):
    """While a model is deep-copied, copy tensors that are neither parameters nor buffers as fake ones too."""

    def __init__(self, mode: FakeTensorMode, device: torch.device) -> None:
        self._mode = mode
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ or func is torch.nn.Parameter.__deepcopy__:
            tensor, memo = args
            memo[id(tensor)] = fake = _fake(tensor, self._mode, self._device)
            return fake
        return func(*args, **(kwargs or {}))


def _fake(tensor: torch.Tensor, mode: FakeTensorMode, device: torch.device) -> torch.Tensor:
    if tensor.layout is not torch.strided:
        with mode:
            return mode.from_tensor(tensor)
    with gradients_on():
        fake = FakeTensor(
            mode, torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"), device
        )
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
        return fake.requires_grad_(tensor.requires_grad)
