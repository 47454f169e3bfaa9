"""How soon the HTML report opens in headless Chromium, beside an empty page; prints a Markdown table for docs/speed.md.

    python benchmarks/pages.py

Needs chromium and playwright. Pages are opened in turn, from the disk, each in a context of its own.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

import memplan
from memplan.analysis import analyze
from memplan.reports.html import analysis_page

if __package__:
    from benchmarks.browser import ARGUMENTS, executable
else:
    from browser import ARGUMENTS, executable  # type: ignore[import-not-found, no-redef]

ROUNDS: Final = 7

#: Layers in the long chain.
LAYERS: Final = 5_000

EMPTY: Final = "<!doctype html><title>empty</title><p>empty"

#: Milliseconds from the start of the navigation until the first picture is drawn, and until all are.
DRAWN: Final = """
    window.drawn = {};
    new MutationObserver(() => {
        if (document.querySelector("[data-panel='0'] .memory-chart svg path")) drawn.first ??= performance.now();
        if (document.documentElement?.dataset.drawn !== undefined) drawn.all ??= performance.now();
    }).observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ["data-drawn"] });
"""


def pages() -> dict[str, str]:
    """Return the pages that are opened, by what they show."""
    residual = analyze("resnet50", batch_size=8, methods=("full", "last"), budget="300MB", suggest=True)
    chain = nn.Sequential(*(nn.Linear(4, 4) for _ in range(LAYERS)))
    long = analyze(chain, inputs=torch.empty(2, 4), methods=("full",))
    return {
        "ResNet-50 with a plan for 300 MB": analysis_page(residual, memplan.__version__),
        f"{LAYERS:,} layers": analysis_page(long, memplan.__version__),
    }


def opened(browser: Any, file: Path, *, empty: bool = False) -> Mapping[str, float]:
    """Open a page once, and return its milliseconds."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.add_init_script(DRAWN)
    page.goto(file.as_uri())
    if empty:
        loaded = float(page.evaluate("performance.now()"))
        drawn: Mapping[str, float] = {"first": loaded, "all": loaded}
    else:
        page.wait_for_selector("html[data-drawn]", state="attached")
        drawn = page.evaluate("drawn")
    context.close()
    return drawn


def main() -> None:
    from playwright.sync_api import sync_playwright

    texts = {"an empty page": EMPTY, **pages()}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        files = {name: Path(folder, f"{number}.html") for number, name in enumerate(texts)}
        for name, file in files.items():
            file.write_text(texts[name], encoding="utf-8")
        browser = driver.chromium.launch(executable_path=executable(), args=list(ARGUMENTS))
        times: dict[str, list[Mapping[str, float]]] = {name: [] for name in files}
        for turn in range(ROUNDS + 1):  # the first one does not count
            for name, file in files.items():
                drawn = opened(browser, file, empty=texts[name] is EMPTY)
                times[name] += [drawn] if turn else []
        browser.close()
    print("| page | MB | first picture, s | all, s |\n|---|--:|--:|--:|")
    for name, measured in times.items():
        first, whole = (statistics.median(each[key] for each in measured) / 1_000 for key in ("first", "all"))
        print(f"| {name} | {len(texts[name].encode()) / 1e6:.2f} | {first:.2f} | {whole:.2f} |")


if __name__ == "__main__":
    main()
