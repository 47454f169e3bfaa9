"""How much faster a sweep is with two workers than with one, measured side by side; prints a Markdown table.

python benchmarks/sweep.py [MODELS [ROUNDS]]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: Models of torchvision, the cheap and the dear ones mixed; a shorter sweep takes the first ones.
MODELS = (
    "alexnet",
    "resnet50",
    "squeezenet1_1",
    "densenet121",
    "mobilenet_v2",
    "efficientnet_b0",
    "vgg11",
    "vit_b_16",
    "resnet18",
    "convnext_tiny",
    "mobilenet_v3_large",
    "swin_t",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "mnasnet1_0",
    "googlenet",
    "resnet34",
    "densenet169",
    "mobilenet_v3_small",
    "efficientnet_b1",
    "vgg13",
    "vit_b_32",
    "squeezenet1_0",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "convnext_small",
    "shufflenet_v2_x0_5",
    "regnet_x_400mf",
    "mnasnet0_5",
    "inception_v3",
    "resnet101",
    "densenet161",
    "shufflenet_v2_x1_5",
    "efficientnet_b2",
    "vgg16",
    "swin_s",
    "mnasnet0_75",
    "regnet_y_800mf",
    "shufflenet_v2_x2_0",
    "regnet_x_800mf",
)
METHODS = "full,last,lossless,mobiletl"
ROUNDS = 3


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else len(MODELS)
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for jobs, times in seconds.items():
            times.append(swept(MODELS[:count], jobs))
    ratio = statistics.median(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    print(f"{count} models, batch 1, methods {METHODS}; medians of {rounds} rounds on {os.cpu_count()} CPUs\n")
    print("| jobs | seconds | times as fast |\n|--:|--:|--:|")
    print(f"| 1 | {statistics.median(seconds[1]):.1f} | 1.00 |")
    print(f"| 2 | {statistics.median(seconds[2]):.1f} | {ratio:.2f} |")


def swept(models: tuple[str, ...], jobs: int) -> float:
    """Return the seconds of a whole command that sweeps the models into a new file."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--models", ",".join(models), "--batch-sizes", "1", "--methods", METHODS, "--jobs", str(jobs)]
        out = Path(folder, "rows.jsonl")
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "memplan", "sweep", *words, "--out", str(out)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        took = time.perf_counter() - began
        rows = len(out.read_text().splitlines()) if out.exists() else 0
        assert rows == len(models) * len(METHODS.split(",")), done.stderr
        return took


if __name__ == "__main__":
    main()
