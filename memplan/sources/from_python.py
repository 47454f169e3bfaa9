"""A factory in the user's own Python: ``path/to/file.py:FACTORY`` or ``package.module:FACTORY``."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from memplan.errors import AnalysisError, UsageError, did_you_mean
from memplan.sources.kinds import list_prefixes
from memplan.sources.quiet import first_line, quietly
from memplan.sources.records import InputSpec, Request, Source
from memplan.sources.torchvision_compat import declare_missing_operators

USER_ERRORS: Final = (Exception, SystemExit)
"""What the user's code may raise and memplan reports; an interrupt is not among them."""


def resolve_python(spec: str, request: Request) -> Source:
    """Return the source for an attribute of a Python file or module.

    The attribute is a function or ``nn.Module`` class that gives the module, ``(module, inputs)`` or
    ``(module, args, kwargs)``; a module instance, which is copied and stays as it is; or a ``Source``. A factory
    that takes ``batch_size`` or ``num_classes`` gets them.

    Raises:
        UsageError: no such file, module or attribute, or the factory does not take ``--classes``.
        AnalysisError: the file is not Python, or raises while it is imported.
    """
    target, folder, is_file = _import_target(
        spec, "a file or module and a factory, such as model.py:build or package.module:build"
    )
    if isinstance(target, Source):
        return dataclasses.replace(target, spec=request.spec)
    dtype = request.dtype
    args: tuple[InputSpec, ...] = ()
    if request.input_shape is not None:
        args = (InputSpec((request.batch_size, *request.input_shape), dtype or "float32"),)
    return Source(
        spec=request.spec,
        name=spec.rpartition(":")[2],
        origin="file" if is_file else "import",
        construct=_constructor(target, folder, request),
        args=args,
        classes=request.classes,
        dtype=dtype,
        weights=request.weights,
        inputs_from_factory=not args,
    )


def import_function(spec: str, option: str) -> Callable[..., Any]:
    """Return the function ``path/to/file.py:NAME`` or ``package.module:NAME`` that is given for ``option``.

    Raises:
        UsageError: no such file, module or attribute, or it cannot be called.
        AnalysisError: the file is not Python, or raises while it is imported.
    """
    target, _, _ = _import_target(
        spec, "a file or module and a function, such as losses.py:loss or package.module:loss"
    )
    if not callable(target):
        raise UsageError(f"{option} {spec} is of type {type(target).__name__}, not a function; name one")
    function: Callable[..., Any] = target
    return function


def _import_target(spec: str, needs: str) -> tuple[Any, Path, bool]:
    """Return the attribute that ``spec`` names, the folder its imports are found in, and whether it is in a file."""
    place, _, attribute = spec.rpartition(":")
    is_file = place.endswith(".py") or os.sep in place or "/" in place
    if not place or not attribute:
        raise UsageError(f"{spec!r} needs {needs}")
    folder = Path(place).resolve().parent if is_file else Path.cwd()
    declare_missing_operators()
    with _importable(folder), quietly():
        module = _import_file(Path(place)) if is_file else _import_module(place, spec)
    return _find_attribute(module, attribute, place), folder, is_file


def _constructor(target: Any, folder: Path, request: Request) -> Callable[[], Any]:
    from torch import nn

    if isinstance(target, nn.Module):
        if request.classes is not None:
            raise UsageError(
                f"--classes {request.classes} does not apply to {request.spec}, which is built already; leave it out"
            )
        return partial(_copy, target)
    if not callable(target):
        raise UsageError(
            f"{request.spec} is a {type(target).__name__}, not a factory; "
            "name a function, an nn.Module class or an nn.Module instance"
        )
    return partial(_call, target, _options(target, request), folder, request.spec)


def _copy(module: Any) -> Any:
    """Return a copy of ``module``, without its bytes when tensors are being created on meta."""
    import torch

    from memplan.sources.meta import copy_module

    return copy_module(module, torch.get_default_device().type)


