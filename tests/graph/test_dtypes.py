"""The table of dtypes says what torch says."""

from __future__ import annotations

import pytest
import torch

from memplan.graph.dtypes import ITEM_BYTES, item_bytes


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_an_element_takes_what_torch_says(dtype: str) -> None:
    assert item_bytes(dtype) == getattr(torch, dtype).itemsize


def test_an_unknown_dtype_is_not_under_priced() -> None:
    assert item_bytes("float7_of_next_year") == 8
