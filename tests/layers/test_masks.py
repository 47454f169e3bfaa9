"""The mask operators: bits and bytes by hand, round trips, export, and scratch as the profiler sees it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from memplan.layers.masks import apply_mask, chunk_elements, pack_mask, pack_window, unpack_window
from memplan.memory.scratch import scratch_bytes
from tests.memory.kernel_meter import Case, read_cases, this_machine

CPU = torch.device("cpu")
CHUNK = chunk_elements(CPU)
SIZES = (0, 1, 7, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 17)
INFINITY = float("inf")


def test_bits_by_hand() -> None:
    # 8 elements: bit j is element j. 1 + 4 + 128 = 133.
    x = torch.tensor([1.0, 0, 2, -1, -2, -3, -4, 5])
    assert pack_mask(x, 0.0, None, False, True).tolist() == [133]
    # 11 elements in 2 bytes: element 2j in bit j of the first, 2j + 1 in that of the second: 0, 2, 10 and 1, 9.
    x = torch.zeros(11)
    x[[0, 1, 2, 9, 10]] = 1
    assert pack_mask(x, 0.0, None, False, True).tolist() == [1 + 2 + 32, 1 + 16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_a_gradient_passes_where_its_bit_is_set(size: int, dtype: torch.dtype) -> None:
    x, gradient = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    gradient[::5] = INFINITY
    cases = (
        ((0.0, None, False, True), x > 0),
        ((0.0, None, True, False), x >= 0),
        ((-0.5, 0.5, False, True), (x > -0.5) & (x < 0.5)),
        ((-0.5, 0.5, True, False), (x >= -0.5) & (x <= 0.5)),
        ((None, 0.5, True, False), x <= 0.5),
    )
    for bounds, passes in cases:
        bits = pack_mask(x, *bounds)
        assert bits.shape == (-(-size // 8),)
        result = apply_mask(gradient, bits, (1,), 1.0, None)
        assert torch.equal(result, torch.where(passes, gradient, 0))
    result = apply_mask(gradient, bits, (1,), 2.0, 0.25)
    assert torch.equal(result, torch.where(passes, gradient, gradient * 0.25) * 2)


def test_a_whole_byte_of_draws_is_packed_from_bools() -> None:
    kept = torch.rand(1001) < 0.5
    bits = pack_mask(kept.view(torch.uint8), 0.0, None, False, False)
    assert torch.equal(apply_mask(torch.ones(1001), bits, (1,), 1.0, None), kept.float())


def test_nan_passes_only_where_it_is_asked_to() -> None:
    x = torch.tensor([float("nan")])
    assert pack_mask(x, 0.0, None, False, True).item() == 1
    assert pack_mask(x, 0.0, 6.0, False, True).item() == 1
    assert pack_mask(x, 0.0, None, True, False).item() == 0
    assert pack_mask(x, 0.0, 6.0, True, False).item() == 0


def windows(shape: tuple[int, ...], last: bool, *window: list[int]) -> tuple[Tensor, tuple[list[int], ...]]:
    x = torch.randint(-5, 5, shape).float()
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    _, indices = torch.ops.aten.max_pool2d_with_indices(x, *window, True)
    return indices, (list(shape[-2:]), *window)


WINDOWS = (
    windows((2, 3, 9, 8), False, [3, 2], [2, 1], [1, 0], [1, 2]),
    windows((2, 5, 9, 8), True, [3, 2], [2, 1], [1, 0], [1, 2]),
    windows((3, 16, 15), False, [2, 2], [2, 2], [0, 0], [1, 1]),
    windows((1, 1, 600, 601), False, [3, 3], [1, 1], [1, 1], [1, 1]),
    windows((2, 80, 64, 65), True, [2, 2], [1, 1], [0, 0], [1, 1]),
    windows((16, 70, 16, 17), False, [2, 2], [1, 1], [0, 0], [1, 1]),
    windows((2, 3, 2, 2), False, [3, 3], [1, 1], [1, 1], [1, 1]),
)


@pytest.mark.parametrize("case", range(len(WINDOWS)))
def test_a_byte_leads_back_to_its_index(case: int) -> None:
    indices, geometry = WINDOWS[case]
    codes = pack_window(indices, *geometry)
    assert codes.dtype == torch.uint8
    assert codes.stride() == indices.stride()
    assert torch.equal(unpack_window(codes, *geometry), indices)
    with FakeTensorMode() as mode:
        fake = pack_window(mode.from_tensor(indices), *geometry)
        assert (fake.shape, fake.stride(), fake.dtype) == (codes.shape, codes.stride(), codes.dtype)
        assert unpack_window(fake, *geometry).stride() == indices.stride()


def scratch_cases() -> list[Case]:
    cases = []

    def add(target: str, *args: object) -> None:
        cases.append(Case(target, f"memplan.{target}.default", lambda: args))

    for size, dtype in (
        (0, torch.float32),
        (1, torch.bfloat16),
        (9, torch.float32),
        (1000, torch.float64),
        (CHUNK, torch.bfloat16),
        (CHUNK + 1, torch.float32),
        (2 * CHUNK + 17, torch.float64),
    ):
        x = torch.randn(size).to(dtype)
        bits = torch.zeros(-(-size // 8), dtype=torch.uint8)
        add("pack_mask", x, 0.0, None, False, True)
        add("pack_mask", x, 0.0, 6.0, False, True)
        add("pack_mask", x, 0.0, None, True, False)
        add("pack_mask", x, 0.0, 6.0, True, False)
        add("apply_mask", x, bits, [1], 1.0, None)
        add("apply_mask", x, bits, [1], 2.0, 0.5)
    gaps = torch.randn(30, 11)[:, :7]
    for x in (gaps, torch.randn(2, 3, 5, 7).transpose(1, 3), torch.randn(5, 1).expand(5, 9)):
        add("pack_mask", x, 0.0, None, False, True)
    add("apply_mask", torch.randn(()).expand(3, 50), torch.zeros(19, dtype=torch.uint8), [50, 1], 1.0, None)
    for indices, geometry in WINDOWS:
        add("pack_window", indices, *geometry)
        add("unpack_window", pack_window(indices, *geometry), *geometry)
    return cases


def test_scratch_is_what_the_profiler_sees() -> None:
    cases, machine = scratch_cases(), this_machine()
    for case, reading in zip(cases, read_cases(cases), strict=True):
        predicted = scratch_bytes(case.target, reading.args, reading.outputs, machine)
        # A wrapped scalar is a double and its copy in the dtype of the tensor.
        assert predicted <= reading.scratch_bytes <= predicted + 16, (case.name, reading.args)


class Masked(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        bits = torch.ops.memplan.pack_mask(x, 0.0, None, False, True)
        return torch.ops.memplan.apply_mask(x, bits, x.stride(), 1.0, None)


def test_the_operators_are_exported() -> None:
    x = torch.randn(3, 5)
    program = torch.export.export(Masked(), (x,), strict=False)
    targets = [str(node.target) for node in program.graph.nodes]
    assert "memplan.pack_mask.default" in targets
    assert torch.equal(program.module()(x), x.relu())
