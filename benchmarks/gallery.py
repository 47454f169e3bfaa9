"""The pictures and outputs of docs/gallery.md: MobileNetV3 at batch 8, before and after a plan for 64 MB.

    python benchmarks/gallery.py           # all of it: two minutes, with chromium, playwright and matplotlib
    python benchmarks/gallery.py --text    # the outputs in the page alone

The outputs are those of the commands that the page shows, run once. Each stands between two marks in the page, and is
replaced there. The pictures are the sections of the HTML pages that the same commands write, and the front as drawn by
``--png``, in at most 256 colours.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner

from memplan.cli import main as memplan
from memplan.reports.trace_events import TRACKS
from memplan.units import format_bytes, parse_bytes

if __package__:
    from benchmarks.browser import ARGUMENTS, executable
else:
    from browser import ARGUMENTS, executable  # type: ignore[import-not-found, no-redef]

PAGE: Final = Path(__file__).parent.parent / "docs" / "gallery.md"
PICTURES: Final = PAGE.parent / "gallery"

#: What the page shows is what these write, and print on a terminal of so many columns.
COMMANDS: Final[Mapping[str, str]] = {
    "before": "memplan analyze mobilenet_v3 --method full --flamegraph before.txt --trace before.json",
    "after": "memplan analyze mobilenet_v3 --budget 64MB --bars --html report.html --markdown report.md "
    "--flamegraph after.txt --trace after.json",
    "front": "memplan pareto mobilenet_v3 --html front.html --png front.png",
}
COLUMNS: Final = 100
BUDGET: Final = parse_bytes("64MB")

#: How many stacks of a flame graph are shown.
STACKS: Final = 6

#: The two steps that are compared: the run that wrote a step's files, and what the page calls it.
STEPS: Final = {"before": "stock full", "after": "best plan in 64.0 MB"}

_MARKED: Final = re.compile(r"<!-- output (\S+) -->\n.*?<!-- end -->\n", re.DOTALL)

_WIDTH: Final = 1000

#: Above and below a section: less than the page leaves between its parts.
_MARGIN: Final = 6

#: Milliseconds.
_SETTLED: Final = 500


@dataclass(frozen=True, slots=True)
class Ran:
    """The commands that ran: the folder with their files, and what each printed."""

    folder: Path
    printed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Shot:
    """A section of a page that is pictured: down to an element inside it, or whole, after some clicks and choices."""

    page: str
    section: str
    down_to: str | None = None
    prepare: Callable[[Any], None] = lambda _: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="store_true", help="leave the pictures as they are")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ran = run(Path(folder))
        PAGE.write_text(with_outputs(PAGE.read_text(encoding="utf-8"), ran), encoding="utf-8")
        if not options.text:
            for name, size in pictures(ran):
                print(f"{name}: {size:,} bytes")


def run(folder: Path, names: tuple[str, ...] = tuple(COMMANDS)) -> Ran:
    """Run the commands of these names; the files that they name are written into ``folder``."""
    runner = CliRunner(env={"COLUMNS": str(COLUMNS)})
    printed = {}
    for name in names:
        words = [str(folder / word) if Path(word).suffix else word for word in shlex.split(COMMANDS[name])[1:]]
        result = runner.invoke(memplan, words)
        if result.exit_code not in (0, 1):  # 1 says that nothing listed fits the budget
            raise SystemExit(result.output)
        printed[name] = result.stdout
    return Ran(folder, printed)


def with_outputs(text: str, ran: Ran) -> str:
    """Return the page's text with the outputs of the commands that ran; the others stay."""

    def output(match: re.Match[str]) -> str:
        needs, lines = OUTPUTS[match[1]]
        if not set(needs) <= set(ran.printed):
            return match[0]
        return "\n".join((f"<!-- output {match[1]} -->", *lines(ran), "<!-- end -->", ""))

    return _MARKED.sub(output, text)


def marked(text: str) -> dict[str, str]:
    """Return the outputs that stand in a page, by their names."""
    return {match[1]: match[0] for match in _MARKED.finditer(text)}


