"""Plans for budgets, predicted against measured, written to docs/plans-measured.md.

    python benchmarks/plans.py                                        # six budgets for each convolutional network
    python benchmarks/plans.py --models resnet18 --budgets 8 --batch-size 2
    python benchmarks/plans.py --lossless                             # the least bytes for full fine-tuning
    python benchmarks/plans.py --depth                                # the search against the number of ops

Each model is planned in a process of its own, and each plan measured in another. Finished rows are kept in a JSON-lines
file and not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__:
    from benchmarks.accuracy import ROOT, corpus
else:
    from accuracy import ROOT, corpus  # type: ignore[import-not-found, no-redef]

if TYPE_CHECKING:
    from memplan.planner.instance import Candidate
    from memplan.planner.options import Choice
    from memplan.planner.table import Table
    from memplan.planning import Planning
    from memplan.results import Planned

ROWS = ROOT / "benchmarks" / "plans.jsonl"
PAGE = ROOT / "docs" / "plans-measured.md"

LOSSLESS = ("mobilenet_v2", "mobilenet_v3_large", "resnet50", "efficientnet_b0", "vit_b_16")

#: Residual blocks of the synthetic chains; each has about 17 ops in a step.
DEPTHS = (8, 16, 32, 64, 128, 256, 512)

#: Families of the corpus without attention, which the main table is about.
CONVOLUTIONAL = (
    "alexnet", "convnext", "darknet", "densenet", "dla", "dpn", "efficientnet", "fbnet", "gernet", "ghostnet",
    "hardcorenas", "inception", "lcnet", "mixnet", "mnasnet", "mobilenet", "regnet", "repvit", "res2net", "resnet",
    "rexnet", "shufflenet", "skres", "squeezenet", "vovnet", "xception",
)  # fmt: skip

#: Upgrades of single segments that are recorded for each plan, those of the most work first.
MOST_UPGRADES = 4


@dataclass
class Timer:
    """Adds up the time spent in functions."""

    seconds: float = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--budgets", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--largest", type=float, default=2e9, help="leave out models whose stock peak is above")
    parser.add_argument("--lossless", action="store_true")
    parser.add_argument("--depth", action="store_true")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library writes to stderr otherwise
    if options.measure:
        model, batch_size, plan = options.measure
        print(json.dumps(measured(model, int(batch_size), plan)))
        return
    if options.one:
        kind, model, batch_size, wanted, largest = json.loads(options.one)
        makers = {"budget": budget_rows, "lossless": lossless_rows, "depth": depth_rows}
        for row in makers[kind](model, batch_size, wanted, largest):
            print(json.dumps(row), flush=True)
        return
    for kind, model, batch_size in jobs(options):
        done = [row["number"] for row in read(options.rows) if key(row) == (kind, model, batch_size)]
        count = options.budgets if kind == "budget" else 1
        wanted = [[number, count] for number in range(count) if number not in done]
        if not wanted:
            continue
        job = json.dumps([kind, model, batch_size, wanted, options.largest])
        process = subprocess.Popen([sys.executable, __file__, "--one", job], stdout=subprocess.PIPE, text=True)
        for line in process.stdout or ():
            with options.rows.open("a") as file:
                file.write(line)
            print(line.strip()[:300], flush=True)
        if process.wait():
            print(f"FAILED {model}: exit status {process.returncode}", flush=True)
    options.page.write_text(page(list(read(options.rows))))


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    if options.lossless:
        yield from (("lossless", model, 8) for model in options.models or LOSSLESS)
    elif options.depth:
        yield from (("depth", str(depth), 2) for depth in options.models or DEPTHS)
    else:
        models = options.models or [spec for spec in dict.fromkeys(corpus()) if is_convolutional(spec)]
        yield from (("budget", model, options.batch_size) for model in models)


def is_convolutional(spec: str) -> bool:
    kind, _, name = spec.rpartition(":")
    return kind != "hf" and any(family in name for family in CONVOLUTIONAL)


def key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["kind"], row["model"], row["batch_size"]


def read(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


# -- a budget ----------------------------------------------------------------------------------------------------------


@dataclass
class Meter:
    """A model's steps, of which the recordings are timed, and the solver's time."""

    recording: Timer = field(default_factory=Timer)
    solving: Timer = field(default_factory=Timer)

    def steps(self, model: Any, inputs: Any = None, **subject: Any) -> Any:
        import memplan.planner.search as search
        from memplan.steps import Steps
        from memplan.subject import subject_of

        search.solve = self.solving.timed(search.solve)
        made = Steps(subject_of(model, inputs, **subject))
        made._recording = self.recording.timed(made._recording)  # type: ignore[method-assign]
        return made


def budget_rows(
    model: str, batch_size: int, wanted: Sequence[tuple[int, int]], largest: float
) -> Iterator[dict[str, Any]]:
    import memplan
    from memplan.memory import price
    from memplan.methods import METHODS
    from memplan.planner.records import Budget, least_budget
    from memplan.planner.terms import terms_of
    from memplan.planning import Planning, Request

    meter = Meter()
    try:
        steps = meter.steps(model, batch_size=batch_size)
        stock = price(steps.step(METHODS["full"])).peak_bytes
        if stock > largest:
            return
        least = Planning(steps, Request(Budget(1), terms_of()), lambda _: None)
        low = least_budget(least._searched()[0].smallest()[1])
    except memplan.MemplanError as error:
        yield {"kind": "budget", "model": model, "batch_size": batch_size, "number": 0, "refused": str(error)}
        return
    for number, count in wanted:
        # Closer together near the least, where budgets make a difference.
        size = low + round((stock - low) * (number / max(count - 1, 1)) ** 3)
        meter.recording.seconds = meter.solving.seconds = 0.0
        started = time.perf_counter()
        planning = Planning(steps, Request(Budget(size), terms_of()), lambda _: None)
        planned = planning.by_memplan()
        total = time.perf_counter() - started
        row = {
            "kind": "budget",
            "model": model,
            "batch_size": batch_size,
            "number": number,
            "stock": stock,
            "budget": size,
            "k": planned.plan.k,
            "blocks": len(planned.blocks),
            "gradients": planned.plan.gradients,
            "recorded": planned.bytes,
            "repeats": planned.search.repeats,
            "recordings": planned.search.recordings,
            "error": planned.search.error,
            "solver": planned.search.solver,
            "seconds": [total, meter.recording.seconds, meter.solving.seconds],
        }
        upgrades = [rehearse_bytes(planning, better) for better in single_upgrades(planning, planned)]
        row["upgrades"], row["maximal"] = len(upgrades), all(each > planning.wanted.limit for each in upgrades)
        yield row | in_own_process(model, batch_size, planned)


def rehearse_bytes(planning: Planning, choice: Choice) -> int:
    return planning.rehearsal.measure(choice).bytes


def single_upgrades(planning: Planning, planned: Planned) -> Iterator[Choice]:
    """Yield better choices in one thing: the smallest with one more block, and single segments made cheaper."""
    rehearsal = planning.rehearsal
    choice = next(
        choice for choice, one in rehearsal._rehearsed.items() if planning.steps.named(one.plan) == planned.plan
    )
    exact = [option for option in rehearsal._recorded if not option.approximate]
    approximate = [option for option in rehearsal._recorded if option.approximate]
    table = rehearsal.with_options(rehearsal.with_options(rehearsal.plain, exact), approximate)
    if len(choice.options) < planning.wanted.most_depth:
        deeper = planning._search(table)[0].within(len(choice.options) + 1, len(choice.options) + 1)
        yield deeper.smallest()[0]
    yield from list(upgraded(table, choice))[:MOST_UPGRADES]


def upgraded(table: Table, choice: Choice) -> list[Choice]:
    """Return the choice with one segment exact or at the next cheaper option, for each that has one."""
    depth = len(choice.options)
    how: Any = "in-backward" if choice.fused_update else "loop"
    from memplan.planner.options import PLAIN

    frozen = [(PLAIN, 0)] * (table.count - depth)
    now = table.fixed(depth, how, [*frozen, *((option, 0) for option in choice.options)]).segments[-depth:]
    rows = table.instance(depth, how).segments[-depth:]
    found: list[tuple[tuple[int, int], Choice]] = []
    for position, (row, (own,)) in enumerate(zip(rows, now, strict=True)):
        better = [each for each in row if worth(each) < worth(own)]
        if better:
            other = max(better, key=worth)
            options = (*choice.options[:position], other.option, *choice.options[position + 1 :])
            won = tuple(mine - less for mine, less in zip(worth(own), worth(other), strict=True))
            found.append(((won[0], won[1]), replace(choice, options=options)))
    # Those that win least need least.
    return [better for _, better in sorted(found, key=lambda each: each[0])]


def worth(candidate: Candidate) -> tuple[int, int]:
    return candidate.approximations, candidate.work


def in_own_process(model: str, batch_size: int, planned: Planned) -> dict[str, Any]:
    from memplan.methods.plan import plan_to_json

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(plan_to_json(planned.plan))
        command = [sys.executable, __file__, "--measure", model, str(batch_size), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1] if done.stderr else f"exit {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(model: str, batch_size: int, path: str) -> dict[str, Any]:
    import memplan
    from memplan.methods.plan import plan_from_json

    found = memplan.verify(model, method=plan_from_json(Path(path).read_text()), batch_size=batch_size)
    return {"measured": max(step.measured_bytes for step in found.steps), "saved_equal": found.saved_equal}


# -- the least for full fine-tuning, and the search against depth ------------------------------------------------------


def lossless_rows(model: str, batch_size: int, *_: Any) -> Iterator[dict[str, Any]]:
    from memplan.memory import price
    from memplan.methods import METHODS
    from memplan.planner.records import Budget
    from memplan.planner.terms import terms_of
    from memplan.planning import Planning, Request

    steps = Meter().steps(model, batch_size=batch_size)
    stock = price(steps.step(METHODS["full"]))
    flops = stock.flops_forward + stock.flops_backward
    blocks = len(steps.blocks)
    request = Request(Budget(stock.peak_bytes * 2), terms_of(lossless=True), prefer="memory", k=blocks)
    planned = Planning(steps, request, lambda _: None).by_memplan()
    assert len(planned.plan.trained) == len(steps.step(METHODS["full"]).parameters)
    own = planned.footprint
    yield {
        "kind": "lossless",
        "model": model,
        "batch_size": batch_size,
        "number": 0,
        "stock": stock.peak_bytes,
        "recorded": planned.bytes,
        "flops": (own.flops_forward + own.flops_backward) / flops,
    } | in_own_process(model, batch_size, planned)


def depth_rows(model: str, batch_size: int, *_: Any) -> Iterator[dict[str, Any]]:
    """Yield the times of a search for half of stock's peak on a chain of so many residual blocks."""
    import torch
    from torch import nn

    from memplan.memory import price
    from memplan.methods import METHODS
    from memplan.planner.records import Budget
    from memplan.planner.terms import terms_of
    from memplan.planning import Planning, Request

    class Residual(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(width)
            self.act = nn.Hardswish()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]

    chain = nn.Sequential(nn.Conv2d(3, 8, 3), *(Residual(8) for _ in range(int(model))), nn.Flatten(), nn.LazyLinear(4))
    image = torch.zeros(batch_size, 3, 18, 18)
    with torch.no_grad():
        chain(image)
    meter = Meter()
    steps = meter.steps(chain, image)
    step = steps.step(METHODS["full"])
    size = price(step).peak_bytes // 2
    started = time.perf_counter()
    planned = Planning(steps, Request(Budget(size), terms_of()), lambda _: None).by_memplan()
    yield {
        "kind": "depth",
        "model": model,
        "batch_size": batch_size,
        "number": 0,
        "ops": len(step.ops),
        "k": planned.plan.k,
        "solver": planned.search.solver,
        "seconds": [time.perf_counter() - started, meter.recording.seconds, meter.solving.seconds],
    }


