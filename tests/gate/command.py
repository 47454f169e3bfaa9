"""A folder with a model and its checks, and the gate's command in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from memplan.cli import main

MODEL = """
import os
import torch
from torch import nn

WIDTH = {width}


def net():
    return nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4)), torch.empty(8, 64)


def dies():
    os._exit(7)


def fails():
    raise RuntimeError("no such data set")


def leaves():
    raise SystemExit(5)
"""


CONFIG = """[tool.memplan]
max-growth = "2%"

[[tool.memplan.checks]]
name = "net"
model = "model.py:net"
budget = "1MB"

[[tool.memplan.checks]]
name = "saved"
model = "model.py:net"
of = "saved"
"""


def write(folder: Path, width: int = 256, config: str = CONFIG) -> None:
    (folder / "model.py").write_text(MODEL.format(width=width))
    (folder / "pyproject.toml").write_text(config)


def gate(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(main, ["gate", *words], env=environment)


def told(result: Result) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(result.stdout)
    return values
