"""What the tests of applied models share: one thread, every plan in turn, and a look at what forwards leave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.applied import PLANS, left_behind
from tests.threads import torch_threads


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    assert left_behind() == []
    yield
    assert left_behind() == []


@pytest.fixture(params=PLANS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)
