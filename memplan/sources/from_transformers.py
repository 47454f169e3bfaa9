"""transformers' models from a configuration: random weights, no network."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from memplan.errors import AnalysisError, UsageError, did_you_mean
from memplan.shapes import choose_shape
from memplan.sources.packages import import_library
from memplan.sources.quiet import first_line, quietly
from memplan.sources.records import InputSpec, Request, Source

PACKAGE: Final = "transformers"

DEFAULT_SEQUENCE: Final = 128
"""Tokens of an example sequence, where the model has room for as many."""

DEFAULT_IMAGE_SIZE: Final = 224
"""Pixels along each side, where the configuration does not say: ResNet's and other fully convolutional ones'."""

DEFAULT_SAMPLES: Final = 16_000
"""Samples of raw audio: one second at the rate that these models are trained on."""


def list_names() -> list[str]:
    """Return the model types that transformers can configure."""
    return list(_auto("configuration_auto").CONFIG_MAPPING_NAMES)


def resolve(name: str, request: Request) -> Source:
    """Return the source for a model type such as ``bert``, or for a local directory with a ``config.json``.

    A directory's model is the architecture that its configuration names; a model type's is chosen by ``head_of``.

    Raises:
        UsageError: no such model type, or ``--input`` or ``--classes`` does not apply.
        AnalysisError: the directory's configuration cannot be read.
    """
    transformers = _transformers()
    config = _read_config(name) if _is_directory(name) else _default_config(name)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if getattr(config, "use_pretrained_backbone", False):
        config.use_pretrained_backbone = False
    architectures = [a for a in config.architectures or () if hasattr(transformers, a)]
    head = architectures[0] if architectures else head_of(config.model_type)
    is_classifier = head.endswith("Classification")
    if request.classes is not None:
        if not is_classifier:
            raise UsageError(
                f"--classes {request.classes} does not apply to {head}, which is not a classifier; leave it out"
            )
        config.num_labels = request.classes
    model_class = getattr(transformers, head)
    dtype = request.dtype or _dtype_of(config)
    return Source(
        spec=request.spec,
        name=Path(name).resolve().name if _is_directory(name) else name,
        origin="transformers",
        construct=partial(_construct, model_class, config),
        kwargs=_inputs(model_class, config, request, dtype),
        classes=config.num_labels if is_classifier else None,
        dtype=dtype,
        weights=request.weights,
    )


def head_of(model_type: str) -> str:
    """Return the name of the model class that is fine-tuned by default for ``model_type``.

    Images are classified, speech is transcribed, text is translated by an encoder with a decoder, classified by
    an encoder (it has a masked-language head) and continued by a decoder; anything else is the bare model.
    """
    tables = vars(_auto("modeling_auto"))
    order = ["IMAGE_CLASSIFICATION", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM"]
    if model_type in tables["MODEL_FOR_MASKED_LM_MAPPING_NAMES"]:
        order += ["SEQUENCE_CLASSIFICATION", "MASKED_LM"]
    order += ["CAUSAL_LM", "SEQUENCE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "VIDEO_CLASSIFICATION"]
    names = [tables[f"MODEL_FOR_{task}_MAPPING_NAMES"].get(model_type) for task in order]
    names.append(tables["MODEL_MAPPING_NAMES"].get(model_type))
    for name in names:
        if name is not None:
            head: str = name if isinstance(name, str) else name[0]
            return head
    raise UsageError(f"hf:{model_type} has a configuration but no model of its own; name the model that contains it")


def missing_directory(path: str) -> str:
    """Return what to tell who named a directory that is not there, or a model on a hub."""
    return (
        f"no directory {path!r} with a config.json; memplan downloads nothing, "
        "so name a local directory, or a model type such as hf:bert"
    )


def _inputs(model_class: Any, config: Any, request: Request, dtype: str) -> Mapping[str, InputSpec]:
    """Return forward's inputs: the main one, and what else a text or decoder needs.

    Attention masks mark one token of padding, as in a batch of unequal sequences. Without padding transformers
    drops the mask, but only where it can look at values: a recording without values would take another kernel.
    Source: ``find_packed_sequence_indices`` and ``_ignore_causal_mask_sdpa`` in transformers/masking_utils.py.
    """
    main: str = model_class.main_input_name
    accepted = inspect.signature(model_class.forward).parameters
    text = config.get_text_config()
    native_length = min(DEFAULT_SEQUENCE, _max_positions(text) or DEFAULT_SEQUENCE)
    inputs: dict[str, InputSpec] = {}
    length = native_length
    if main == "input_ids":
        (length,) = choose_shape(request.input_shape, (native_length,), request.spec)
        _check_length(length, text, request)
        inputs |= _tokens("", length, text, request, accepted)
        if getattr(config, "vision_config", None) is not None and "pixel_values" in accepted:
            shape = _signal_shape("pixel_values", config)
            inputs["pixel_values"] = InputSpec((request.batch_size, *shape), dtype)
    else:
        shape = choose_shape(request.input_shape, _signal_shape(main, config), request.spec)
        _fit_image(config, shape)
        inputs[main] = InputSpec((request.batch_size, *shape), dtype)
    if config.is_encoder_decoder and not main.startswith("pixel_values"):
        inputs |= _tokens("decoder_", length, text, request, accepted)
    return inputs


def _tokens(
    prefix: str, length: int, text: Any, request: Request, accepted: Mapping[str, inspect.Parameter]
) -> dict[str, InputSpec]:
    """Return the token ids and attention mask that forward takes under ``prefix``."""
    shape = (request.batch_size, length)
    inputs = {
        f"{prefix}input_ids": InputSpec(shape, "int64", high=text.vocab_size),
        f"{prefix}attention_mask": InputSpec(shape, "int64", low=1, padded=1 if length > 1 else 0),
    }
    return {name: spec for name, spec in inputs.items() if name in accepted}


def _check_length(length: int, text: Any, request: Request) -> None:
    limit = _max_positions(text)
    if limit is not None and length > limit:
        raise UsageError(
            f"--input {length} is longer than the {limit} positions of {request.spec}; write at most {limit}"
        )


def _fit_image(config: Any, shape: tuple[int, ...]) -> None:
    """Write the image's channels, height and width into the configuration, where it has them."""
    vision = getattr(config, "vision_config", None) or config
    if len(shape) < 3:
        return
    channels, height, width = shape[-3:]
    if hasattr(vision, "num_channels"):
        vision.num_channels = channels
    if hasattr(vision, "image_size") and vision.image_size not in (height, (height, width), [height, width]):
        vision.image_size = height if height == width else (height, width)


