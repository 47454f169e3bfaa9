"""Calibration files: what is read as batches, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memplan.errors import UsageError
from memplan.transform.calibration import load_calibration
from memplan.transform.importance import importances
from tests.transform.test_importance import SUM, X, Y, two


@pytest.mark.parametrize(
    ("saved", "count"),
    [
        ((X, Y), 1),
        ([X, Y], 1),
        ({"inputs": X, "targets": Y}, 1),
        ([(X[:2], Y[:2]), (X[2:], Y[2:])], 2),
        (((X[:2], Y[:2]), (X[2:], Y[2:])), 2),
        ([{"inputs": X, "targets": Y}, {"inputs": X, "targets": Y}], 2),
    ],
    ids=["pair", "list", "dict", "list of pairs", "pair of pairs", "list of dicts"],
)
def test_a_calibration_file_holds_one_batch_or_several(tmp_path: Path, saved: Any, count: int) -> None:
    torch.save(saved, tmp_path / "c.pt")
    batches = load_calibration(tmp_path / "c.pt")
    assert len(batches) == count
    assert importances(two(), [SUM], "fisher", batches) == importances(two(), [SUM], "fisher", saved)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no calibration file 'c.pt'; "),
        (b"nothing", "calibration file 'c.pt' cannot be read: "),
        (nn.Linear(1, 1), "calibration file 'c.pt' cannot be read: UnpicklingError: "),
        (
            X,
            "calibration file 'c.pt': calibration data is a pair (inputs, targets) or an iterable of such, "
            "not a Tensor; ",
        ),
        ([X], "calibration file 'c.pt': batch 0 of the calibration data is a Tensor; give pairs (inputs, targets); "),
        (
            {"x": X},
            "calibration file 'c.pt': calibration data is a pair (inputs, targets) or an iterable of such, "
            "not a dict; ",
        ),
        ([], "calibration file 'c.pt' has no batch; "),
    ],
    ids=["none", "no file of torch", "a module", "a tensor", "tensors", "another dict", "no batch"],
)
def test_a_file_of_something_else_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path("c.pt").write_bytes(content)
    elif content is not None:
        saved = io.BytesIO()
        torch.save(content, saved)
        Path("c.pt").write_bytes(saved.getvalue())
    with pytest.raises(UsageError) as info:
        load_calibration("c.pt")
    assert str(info.value).startswith(line)
    assert str(info.value).endswith("; save tensors with torch.save((inputs, targets), 'c.pt')")
    assert "\n" not in str(info.value)
