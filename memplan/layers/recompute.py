"""recompute: what the backward needs is made again from what was kept, when it is needed and no sooner.

A schedule (see :mod:`memplan.methods.cut`) says for each op of a forward which of its results are not kept. Autograd
gets a reference in their place, which repeats the op, and the ops before it, on what was kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.layers.recipes import COSTLY, Hooks, Kept, Recipe, Reference, Value, View, geometry_of
from memplan.methods.cut import RESHAPING, ScheduledOp, is_in_place, is_repeatable, takes_statistics

_DETACH: Final = torch.ops.aten.detach.default
_CLONE: Final = torch.ops.aten.clone.default
_NORMALIZE: Final = torch.ops.aten.native_batch_norm.default
_autograd: Final = torch._C._autograd

#: Dtypes in which a norm computes; it rounds its statistics to others when it returns them.
_EXACT: Final = frozenset({torch.float32, torch.float64})


class Recompute(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, autograd keeps what the schedule says, and references to be made again for the rest.

    It is entered for one forward. Views are passed over, for autograd adds some on fake tensors; another op that
    differs from the schedule's ends it if its result can have a gradient: from there on everything is kept, as in stock
    PyTorch. What draws random numbers, writes what it was not given to write, or comes from elsewhere than PyTorch is
    never repeated. When it is ``waiting``, the schedule is that of the ops after :meth:`begin`.
    """

    def __init__(self, schedule: Sequence[ScheduledOp], *, waiting: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._waiting = waiting
        self._schedule = [op for op in schedule if not _is_window(op.name)]
        self._length = len(schedule)  # of what is left to be followed
        self._position = 0
        self._values: dict[int, Value] = {}
        self._watches: dict[int, weakref.ref[Any]] = {}
        self._outer: Hooks | None = None
        self._idle = False  # while hooks and recipes run: their ops are not the model's

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave ``__torch_dispatch__`` unwrapped: what runs under this mode is not compiled."""
        return False

    @property
    def followed(self) -> bool:
        """Whether the forward has run the ops of the schedule, all of them."""
        return self._position == len(self._schedule)

    def begin(self) -> None:
        """Follow the schedule from here on."""
        self._waiting = False

    def __enter__(self) -> Recompute:
        self._outer = _autograd._top_saved_tensors_default_hooks(False)
        _autograd._push_saved_tensors_default_hooks(self._pack, self._unpack)
        super().__enter__()  # type: ignore[no-untyped-call]
        self._position, self._length = 0, len(self._schedule)
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _autograd._pop_saved_tensors_default_hooks()
        self._values.clear()
        self._watches.clear()

    # -- ops -----------------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        traits = _TRAITS.get(func) or _traits_of(func)
        if self._idle or self._waiting or traits.transparent:
            return func(*args, **kwargs)
        recomputed: tuple[int, ...] = ()
        unknown = False
        if self._position < self._length:
            scheduled = self._schedule[self._position]
            if scheduled.name == traits.name:
                self._position += 1
                recomputed = scheduled.recomputed
            else:
                unknown = True
        if recomputed and traits.may_repeat(args) and not any(map(_is_foreign, types)):
            if traits.in_place:
                return self._run_in_place(func, traits, args, kwargs)
            return self._run(func, traits, args, kwargs, recomputed)
        result = func(*args, **kwargs)
        if unknown and _is_differentiable(result):
            self._length = 0
        for name in traits.writes:
            self._forget(kwargs[name] if isinstance(name, str) else args[name] if name < len(args) else None)
        return result

    def _run(
        self, func: Any, traits: _Traits, args: tuple[Any, ...], kwargs: dict[str, Any], recomputed: tuple[int, ...]
    ) -> Any:
        """Run an op of whose results some are recomputed."""
        if takes_statistics(traits.name, args):
            # The running statistics are left alone, and those of the first time save a pass where they are exact.
            held = [self._held(value) for value in args[:3]]
            result = func(*args, **kwargs)
            if result[1].dtype in _EXACT:
                recipe = Recipe(_normalized, (*held, self._held(result[1]), self._held(result[2])), {})
            else:
                recipe = Recipe(_NORMALIZE, (*held, None, None, True, 0.0, args[-1]), {})
            recomputed = (0,)
        else:
            held = [self._held(value) for value in args]
            options = {name: self._held(value) for name, value in kwargs.items()} if kwargs else kwargs
            result = func(*args, **kwargs)
            if func is _CLONE and isinstance(held[0], View) and geometry_of(result) == held[0].value.geometry:
                # A tensor of its own is a copy already: what it was copied from may be written to once more.
                recipe = Recipe(_as_it_is, held[:1], {}, in_place=True)
            else:
                recipe = Recipe(func, held, options, costly=traits.costly)
        results = (result,) if isinstance(result, Tensor) else result
        for position in recomputed:
            tensor = results[position]
            if tensor is not None:
                self._note(tensor, Value(recipe, position, geometry_of(tensor), tensor.dtype))
        return result

    def _run_in_place(self, func: Any, traits: _Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op that writes to its first argument, which is recomputed before and after."""
        target = args[0]
        before = self._value_of(target)
        if before is None:
            # What it writes to was kept, or given: there is no other copy of what it held.
            self._forget(target)
            return func(*args, **kwargs)
        held = [self._held(value) for value in args]
        options = {name: self._held(value) for name, value in kwargs.items()} if kwargs else kwargs
        result = func(*args, **kwargs)
        recipe = Recipe(func, held, options, costly=traits.costly, in_place=True)
        self._values[target.untyped_storage()._cdata] = Value(recipe, 0, before.geometry, before.dtype)
        return result

    # -- values --------------------------------------------------------------------------------------------------------

    def _value_of(self, tensor: Tensor) -> Value | None:
        """Return the value that a tensor is a window on; none where it is kept."""
        if not self._values or tensor.layout is not torch.strided:
            return None
        value = self._values.get(tensor.untyped_storage()._cdata)
        if value is None or tensor.dtype is not value.dtype or tensor.is_conj() or tensor.is_neg():
            return None
        return value

    def _held(self, argument: Any) -> Any:
        """Return what a recipe holds in place of an argument: of a tensor a view of a value, or the tensor itself."""
        if isinstance(argument, Tensor):
            value = self._value_of(argument)
            # A detached alias: a tensor that requires a gradient would hold the graph that made it.
            return Kept(argument.detach(), self._outer, again=True) if value is None else View(value, argument)
        if isinstance(argument, (list, tuple)):
            return [self._held(item) for item in argument]
        return argument

    def _note(self, tensor: Tensor, value: Value) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._values[key] = value
        values, watches = self._values, self._watches

        def gone(_: Any) -> None:
            values.pop(key, None)
            watches.pop(key, None)

        watches[key] = weakref.ref(storage, gone)

    def _forget(self, written: Any) -> None:
        """Take what was written for kept."""
        if isinstance(written, Tensor):
            if written.layout is torch.strided:
                self._values.pop(written.untyped_storage()._cdata, None)
        elif isinstance(written, (list, tuple)):
            for item in written:
                self._forget(item)

    # -- what autograd keeps -------------------------------------------------------------------------------------------

    def _pack(self, tensor: Tensor) -> Kept | Reference:
        value = self._value_of(tensor)
        if value is not None:
            return Reference(value, tensor)
        # What is saved by the op that made it would hold that op, and be held by it.
        itself = self._outer is not None or (tensor.requires_grad and tensor.is_leaf)
        before, self._idle = self._idle, True
        try:
            return Kept(tensor if itself else tensor.detach(), self._outer)
        finally:
            self._idle = before

    def _unpack(self, saved: Kept | Reference) -> Tensor:
        before, self._idle = self._idle, True
        try:
            if isinstance(saved, Kept):
                return saved.get()
            # Ops are repeated as they ran below autograd and autocast.
            with torch.no_grad(), torch._C._DisableAutocast():
                return saved.get({})
        finally:
            self._idle = before


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return a batch norm's result from its saved mean and inverse deviation.

    The deviation goes into the scale, and the kernel sees a variance of one: its own order of rounding, so that on the
    CPU the result is bit-identical to the first one.
    """
    scale = deviation if weight is None else deviation * weight
    shift = None if bias is None else bias.to(scale.dtype)
    normalized: Tensor = _NORMALIZE(x, scale, shift, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]
    return normalized


def _is_foreign(kind: type) -> bool:
    """Whether a tensor class that dispatches on its own is another than that of fake tensors."""
    return kind.__module__ != "torch._subclasses.fake_tensor"


def _is_differentiable(result: Any) -> bool:
    """Whether an op's result can have a gradient; what has none are questions that real data is asked, and fake not."""
    results = result if isinstance(result, (list, tuple)) else (result,)
    return any(isinstance(one, Tensor) and (one.is_floating_point() or one.is_complex()) for one in results)


class _Traits:
    """What is to be known about an op, found out once."""

    __slots__ = ("asks", "costly", "in_place", "name", "repeatable", "transparent", "window", "writes")

    def __init__(self, func: Any) -> None:
        arguments = func._schema.arguments
        written = {
            (argument.name if argument.kwarg_only else position): argument
            for position, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        }
        self.name = str(func)
        packet = self.name.rpartition(".")[0]
        self.window = func.is_view or packet in RESHAPING or packet == "aten._unsafe_view"
        self.transparent = self.window or func is _DETACH or func.namespace == "prim"
        self.costly = self.name in COSTLY
        self.writes = tuple(written)
        self.in_place = is_in_place(self.name)
        if self.in_place:
            pure = self.writes == (0,) and isinstance(arguments[0].type, torch.TensorType)
        else:
            pure = all(argument.name in ("running_mean", "running_var") for argument in written.values())
        self.asks = "attention" in self.name
        random = torch.Tag.nondeterministic_seeded in func.tags
        self.repeatable = pure and (self.asks or (not random and is_repeatable(self.name, ())))

    def may_repeat(self, args: tuple[Any, ...]) -> bool:
        """Whether a call with these arguments can be repeated; attention may draw random numbers or not."""
        return self.repeatable and (not self.asks or is_repeatable(self.name, args))


_TRAITS: Final[dict[Any, _Traits]] = {}


def _traits_of(func: Any) -> _Traits:
    traits = _TRAITS[func] = _Traits(func)
    return traits


_WINDOWS: Final[dict[str, bool]] = {}


def _is_window(name: str) -> bool:
    """Whether an op, by its name, does no more than look at its argument's storage in another way."""
    known = _WINDOWS.get(name)
    if known is None:
        func: Any = torch.ops
        for part in name.split("."):
            func = getattr(func, part, None)
        known = _WINDOWS[name] = func is not None and _traits_of(func).window
    return known
