"""Local checkpoints: check that one fits a module, and load it where the module has memory."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from memplan.errors import AnalysisError, UsageError
from memplan.shapes import format_shape
from memplan.sources.quiet import first_line, quietly

NESTED_KEYS: Final = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the state dict in a checkpoint."""


def fit_weights(module: nn.Module, path: Path, name: str) -> None:
    """Check that the checkpoint at ``path`` has the tensors of ``module``, and load them unless it is on meta.

    A tied parameter may be in the file under any one of its names.

    Raises:
        UsageError: there is no such file, or it has another kind.
        AnalysisError: the file is malformed, or keys or shapes differ from the module's.
    """
    own = module.state_dict(keep_vars=True)
    on_meta = any(tensor.is_meta for tensor in own.values())
    given = _strip_wrapper(read_weights(path, device="meta" if on_meta else "cpu"), own)
    present = {id(own[key]) for key in own.keys() & given.keys()}
    faults = [
        _list_faults("missing", [key for key in own if key not in given and id(own[key]) not in present]),
        _list_faults("unexpected", [key for key in given if key not in own]),
        _list_faults(
            "of another shape",
            [
                f"{key} ({_shape_text(given[key])} in the file, {_shape_text(own[key])} in the model)"
                for key in own
                if key in given and given[key].shape != own[key].shape
            ],
        ),
    ]
    if any(faults):
        raise AnalysisError(
            f"weights {str(path)!r} do not fit {name}: {'; '.join(filter(None, faults))}; "
            "check the model's name and --classes"
        )
    if not on_meta:
        module.load_state_dict(given, strict=False)


def read_weights(path: Path, *, device: str) -> dict[str, Tensor]:
    """Return the state dict in a ``.safetensors``, ``.pt`` or ``.pth`` file; on ``meta`` no values are read."""
    if not path.is_file():
        raise UsageError(f"no weights file {str(path)!r}; give a .pt, .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, device)
        with quietly():
            state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise AnalysisError(
            f"weights {str(path)!r} hold more than tensors, or are not a PyTorch checkpoint; "
            "save module.state_dict() with torch.save"
        ) from error
    except ImportError as error:
        raise AnalysisError(
            f"safetensors is not installed, so {str(path)!r} cannot be read; run: pip install safetensors"
        ) from error
    except Exception as error:
        raise AnalysisError(
            f"weights {str(path)!r} cannot be read: {type(error).__name__}: {first_line(error)}"
        ) from error
    return _state_dict(state, path)


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        if device == "meta":
            return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _state_dict(state: Any, path: Path) -> dict[str, Tensor]:
    for key in NESTED_KEYS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise AnalysisError(f"weights {str(path)!r} hold no state dict; save module.state_dict() with torch.save")
    return dict(state)


def _strip_wrapper(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``given`` without the ``module.`` that ``DistributedDataParallel`` puts before every key."""
    wrapper = "module."
    if all(key.startswith(wrapper) for key in given) and not any(key.startswith(wrapper) for key in own):
        return {key.removeprefix(wrapper): tensor for key, tensor in given.items()}
    return given


def _list_faults(what: str, faults: list[str]) -> str:
    if not faults:
        return ""
    return f"{len(faults)} {what}, first {faults[0]}"


def _shape_text(tensor: Tensor) -> str:
    return format_shape(tuple(tensor.shape)) or "a number"
