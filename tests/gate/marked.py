"""A toy project whose tests are marked: its model, the bytes that it keeps, and pytest on it in this process."""

from __future__ import annotations

import os
from functools import cache

import pytest
import torch
from torch import nn

BATCH, IN, WIDTH, OUT = 2, 16, 32, 4

#: The batch is kept by the first layer, and ReLU's result by itself and the last layer, as float32.
SAVED = 4 * (BATCH * IN + BATCH * WIDTH)

#: What each test file begins with. The environment says how wide the model is.
HEADER = f"""
import os
import pytest
import torch
from torch import nn

def net(width=None):
    width = int(os.environ.get("WIDTH", {WIDTH})) if width is None else width
    return nn.Sequential(nn.Linear({IN}, width), nn.ReLU(), nn.Linear(width, {OUT}))

def batch():
    return torch.zeros({BATCH}, {IN})

limit = pytest.mark.limit_training_memory
growth = pytest.mark.max_training_memory_growth
shape = dict(of="saved", input_shape=({IN},), batch_size={BATCH}, suggest=False)
"""


@cache
def warm() -> None:
    """Import all that a check does: what a run in this process imports first is forgotten at its end."""
    from memplan.checking import check
    from memplan.gate.formats.console import verdict_details
    from memplan.sources import resolve
    from memplan.sources.quiet import quietly

    net = nn.Sequential(nn.Linear(IN, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUT))
    with quietly():
        before = check(net, torch.zeros(BATCH, IN))
        verdict_details(check(net, torch.zeros(2 * BATCH, IN), limit="1KB", max_growth="0", baseline=before))
        resolve("resnet18")


def pattern(sentence: str) -> str:
    """Return what pytester matches with a sentence: the star alone is special."""
    return sentence.replace("[", "[[]").replace("?", "[?]")


class Project:
    """Files of a project, and pytest on them."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester, self._monkeypatch = pytester, monkeypatch
        for variable in [name for name in os.environ if name.startswith("MEMPLAN_") or name == "WIDTH"]:
            monkeypatch.delenv(variable)

    def write(self, tests: str, name: str = "test_toy") -> None:
        """Write a file of tests after the header."""
        self.pytester.makepyfile(**{name: f"{HEADER}\n{tests}"})

    def run(self, *args: str, **environment: str) -> pytest.RunResult:
        """Return what pytest gives, in this process."""
        with self._monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return self.pytester.runpytest_inprocess("-p", "no:cacheprovider", *args)

    def on(self, tests: str, *args: str) -> pytest.RunResult:
        """Return what pytest gives on one file of tests."""
        self.write(tests)
        return self.run(*args)
