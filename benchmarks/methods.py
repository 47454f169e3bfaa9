"""Every method on every model under memplan's runner, predicted against measured, written to docs/methods-measured.md.

    python benchmarks/methods.py                                  # all methods on the whole corpus, batch 8
    python benchmarks/methods.py --models mobilenet_v2 resnet18 --methods lossless mobiletl --batch-size 2

Each model has a process of its own. Finished rows are kept in a JSON-lines file and not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__:
    from benchmarks.accuracy import ROOT, corpus
else:
    from accuracy import ROOT, corpus  # type: ignore[import-not-found, no-redef]

ROWS = ROOT / "benchmarks" / "methods.jsonl"
PAGE = ROOT / "docs" / "methods-measured.md"

#: What the savings are shares of: plain fine-tuning under stock PyTorch.
REFERENCE = ("full", "stock")


@dataclass(frozen=True)
class Row:
    """One method on one model: bytes, what the plan says of itself, and why there is no measurement."""

    model: str
    method: str
    runner: str
    batch_size: int
    predicted_saved: int = 0
    measured_saved: int = 0
    predicted: int = 0
    measured: int = 0
    first_error: float = 0.0
    notes: tuple[str, ...] = ()
    refused: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.model, self.method, self.runner, self.batch_size

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def main() -> None:
    from memplan.methods import METHODS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--methods", nargs="*", default=[name for name in METHODS if name != "as-is"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--largest", type=float, default=4e9, help="leave out models whose stock peak is above, in bytes"
    )
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        model, missing, batch_size, largest = json.loads(options.one)
        for row in measured_rows(model, missing, batch_size, largest):
            print(json.dumps(asdict(row)), flush=True)
        return
    wanted = [REFERENCE, *((method, "memplan") for method in options.methods)]
    for model in options.models or corpus():
        done = {row.key for row in read(options.rows)}
        missing = [one for one in wanted if (model, *one, options.batch_size) not in done]
        if missing:
            job = json.dumps([model, missing, options.batch_size, options.largest])
            command = [sys.executable, __file__, "--one", job]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            for line in process.stdout or ():
                with options.rows.open("a") as file:
                    file.write(line)
                print(said(parsed(line)), flush=True)
            if process.wait():
                print(f"FAILED {model}: exit status {process.returncode}", flush=True)
    options.page.write_text(page(list(read(options.rows))))


def measured_rows(model: str, wanted: Sequence[tuple[str, str]], batch_size: int, largest: float) -> Iterator[Row]:
    """Yield the rows of one model, for which each choice of what trains is recorded once."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library writes to stderr otherwise
    import torch

    import memplan
    from memplan.memory import price
    from memplan.methods import METHODS
    from memplan.setting import implementation_of
    from memplan.steps import PlannedStep, Steps, choose_trained
    from memplan.subject import subject_of
    from memplan.transform.apply import apply_
    from memplan.transform.measure import measure

    about = subject_of(model, batch_size=batch_size)
    recorded = Steps(about)
    stock = implementation_of(None, recorded.model.device.type)
    if price(recorded.step(METHODS["full"])).peak_bytes > largest:
        return
    for name, runner in wanted:
        method = METHODS[name]
        try:
            k = recorded.settled_k(method, None)
            planned: PlannedStep | None = None
            if runner == "memplan":
                planned = recorded.planned(method, k, implementation=stock)
            step, how = (planned.step, planned.implementation) if planned else (recorded.step(method, k), stock)
            footprint = price(step, implementation=how)
            torch.manual_seed(0)
            module, args, kwargs = about.built("cpu")
            if planned:
                apply_(module, planned.plan)
            else:
                choose_trained(module, recorded.trained(method, k))
            found = measure(module, args, kwargs, optimizer="sgd", implementation=how, loss=about.loss)
        except memplan.MemplanError as error:
            yield Row(model, name, runner, batch_size, refused=str(error))
            continue
        except Exception as error:  # a step that is recorded and does not run: a defect, and the row says which
            yield Row(model, name, runner, batch_size, refused=f"{type(error).__name__}: {error}")
            continue
        first, second = found.peak_bytes
        notes = (*planned.plan.notes, *planned.plan.untreated) if planned else ()
        yield Row(
            model, name, runner, batch_size, footprint.saved_bytes, found.saved_bytes, footprint.peak_bytes, second,
            footprint.first_step_peak_bytes / first - 1, notes,
        )  # fmt: skip


