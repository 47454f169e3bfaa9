"""torchvision's registered models, without weights and without the network."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, Final

from memplan.errors import UsageError, did_you_mean
from memplan.shapes import choose_shape
from memplan.sources.packages import import_library
from memplan.sources.records import InputSpec, Request, Source

PACKAGE: Final = "torchvision"

REFUSED_FAMILIES: Final[dict[str, str]] = {
    "detection": "a detection model takes lists of images and boxes; write a factory that returns (module, inputs)",
    "optical_flow": "an optical-flow model takes pairs of images; write a factory that returns (module, inputs)",
    "quantization": "a quantized model cannot be trained; take the one without quantized_",
}
"""Subpackage of ``torchvision.models`` -> why memplan does not build its models."""

CLIP_FRAMES: Final[dict[str, int]] = {"mvit": 16, "resnet": 16, "s3d": 128, "swin_transformer": 32}
"""Module of ``torchvision.models.video`` -> frames of a clip; the weights' transforms do not tell.

Source: ``clip_len`` in the models' weights documentation (``Kinetics400_Weights`` metadata).
"""


def list_names() -> list[str]:
    """Return the names of all models that torchvision registers."""
    names: list[str] = _models().list_models()
    return names


def resolve(name: str, request: Request) -> Source:
    """Return the source of torchvision's model ``name``.

    Image size and classes are those of the default weights, as is the auxiliary classifier of a segmentation
    model; GoogLeNet and Inception keep theirs.

    Raises:
        UsageError: torchvision has no such model, or memplan cannot train its kind.
    """
    models = _models()
    if name not in models.list_models():
        raise UsageError(f"no model {name!r} in torchvision{did_you_mean(name, models.list_models())}")
    builder = models.get_model_builder(name)
    family, _, architecture = builder.__module__.removeprefix("torchvision.models.").rpartition(".")
    if family in REFUSED_FAMILIES:
        raise UsageError(f"torchvision:{name} is not supported: {REFUSED_FAMILIES[family]}")
    weights = models.get_model_weights(name).DEFAULT
    native_shape = _input_shape(family, architecture, weights.transforms)
    shape = choose_shape(request.input_shape, native_shape, request.spec, any_channels=False)
    classes = request.classes or len(weights.meta["categories"])
    options = {"num_classes": classes, **_options(family, architecture, shape)}
    dtype = request.dtype or "float32"
    return Source(
        spec=request.spec,
        name=name,
        origin="torchvision",
        construct=partial(builder, weights=None, **options),
        args=(InputSpec((request.batch_size, *shape), dtype),),
        classes=classes,
        dtype=dtype,
        weights=request.weights,
    )


def _models() -> ModuleType:
    return import_library("torchvision.models")


def _input_shape(family: str, architecture: str, transforms: Any) -> tuple[int, ...]:
    """Return what the weights' ``transforms``, a partial that is never called, crop or resize to."""
    size = transforms.keywords.get("crop_size") or transforms.keywords["resize_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return (3, CLIP_FRAMES[architecture], height, width) if family == "video" else (3, height, width)


def _options(family: str, architecture: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the builder's options beside ``num_classes``."""
    if family == "segmentation":
        auxiliary = {} if architecture == "lraspp" else {"aux_loss": True}
        return {"weights_backbone": None, **auxiliary}
    if architecture in ("googlenet", "inception"):
        # True would draw from scipy's truncated normal for seconds; names, shapes and outputs are the same.
        return {"init_weights": False}
    if architecture == "vision_transformer":
        return {"image_size": shape[-1]}
    if architecture == "maxvit":
        return {"input_size": shape[-2:]}
    return {}
