"""Predicted against measured over the corpus, written to docs/accuracy.md.

    python benchmarks/accuracy.py                      # the whole corpus, four settings for each model
    python benchmarks/accuracy.py --models mobilenet_v3 resnet50 --settings 8
    python benchmarks/accuracy.py --unseen             # models that are not in the corpus

Each model has a process of its own. Finished rows are kept in a JSON-lines file and not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "accuracy.jsonl"
OTHERS = ROOT / "benchmarks" / "unseen.jsonl"
CORPUS = ROOT / "tests" / "corpus.txt"

#: method, optimizer, foreach, batch size; each model takes some of them, beginning at another place in the cycle.
SETTINGS = [
    ("full", "sgd", False, 8),
    ("last", "momentum", False, 2),
    ("top-k", "adam", False, 4),
    ("bias-last", "sgd", False, 1),
    ("full", "adam", True, 2),
    ("norm-last", "adam", False, 16),
    ("full", "momentum", True, 1),
    ("last", "adam", True, 16),
    ("full", "adam", False, 4),
    ("top-k", "momentum", True, 8),
]

#: Families that are not in the corpus.
UNSEEN = [
    "torchvision:vgg11_bn", "torchvision:googlenet", "torchvision:wide_resnet50_2", "torchvision:resnext50_32x4d",
    "torchvision:maxvit_t", "torchvision:vit_b_32", "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:deeplabv3_resnet50", "torchvision:inception_v3", "torchvision:shufflenet_v2_x1_0",
    "timm:mobilenetv4_conv_small", "timm:deit_tiny_patch16_224", "timm:convnextv2_atto", "timm:coatnet_0_rw_224",
    "timm:cait_xxs24_224", "timm:poolformer_s12", "timm:mobileone_s0", "timm:sequencer2d_s", "timm:mixer_s32_224",
    "timm:resmlp_12_224", "timm:eca_nfnet_l0", "timm:hrnet_w18_small", "timm:twins_pcpvt_small",
    "timm:focalnet_tiny_srf",
    "timm:ese_vovnet19b_dw", "timm:tinynet_e", "timm:selecsls42b", "timm:bat_resnext26ts", "timm:lambda_resnet26t",
    "timm:mvitv2_tiny", "timm:davit_tiny", "timm:regnetz_c16", "timm:visformer_tiny", "timm:pit_ti_224",
    "hf:roberta", "hf:deit", "hf:albert", "hf:electra", "hf:opt", "hf:t5",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    model: str
    method: str
    optimizer: str
    foreach: bool
    batch_size: int
    saved_equal: bool
    measured_first: int
    measured: int
    predicted_first: int
    predicted: int

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def first_error(self) -> float:
        return self.predicted_first / self.measured_first - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--unseen", action="store_true")
    parser.add_argument("--settings", type=int, default=4, help="settings for each model")
    parser.add_argument("--largest", type=float, default=4e9, help="halve the batch until the peak is below, in bytes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows_file = OTHERS if options.unseen else ROWS
    if options.one:
        model, settings, largest = json.loads(options.one)
        for setting in settings:
            print(json.dumps(asdict(measure_one(model, *setting, largest))), flush=True)
        return
    models = options.models or (UNSEEN if options.unseen else corpus())
    done = {(row.model, row.method, row.optimizer, row.foreach) for row in read(rows_file)}
    for place, model in enumerate(models):
        start = place * 3 % len(SETTINGS)
        chosen = list(itertools.islice(itertools.cycle(SETTINGS), start, start + options.settings))
        missing = [setting for setting in chosen if (model, *setting[:3]) not in done]
        if not missing:
            continue
        job = json.dumps([model, missing, options.largest])
        run = subprocess.run([sys.executable, __file__, "--one", job], capture_output=True, text=True, check=False)
        with rows_file.open("a") as file:
            file.write(run.stdout)
        for line in run.stdout.splitlines():
            row = Row(**json.loads(line))
            print(
                f"{row.model:36} {row.method:9} {row.optimizer:8} {row.error:+.3%} saved {row.saved_equal}", flush=True
            )
        if run.returncode:
            print(f"FAILED {model}: {run.stderr.strip().splitlines()[-1:]}", flush=True)
    (ROOT / "docs" / "accuracy.md").write_text(page(list(read(ROWS)), list(read(OTHERS))))


def corpus() -> list[str]:
    lines = CORPUS.read_text().splitlines()
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def read(path: Path) -> Iterator[Row]:
    if path.exists():
        yield from (Row(**json.loads(line)) for line in path.read_text().splitlines())


def measure_one(model: str, method: str, optimizer: str, foreach: bool, batch_size: int, largest: float) -> Row:
    import memplan

    while batch_size > 1:
        about = memplan.analyze(model, methods=(method,), optimizer=optimizer, foreach=foreach, batch_size=batch_size)
        if about.methods[0].footprint.peak_bytes <= largest:
            break
        batch_size //= 2
    try:
        result = memplan.verify(model, method=method, optimizer=optimizer, foreach=foreach, batch_size=batch_size)
    except memplan.AnalysisError:
        # A batch norm over one value cannot train; two samples are the least for such a model.
        batch_size = 2
        result = memplan.verify(model, method=method, optimizer=optimizer, foreach=foreach, batch_size=batch_size)
    first, second = result.steps
    return Row(
        model, method, optimizer, foreach, batch_size, result.saved_equal,
        first.measured_bytes, second.measured_bytes, first.predicted_bytes, second.predicted_bytes,
    )  # fmt: skip


def page(corpus_rows: Sequence[Row], unseen_rows: Sequence[Row]) -> str:
    import torch

    lines = [
        "# Accuracy",
        "",
        "Written by `benchmarks/accuracy.py`: real training steps on the CPU against the prediction.",
        f"torch {torch.__version__.split('+')[0]}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads; peaks are the allocator's, in steady state (second step) but where said.",
        "An error is signed: below zero the prediction promised too little.",
        "",
        "| | corpus | other models |",
        "|---|--:|--:|",
    ]
    summaries = [summary(rows) for rows in (corpus_rows, unseen_rows) if rows]
    lines += [f"| {name} | {' | '.join(one[name] for one in summaries)} |" for name in summaries[0]]
    for title, rows in (("The corpus", corpus_rows), ("Other models", unseen_rows)):
        lines += ["", f"## {title}", "", *table(rows)]
    return "\n".join(lines) + "\n"


def summary(rows: Sequence[Row]) -> dict[str, str]:
    errors = [row.error for row in rows]
    absolute = sorted(map(abs, errors))
    under = sum(error < 0 for error in errors)
    return {
        "models": str(len({row.model for row in rows})),
        "rows": str(len(rows)),
        "saved bytes equal": f"{sum(row.saved_equal for row in rows)} of {len(rows)}",
        "peaks equal to the byte": str(sum(row.predicted == row.measured for row in rows)),
        "median error, absolute": f"{statistics.median(absolute):.4%}",
        "95th percentile": f"{absolute[int(0.95 * (len(absolute) - 1))]:.4%}",
        "worst": f"{max(errors, key=abs):+.3%}",
        "furthest below": f"{min(errors):+.3%}",
        "share predicted below the measurement": f"{under / len(rows):.0%}",
        "worst in the first step": f"{max((row.first_error for row in rows), key=abs):+.3%}",
    }


def table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| model | method | optimizer | batch | saved | first step, MB | error | second step, MB | error |"
    yield "|---|---|---|--:|---|--:|--:|--:|--:|"
    for row in sorted(rows, key=lambda row: (row.model, row.method, row.optimizer, row.foreach)):
        how = f"{row.optimizer}, foreach" if row.foreach else row.optimizer
        saved = "equal" if row.saved_equal else "**differs**"
        yield (
            f"| {row.model} | {row.method} | {how} | {row.batch_size} | {saved} "
            f"| {row.measured_first / 1e6:.2f} | {row.first_error:+.3%} | {row.measured / 1e6:.2f} | {row.error:+.3%} |"
        )


if __name__ == "__main__":
    main()
