"""How long a gate of ten networks takes, against importing torch and torchvision, and what the plugin costs.

    python benchmarks/gate.py

Each command is run as a process of its own, in turn with the others, and the median of five is taken. What recordings
take is told by the processes themselves.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NETWORKS = (
    "alexnet",
    "vgg11",
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
)
ROUNDS = 5
IMPORTS = (
    "from memplan.sources.torchvision_compat import declare_missing_operators as d; d(); import torch, torchvision"
)
RECORDINGS = """
import gc, time; gc.disable()
from memplan.checking import subject_for
from memplan.reading import priced, reading_of
from memplan.gate.config import read_configuration
from memplan.steps import Steps
from memplan.tracing.machine import named_machine
checks = read_configuration().checks
made = []
for check in checks:
    subject = subject_for(check)
    subject.built("meta")
    made.append(subject)
began = time.perf_counter()
with named_machine(2, "AVX2"):
    for check, subject in zip(checks, made):
        steps = Steps(subject)
        reading_of(steps, check, priced(steps, check))
print(time.perf_counter() - began)
"""


def seconds(*command: str, folder: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, env=os.environ, check=True, capture_output=True)
    return time.perf_counter() - began


def plugin_seconds(folder: Path) -> tuple[float, float]:
    """Return the median of an empty pytest run with the plugin, and without it."""
    (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    runs: dict[str, list[float]] = {"": [], "no:memplan": []}
    for _ in range(3 * ROUNDS):
        for plugin, times in runs.items():
            words = ("-p", plugin) if plugin else ()
            times.append(seconds(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words, folder=folder))
    with_it, without = map(statistics.median, runs.values())
    return with_it, without


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checks = "".join(f'[[tool.memplan.checks]]\nmodel = "{network}"\nbudget = "9GB"\n' for network in NETWORKS)
        (folder / "pyproject.toml").write_text(f"[tool.memplan]\n{checks}")
        python = sys.executable
        times: dict[str, list[float]] = {"imports": [], "gate": [], "recordings": []}
        for _ in range(ROUNDS):
            times["imports"].append(seconds(python, "-c", IMPORTS, folder=folder))
            times["gate"].append(seconds(python, "-m", "memplan", "gate", folder=folder))
            run = subprocess.run([python, "-c", RECORDINGS], cwd=folder, check=True, capture_output=True, text=True)
            times["recordings"].append(float(run.stdout))
        median = {what: statistics.median(each) for what, each in times.items()}
        print({what: round(each, 2) for what, each in median.items()})
        print("pytest with the plugin, and without: {:.3f} {:.3f}".format(*plugin_seconds(folder)))
        print(f"gate less recordings, in imports: {(median['gate'] - median['recordings']) / median['imports']:.2f}")


if __name__ == "__main__":
    main()
