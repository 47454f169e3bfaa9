"""A model on fake tensors: a copy that has every shape and no data, so that the user's model is never touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from memplan.errors import AnalysisError, MemplanError
from memplan.graph.records import Layer
from memplan.trace.recorder import Recorder


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
                f"{_place(recorder, layers)} needs the values of a tensor ({error.func}), which a recording does not have; "
                "give the branch or shape as a constant, or analyse the part of the model before it"
            ) from error
        except Exception as error:
            reason = " ".join(str(error).split()) or "no message"
            raise AnalysisError(
                f"the model fails in its {recorder.phase}: ran up to {_place(recorder, layers)}, then "
                f"{type(error).__name__}: {reason}; check the input's shape and dtype"
            ) from error


def _place(recorder: Recorder, layers: tuple[Layer, ...]) -> str:
    layer = layers[recorder.layer]
    return f"layer {layer.path!r} ({layer.type})" if layer.path else f"the model's own forward ({layer.type})"


def fake_model(
    module: torch.nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *, device: str = "cpu"
) -> FakeModel:
    """Return a fake copy of ``module`` and its example inputs on ``device``; the originals are not touched.

    A compiled module is replaced by the module it was compiled from.

    Raises:
        AnalysisError: the module cannot be copied.
    """
    module = getattr(module, "_orig_mod", module)
    target = torch.device(device)
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
            f"cannot copy the model: {type(error).__name__}: {' '.join(str(error).split())}; "
            "remove what cannot be deep-copied from its attributes"
        ) from error
    return FakeModel(*copied, mode=mode, device=target)


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
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake.requires_grad_(tensor.requires_grad)
