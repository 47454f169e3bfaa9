"""Recipes: ops with their arguments, which make values again that were not kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeAlias

import torch
from torch import Tensor

#: Pack and unpack of saved-tensor hooks that were set outside.
Hooks: TypeAlias = "tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]"

#: Where a tensor lies in its storage: shape, strides, offset.
Geometry: TypeAlias = "tuple[torch.Size, tuple[int, ...], int | torch.SymInt]"

#: Ops whose repeated result is held until autograd has used it everywhere: repeating them once more costs FLOPs.
COSTLY: Final = frozenset(
    f"aten.{name}.default"
    for name in (
        "convolution",
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_fused_attention_overrideable",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
)


def geometry_of(tensor: Tensor) -> Geometry:
    """Return where ``tensor`` lies in its storage, in elements."""
    return tensor.shape, tensor.stride(), tensor.storage_offset()


class Kept:
    """A tensor that is kept, in the sight of the saved-tensor hooks that were set outside.

    Autograd asks for it once in a backward; a recipe asks again and again, which hooks need not put up with.
    """

    __slots__ = ("_again", "_hooks", "_packed", "_unpacked", "_version")

    def __init__(self, tensor: Tensor, hooks: Hooks | None, *, again: bool = False) -> None:
        self._hooks = hooks
        self._again = again
        self._unpacked: Tensor | None = None
        self._packed = tensor if hooks is None else hooks[0](tensor)
        self._version = _version(tensor)

    def get(self, shared: Shared | None = None) -> Tensor:  # noqa: ARG002  # as a view's
        """Return the tensor.

        Raises:
            RuntimeError: it was written in place since, in the words in which autograd says so; autograd leaves this
                check to whoever packs.
        """
        if self._hooks is not None:
            tensor = self._hooks[1](self._packed) if self._unpacked is None else self._unpacked
            if self._again:
                self._unpacked = tensor
            return tensor
        tensor = self._packed
        if _version(tensor) != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"tensor of shape {tuple(tensor.shape)} is at version {tensor._version}; expected version "
                f"{self._version} instead"
            )
        return tensor


class Recipe:
    """An op with its arguments, which can run once more.

    What it makes are the values in ``outputs``, by their place among its results.
    """

    __slots__ = ("_args", "_func", "_kwargs", "costly", "in_place", "outputs")

    def __init__(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        costly: bool = False,
        in_place: bool = False,
    ) -> None:
        self._func = func
        self._args = args
        self._kwargs = kwargs
        self.costly = costly
        self.in_place = in_place
        self.outputs: list[tuple[int, weakref.ref[Value]]] = []

    def run(self, shared: Shared) -> tuple[Any, ...]:
        """Return the op's results again; an op in place works on what is nobody else's."""
        kwargs = {name: _got(value, shared) for name, value in self._kwargs.items()} if self._kwargs else self._kwargs
        if self.in_place:
            target, *others = self._args
            rest = [_got(value, shared) for value in others]
            base = target.value.taken(shared)
            self._func(target.window(base), *rest, **kwargs)
            return (base,)
        result = self._func(*[_got(value, shared) for value in self._args], **kwargs)
        return (result,) if isinstance(result, Tensor) else tuple(result)


class Value:
    """What a storage held between two writes, to be made again."""

    __slots__ = ("__weakref__", "_held", "_made", "_output", "_readers", "_recipe", "_references", "dtype", "geometry")

    def __init__(self, recipe: Recipe, output: int, geometry: Geometry, dtype: torch.dtype) -> None:
        self._recipe = recipe
        self._output = output
        self._made: weakref.ref[Tensor] | None = None
        self._held: Tensor | None = None
        self._references = 0  # places in which autograd counts on it
        self._readers = 0  # places in which recipes do
        self.geometry = geometry
        self.dtype = dtype
        recipe.outputs.append((output, weakref.ref(self)))

    def made(self, shared: Shared) -> Tensor:
        """Return the tensor, which others may look at too.

        What autograd counts on is held until it needs it no more, what costs FLOPs until nobody does.
        """
        tensor = self._at_hand(shared)
        if tensor is None:
            tensor = self._made_again(shared)
            self._made = weakref.ref(tensor)
            if self._readers > 1:
                shared[self] = tensor
        if self._references or self._recipe.costly:
            self._held = tensor
        return tensor

    def taken(self, shared: Shared) -> Tensor:
        """Return a tensor that the caller may write to, and nobody else looks at.

        It is not handed to other readers: they make theirs when autograd asks, which costs no more than a copy.
        """
        return self._made_again(shared) if self._at_hand(shared) is None else self._laid(self.made(shared))

    def counted(self, places: int, *, asked: bool) -> None:
        """Count ``places`` more in which autograd, or else a recipe, counts on the value.

        The tensor is released with the last of them that it is held for.
        """
        if asked:
            self._references += places
        else:
            self._readers += places
        if not self._references and not (self._recipe.costly and self._readers):
            self._held = None

    def _at_hand(self, shared: Shared) -> Tensor | None:
        if self._held is not None:
            return self._held
        tensor = None if self._made is None else self._made()
        return shared.get(self) if tensor is None else tensor

    def _made_again(self, shared: Shared) -> Tensor:
        results = self._recipe.run(shared)
        for output, reference in self._recipe.outputs:
            other = reference()
            if other is not None and other is not self and other._at_hand(shared) is None:
                tensor = other._settled(results[output])
                if other._references:
                    other._held = tensor
                elif other._readers:
                    shared[other] = tensor
        return self._settled(results[self._output])

    def _settled(self, tensor: Tensor) -> Tensor:
        """Return the tensor with the strides that it had: what looks at it through a window counts on them."""
        return tensor if geometry_of(tensor) == self.geometry else self._laid(tensor)

    def _laid(self, tensor: Tensor) -> Tensor:
        shape, strides, offset = self.geometry
        span = offset + 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        laid = tensor.new_empty(span if tensor.numel() else offset).as_strided(shape, strides, offset)
        return laid.copy_(tensor)


class View:
    """A window on a value, as an op saw it: what a recipe holds in place of an argument."""

    __slots__ = ("_geometry", "value")

    asked: ClassVar[bool] = False

    def __init__(self, value: Value, tensor: Tensor) -> None:
        self.value = value
        geometry = geometry_of(tensor)
        self._geometry = None if geometry == value.geometry else geometry
        value.counted(1, asked=self.asked)

    def __del__(self) -> None:
        self.value.counted(-1, asked=self.asked)

    def window(self, base: Tensor) -> Tensor:
        """Return the window on ``base``, the whole value."""
        return base if self._geometry is None else base.as_strided(*self._geometry)

    def get(self, shared: Shared) -> Tensor:
        """Return the window on the value made again."""
        return self.window(self.value.made(shared))


class Reference(View):
    """What autograd keeps in place of a tensor that is made again."""

    __slots__ = ()

    asked = True


#: What one request of autograd's makes on its way and needs more than once.
Shared: TypeAlias = "dict[Value, Tensor]"


def _got(argument: Any, shared: Shared) -> Any:
    if isinstance(argument, (View, Kept)):
        return argument.get(shared)
    if type(argument) is list:
        return [_got(item, shared) for item in argument]
    return argument


def _version(tensor: Tensor) -> int:
    """Return how often a tensor's storage has been written; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version
