"""Real step time and peak under memplan's runner against stock PyTorch's, side by side; prints docs/step-time.md.

python benchmarks/step_time.py > docs/step-time.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

os.environ.setdefault("KINETO_LOG_LEVEL", "99")
import torch
from torch import nn

from memplan.memory import Implementation
from memplan.methods import Plan, method_named
from memplan.steps import Steps, choose_trained
from memplan.subject import Subject, subject_of
from memplan.tracing.step import run_step
from memplan.transform.apply import apply_
from memplan.transform.measure import measure, optimizer_of

MODELS = ("mobilenet_v2", "mobilenet_v3_large", "resnet50", "efficientnet_b0")
SHARES = (0.0, 0.1, 0.3)
BARS = {"mobilenet_v2": 0.45, "mobilenet_v3_large": 0.50, "resnet50": 0.55, "efficientnet_b0": 0.55}
#: Each method under memplan, and what stock PyTorch trains beside it.
PAIRS = (("mobiletl", "top-k"), ("tinytl-bias", "bias-last"))
K = 5


@dataclass(frozen=True)
class Side:
    """One way to run a step: which parameters train, or a plan; and how the optimizer updates."""

    trained: frozenset[str]
    plan: Plan | None
    implementation: Implementation


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    print("# Peak and step time\n")
    print(
        f"Written by `benchmarks/step_time.py`: batch {options.batch_size}, 3x224x224, float32, SGD, "
        f"{torch.get_num_threads()} threads of a shared machine. Step times are medians of {options.pairs} pairs, "
        "stock and memplan in turn; peaks are the allocator's in the second step, measured.\n"
    )
    print("## lossless: full fine-tuning with unchanged gradients\n")
    print("`share` is what recomputation may add to the step's FLOPs; 0.10 is the default.\n")
    print("| model | share | peak, MB | of stock | step time of stock | bar |\n|---|--:|--:|--:|--:|---|")
    for name in options.models:
        for line in lossless(subject_of(name, batch_size=options.batch_size), options.pairs):
            print(line, flush=True)
    print("\n## The other methods, against stock PyTorch training the same\n")
    print("| model | memplan | stock | peak, MB | of stock | step time of stock |\n|---|---|---|--:|--:|--:|")
    for name in options.models:
        for line in others(subject_of(name, batch_size=options.batch_size), options.pairs):
            print(line, flush=True)
    print("\n## What the masks cost\n")
    print("The step of `lossless` with bit masks against the same without: their values are then recomputed or kept.\n")
    print("| model | peak with masks of without | step time with masks of without |\n|---|--:|--:|")
    for name in options.models:
        print(masks(subject_of(name, batch_size=options.batch_size), options.pairs), flush=True)


def lossless(subject: Subject, pairs: int) -> Iterator[str]:
    steps = Steps(subject)
    method = method_named("lossless")
    stock = stock_side(steps, "full")
    stock_peak = peak(subject, stock)
    for share in SHARES:
        planned = steps.planned(method, recomputed_share=share)
        side = Side(frozenset(), planned.plan, planned.implementation)
        measured = peak(subject, side)
        ratio = step_ratio(subject, side, stock, pairs)
        bar = f"peak {BARS[subject.name]}, time 1.35" if share == 0.1 and subject.name in BARS else ""
        yield f"| {subject.name} | {share} | {measured / 1e6:.1f} | {measured / stock_peak:.3f} | {ratio:.2f} | {bar} |"


def others(subject: Subject, pairs: int) -> Iterator[str]:
    steps = Steps(subject)
    for name, beside in PAIRS:
        method = method_named(name)
        k = steps.settled_k(method, K) if method.needs_k else None
        planned = steps.planned(method, k)
        side = Side(frozenset(), planned.plan, planned.implementation)
        stock = stock_side(steps, beside, k)
        peaks = peak(subject, side), peak(subject, stock)
        ratio = step_ratio(subject, side, stock, pairs)
        yield (
            f"| {subject.name} | {planned.plan.label} | {beside} | {peaks[0] / 1e6:.1f} | "
            f"{peaks[0] / peaks[1]:.3f} | {ratio:.2f} |"
        )


def masks(subject: Subject, pairs: int) -> str:
    steps = Steps(subject)
    planned = steps.planned(method_named("lossless"))
    side = Side(frozenset(), planned.plan, planned.implementation)
    bare = method_named("lossless")
    without = steps.planned(replace(bare, treat=lambda plan, _: replace(plan, fused_update=True)))
    other = Side(frozenset(), without.plan, without.implementation)
    ratio = peak(subject, side) / peak(subject, other)
    return f"| {subject.name} | {ratio:.3f} | {step_ratio(subject, side, other, pairs):.2f} |"


def stock_side(steps: Steps, name: str, k: int | None = None) -> Side:
    method = method_named(name)
    return Side(steps.trained(method, k), None, "loop")


def built(subject: Subject, side: Side) -> tuple[nn.Module, tuple[object, ...], dict[str, object]]:
    torch.manual_seed(0)
    module, args, kwargs = subject.built("cpu")
    if side.plan is None:
        choose_trained(module, side.trained)
    else:
        apply_(module, side.plan)
    return module, args, kwargs


def peak(subject: Subject, side: Side) -> int:
    module, args, kwargs = built(subject, side)
    seen = measure(module, args, kwargs, optimizer="sgd", implementation=side.implementation)
    return seen.peak_bytes[-1]


def step_ratio(subject: Subject, side: Side, beside: Side, pairs: int) -> float:
    runs = [timed(subject, each) for each in (side, beside)]
    for run in runs:
        run()
    ratios = []
    for turn in range(pairs):
        order = (0, 1) if turn % 2 else (1, 0)
        seconds = {which: runs[which]() for which in order}
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def timed(subject: Subject, side: Side) -> Callable[[], float]:
    module, args, kwargs = built(subject, side)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    update = optimizer_of("sgd", trained, side.implementation)

    def run() -> float:
        started = time.perf_counter()
        update.zero_grad()
        run_step(module, args, kwargs)
        update.step()
        return time.perf_counter() - started

    return run


if __name__ == "__main__":
    sys.exit(main())