def _signal_shape(main: str, config: Any) -> tuple[int, ...]:
    """Return the shape, without the batch axis, of an image, a clip, a spectrogram or raw audio."""
    if main.startswith("pixel_values"):
        vision = getattr(config, "vision_config", None) or config
        size = getattr(vision, "image_size", None) or DEFAULT_IMAGE_SIZE
        height, width = (size, size) if isinstance(size, int) else size
        image = (getattr(vision, "num_channels", 3), height, width)
        frames = getattr(config, "num_frames", None)
        return (frames, *image) if isinstance(frames, int) else image
    if getattr(config, "num_mel_bins", None):
        if hasattr(config, "max_source_positions"):
            return (config.num_mel_bins, 2 * config.max_source_positions)
        return (getattr(config, "max_length", None) or 1024, config.num_mel_bins)
    if main == "input_values":
        channels = getattr(config, "audio_channels", None)
        return (channels, DEFAULT_SAMPLES) if isinstance(channels, int) else (DEFAULT_SAMPLES,)
    raise UsageError(
        f"the shape of {main}, the input of {config.model_type}, is not in its configuration; "
        "write a factory that returns (module, inputs): path/to/file.py:FACTORY"
    )


def _max_positions(config: Any) -> int | None:
    """Return the longest sequence that position embeddings allow, or ``None`` when there is no limit."""
    for key in ("max_position_embeddings", "n_positions", "max_target_positions"):
        if isinstance(limit := getattr(config, key, None), int) and limit > 0:
            return limit
    return None


def _construct(model_class: Any, config: Any) -> Any:
    """Return the model with random weights; it may write into its configuration, so each gets its own."""
    return model_class(copy.deepcopy(config))


def _dtype_of(config: Any) -> str:
    return str(config.dtype or "float32").removeprefix("torch.")


def _is_directory(name: str) -> bool:
    return Path(name, "config.json").is_file()


def _default_config(model_type: str) -> Any:
    mapping = _auto("configuration_auto").CONFIG_MAPPING
    if model_type not in mapping:
        if "/" in model_type or os.sep in model_type:
            raise UsageError(missing_directory(model_type))
        raise UsageError(f"no model type {model_type!r} in transformers{did_you_mean(model_type, mapping)}")
    try:
        with quietly():
            return mapping[model_type]()
    except Exception as error:
        raise AnalysisError(
            f"hf:{model_type} has no default configuration ({type(error).__name__}: {first_line(error)}); "
            "save one to a directory and name that"
        ) from error


def _read_config(directory: str) -> Any:
    try:
        with quietly():
            return _transformers().AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise AnalysisError(
            f"{Path(directory, 'config.json')} is not a configuration that transformers can read: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _transformers() -> ModuleType:
    return import_library("transformers")


def _auto(table: str) -> ModuleType:
    """Return the module that holds transformers' tables of configurations or of models."""
    return import_library(f"transformers.models.auto.{table}")
