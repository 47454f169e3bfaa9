"""The figures on the pages of docs/methods: one inverted residual block, and three models, under each method.

    python benchmarks/method_figures.py             # all figures, written into the pages
    python benchmarks/method_figures.py --blocks    # the block's tables alone: seconds

All are predicted from recorded steps: the block's are sums of shapes and the same everywhere, the models' peaks contain
kernel scratch and depend on the machine. Each table stands between two marks in its page, and is replaced there.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import nn

    from memplan.results import MethodFootprint

PAGES: Final = Path(__file__).parent.parent / "docs" / "methods"
MODELS: Final = ("mobilenet_v2", "mobilenet_v3_large", "resnet50")
BATCH: Final = 8

#: The block that MobileTL counts: channels in, expanded, and the side of its map.
CHANNELS, EXPANDED, SIDE = 96, 576, 7

#: Rows of the block's tables, and the modules of torchvision's blocks that they add up.
ROWS: Final[Mapping[str, Mapping[str, str]]] = {
    "V2": {
        "expand conv": "conv.0.0",
        "expand norm": "conv.0.1",
        "expand activation": "conv.0.2",
        "depthwise conv": "conv.1.0",
        "depthwise norm": "conv.1.1",
        "depthwise activation": "conv.1.2",
        "project conv": "conv.2",
        "project norm": "conv.3",
        "lite residual branch": "lite_residual",
    },
    "V3": {
        "expand conv": "block.0.0",
        "expand norm": "block.0.1",
        "expand activation": "block.0.2",
        "depthwise conv": "block.1.0",
        "depthwise norm": "block.1.1",
        "depthwise activation": "block.1.2",
        "squeeze-and-excite": "block.2",
        "project conv": "block.3.0",
        "project norm": "block.3.1",
        "lite residual branch": "lite_residual",
    },
}

_MARKED: Final = re.compile(r"<!-- (blocks|models) (\S+) -->\n.*?<!-- end -->\n", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", action="store_true", help="leave the models' tables as they are")
    options = parser.parse_args()
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text()
        refreshed = with_tables(text, ("blocks",) if options.blocks else ("blocks", "models"))
        if refreshed != text:
            page.write_text(refreshed)
            print(page.name)


def with_tables(text: str, kinds: Sequence[str]) -> str:
    """Return a page's text with the tables of these kinds made anew."""

    def table(match: re.Match[str]) -> str:
        kind, name = match[1], match[2]
        if kind not in kinds:
            return match[0]
        lines = block_table(name) if kind == "blocks" else models_table(name)
        return "\n".join((f"<!-- {kind} {name} -->", *lines, "<!-- end -->", ""))

    return _MARKED.sub(table, text)


def block_network(kind: str) -> nn.Module:
    """Return two inverted residual blocks, of MobileNetV2 or V3, between a stem and a head; the second is counted.

    The stem ends in a norm, which keeps nothing that the blocks keep too.
    """
    from torch import nn

    from memplan.sources.torchvision_compat import declare_missing_operators

    declare_missing_operators()
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
    from torchvision.models.mobilenetv3 import InvertedResidualConfig

    def block() -> nn.Module:
        if kind == "V2":
            return InvertedResidual(CHANNELS, CHANNELS, 1, EXPANDED // CHANNELS)
        how = InvertedResidualConfig(CHANNELS, 5, EXPANDED, CHANNELS, True, "HS", 1, 1, 1.0)
        return InvertedResidualV3(how, nn.BatchNorm2d)

    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.Sequential(block(), block()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(CHANNELS, 10),
    )


def runners(name: str) -> tuple[str, ...]:
    from memplan.methods import method_named

    return ("stock", "memplan") if method_named(name).flags else ("memplan",)


@cache
def block_bytes(kind: str, name: str, runner: str) -> dict[str, int]:
    """Return what autograd keeps from each row of the second block, in bytes."""
    import torch

    import memplan

    samples = torch.empty(BATCH, 3, SIDE, SIDE)
    analysis = memplan.analyze(block_network(kind), samples, methods=(name,), k=_k(name, 1), runner=runner)
    (row,) = analysis.methods
    inside = "2.1."
    found = dict.fromkeys(ROWS[kind], 0)
    for layer in row.footprint.layers:
        if layer.saved_bytes and layer.path.startswith(inside):
            path = layer.path.removeprefix(inside)
            (place,) = (title for title, module in ROWS[kind].items() if f"{path}.".startswith(f"{module}."))
            found[place] += layer.saved_bytes
    return found


def block_table(name: str) -> Iterator[str]:
    columns = [("stock", "full")]
    columns += [(runner, name) for runner in runners(name) if (runner, name) not in columns]
    bytes_of = {(kind, one): block_bytes(kind, one[1], one[0]) for kind in ROWS for one in columns}
    yield (
        "| kept from the block, KB | "
        + " | ".join(f"{kind} {runner} {method}" for kind in ROWS for runner, method in columns)
        + " |"
    )
    yield "|---|" + "--:|" * len(bytes_of)
    for title in ROWS["V3"]:
        cells = [kept.get(title) for kept in bytes_of.values()]
        if any(cells):
            yield f"| {title} | " + " | ".join("" if cell is None else _kilo(cell) for cell in cells) + " |"
    totals = [sum(kept.values()) for kept in bytes_of.values()]
    yield "| **total** | " + " | ".join(f"**{_kilo(total)}**" for total in totals) + " |"


@cache
def model_rows(model: str) -> tuple[MethodFootprint, ...]:
    import memplan
    from memplan.methods import METHODS

    names = [name for name in METHODS if name != "as-is"]
    return memplan.analyze(model, batch_size=BATCH, methods=names, runner="both").methods


def models_table(name: str) -> Iterator[str]:
    yield "| batch 8, 224x224, MB | runner | saved | temp | resident | peak | of stock full's | trained, M |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for model in MODELS:
        rows = model_rows(model)
        full = next(row for row in rows if (row.name, row.runner) == ("full", "stock"))
        shown = rows if name == "all" else [row for row in rows if row is full or row.name == name]
        for row in shown:
            found = row.footprint
            sizes = (found.saved_bytes, found.temp_bytes, found.resident_bytes, found.peak_bytes)
            label = f"{row.name}, k={row.k}" if row.k is not None else row.name
            yield (
                f"| {model} {label} | {row.runner} | "
                + " | ".join(f"{size / 1e6:.1f}" for size in sizes)
                + f" | {found.peak_bytes / full.footprint.peak_bytes:.0%} | {found.trained_parameters / 1e6:.2f} |"
            )


def _k(name: str, k: int) -> int | None:
    from memplan.methods import method_named

    return k if method_named(name).needs_k else None


def _kilo(size: int) -> str:
    return f"{size / 1000:,.1f}"


if __name__ == "__main__":
    main()
