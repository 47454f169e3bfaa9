"""From the text of a spec to the kind of source that answers it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

from memplan.errors import AnalysisError, UsageError, did_you_mean
from memplan.sources.from_transformers import missing_directory
from memplan.sources.packages import is_installed
from memplan.sources.records import Request, Source, SourceKind

ENTRY_POINT_GROUP: Final = "memplan.sources"

BUILT_IN_KINDS: Final[dict[str, str]] = {
    "memplan": "memplan.sources.from_memplan",
    "torchvision": "memplan.sources.from_torchvision",
    "timm": "memplan.sources.from_timm",
    "hf": "memplan.sources.from_transformers",
}
"""Prefix -> module with ``resolve``, ``list_names`` and ``PACKAGE``, the package to be installed; in the order in
which a bare name is looked for."""

ALIASES: Final[dict[str, str]] = {
    "bert": "hf:bert",
    "convnext": "torchvision:convnext_tiny",
    "deeplabv3": "torchvision:deeplabv3_resnet50",
    "densenet": "torchvision:densenet121",
    "distilbert": "hf:distilbert",
    "efficientnet": "torchvision:efficientnet_b0",
    "efficientnet_v2": "torchvision:efficientnet_v2_s",
    "gpt2": "hf:gpt2",
    "inception": "torchvision:inception_v3",
    "mnasnet": "torchvision:mnasnet1_0",
    "mobilenet": "torchvision:mobilenet_v3_large",
    "mobilenet_v3": "torchvision:mobilenet_v3_large",
    "mobilenetv2": "torchvision:mobilenet_v2",
    "mobilenetv3": "torchvision:mobilenet_v3_large",
    "proxyless_mobile": "memplan:proxyless_mobile",
    "regnet": "torchvision:regnet_y_400mf",
    "resnet": "torchvision:resnet50",
    "roberta": "hf:roberta",
    "shufflenet_v2": "torchvision:shufflenet_v2_x1_0",
    "squeezenet": "torchvision:squeezenet1_1",
    "swin": "torchvision:swin_t",
    "vgg": "torchvision:vgg16",
    "vit": "torchvision:vit_b_16",
    "whisper": "hf:whisper",
}
"""Short names and the specs they stand for."""


def resolve_spec(request: Request) -> Source:
    """Return the source that ``request.spec`` names.

    Raises:
        UsageError: no such prefix, model, directory, file or factory.
        AnalysisError: a package that the spec needs is not installed or does not import.
    """
    spec = ALIASES.get(request.spec, request.spec)
    prefix, colon, name = spec.partition(":")
    if colon and (kind := find_kind(prefix)) is not None:
        return kind.resolve(name, request)
    if Path(spec, "config.json").is_file():
        return _load_kind("hf").resolve(spec, request)
    if colon:
        from memplan.sources.from_python import resolve_python

        return resolve_python(spec, request)
    if spec.endswith(".py"):
        raise UsageError(f"{spec!r} names a file but no factory; write {spec}:FACTORY")
    if os.sep in spec or "/" in spec:
        raise UsageError(missing_directory(spec))
    return resolve_bare_name(spec, request)


def resolve_bare_name(name: str, request: Request) -> Source:
    """Return ``name`` from the first of memplan, torchvision, timm and transformers that knows it."""
    known = list(ALIASES)
    for kind in _installed_kinds():
        names = kind.list_names()
        if name in names:
            source: Source = kind.resolve(name, request)
            return source
        known.extend(names)
    hint = did_you_mean(name, dict.fromkeys(known))
    if not hint:
        hint = "; write torchvision:NAME, timm:NAME, hf:MODEL_TYPE, path/to/file.py:FACTORY or package.module:FACTORY"
    raise UsageError(f"no model {name!r}{hint}")


def find_kind(prefix: str) -> SourceKind | None:
    """Return the built-in or registered kind of source for ``prefix``, or ``None``.

    Raises:
        AnalysisError: the package behind a built-in prefix is missing, or a registered kind does not load.
    """
    if prefix in BUILT_IN_KINDS:
        return _load_kind(prefix)
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=prefix):
        try:
            kind: SourceKind = entry_point.load()
        except Exception as error:
            raise AnalysisError(
                f"the source {prefix!r} ({entry_point.value}) does not load: {type(error).__name__}: {error}"
            ) from error
        return kind
    return None


def list_prefixes() -> list[str]:
    """Return every prefix that ``find_kind`` answers."""
    registered = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return [*BUILT_IN_KINDS, *(entry_point.name for entry_point in registered)]


def _load_kind(prefix: str) -> SourceKind:
    kind: SourceKind = importlib.import_module(BUILT_IN_KINDS[prefix])
    return kind


def _installed_kinds() -> Iterator[ModuleType]:
    for module in BUILT_IN_KINDS.values():
        kind = importlib.import_module(module)
        if is_installed(kind.PACKAGE):
            yield kind
