"""What the tests of sources share: a comparison of two builds of one source."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from memplan.sources import BuiltModel


def _list_tensors(model: BuiltModel) -> list[tuple[object, ...]]:
    """Return name, kind, shape, dtype, strides and first other name (a tie) of every parameter and buffer."""
    first_name: dict[int, str] = {}
    rows: list[tuple[object, ...]] = []
    for kind, named in (
        ("parameter", model.module.named_parameters(remove_duplicate=False)),
        ("buffer", model.module.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in named:
            tie = first_name.setdefault(id(tensor), name)
            rows.append((name, kind, tuple(tensor.shape), tensor.dtype, tensor.stride(), tensor.requires_grad, tie))
    return rows


def _assert_same_tensors(meta: BuiltModel, cpu: BuiltModel) -> None:
    """Check that the two builds differ in nothing but where their tensors are."""
    assert _list_tensors(meta) == _list_tensors(cpu)
    assert all(tensor.is_meta for tensor in meta.module.state_dict().values())
    assert all(tensor.device.type == "cpu" for tensor in cpu.module.state_dict().values())
    for on_meta, on_cpu in zip((*meta.args, *meta.kwargs.values()), (*cpu.args, *cpu.kwargs.values()), strict=True):
        assert (on_meta.shape, on_meta.dtype) == (on_cpu.shape, on_cpu.dtype)
        assert on_meta.is_meta
        assert on_cpu.device == torch.device("cpu")


@pytest.fixture(scope="session")
def assert_same_tensors() -> Callable[[BuiltModel, BuiltModel], None]:
    """A check that a meta build and a CPU build have the same tensors, ties and inputs."""
    return _assert_same_tensors