def parsed(line: str) -> Row:
    fields = json.loads(line)
    return Row(**{**fields, "notes": tuple(fields["notes"])})


def read(path: Path) -> Iterator[Row]:
    if path.exists():
        yield from map(parsed, path.read_text().splitlines())


def said(row: Row) -> str:
    begin = f"{row.model:36} {row.method:17} {row.runner:8}"
    if row.refused:
        return f"{begin} refused: {row.refused}"
    equal = "equal" if row.predicted_saved == row.measured_saved else f"{row.predicted_saved} != {row.measured_saved}"
    return f"{begin} saved {equal}, peak {row.error:+.3%} of {row.measured / 1e6:.1f} MB {'; '.join(row.notes)}"


def page(rows: Sequence[Row]) -> str:
    import torch

    measured = [row for row in rows if not row.refused]
    errors = [row.error for row in measured]
    absolute = sorted(map(abs, errors))
    equal = sum(row.predicted_saved == row.measured_saved for row in measured)
    lines = [
        "# Methods, measured",
        "",
        "Written by `benchmarks/methods.py`: real training steps of models that memplan has applied a method to.",
        f"torch {torch.__version__.split('+')[0]} on the CPU, {torch.backends.cpu.get_cpu_capability()}; SGD; "
        "peaks are the allocator's, in the second step.",
        "Shares are of plain fine-tuning by stock PyTorch with the same batch. An error is signed: below zero the",
        "prediction promised too little.",
        "",
        "| | |",
        "|---|--:|",
        f"| models | {len({row.model for row in measured})} |",
        f"| rows | {len(measured)} |",
        f"| saved bytes equal | {equal} of {len(measured)} |",
        f"| peaks equal to the byte | {sum(row.predicted == row.measured for row in measured)} |",
        f"| median error, absolute | {statistics.median(absolute):.4%} |",
        f"| 95th percentile | {absolute[int(0.95 * (len(absolute) - 1))]:.4%} |",
        f"| furthest above | {max(errors):+.3%} |",
        f"| furthest below | {min(errors):+.3%} |",
        "",
        "## Each method over all models",
        "",
        *by_method(measured),
        "",
        "## Each model",
        "",
        *by_model(rows),
    ]
    return "\n".join(lines) + "\n"


def by_method(rows: Sequence[Row]) -> Iterator[str]:
    yield "| method | models | saved, share of stock's: median | peak, share of stock's: median | least | most |"
    yield "|---|--:|--:|--:|--:|--:|"
    stock = {(row.model, row.batch_size): row for row in rows if (row.method, row.runner) == REFERENCE}
    for method in dict.fromkeys(row.method for row in rows if row.runner == "memplan"):
        pairs = [
            (row, stock[row.model, row.batch_size])
            for row in rows
            if row.method == method and row.runner == "memplan" and (row.model, row.batch_size) in stock
        ]
        if pairs:
            saved = [row.measured_saved / plain.measured_saved for row, plain in pairs]
            peaks = [row.measured / plain.measured for row, plain in pairs]
            yield (
                f"| {method} | {len(pairs)} | {statistics.median(saved):.0%} | {statistics.median(peaks):.0%} "
                f"| {min(peaks):.0%} | {max(peaks):.0%} |"
            )


def by_model(rows: Sequence[Row]) -> Iterator[str]:
    yield "| model | method | runner | batch | saved, MB | | peak, MB | error | notes |"
    yield "|---|---|---|--:|--:|---|--:|--:|---|"
    for row in sorted(rows, key=lambda row: (row.model, row.batch_size, row.runner != "stock")):
        begin = f"| {row.model} | {row.method} | {row.runner} | {row.batch_size} "
        if row.refused:
            yield f"{begin}| | refused | | | {row.refused} |"
            continue
        saved = "equal" if row.predicted_saved == row.measured_saved else "**differs**"
        yield (
            f"{begin}| {row.measured_saved / 1e6:.2f} | {saved} | {row.measured / 1e6:.2f} | {row.error:+.3%} "
            f"| {'; '.join(row.notes)} |"
        )


if __name__ == "__main__":
    main()