def _options(factory: Callable[..., Any], request: Request) -> dict[str, Any]:
    """Return the options of the request that ``factory`` takes by name."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    options: dict[str, Any] = {}
    if "batch_size" in parameters:
        options["batch_size"] = request.batch_size
    if request.classes is not None:
        names = [name for name in ("num_classes", "classes") if name in parameters]
        if not names:
            raise UsageError(
                f"{request.spec} takes no num_classes, so --classes {request.classes} does not apply; leave it out"
            )
        options[names[0]] = request.classes
    return options


def _call(factory: Callable[..., Any], options: dict[str, Any], folder: Path, spec: str) -> Any:
    try:
        with _importable(folder):
            return factory(**options)
    except USER_ERRORS as error:
        raise AnalysisError(f"{spec} raised {_account(error, folder)}") from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}; write path/to/file.py:FACTORY")
    name = f"memplan_file_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UsageError(f"{str(path)!r} is not a Python file; write path/to/file.py:FACTORY")
    module = importlib.util.module_from_spec(found)
    linecache.checkcache(str(path))
    previous = sys.modules.get(name)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except USER_ERRORS as error:
        if previous is None:
            del sys.modules[name]
        else:
            sys.modules[name] = previous
        raise _import_failure(str(path), error, path.resolve().parent) from error
    return module


def _import_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except USER_ERRORS as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and f"{name}.".startswith(f"{missing}."):
            hint = did_you_mean(name, list_prefixes()) or "; is its directory the current one or on PYTHONPATH?"
            raise UsageError(f"no module {name!r}, which {spec!r} names{hint}") from error
        raise _import_failure(name, error, Path.cwd()) from error


def _import_failure(place: str, error: BaseException, folder: Path) -> AnalysisError:
    if isinstance(error, SyntaxError) and error.lineno is not None:
        culprit = error.filename or place
        return AnalysisError(f"{place} is not Python: {error.msg} ({Path(culprit).name}, line {error.lineno})")
    if isinstance(error, (UnicodeDecodeError, ValueError, SyntaxError)) and not _frames_in(error, folder):
        return AnalysisError(f"{place} is not Python: {first_line(error)}")
    if isinstance(error, OSError) and not _frames_in(error, folder):
        return AnalysisError(f"{place} cannot be read: {error.strerror or first_line(error)}")
    return AnalysisError(f"importing {place} raised {_account(error, folder)}")


def _find_attribute(module: ModuleType, attribute: str, place: str) -> Any:
    target: Any = module
    for name in attribute.split("."):
        if not hasattr(target, name):
            own = [key for key, value in vars(target).items() if callable(value) and not key.startswith("_")]
            hint = did_you_mean(name, own)
            if not hint:
                local = [key for key in own if getattr(vars(target)[key], "__module__", None) == module.__name__]
                hint = f"; it has {', '.join(local[:5])}" if local else "; it defines no function or class"
            raise UsageError(f"no {attribute!r} in {place}{hint}")
        target = getattr(target, name)
    return target


def _account(error: BaseException, folder: Path) -> str:
    """Return the exception's type, text and, where it is in the user's folder, its file and line."""
    text = first_line(error)
    told = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = _frames_in(error, folder)
    return f"{told} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else told


def _frames_in(error: BaseException, folder: Path) -> list[traceback.FrameSummary]:
    """Return the frames of the traceback that run code in ``folder``, outermost first."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    inside = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(folder)]
    return [frame for frame in inside if "site-packages" not in frame.filename and frame.filename != __file__]


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Find modules in ``folder`` first, as ``python file.py`` would.

    What was imported from another model's folder is forgotten: both may have a ``layers.py`` of their own.
    """
    for name, home in list(_siblings.items()):
        if home != folder:
            sys.modules.pop(name, None)
            del _siblings[name]
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).resolve().is_relative_to(folder) and "site-packages" not in file:
                _siblings[name] = folder


#: Modules that were imported from a model's folder, and that folder.
_siblings: dict[str, Path] = {}