def peaks(ran: Ran) -> Iterator[str]:
    """Yield the table of what is alive at the peak of each step, and the machine that the figures are of."""
    yield f"| at the peak | {' | '.join(STEPS.values())} |"
    yield "|---|--:|--:|"
    at_peak = {name: max(_operators(ran, name), key=lambda each: each["total_bytes"]) for name in STEPS}
    for kind in ("resident", "saved", "temp", "total"):
        sizes = (format_bytes(found[f"{kind}_bytes"], unit="MB") for found in at_peak.values())
        yield f"| {kind} | {' | '.join(sizes)} |"
    setting, machine = ran.printed["after"].splitlines()[0], ran.printed["after"].splitlines()[2].split(";")[0]
    yield ""
    yield f"{' '.join(setting.split())}; {machine}."


def answer(ran: Ran) -> Iterator[str]:
    """Yield the plan in words, without the picture between what it does and what comes next."""
    lines = ran.printed["after"].splitlines()
    what = list(takewhile(str.strip, lines[_line_with(lines, "Best plan in ") :]))
    yield from _fenced((*what, "", *lines[_line_with(lines, "Next: ") :]))


def drawn_before(ran: Ran) -> Iterator[str]:
    yield from _drawn(ran.printed["after"].splitlines())


def drawn_after(ran: Ran) -> Iterator[str]:
    lines = ran.printed["after"].splitlines()
    yield from _drawn(lines[_line_with(lines, "Best plan in ") :])


def _drawn(lines: list[str]) -> Iterator[str]:
    """Yield the first picture of memory over a step: the lines from the one with an axis to the legend."""
    yield from _fenced(takewhile(str.strip, lines[_line_with(lines, " MB |") :]))


def bars(ran: Ran) -> Iterator[str]:
    lines = ran.printed["after"].splitlines()
    first = _line_with(lines, f"Saved and temp of each block: {', '.join(STEPS.values())}")
    yield from _fenced(takewhile(str.strip, lines[first:]))


def front(ran: Ran) -> Iterator[str]:
    lines = ran.printed["front"].splitlines()
    yield from _fenced(lines[_line_with(lines, "that no other plan") :])


def pull_request(ran: Ran) -> Iterator[str]:
    """Yield the head of the Markdown, down to what is folded."""
    lines = (ran.folder / "report.md").read_text(encoding="utf-8").splitlines()
    yield from _fenced(list(takewhile(lambda line: not line.startswith("<details>"), lines))[:-1])


def largest_stacks(ran: Ran) -> Iterator[str]:
    yield from _fenced(
        line
        for name in STEPS
        for line in (f"$ sort -k2 -nr {name}.txt | head -{STACKS}", *_largest((ran.folder / f"{name}.txt").read_text()))
    )


def events_at_the_peak(ran: Ran) -> Iterator[str]:
    """Yield of each trace the mark of the peak, and the operator that runs there."""
    lines = []
    for name in STEPS:
        events = (ran.folder / f"{name}.json").read_text().splitlines()
        (mark,) = (line for line in events if '"name": "peak"' in line)
        moment = f'"ts": {json.loads(mark.rstrip(","))["ts"]},'
        lines.append(f"$ grep '{moment}' {name}.json | grep -E '\"(op|peak)\"'")
        lines += (line for line in events if moment in line and ('"op"' in line or '"peak"' in line))
    yield from _fenced(lines)


#: The outputs of the page: the commands that each is made from, and its lines.
OUTPUTS: Final[Mapping[str, tuple[tuple[str, ...], Callable[[Ran], Iterator[str]]]]] = {
    "peaks": (("before", "after"), peaks),
    "answer": (("after",), answer),
    "timeline-before": (("after",), drawn_before),
    "timeline-after": (("after",), drawn_after),
    "bars": (("after",), bars),
    "front": (("front",), front),
    "markdown": (("after",), pull_request),
    "flamegraph": (("before", "after"), largest_stacks),
    "trace": (("before", "after"), events_at_the_peak),
}


def _fenced(lines: Iterable[str]) -> Iterator[str]:
    yield from ("```text", *lines, "```")


def _line_with(lines: list[str], text: str) -> int:
    return next(place for place, line in enumerate(lines) if text in line)


def _largest(stacks: str) -> list[str]:
    return sorted(stacks.splitlines(), key=lambda line: (int(line.rpartition(" ")[2]), line), reverse=True)[:STACKS]


