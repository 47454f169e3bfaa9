"""What is analysed: a spec or the user's own module, made ready to be recorded or to be run for real."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from memplan.errors import AnalysisError, UsageError, did_you_mean
from memplan.shapes import format_shape
from memplan.sources import resolve
from memplan.sources.records import Source

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from memplan.tracing.step import Loss


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with its inputs and the way its step runs.

    Either ``source`` or ``module`` is given. ``training`` chooses train or eval mode, ``None`` leaves the module's own;
    ``amp`` is the dtype of autocast, or ``None``.
    """

    name: str
    origin: str
    source: Source | None = None
    module: nn.Module | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    training: bool | None = None
    amp: str | None = None
    loss: Loss | None = None

    def built(self, device: Literal["meta", "cpu"]) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        """Return the module and its inputs, without data on ``meta``, with (random) data on ``cpu``.

        The user's own module is given as it is for ``meta``, since recording copies it, and as a copy for ``cpu``.
        """
        if self.source is not None:
            from memplan.sources import build

            made = build(self.source, device)
            module, args, kwargs = made.module, made.args, dict(made.kwargs)
            module.train(self.training is not False)
            return module, args, kwargs
        assert self.module is not None
        if device == "meta":
            return self.module, self.args, dict(self.kwargs)
        return self._real_copy()

    def _real_copy(self) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        assert self.module is not None
        module, args, kwargs = copy.deepcopy(
            (getattr(self.module, "_orig_mod", self.module), self.args, dict(self.kwargs))
        )
        if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
            raise AnalysisError("a model on the meta device has no data to run; give verify a model on the CPU")
        if self.training is not None:
            module.train(self.training)
        return module, args, kwargs


def subject_of(
    model: str | nn.Module,
    inputs: Any = None,
    *,
    batch_size: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    dtype: str | torch.dtype | None = None,
    weights: str | Path | None = None,
    training: bool | None = None,
    amp: str | torch.dtype | None = None,
    loss: Loss | None = None,
) -> Subject:
    """Return the subject that a spec or a module with example inputs describes.

    A spec's batch has 8 samples unless ``batch_size`` says something else. A module brings its inputs, classes, dtype
    and weights.

    Raises:
        UsageError: the request cannot be understood.
        AnalysisError: the model cannot be loaded.
    """
    autocast = dtype_name(amp)
    if autocast is not None and autocast not in AMP_DTYPES:
        raise UsageError(f"no autocast dtype {amp!r}{did_you_mean(amp, AMP_DTYPES)}; choose bf16 or fp16")
    if training is not None and not isinstance(training, bool):
        raise UsageError(f"training is True or False, not {training!r}; leave it out for the model's own mode")
    if loss is not None and not callable(loss):
        raise UsageError(f"loss is a function of the model's output, not {loss!r}; pass one that gives a scalar")
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        raise UsageError(f"weights is the path of a file, not {weights!r}; give a .pt, .pth or .safetensors file")
    if isinstance(model, str):
        if inputs is not None:
            raise UsageError(
                f"inputs are given for the spec {model!r}, which brings its own; pass input_shape or a module"
            )
        source = resolve(
            model,
            batch_size=BATCH_SIZE if batch_size is None else batch_size,
            input_shape=input_shape,
            classes=classes,
            dtype=dtype_name(dtype),
            weights=Path(weights) if weights is not None else None,
        )
        return Subject(source.name, source.origin, source=source, training=training, amp=autocast, loss=loss)
    if isinstance(model, type):
        raise UsageError(
            f"a model is a spec or a torch.nn.Module, not the class {model.__name__}; pass one of its objects"
        )
    if not callable(getattr(model, "named_parameters", None)):
        raise UsageError(f"a model is a spec or a torch.nn.Module, not {type(model).__name__}; pass one of these")
    if inputs is None:
        raise UsageError(f"{type(model).__name__} is given without inputs; pass a tensor, a tuple or a dict of them")
    brought = {
        "batch_size": batch_size,
        "input_shape": input_shape,
        "classes": classes,
        "dtype": dtype,
        "weights": weights,
    }
    for what, value in brought.items():
        if value is not None:
            raise UsageError(
                f"{what} {value!r} is given for {type(model).__name__}, a module that brings its own with its inputs; "
                "leave it out"
            )
    from memplan.tracing.step import forward_of

    args, kwargs = forward_of(inputs)
    name = type(getattr(model, "_orig_mod", model)).__name__
    return Subject(name, "module", module=model, args=args, kwargs=kwargs, training=training, amp=autocast, loss=loss)


#: Samples in a spec's batch where nothing is said.
BATCH_SIZE: Final = 8

#: Autocast dtypes by the short names that people type.
AMP_DTYPES: dict[str, str] = {"bf16": "bfloat16", "fp16": "float16", "bfloat16": "bfloat16", "float16": "float16"}


def dtype_name(dtype: object) -> str | None:
    """Return the name of a dtype that is given by name or as PyTorch's own.

    >>> dtype_name("float16"), dtype_name("torch.float16"), dtype_name(None)
    ('float16', 'float16', None)
    """
    return None if dtype is None else str(dtype).removeprefix("torch.")


def shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the inputs' shapes with the batch axis, as text: ``8x3x224x224 float32``, named when passed by name."""
    named = [("", value) for value in args] + [(f"{name} ", value) for name, value in kwargs.items()]
    return tuple(
        f"{name}{format_shape(tuple(value.shape))} {str(value.dtype).removeprefix('torch.')}"
        for name, value in named
        if _is_tensor(value)
    )


def first_batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Return the length of the first axis of the first input tensor, or ``None`` when there is none."""
    for value in (*args, *kwargs.values()):
        if _is_tensor(value) and value.dim():
            return int(value.shape[0])
    return None


def _is_tensor(value: Tensor | Any) -> bool:
    return hasattr(value, "untyped_storage")
