"""Where models come from: the text of a spec becomes a module and example inputs.

    source = resolve("mobilenet_v3", batch_size=8)
    model = build(source, "meta")
    model.module(*model.args, **model.kwargs)

Importing this package imports neither torch nor a model library; ``resolve`` imports what the spec needs.
"""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from memplan.errors import UsageError, did_you_mean
from memplan.sources.records import BuiltModel, InputSpec, Request, Source, SourceKind

if TYPE_CHECKING:
    from memplan.sources.construction import build, build_module, make_inputs

DTYPES: Final = ("float32", "float64", "bfloat16", "float16")
"""What ``dtype`` may be."""

__all__ = [
    "DTYPES",
    "BuiltModel",
    "InputSpec",
    "Request",
    "Source",
    "SourceKind",
    "build",
    "build_module",
    "make_inputs",
    "resolve",
]


def resolve(
    spec: str,
    *,
    batch_size: int = 8,
    input_shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    dtype: str | None = None,
    weights: Path | None = None,
) -> Source:
    """Return what is known about the model that ``spec`` names; nothing is built yet.

    Args:
        spec: an alias or a model's name (``mobilenet_v3``, ``resnet50``), ``torchvision:NAME``, ``timm:NAME``,
            ``hf:MODEL_TYPE``, a local directory with a ``config.json``, ``path/to/file.py:FACTORY``,
            ``package.module:FACTORY``, or a registered third party's ``PREFIX:NAME``.
        batch_size: samples in the example inputs.
        input_shape: shape of the first input without the batch axis; ``None`` takes the model's own.
        classes: classes of the head; ``None`` takes the model's own.
        dtype: one of ``DTYPES`` for floating parameters, buffers and inputs; ``None`` takes the model's own, which
            is ``float32`` unless its configuration or its factory says otherwise.
        weights: a ``.pt``, ``.pth`` or ``.safetensors`` checkpoint.

    Raises:
        UsageError: the spec or an option cannot be understood.
        AnalysisError: the model's package is missing or broken, or its file does not run.
    """
    if not _is_size(batch_size):
        raise UsageError(f"batch size must be at least 1, not {batch_size!r}")
    if classes is not None and not _is_size(classes):
        raise UsageError(f"classes must be at least 1, not {classes!r}")
    if input_shape is not None and not (
        isinstance(input_shape, (tuple, list)) and input_shape and all(map(_is_size, input_shape))
    ):
        raise UsageError(f"input shape must hold positive sizes, not {input_shape!r}; write for example (3, 224, 224)")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"no dtype {dtype!r}{did_you_mean(dtype, DTYPES) or '; choose one of ' + ', '.join(DTYPES)}")
    if weights is not None and not Path(weights).is_file():
        raise UsageError(f"no weights file {str(weights)!r}; give a .pt, .pth or .safetensors file")

    from memplan.sources.kinds import resolve_spec

    return resolve_spec(Request(spec, batch_size, input_shape, classes, dtype, Path(weights) if weights else None))


def _is_size(value: object) -> bool:
    # numpy's integers are numbers.Integral, and no int.
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def __getattr__(name: str) -> Any:
    """Import torch only when something is built."""
    if name in ("build", "build_module", "make_inputs"):
        import importlib

        return getattr(importlib.import_module("memplan.sources.construction"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
