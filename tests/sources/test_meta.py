"""Building without memory: random state, ties, views, fallbacks, dtypes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memplan.errors import AnalysisError
from memplan.sources import InputSpec, Source, build, make_inputs
from memplan.sources.meta import MetaTwins, move_to_meta, on_meta


class Valued(nn.Module):
    """Cannot be constructed on meta, ties two weights, keeps a view, a plain tensor, and mixed dtypes."""

    def __init__(self) -> None:
        super().__init__()
        width = int(torch.arange(4).max().item()) + 1
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        table = torch.randn(width, 2)
        self.register_buffer("table", table)
        self.register_buffer("column", table[:, 1])
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("turns", torch.ones(2, dtype=torch.complex64))
        self.plain = torch.ones(3)
        random.random()


def make_source(construct: Any, **options: Any) -> Source:
    return Source("net", "net", "test", construct, **options)


def random_states() -> tuple[Any, ...]:
    import numpy as np

    return torch.random.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


@pytest.mark.parametrize("construct", [Valued, lambda: nn.Conv2d(3, 8, 3)], ids=["fallback", "meta"])
def test_building_on_meta_draws_no_random_number(construct: Any) -> None:
    before = random_states()
    build(make_source(construct), "meta")
    assert random_states() == before


def test_a_fallback_keeps_ties_views_and_frozen_parameters() -> None:
    module = build(make_source(Valued), "meta").module
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    assert all(tensor.is_meta for tensor in tensors.values())
    assert vars(module)["plain"].is_meta
    assert tensors["second.weight"] is tensors["first.weight"]
    assert not tensors["second.bias"].requires_grad
    assert tensors["column"].untyped_storage()._cdata == tensors["table"].untyped_storage()._cdata
    assert (tensors["column"].stride(), tensors["column"].storage_offset()) == ((2,), 1)
    assert [name for name, _ in module.named_parameters()] == ["first.weight", "first.bias", "second.bias"]


def test_moving_to_meta_leaves_lazy_parameters() -> None:
    assert nn.parameter.is_lazy(move_to_meta(nn.LazyLinear(3)).get_parameter("weight"))


def test_a_twin_is_made_once() -> None:
    twins, tensor = MetaTwins(), torch.ones(2)
    assert twins.of(tensor) is twins.of(tensor)


def test_fills_change_nothing_on_meta_and_everything_elsewhere() -> None:
    with on_meta():
        on_cpu = torch.zeros(2, device="cpu").fill_(3.0)
        assert nn.init.trunc_normal_(torch.empty(2)).is_meta
    assert on_cpu.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_dtype_is_given_to_what_floats_and_ties_survive(dtype: str, device: Any) -> None:
    module = build(make_source(Valued, dtype=dtype), device).module
    state = module.state_dict(keep_vars=True)
    assert {name: tensor.dtype for name, tensor in state.items() if not name.startswith(("first", "second"))} == {
        "table": getattr(torch, dtype),
        "column": getattr(torch, dtype),
        "steps": torch.int64,
        "turns": torch.complex64,
    }
    assert {tensor.dtype for tensor in module.parameters()} == {getattr(torch, dtype)}
    assert state["second.weight"] is state["first.weight"]


def test_inputs_follow_their_specs() -> None:
    specs = (
        InputSpec((2, 3)),
        InputSpec((2, 3), "bfloat16"),
        InputSpec((50,), "int64", low=3, high=5),
        InputSpec((2, 4), "int64", low=1, padded=3),
        InputSpec((4,), "bool"),
    )
    source = make_source(nn.Identity, args=specs, kwargs={"flag": True, "more": [InputSpec((1,))]})
    args, kwargs = make_inputs(source, "cpu")
    assert [tensor.dtype for tensor in args] == [torch.float32, torch.bfloat16, torch.int64, torch.int64, torch.bool]
    assert set(args[2].tolist()) == {3, 4}
    assert args[3].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert args[4].all()
    assert kwargs["flag"] is True
    assert isinstance(kwargs["more"][0], Tensor)
    args, _ = make_inputs(source, "meta")
    assert [(tuple(tensor.shape), tensor.is_meta) for tensor in args] == [(spec.shape, True) for spec in specs]


def test_a_constructor_that_raises_everywhere_is_one_line() -> None:
    def construct() -> nn.Module:
        raise RuntimeError("no\ngood")

    with pytest.raises(AnalysisError) as raised:
        build(make_source(construct), "meta")
    assert str(raised.value) == "net cannot be built: RuntimeError: no"
