"""What the tests of applied models share: one thread, every plan in turn, and a look at what forwards leave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.applied import PLANS, left_behind


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    assert left_behind() == []
    yield
    assert left_behind() == []


@pytest.fixture(params=PLANS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)
