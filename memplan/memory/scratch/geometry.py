"""Sizes that every scratch formula needs: bytes, strides, memory formats, and the shape of a convolution."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from memplan.graph.dtypes import item_bytes
from memplan.graph.records import Argument, Machine, TensorView

Triple = tuple[int, int, int]


def ceil_div(value: int, step: int) -> int:
    """Quotient rounded up."""
    return -(-value // step)


def round_up(value: int, step: int) -> int:
    """Smallest multiple of ``step`` that is at least ``value``."""
    return ceil_div(value, step) * step


def tensor_bytes(view: TensorView | None) -> int:
    """Bytes of the elements of a view, stored densely."""
    return 0 if view is None else prod(view.shape) * item_bytes(view.dtype)


def tensor(args: tuple[Argument, ...], index: int) -> TensorView | None:
    """The argument at ``index`` if it is a tensor."""
    value = args[index] if index < len(args) else None
    return value if isinstance(value, TensorView) else None


def integers(value: Argument) -> tuple[int, ...]:
    """A literal int or tuple of ints as a tuple."""
    if isinstance(value, tuple):
        return tuple(item for item in value if isinstance(item, int))
    return (value,) if isinstance(value, int) else ()


def tensors(args: Argument) -> tuple[TensorView, ...]:
    """Every tensor in a (nested) tuple of arguments, in order."""
    if isinstance(args, TensorView):
        return (args,)
    if isinstance(args, tuple):
        return tuple(view for item in args for view in tensors(item))
    return ()


def storage_extent_bytes(view: TensorView) -> int:
    """Bytes from a view's first to its last element, gaps included: a dense storage that it fills."""
    if 0 in view.shape:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    return (last + 1) * item_bytes(view.dtype)


def fresh_bytes(args: tuple[Argument, ...], outputs: tuple[TensorView | None, ...]) -> int:
    """Bytes of the result storages that no argument already owns, each counted once."""
    taken = {view.storage for view in tensors(args)}
    total = 0
    for output in outputs:
        if output is not None and output.storage not in taken:
            taken.add(output.storage)
            total += storage_extent_bytes(output)
    return total


def is_contiguous(view: TensorView) -> bool:
    """Whether the elements lie in row-major order without gaps (axes of size one do not matter)."""
    return _are_gapless(zip(reversed(view.shape), reversed(view.strides), strict=True))


def is_dense(view: TensorView) -> bool:
    """Whether the elements of a view fill a piece of memory, in whatever order of axes."""
    return _are_gapless((size, stride) for stride, size in sorted(zip(view.strides, view.shape, strict=True)))


def _are_gapless(axes: Iterable[tuple[int, int]]) -> bool:
    """Whether axes, sizes and strides from the innermost on, leave no gaps between elements."""
    expected = 1
    for size, stride in axes:
        if size == 0:
            return True
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _channels_last_order(rank: int) -> tuple[int, ...]:
    return (1, *range(rank - 1, 1, -1), 0)


def is_channels_last(view: TensorView) -> bool:
    """Whether a 4-d or 5-d view is dense with the channel axis innermost."""
    if len(view.shape) not in (4, 5):
        return False
    expected = 1
    for axis in _channels_last_order(len(view.shape)):
        if view.shape[axis] != 1:
            if view.strides[axis] != expected:
                return False
            expected *= view.shape[axis]
    return True


def suggests_channels_last(view: TensorView) -> bool:
    """Whether PyTorch takes the strides of a view as channels-last; ambiguous ones count as contiguous.

    Source: c10/core/MemoryFormat.h, ``is_channels_last_strides_2d_s4``.
    """
    if len(view.shape) not in (4, 5) or view.strides[1] == 0:
        return False
    least = 0
    for axis in _channels_last_order(len(view.shape)):
        size, stride = view.shape[axis], view.strides[axis]
        if size == 0 or stride < least or (axis == 0 and least == view.strides[1]):
            return False
        least = stride * max(size, 1)
    return True


def copy_bytes(view: TensorView, channels_last: bool = False) -> int:
    """Bytes of the copy that ``.contiguous()`` makes of a view; 0 if it makes none."""
    dense = is_channels_last(view) if channels_last else is_contiguous(view)
    return 0 if dense else tensor_bytes(view)


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution, spatial axes padded to (depth, height, width)."""

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    rank: int
    source: Triple
    result: Triple
    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    threads: int
    block: int

    @property
    def group_in(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def depthwise(self) -> bool:
        """One channel in and out per group."""
        return self.groups > 1 and self.group_in == 1 and self.group_out == 1

    @property
    def taps(self) -> int:
        """Elements of one kernel window."""
        return prod(self.kernel)

    @property
    def dilated(self) -> bool:
        """Any dilation other than one."""
        return any(step > 1 for step in self.dilation)

    @property
    def strided(self) -> bool:
        """Any stride other than one."""
        return any(step > 1 for step in self.stride)

    @property
    def extents(self) -> Triple:
        """Kernel extents with the dilation gaps."""
        (a, b, c), (x, y, z) = self.kernel, self.dilation
        return ((a - 1) * x + 1, (b - 1) * y + 1, (c - 1) * z + 1)

    @property
    def end_padding(self) -> Triple:
        """Rows read beyond the input's end per axis; negative where the last rows are not read.

        Source: oneDNN src/common/utils.hpp, ``calculate_end_padding``.
        """
        depth, height, width = (
            (out - 1) * step + extent - (size + pad)
            for out, step, extent, size, pad in zip(
                self.result, self.stride, self.extents, self.source, self.padding, strict=True
            )
        )
        return depth, height, width

    @property
    def kernel_outside(self) -> bool:
        """Whether some window lies wholly in the padding, which the direct kernels refuse."""
        return any(
            extent <= pad or extent <= end
            for extent, pad, end in zip(self.extents, self.padding, self.end_padding, strict=True)
        )


def _triple(values: tuple[int, ...], filler: int) -> Triple:
    padded = (filler,) * (3 - len(values)) + values
    return padded[0], padded[1], padded[2]


def _spread(value: Argument, rank: int) -> tuple[int, ...]:
    values = integers(value)
    return values * rank if len(values) == 1 else values


def convolution_of(
    source: TensorView, weight: TensorView, geometry: tuple[Argument, ...], groups: int, machine: Machine
) -> Convolution:
    """The geometry of a plain (not transposed) convolution from an op's stride, padding and dilation."""
    rank = len(source.shape) - 2
    stride, padding, dilation = (_spread(value, rank) for value in geometry)
    kernel = weight.shape[2:]
    result = tuple(
        (size + 2 * pad - gap * (taps - 1) - 1) // step + 1
        for size, taps, step, pad, gap in zip(source.shape[2:], kernel, stride, padding, dilation, strict=True)
    )
    return Convolution(
        batch=source.shape[0],
        in_channels=source.shape[1],
        out_channels=weight.shape[0],
        groups=groups,
        rank=rank,
        source=_triple(source.shape[2:], 1),
        result=_triple(result, 1),
        kernel=_triple(kernel, 1),
        stride=_triple(stride, 1),
        padding=_triple(padding, 0),
        dilation=_triple(dilation, 1),
        threads=max(1, machine.threads),
        block=16 if machine.instruction_set.startswith("AVX512") else 8,
    )