# -- the page ----------------------------------------------------------------------------------------------------------


def page(rows: Sequence[dict[str, Any]]) -> str:
    import torch

    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("budget", "lossless", "depth")}
    lines = [
        "# Plans, measured",
        "",
        "Written by `benchmarks/plans.py`: plans for a range of budgets, from just above the least that is needed to",
        "the peak of stock PyTorch, and real steps of the models that memplan has applied them to, each in a process",
        "of its own. Maximal are plans of which no recorded single upgrade fits: one more block; one approximate block",
        "made exact, or one segment at its next cheaper option, those that win least first; beside it stands how many",
        "there were. Times are of one machine and depend on what else ran there.",
        f"torch {torch.__version__.split('+')[0]} on the CPU, {torch.backends.cpu.get_cpu_capability()}; SGD; "
        "peaks are the allocator's, the larger of two steps.",
        "",
    ]
    if by_kind["budget"]:
        lines += [*summary(by_kind["budget"]), "", *budgets(by_kind["budget"]), ""]
    if by_kind["lossless"]:
        lines += ["## The least for full fine-tuning, gradients unchanged", "", *least(by_kind["lossless"]), ""]
    if by_kind["depth"]:
        lines += ["## The search against depth", "", *depths(by_kind["depth"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def summary(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    done = [row for row in rows if "measured" in row]
    shares = [row["seconds"][2] / max(row["seconds"][1], 1e-9) for row in done]
    yield "| | |"
    yield "|---|--:|"
    yield f"| models | {len({row['model'] for row in done})} |"
    yield f"| plans | {len(done)} |"
    yield f"| measured within the budget | {sum(row['measured'] <= row['budget'] for row in done)} |"
    yield f"| saved bytes equal | {sum(row['saved_equal'] for row in done)} |"
    yield f"| maximal | {sum(row['maximal'] for row in done)} |"
    yield f"| recorded upgrades that do not fit, in all | {sum(row['upgrades'] for row in done if row['maximal'])} |"
    yield f"| searches that were tightened | {sum(row['repeats'] > 0 for row in done)} |"
    yield f"| recorded over the search's model, furthest | {max((abs(row['error']) for row in done), default=0):.3%} |"
    yield f"| solving over recording, median time | {statistics.median(shares) if shares else 0:.1%} |"


def budgets(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| model | batch | budget, MB | of stock | k | gradients | recorded, MB | measured, MB | fits | repeats "
        "| maximal | recording, s | solving, s |"
    )
    yield "|---|--:|--:|--:|--:|---|--:|--:|---|--:|---|--:|--:|"
    for row in sorted(rows, key=lambda row: (row["model"], row["batch_size"], row["number"])):
        begin = f"| {row['model']} | {row['batch_size']} "
        if "budget" not in row:
            yield f"{begin}| | | | refused: {row['refused']} | | | | | | | |"
            continue
        seen = f"{row['measured'] / 1e6:.2f}" if "measured" in row else f"refused: {row['refused']}"
        fits = "" if "measured" not in row else "yes" if row["measured"] <= row["budget"] else "**no**"
        yield (
            f"{begin}| {row['budget'] / 1e6:.2f} | {row['budget'] / row['stock']:.0%} | {row['k']} of {row['blocks']} "
            f"| {row['gradients']} | {row['recorded'] / 1e6:.2f} | {seen} | {fits} | {row['repeats']} "
            f"| {'yes' if row['maximal'] else '**no**'}, {row['upgrades']} | {row['seconds'][1]:.1f} "
            f"| {row['seconds'][2]:.2f} |"
        )


def least(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| model | batch | stock, MB | recorded, MB | of stock | measured, MB | FLOPs, of stock |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        seen = f"{row['measured'] / 1e6:.1f}" if "measured" in row else f"refused: {row['refused']}"
        yield (
            f"| {row['model']} | {row['batch_size']} | {row['stock'] / 1e6:.1f} | {row['recorded'] / 1e6:.1f} "
            f"| {row['recorded'] / row['stock']:.0%} | {seen} | {row['flops']:.2f} |"
        )


def depths(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| residual blocks | ops | k | solver | in all, s | recording, s | solving, s |"
    yield "|--:|--:|--:|---|--:|--:|--:|"
    for row in sorted(rows, key=lambda row: row["ops"]):
        whole, recording, solving = row["seconds"]
        yield (
            f"| {row['model']} | {row['ops']} | {row['k']} | {row['solver']} | {whole:.1f} | {recording:.1f} "
            f"| {solving:.2f} |"
        )


if __name__ == "__main__":
    main()
