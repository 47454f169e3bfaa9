"""The folder that the gate's command runs in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.gate.command import write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("MEMPLAN_", "GITHUB_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path
