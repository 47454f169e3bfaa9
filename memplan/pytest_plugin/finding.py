"""The model of a test and its inputs: what the test returns, or is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from memplan.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn

    from memplan.pytest_plugin.asking import Asked

#: Arguments of a test that are taken for its model and its inputs where its marker names none.
_MODEL: Final = "model"
_INPUTS: Final = ("inputs", "example_inputs")

#: Samples in a batch where nothing else is said; a spec's default too.
_BATCH_SIZE: Final = 8


def model_of(asked: Asked, returned: Any, arguments: Mapping[str, Any]) -> tuple[str | nn.Module, Any]:
    """Return the model that a test is about, and its inputs; a spec has none.

    Args:
        asked: by the test's markers.
        returned: by the test: a module, a spec, or a pair of a module and its inputs; ``None`` for nothing.
        arguments: the test's own.

    Raises:
        UsageError: there is no model, or more than one.
    """
    inputs = None
    if asked.model is not None:
        _named(asked.model, arguments)  # it is the test's own also where another model is returned
    if returned is None:
        model = _argument(asked, arguments)
    elif isinstance(returned, tuple) and len(returned) == 2:
        model, inputs = returned
    else:
        model = returned
    if not is_model(model):
        raise UsageError(
            f"the test returns {described(returned)}, which is no model; return a module, a module and its inputs, "
            "or a spec such as 'mobilenet_v3'"
        )
    return model, _inputs(asked, arguments, model) if inputs is None else inputs


def with_inputs(model: str | nn.Module, inputs: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the inputs of a model, made as the options say where there are none, and the options that are left.

    A spec's options are its own.

    Raises:
        UsageError: there are no inputs, or the options say what a module cannot follow.
    """
    if isinstance(model, str):
        return inputs, dict(options)
    left = {name: value for name, value in options.items() if name not in ("batch_size", "input_shape", "dtype")}
    for option in ("classes", "weights"):
        if options.get(option) is not None:
            raise UsageError(f"{option} is for specs, and {type(model).__name__} is a module; leave it out")
    made = {name: options[name] for name in options if name not in left and options[name] is not None}
    if inputs is not None:
        if made:
            names = " and ".join(made)
            raise UsageError(f"{names} and inputs are given to {type(model).__name__}; leave one of them out")
        return inputs, left
    if "input_shape" not in made:
        raise UsageError(
            f"{type(model).__name__} is given without inputs; return them with it, or give the test an argument "
            "inputs, or the marker an input_shape such as (3, 32, 32)"
        )
    return _zeros(model, **made), left


def _argument(asked: Asked, arguments: Mapping[str, Any]) -> Any:
    """Return the argument that is the model."""
    if asked.model is not None:
        return _named(asked.model, arguments)
    if is_model(arguments.get(_MODEL)):
        return arguments[_MODEL]
    modules = [name for name, value in arguments.items() if _is_module(value)]
    if len(modules) == 1:
        return arguments[modules[0]]
    if modules:
        raise UsageError(f"which argument is the model: {' or '.join(modules)}? Write model={modules[0]!r}")
    raise UsageError(
        "the test returns no model and has none among its arguments; return a module, a module and its inputs, "
        "or a spec such as 'mobilenet_v3'"
    )


def _inputs(asked: Asked, arguments: Mapping[str, Any], model: str | nn.Module) -> Any:
    if isinstance(asked.inputs, str):
        return _named(asked.inputs, arguments)
    # A spec brings its own: an argument of that name is something else.
    if asked.inputs is not None or isinstance(model, str):
        return asked.inputs
    return next((arguments[name] for name in _INPUTS if name in arguments), None)


def _named(name: str, arguments: Mapping[str, Any]) -> Any:
    if name not in arguments:
        hint = did_you_mean(name, arguments) or f"; it has {', '.join(arguments) or 'none'}"
        raise UsageError(f"the test has no argument {name!r}{hint}")
    return arguments[name]


def _zeros(
    model: nn.Module,
    *,
    input_shape: tuple[int, ...],
    batch_size: int = _BATCH_SIZE,
    dtype: str | torch.dtype | None = None,
) -> Any:
    """Return a batch of zeros where the model is, in the dtype of its parameters if no other is asked for."""
    import torch

    from memplan.subject import dtype_name

    first = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.empty(0))
    kind = first.dtype if dtype is None else getattr(torch, str(dtype_name(dtype)), None)
    if not isinstance(kind, torch.dtype):
        known = [name for name, value in vars(torch).items() if isinstance(value, torch.dtype)]
        raise UsageError(f"no dtype {dtype!r}{did_you_mean(dtype, known) or '; write for example float32'}")
    sizes = (batch_size, *input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UsageError(
            f"cannot make a batch of {batch_size!r} samples of shape {input_shape!r}; "
            "write batch_size=8, input_shape=(3, 32, 32)"
        )
    return torch.zeros(sizes, dtype=kind, device=first.device)


def is_model(value: Any) -> TypeGuard[str | nn.Module]:
    """Return whether a value is a spec or a module."""
    return isinstance(value, str) or _is_module(value)


def _is_module(value: Any) -> bool:
    # torch need not be imported to say so.
    return callable(getattr(value, "named_parameters", None)) and not isinstance(value, type)


def described(value: Any) -> str:
    """Return in words what a value is that is no model."""
    if isinstance(value, tuple):
        return f"a tuple of {' and '.join(type(item).__name__ for item in value) or 'nothing'}"
    return f"a class, {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
