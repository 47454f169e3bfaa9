"""timm's models, without weights and without the network."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from memplan.errors import UsageError, did_you_mean
from memplan.shapes import choose_shape
from memplan.sources.packages import import_library
from memplan.sources.records import InputSpec, Request, Source

PACKAGE: Final = "timm"


def list_names() -> list[str]:
    """Return the names of all models that timm registers, without pretrained tags."""
    names: list[str] = import_library("timm").list_models()
    return names


def resolve(name: str, request: Request) -> Source:
    """Return the source of timm's model ``name``, with or without a pretrained tag.

    Input size and classes are those of its pretrained configuration. A model whose input size is fixed is built
    for the size that is asked for.

    Raises:
        UsageError: timm has no such model.
    """
    timm = import_library("timm")
    if not timm.is_model(name):
        raise UsageError(f"no model {name!r} in timm{did_you_mean(name, timm.list_models())}")
    configuration = timm.get_pretrained_cfg(name, allow_unregistered=True)
    native_shape: tuple[int, ...] = configuration.input_size
    shape = choose_shape(request.input_shape, native_shape, request.spec)
    options: dict[str, Any] = {}
    if request.classes is not None:
        options["num_classes"] = request.classes
    if shape[0] != native_shape[0]:
        options["in_chans"] = shape[0]
    if shape[1:] != native_shape[1:] and configuration.fixed_input_size:
        options["img_size"] = shape[1:]
    dtype = request.dtype or "float32"
    return Source(
        spec=request.spec,
        name=name,
        origin="timm",
        construct=partial(timm.create_model, name, pretrained=False, **options),
        args=(InputSpec((request.batch_size, *shape), dtype),),
        classes=request.classes or configuration.num_classes or None,
        dtype=dtype,
        weights=request.weights,
    )