def _operators(ran: Ran, name: str) -> list[dict[str, Any]]:
    """Return each moment of a step as its trace tells it: its phase, and the bytes that are alive."""
    events = json.loads((ran.folder / f"{name}.json").read_text())["traceEvents"]
    phases = {track: phase for phase, track in TRACKS.items()}
    return [{"phase": phases[event["tid"]], **event["args"]} for event in events if event.get("cat") == "op"]


def _showing(label: str) -> Callable[[Any], None]:
    """Return what shows a step's states in the network, from the input on, beside the layers of one block."""

    def prepare(page: Any) -> None:
        page.locator("#network-run").select_option(label=label)
        page.get_by_role("button", name="features.4,").click()
        page.evaluate(
            "for (const id of ['network-blocks', 'network-layers']) document.getElementById(id).scrollTop = 0"
        )

    return prepare


def _largest_below_the_budget(page: Any) -> None:
    page.get_by_role("button", name="Plan 8", exact=True).click()


SHOTS: Final[Mapping[str, Shot]] = {
    "summary": Shot("report.html", "summary"),
    "methods": Shot("report.html", "methods"),
    "memory": Shot("report.html", "memory"),
    "layers": Shot("report.html", "layers", "#layers-bars"),
    "network-before": Shot("report.html", "network", prepare=_showing(STEPS["before"])),
    "network-after": Shot("report.html", "network", prepare=_showing(STEPS["after"])),
    "plan": Shot("report.html", "plan"),
    "front-page": Shot("front.html", "front", "#front-plans", _largest_below_the_budget),
}


def pictures(ran: Ran) -> Iterator[tuple[str, int]]:
    """Write the pictures and yield the name and the bytes of each."""
    PICTURES.mkdir(exist_ok=True)
    drawn = {"front": (ran.folder / "front.png").read_bytes(), **dict(_shots(ran.folder))}
    for name, picture in drawn.items():
        file = PICTURES / f"{name}.png"
        file.write_bytes(_in_few_colours(picture))
        yield file.name, file.stat().st_size


def _shots(folder: Path) -> Iterator[tuple[str, bytes]]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=list(ARGUMENTS))
        for name, shot in SHOTS.items():
            page = browser.new_context(
                viewport={"width": _WIDTH, "height": 900}, color_scheme="light", reduced_motion="reduce"
            ).new_page()
            page.goto((folder / shot.page).as_uri())
            page.wait_for_selector("html[data-drawn]", state="attached")
            shot.prepare(page)
            yield name, _section(page, shot)
        browser.close()


def _section(page: Any, shot: Shot) -> bytes:
    """Return a section as a picture, with a margin around it."""
    page.locator(f"#{shot.section}").scroll_into_view_if_needed()
    page.wait_for_timeout(_SETTLED)  # some pictures are drawn only where they are near the view
    box = page.locator(f"#{shot.section}").bounding_box()
    if shot.down_to is not None:
        last = page.locator(shot.down_to).bounding_box()
        box["height"] = last["y"] + last["height"] - box["y"]
    top = box["y"] + page.evaluate("window.scrollY")
    clip = {"x": 0, "y": top - _MARGIN, "width": _WIDTH, "height": box["height"] + 2 * _MARGIN}
    taken: bytes = page.screenshot(clip=clip, full_page=True)
    return taken


def _in_few_colours(picture: bytes) -> bytes:
    """Return a PNG in the 256 colours that it has most of, a third of the bytes: what is flat stays as it is."""
    import numpy
    from PIL import Image

    full = numpy.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    colours, places, counts = numpy.unique(full.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    kept = colours[numpy.argsort(-counts)[:256]].astype(int)
    nearest = numpy.array([((kept - colour) ** 2).sum(axis=1).argmin() for colour in colours], dtype=numpy.uint8)
    drawn = Image.fromarray(nearest[places.reshape(full.shape[:2])], "P")
    drawn.putpalette(kept.astype(numpy.uint8).tobytes())
    smaller = io.BytesIO()
    drawn.save(smaller, "PNG", optimize=True)
    return smaller.getvalue()


if __name__ == "__main__":
    main()
