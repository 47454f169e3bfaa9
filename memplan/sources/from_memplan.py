"""memplan's own networks: those of the published systems that no library has."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, Final

from memplan.errors import UsageError, did_you_mean
from memplan.shapes import choose_shape
from memplan.sources.records import InputSpec, Request, Source

PACKAGE: Final = "memplan"

NETWORKS: Final[dict[str, str]] = {
    "proxyless_mobile": "memplan.networks.proxyless",
    "proxyless_mobile_tinytl": "memplan.networks.tinytl",
}
"""Name of a network, and of the function that builds it -> its module. Named, not imported: they need torch."""

CLASSES: Final = 1000
INPUT_SHAPE: Final = (3, 224, 224)


def list_names() -> list[str]:
    """Return the names of memplan's own networks."""
    return list(NETWORKS)


def resolve(name: str, request: Request) -> Source:
    """Return the source of memplan's network ``name``: 224x224 images and 1000 classes unless asked otherwise.

    Raises:
        UsageError: memplan has no such network.
    """
    if name not in NETWORKS:
        raise UsageError(f"no network {name!r} in memplan{did_you_mean(name, NETWORKS)}")
    shape = choose_shape(request.input_shape, INPUT_SHAPE, request.spec, any_channels=False)
    classes = request.classes or CLASSES
    dtype = request.dtype or "float32"
    return Source(
        spec=request.spec,
        name=name,
        origin="memplan",
        construct=partial(_construct, name, classes),
        args=(InputSpec((request.batch_size, *shape), dtype),),
        classes=classes,
        dtype=dtype,
        weights=request.weights,
    )


def _construct(name: str, classes: int) -> Any:
    return getattr(importlib.import_module(NETWORKS[name]), name)(classes)
