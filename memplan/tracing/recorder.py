"""A dispatch mode that writes down every op of a training step and the life of every storage it touches."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.graph.records import BEFORE, Phase, Role, TensorView
from memplan.tracing.flops import flop_count
from memplan.tracing.kernels import KERNELS, META_KERNELS
from memplan.tracing.storages import STORAGE_BYTES

_ADD: Final = torch.ops.aten.add.Tensor
_ADD_IN_PLACE: Final = torch.ops.aten.add_.Tensor
_DETACH: Final = torch.ops.aten.detach.default
_DEVICE: Final = torch.ops.prim.device.default

#: Reference counts that a gradient shows to this mode when the engine's buffer is its only owner: one from the buffer,
#: three from the call itself, and for the storage one from the tensor and one from being looked at.
_SOLE_OWNER: Final = (4, 2)


@dataclass(frozen=True, slots=True)
class Call:
    """One op of the step as it was called: literals in place of tensors, and what it returned."""

    func: Any
    phase: Phase
    layer: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[TensorView | None, ...]
    flops: int


class StorageLife:
    """One storage while it is being recorded: who still holds it, and when the last holder let go."""

    __slots__ = ("born", "bytes", "holders", "index", "released", "role", "saves")

    def __init__(self, index: int, size_bytes: int, role: Role, born: int) -> None:
        self.index = index
        self.bytes = size_bytes
        self.role: Role = role
        self.born = born
        self.released: int | None = None
        self.holders = 1  # the storage itself, its stand-ins in backward, and every place where autograd keeps it
        self.saves = 0  # how many of the holders are autograd's


class SavedTensor:
    """What autograd keeps in place of a tensor: enough to rebuild an empty one, and no claim on its storage."""

    __slots__ = ("device", "dtype", "offset", "recorder", "shape", "storage", "strides")

    def __init__(self, tensor: torch.Tensor, storage: StorageLife, recorder: Recorder) -> None:
        self.storage = storage
        self.recorder = recorder
        self.shape = tensor.shape
        self.strides = tensor.stride()
        self.offset = tensor.storage_offset()
        self.dtype = tensor.dtype
        self.device = tensor.device

    def __del__(self) -> None:
        self.storage.saves -= 1
        self.recorder.let_go(self.storage)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record the calls, storages and saves of one training step on fake tensors.

    A storage lives from the op that returns it until Python and autograd have both let go. Saved tensors are replaced
    by descriptions, so that recording never prolongs a life: what is seen is what the same program does on real
    tensors.
    """

    def __init__(self, fake_mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.given: list[tuple[str, int]] = []  # what exists before the step, by name and storage
        self.storages: list[StorageLife] = []
        self.saves: list[tuple[int, StorageLife]] = []  # (op that was about to run or had just run, storage)
        self.phase: Phase = "forward"
        self.layer = 0  # index of the innermost module that runs, or whose forward is being differentiated
        self.in_module = False
        self.op_count = 0
        self.outputs: frozenset[int] = frozenset()
        self.unpriced: set[str] = set()
        self._fake_mode = fake_mode
        self._lives: dict[int, StorageLife] = {}
        self._watches: dict[int, weakref.ref[Any]] = {}
        self._layer_of_sequence: dict[int, int] = {}
        self._asked = 0  # the tensor whose device was asked for last
        self._following = torch._C._autograd._get_sequence_nr()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave ``__torch_dispatch__`` unwrapped: a recorded step is never compiled, and the guard is slow."""
        return False

    # -- ops -----------------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _DEVICE:
            self._asked = id(args[0])
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        if func is _DETACH or func.namespace == "prim":
            # Neither computes nor allocates, and hooks detach where a plain step does not.
            return self._run(func, args, kwargs)
        if self.phase == "backward" and not self.in_module:
            node = torch._C._current_autograd_node()
            if node is not None:
                self.layer = self._layer_of_sequence.get(node._sequence_nr(), self.layer)
            if func is _ADD and self._accumulates(args):
                func = _ADD_IN_PLACE
            self._asked = 0
        else:
            self._note_sequence()
        result = self._run(func, args, kwargs)
        self._append(func, args, kwargs, result)
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the op's fake result, by the quickest kernel that knows it."""
        if func in META_KERNELS:
            result = self._run_on_meta(func, args, kwargs)
        else:
            kernel = KERNELS.get(func)
            result = kernel(self._empty, *args) if kernel is not None and not kwargs else None
        return func(*args, **kwargs) if result is None else result

    def _run_on_meta(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        first = args[0]
        for value in args:
            if isinstance(value, torch.Tensor) and not (
                isinstance(value, FakeTensor)
                and value.constant is None
                and value.fake_device == first.fake_device
                and value.layout is torch.strided
            ):
                return None
        with in_kernel_invocation_manager(self._fake_mode):
            result = func(*args, **kwargs)
        return first if result is first else FakeTensor(self._fake_mode, result, first.fake_device)

    def _empty(self, shape: tuple[int, ...], strides: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Return a fake tensor on a storage of its own, with the dtype and device of ``like``."""
        with torch._C._DisableTorchDispatch():
            meta = torch.empty_strided(shape, strides, dtype=like.dtype, device="meta")
            return FakeTensor(self._fake_mode, meta, like.device)

    def _note_sequence(self) -> None:
        """Remember which layer made the autograd nodes that are new since the last op."""
        following = torch._C._autograd._get_sequence_nr()
        for number in range(self._following, following):
            self._layer_of_sequence[number] = self.layer
        self._following = following

    def _accumulates(self, args: tuple[Any, ...]) -> bool:
        """Whether this sum of two gradients is one that the engine does in place when no dispatch mode watches it.

        Source: torch/csrc/autograd/input_buffer.cpp, ``can_accumulate_inplace``.
        """
        old, new = args[0], args[1]
        # The engine asks for the device of the gradient that arrives just before it adds; no formula does.
        if id(new) != self._asked or old.shape != new.shape or old.dtype != new.dtype:
            return False
        storage = old.untyped_storage()
        counts = (old._use_count(), torch._C._storage_Use_Count(storage._cdata))
        return counts == _SOLE_OWNER and is_non_overlapping_and_dense_or_false(old)

    def _append(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        literals = tuple([self._argument(value) for value in args])
        keywords = {name: self._argument(value) for name, value in kwargs.items()}
        if isinstance(result, torch.Tensor):
            outputs: tuple[TensorView | None, ...] = (self._view(result),)
        elif isinstance(result, (tuple, list)):
            outputs = tuple([self._view(value) if isinstance(value, torch.Tensor) else None for value in result])
        else:
            outputs = ()
        storage_bytes = STORAGE_BYTES.get(func)
        if storage_bytes is not None and args[0].device.type == "cpu":
            for view, size in zip(outputs, storage_bytes(result, *args, **kwargs), strict=True):
                if view is not None and size is not None:
                    self.storages[view.storage].bytes = size
        flops = flop_count(func.overloadpacket, args, kwargs, result)
        self.calls.append(Call(func, self.phase, self.layer, literals, keywords, outputs, flops))
        self.op_count += 1

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._view(value, given=True)
        if isinstance(value, (list, tuple)):
            return tuple([self._argument(item) for item in value])
        return value

    # -- storages ------------------------------------------------------------------------------------------------------

    def _view(self, tensor: torch.Tensor, given: bool = False) -> TensorView | None:
        life = self._life(tensor, given)
        if life is None:
            return None
        shape, strides, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
        return TensorView(life.index, shape, strides, str(tensor.dtype)[6:], offset)

    def give(self, name: str, tensor: torch.Tensor, role: Role) -> int | None:
        """Say what ``tensor`` is for, and its name; return the index of its storage."""
        life = self._life(tensor, given=True, role=role)
        if life is None:
            return None
        if life.born == BEFORE:
            self.given.append((name or role, life.index))
        return life.index

    def _life(self, tensor: torch.Tensor, given: bool, role: Role = "input") -> StorageLife | None:
        """Return the life of the storage under ``tensor``.

        One never seen before begins with this op, or before the step when it is ``given`` to the op, not made by it.
        """
        if tensor.layout is not torch.strided:
            self.unpriced.add(str(tensor.layout))
            return None
        storage = tensor.untyped_storage()
        life = self._lives.get(storage._cdata)
        if life is None:
            birth, role = (BEFORE, role) if given else (self.op_count, "activation")
            life = StorageLife(len(self.storages), storage.nbytes(), role, birth)
            self.storages.append(life)
            self._watch(storage, life)
        return life

    def _watch(self, storage: torch.UntypedStorage, life: StorageLife) -> None:
        key = storage._cdata
        self._lives[key] = life

        def gone(_: Any) -> None:
            del self._lives[key], self._watches[key]
            self.let_go(life)

        self._watches[key] = weakref.ref(storage, gone)

    def let_go(self, life: StorageLife) -> None:
        """Count one holder of ``life`` less; the storage is released when the last one is gone."""
        life.holders -= 1
        if not life.holders:
            life.released = self.op_count

    # -- what autograd keeps -------------------------------------------------------------------------------------------

    def pack(self, tensor: torch.Tensor) -> Any:
        """Give autograd a description to keep instead of ``tensor``.

        Parameters and buffers outlive the step, so that they are kept as they are.
        """
        life = self._life(tensor, given=True)
        if life is None:
            return tensor
        # Inputs are packed before their op runs, outputs after it: no node has been made since that op was dispatched.
        of_last_op = torch._C._autograd._get_sequence_nr() == self._following
        self.saves.append((self.op_count - of_last_op, life))
        if life.role in ("parameter", "buffer"):
            return tensor
        life.holders += 1
        life.saves += 1
        return SavedTensor(tensor, life, self)

    def unpack(self, saved: Any) -> torch.Tensor:
        """Return an empty stand-in for the tensor that was packed; its storage counts as the original's."""
        if isinstance(saved, torch.Tensor):
            return saved
        with torch._C._DisableTorchDispatch():
            empty = torch.empty_strided(saved.shape, saved.strides, dtype=saved.dtype, device="meta")
            if saved.offset:
                whole = saved.offset + empty.untyped_storage().nbytes() // empty.element_size()
                empty = empty.new_empty(whole).as_strided(saved.shape, saved.strides, saved.offset)
            tensor = FakeTensor(self._fake_mode, empty, saved.device)
        saved.storage.holders += 1
        self._watch(tensor.untyped_storage(), saved.storage)
        return tensor

    def note_outputs(self, tensors: Iterable[torch.Tensor]) -> None:
        """Remember the storages of what the model returns."""
        lives = [self._life(tensor, given=True) for tensor in tensors]
        self.outputs = frozenset(life.index for life in lives if life is not None)

    def held(self) -> Iterator[StorageLife]:
        """Yield each storage that autograd keeps at this moment, once."""
        return (life for life in self.storages if life.saves)
