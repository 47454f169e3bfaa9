"""Make torchvision importable beside a torch that it was not built for.

Such a torchvision cannot load its C++ operators, and since its import registers fake kernels for two of them it
dies with ``RuntimeError: operator torchvision::nms does not exist``. The classification, segmentation and video
models need none of these operators: declaring the two schemas is enough to import them all. timm and transformers
import torchvision themselves, so this comes before them too.

Source: torchvision/_meta_registrations.py (``register_fake("torchvision::nms")``), torchvision/extension.py.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys

MISSING_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache
def declare_missing_operators() -> bool:
    """Declare ``nms`` and ``qnms`` unless torchvision's own library has them; return whether that was needed.

    Does nothing when torchvision is not installed or is imported already.
    """
    if "torchvision" in sys.modules:
        return False
    package = importlib.util.find_spec("torchvision")
    if package is None or _loads_own_operators(package):
        return False

    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's
    for name, schema in MISSING_SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]  # torch's
    _kept_alive.append(library)
    return True


_kept_alive: list[object] = []
"""Schemas disappear with the ``Library`` that declared them."""


def _loads_own_operators(package: importlib.machinery.ModuleSpec) -> bool:
    """Return whether the C++ library of the torchvision in ``package`` loads into this torch."""
    import torch

    suffixes = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    for folder in package.submodule_search_locations or ():
        found = importlib.machinery.FileFinder(folder, suffixes).find_spec("_C")
        if found is not None and found.origin is not None:
            try:
                torch.ops.load_library(found.origin)  # type: ignore[no-untyped-call]  # torch's
            except (ImportError, OSError):
                return False
            return True
    return False
