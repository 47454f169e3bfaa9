"""The records of one training step. They know nothing of torch, so that all that follows recording runs without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Phase: TypeAlias = Literal["forward", "loss", "backward", "optimizer"]
Role: TypeAlias = Literal["parameter", "buffer", "input", "gradient", "activation"]

#: Birth of a storage that exists before the step begins.
BEFORE: int = -1


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor as an op saw it: a window on a storage. Strides and the offset of its first element count elements."""

    storage: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    offset: int = 0


#: An op's argument: a tensor, a literal, or a (nested) tuple of them. Dtypes, devices and the like are strings.
Argument: TypeAlias = "TensorView | int | float | bool | str | tuple[Argument, ...] | None"


#: What PyTorch's CPU kernels are built for.
INSTRUCTION_SETS: Final = ("DEFAULT", "AVX2", "AVX512", "AMX")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the step runs, as far as that decides bytes: kernels differ by device, instruction set and thread count."""

    device: str
    instruction_set: str
    threads: int
    torch: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A piece of memory: the bytes, what it is for, and the ops during which it is alive (both ends included).

    ``born`` is -1 for what exists before the step; ``last`` is the number of ops for what outlives the backward pass.
    """

    index: int
    bytes: int
    role: Role
    born: int
    last: int


@dataclass(frozen=True, slots=True)
class Op:
    """One operator call, with positional arguments in schema order and defaults filled in.

    ``saves`` lists the storages that autograd begins to keep for this op's backward; ``layer`` is the index of the
    innermost module that ran it, or in backward the module whose forward it differentiates.
    """

    index: int
    phase: Phase
    name: str
    layer: int
    args: tuple[Argument, ...]
    outputs: tuple[TensorView | None, ...]
    saves: tuple[int, ...]
    flops: int

    @property
    def inputs(self) -> Iterator[TensorView]:
        """Yield the tensors among the arguments, nested ones too, in order."""
        return _views(self.args)


@dataclass(frozen=True, slots=True)
class Layer:
    """A module of the model. The root has the path ``""`` and index 0; ``container`` marks torch's own
    lists of modules.
    """

    index: int
    path: str
    type: str
    container: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter under its first name; a tied one appears once. ``elements`` counts numbers, not bytes."""

    name: str
    layer: int
    storage: int
    elements: int
    trains: bool
    gradient: int | None


@dataclass(frozen=True, slots=True)
class Buffer:
    """A buffer under its first name; one that is registered twice appears once."""

    name: str
    layer: int
    storage: int


@dataclass(frozen=True, slots=True)
class Block:
    """A single-entry, single-exit stretch of the network: a module, and the forward ops it covers (both
    ends included).
    """

    index: int
    path: str
    type: str
    first_op: int
    last_op: int


def _views(value: Argument) -> Iterator[TensorView]:
    if isinstance(value, TensorView):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _views(item)
