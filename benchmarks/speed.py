"""How fast memplan is, as ratios measured side by side in one run; prints a Markdown page (docs/speed.md).

python benchmarks/speed.py > docs/speed.md
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

PROCESS_RUNS = 7
STEP_RUNS = 7
MODELS = ("mobilenet_v3", "resnet50", "vit_b_16", "densenet121")

#: What a torchvision built for another torch misses, so that it imports as one that fits.
DECLARED = (
    "import torch\n"
    "library = torch.library.Library('torchvision', 'DEF')\n"
    "for name in ('nms', 'qnms'):\n"
    "    library.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
    "import torchvision\n"
)


def main() -> None:
    print("# Speed\n\nWritten by `benchmarks/speed.py`: medians, measured in turn in one run on a shared machine.\n")
    processes()
    recordings()
    depth()


def processes() -> None:
    plain = [sys.executable, "-c", "import torch, torchvision"]
    works = subprocess.run(plain, capture_output=True, check=False).returncode == 0
    imports = plain if works else [sys.executable, "-c", DECLARED]
    analyze = [sys.executable, "-m", "memplan", "analyze", "mobilenet_v3", "--budget", "64MB"]
    runs = {"help": [sys.executable, "-m", "memplan", "--help"], "imports": imports, "analyze": analyze}
    seconds = in_turn({name: lambda command=command: quiet(command) for name, command in runs.items()}, PROCESS_RUNS)
    ratio = statistics.median(a / b for a, b in zip(seconds["analyze"], seconds["imports"], strict=True))
    print("| whole process | seconds | times `import torch, torchvision` |\n|---|--:|--:|")
    print(f"| `memplan --help` | {statistics.median(seconds['help']):.2f} | |")
    print(f"| `import torch, torchvision` | {statistics.median(seconds['imports']):.2f} | 1.00 |")
    print(
        f"| `memplan analyze mobilenet_v3 --budget 64MB` | {statistics.median(seconds['analyze']):.2f} | {ratio:.2f} |"
    )
    if not works:
        print("\nThis torchvision is built for another torch: its two missing schemas are declared before the import.")
    print()


def recordings() -> None:
    print("| one step | ops | plain fake, s | memplan, s | ratio | torch MemTracker, s | memplan/MemTracker |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in MODELS:
        plain, ours, theirs, ops = record_times(name)
        row = f"| {name} | {ops} | {median(plain):.3f} | {median(ours):.3f} | {ratio_of(ours, plain):.2f} "
        print(f"{row}| {median(theirs):.3f} | {ratio_of(ours, theirs):.2f} |" if theirs else f"{row}| fails | |")
    print()


def depth() -> None:
    import torch
    from torch import nn

    print("| layers in a stack | ops | memplan records, s | microseconds an op | of it blocks, s |")
    print("|--:|--:|--:|--:|--:|")
    for layers in (24, 48, 96):
        stack = nn.Sequential(*(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True) for _ in range(layers)))
        args = (torch.empty(2, 16, 64),)
        _, ours, _, ops = times(stack, args, tracker=False)
        row = f"| {layers} | {ops} | {median(ours):.3f} | {1e6 * median(ours) / ops:.0f} "
        print(f"{row}| {median(block_times(stack, args)):.3f} |")


def block_times(module: object, args: tuple[object, ...]) -> list[float]:
    """Seconds that finding the blocks of a recorded step takes."""
    from memplan.graph import find_blocks
    from memplan.tracing import fake_model, record_step

    step = record_step(fake_model(module, args)).step  # type: ignore[arg-type]
    found = {"blocks": lambda: find_blocks(step.layers, step.ops, step.storages, step.parameters)}
    return in_turn(found, STEP_RUNS)["blocks"]


def record_times(name: str) -> tuple[list[float], list[float], list[float], int]:
    from memplan.sources import build, resolve

    model = build(resolve(name), "meta")
    return times(model.module, model.args, tracker=True)


def times(
    module: object, args: tuple[object, ...], *, tracker: bool
) -> tuple[list[float], list[float], list[float], int]:
    """Warm seconds of a plain fake step, of memplan's recording and of MemTracker, measured in turn, and the ops."""
    from memplan.tracing import fake_model, record_step, run_step

    fake = fake_model(module, args)  # type: ignore[arg-type]

    def plain() -> None:
        clear(fake.module)
        with fake.mode:
            run_step(fake.module, fake.args, fake.kwargs)

    def tracked() -> None:
        from torch.distributed._tools.mem_tracker import MemTracker

        clear(fake.module)
        tracker = MemTracker()
        tracker.track_external(fake.module)
        with fake.mode, tracker:
            run_step(fake.module, fake.args, fake.kwargs)

    jobs: dict[str, Callable[[], object]] = {"plain": plain, "ours": lambda: record_step(fake)}
    ops = len(record_step(fake).step.ops)
    if tracker:
        try:
            tracked()
            jobs["theirs"] = tracked
        except Exception as error:
            print(f"MemTracker: {type(error).__name__}: {error}", file=sys.stderr)
    seconds = in_turn(jobs, STEP_RUNS)
    return seconds["plain"], seconds["ours"], seconds.get("theirs", []), ops


def clear(module: object) -> None:
    for parameter in module.parameters():  # type: ignore[attr-defined]
        parameter.grad = None


def in_turn(jobs: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Return seconds of each job, run A B C A B C after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(runs + 1):
        for name, job in jobs.items():
            gc.collect()
            start = time.perf_counter()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def quiet(command: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, env={**os.environ}, capture_output=True, check=False)


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def ratio_of(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
