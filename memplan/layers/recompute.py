"""recompute: what the backward needs is made again from what was kept, when it is needed and no sooner.

A schedule (see :mod:`memplan.methods.cut`) says for each op of a forward which of its results are not kept. Autograd gets
a reference in their place, which repeats the op, and the ops before it, on what was kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.methods.cut import ScheduledOp, is_in_place

_aten: Final = torch.ops.aten
_autograd: Final = torch._C._autograd

#: Pack and unpack of saved-tensor hooks that were set outside.
Hooks: TypeAlias = "tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]"


class Recompute(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, autograd keeps what the schedule says, and references to be made again for the rest.

    An op that differs from the schedule's ends it: from there on everything is kept, as in stock PyTorch. Nothing that
    draws random numbers is repeated, whatever the schedule says.
    """

    def __init__(self, schedule: Sequence[ScheduledOp]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._schedule = schedule
        self._position = 0
        self._values: dict[int, _Value] = {}
        self._watches: dict[int, weakref.ref[Any]] = {}
        self._outer: Hooks | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave ``__torch_dispatch__`` unwrapped: what runs under this mode is not compiled."""
        return False

    def __enter__(self) -> Recompute:
        self._outer = _autograd._top_saved_tensors_default_hooks(False)
        _autograd._push_saved_tensors_default_hooks(self._pack, _unpack)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _autograd._pop_saved_tensors_default_hooks()
        self._values.clear()
        self._watches.clear()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,  # noqa: ARG002  # the signature is PyTorch's
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is _aten.detach.default or func.namespace == "prim":
            return func(*args, **kwargs)
        recomputed = self._recomputed(func)
        if not recomputed:
            result = func(*args, **kwargs)
            if self._values and not func.is_view:
                for tensor in _tensors(result):
                    self._values.pop(tensor.untyped_storage()._cdata, None)
            return result
        # What an op in place overwrites is looked up before it runs.
        held = pytree.tree_map_only(Tensor, self._hold, (args, kwargs))
        result = func(*args, **kwargs)
        recipe = self._recipe(func, *held, result)
        for position, tensor in enumerate(_tensors(result)):
            self._note(tensor, _Value(recipe, position, tensor) if position in recomputed else None)
        return result

    def _recomputed(self, func: Any) -> tuple[int, ...]:
        if self._position >= len(self._schedule):
            return ()
        scheduled = self._schedule[self._position]
        if scheduled.name != _name(func):
            self._schedule = ()
            return ()
        self._position += 1
        return scheduled.recomputed if not scheduled.recomputed or _is_repeatable(func) else ()

    def _recipe(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> _Recipe:
        if func is _aten.native_batch_norm.default and args[5]:
            # With the statistics of the first time the norm is one pass, and the running ones are left alone.
            source, weight, bias, *_ = args
            mean, deviation = self._hold(result[1]), self._hold(result[2])
            return _Recipe(_normalize, (source, weight, bias, mean, deviation), {}, costly=False)
        return _Recipe(func, args, kwargs, costly=_name(func) in COSTLY)

    def _hold(self, tensor: Tensor) -> _Kept | _View:
        value = self._values.get(tensor.untyped_storage()._cdata)
        # A detached alias: a tensor that requires a gradient would hold the graph that made it.
        return _Kept(tensor.detach(), self._outer) if value is None else _View(value, tensor)

    def _note(self, tensor: Tensor, value: _Value | None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if value is None:
            self._values.pop(key, None)
            return
        self._values[key] = value
        if key not in self._watches:
            values, watches = self._values, self._watches

            def gone(_: Any) -> None:
                values.pop(key, None)
                watches.pop(key, None)

            watches[key] = weakref.ref(storage, gone)

    def _pack(self, tensor: Tensor) -> _Kept | _Reference:
        value = self._values.get(tensor.untyped_storage()._cdata)
        return _Kept(tensor, self._outer) if value is None else _Reference(value, tensor)


def _unpack(saved: _Kept | _Reference) -> Tensor:
    with torch.no_grad():
        return saved.get()


#: Ops whose repeated result is held until autograd has used it everywhere: repeating them once more costs FLOPs.
COSTLY: Final = frozenset(
    f"aten.{name}.default"
    for name in (
        "convolution",
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
    )
)


class _Kept:
    """A tensor that is kept, in the sight of the saved-tensor hooks that were set outside."""

    __slots__ = ("_hooks", "_packed", "_version")

    def __init__(self, tensor: Tensor, hooks: Hooks | None) -> None:
        self._hooks = hooks
        self._packed = tensor if hooks is None else hooks[0](tensor)
        self._version = tensor._version

    def get(self) -> Tensor:
        if self._hooks is not None:
            return self._hooks[1](self._packed)
        tensor: Tensor = self._packed
        # Autograd leaves this check to whoever packs.
        if tensor._version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"tensor of shape {tuple(tensor.shape)} is at version {tensor._version}; expected version "
                f"{self._version} instead"
            )
        return tensor


class _Recipe:
    """An op with its arguments, which can run once more."""

    __slots__ = ("args", "costly", "func", "kwargs")

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, costly: bool) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.costly = costly

    def run(self) -> Any:
        """Return the op's results again; an op in place works on what is nobody else's."""
        if isinstance(self.func, torch._ops.OpOverload) and self.func._schema.is_mutable:
            target = self.args[0]
            base, ours = target.value.made()
            base = base if ours else base.clone()
            rest = pytree.tree_map_only((_View, _Kept), _get, self.args[1:])
            self.func(target.window(base), *rest, **self.kwargs)
            return base
        args, kwargs = pytree.tree_map_only((_View, _Kept), _get, (self.args, self.kwargs))
        return self.func(*args, **kwargs)


class _Value:
    """What a storage held between two writes, to be made again."""

    __slots__ = ("__weakref__", "_held", "_made", "_output", "_recipe", "_shape", "_strides", "references")

    def __init__(self, recipe: _Recipe, output: int, tensor: Tensor) -> None:
        self._recipe = recipe
        self._output = output
        self._shape = tensor.shape
        self._strides = tensor.stride()
        self._made: weakref.ref[Tensor] | None = None
        self._held: Tensor | None = None
        self.references = 0  # places in which autograd counts on it

    def made(self, *, asked: bool = False) -> tuple[Tensor, bool]:
        """Return the tensor, and whether it is the caller's alone.

        What autograd asks for, or costs FLOPs, is held until autograd needs it no more.
        """
        tensor = self._held if self._held is not None else self._made() if self._made is not None else None
        if tensor is not None:
            return tensor, False
        result = self._recipe.run()
        tensor = result if isinstance(result, Tensor) else result[self._output]
        if not _lies_as(tensor, self._shape, self._strides):
            tensor = tensor.as_strided(self._shape, self._strides) if not tensor.numel() else self._laid(tensor)
        self._made = weakref.ref(tensor)
        if self.references and (asked or self._recipe.costly):
            self._held = tensor
        return tensor, not self.references

    def _laid(self, tensor: Tensor) -> Tensor:
        laid = torch.empty_strided(self._shape, self._strides, dtype=tensor.dtype, device=tensor.device)
        return laid.copy_(tensor.view(self._shape))

    def let_go(self) -> None:
        """Count one reference less; with the last one the tensor is released."""
        self.references -= 1
        if not self.references:
            self._held = None


class _View:
    """A window on a value, as an op saw it."""

    __slots__ = ("_offset", "_shape", "_strides", "value")

    def __init__(self, value: _Value, tensor: Tensor) -> None:
        self.value = value
        self._shape = tensor.shape
        self._strides = tensor.stride()
        self._offset = tensor.storage_offset()

    def window(self, base: Tensor) -> Tensor:
        """Return the window on ``base``, the whole value."""
        if not self._offset and _lies_as(base, self._shape, self._strides):
            return base
        return base.as_strided(self._shape, self._strides, self._offset)

    def get(self) -> Tensor:
        """Return the window on the value made again."""
        return self.window(self.value.made()[0])


class _Reference(_View):
    """What autograd keeps in place of a tensor that is made again."""

    __slots__ = ()

    def __init__(self, value: _Value, tensor: Tensor) -> None:
        super().__init__(value, tensor)
        value.references += 1

    def __del__(self) -> None:
        self.value.let_go()

    def get(self) -> Tensor:
        return self.window(self.value.made(asked=True)[0])


def _get(held: _View | _Kept) -> Tensor:
    return held.get()


def _lies_as(tensor: Tensor, shape: torch.Size, strides: tuple[int, ...]) -> bool:
    return tensor.shape == shape and tensor.stride() == strides


def _normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return a batch norm's result from its saved mean and inverse deviation.

    The deviation goes into the scale, and the kernel sees a variance of one: its own order of rounding, so that on the
    CPU the result is bit-identical to the first one.
    """
    scale = deviation if weight is None else deviation * weight
    one = torch.ones_like(mean)
    normalized: Tensor = _aten.native_batch_norm.default(x, scale, bias, mean, one, False, 0.0, 0.0)[0]
    return normalized


def _tensors(result: Any) -> tuple[Any, ...]:
    if isinstance(result, Tensor):
        return (result,)
    return tuple(value for value in result if isinstance(value, Tensor)) if isinstance(result, (tuple, list)) else ()


_NAMES: Final[dict[Any, str]] = {}
_REPEATABLE: Final[dict[Any, bool]] = {}


def _name(func: Any) -> str:
    name = _NAMES.get(func)
    if name is None:
        name = _NAMES[func] = str(func)
    return name


def _is_repeatable(func: Any) -> bool:
    known = _REPEATABLE.get(func)
    if known is None:
        random = torch.Tag.nondeterministic_seeded in func.tags
        writes = func._schema.is_mutable and not is_in_place(_name(func))
        known = _REPEATABLE[func] = not random and not writes
    return known
