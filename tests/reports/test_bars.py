"""Bars of blocks: they add up to the footprint, every figure is the JSON's, and they are right on any screen."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from memplan.analysis import analyze
from memplan.front import pareto
from memplan.graph import Block, StepGraph
from memplan.memory import Footprint, LayerFootprint, price
from memplan.methods import METHODS
from memplan.reports.bars import Bars, BlockBytes, BlockRun, bar_length, block_bytes
from memplan.reports.console import analysis_report, compared_runs
from memplan.reports.front_plot import Plot
from memplan.reports.machine import analysis_to_json
from memplan.reports.picture import Picture
from memplan.reports.plan import plan_report
from memplan.steps import Steps
from memplan.subject import subject_of
from memplan.units import format_bytes
from tests.gate.toy import HOSTILE
from tests.reports.plans import front, planned
from tests.reports.toy import analysis, chain, shown

Golden = Callable[[str, str], None]

MB = 1_000_000


def layer(path: str, saved_bytes: int, temp_bytes: int = 0) -> LayerFootprint:
    return LayerFootprint(path, "Linear", saved_bytes, temp_bytes, 0, 0, 0)


def footprint(*layers: LayerFootprint) -> Footprint:
    return dataclasses.replace(price(chain()), layers=layers, saved_bytes=sum(each.saved_bytes for each in layers))


def blocks(*paths: str) -> tuple[Block, ...]:
    return tuple(Block(index, path, "Block", index, index) for index, path in enumerate(paths))


def rows(run: BlockRun, found: Sequence[Block]) -> list[tuple[str, int, int]]:
    return [(row.name, *row.saved_bytes, *row.temp_bytes) for row in block_bytes((run,), found)]


#: One line: a name or nothing, saved bytes and their bar, temp bytes and theirs.
_ROW = re.compile(r"^  (.*?) +([\d,.]+ \w?B)  (\S*) +(max )?([\d,.]+ \w?B)(?:  (\S+))?$")


def parsed(text: str) -> list[tuple[str, str, str, str, str]]:
    """Return the lines of bars: name, saved, its bar, temp, its bar. A bar is of one sign, so that it is no number."""
    found = [re.match(_ROW, line) for line in text.splitlines()]
    return [(m[1], m[2], m[3], f"{m[4] or ''}{m[5]}", m[6] or "") for m in found if m]


@lru_cache
def network(name: str, size: int) -> tuple[Footprint, StepGraph]:
    graph = Steps(subject_of(name, batch_size=2, input_shape=(3, size, size))).step(METHODS["full"])
    return price(graph), graph


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet", "densenet121"])
def test_blocks_of_a_network_are_their_layers_and_add_up_to_the_footprint(name: str) -> None:
    priced, graph = network(name, 96)
    found = rows(BlockRun("full", priced, graph), graph.blocks)
    assert sum(saved for _, saved, _ in found) == priced.saved_bytes == graph.saved_bytes
    assert max(temp for _, _, temp in found) == max(each.temp_bytes for each in priced.layers)
    of_block = {row: (saved, temp) for row, saved, temp in found}
    for block in graph.blocks:
        own = [each for each in priced.layers if f"{each.path}.".startswith(f"{block.path}.")]
        assert of_block[block.path] == (sum(e.saved_bytes for e in own), max(e.temp_bytes for e in own))
    names = [row for row, _, _ in found]
    assert [row for row in names if row in {block.path for block in graph.blocks}] == [b.path for b in graph.blocks]
    assert names[0] == "stem"
    assert names[-2:] == ["head", "(model)"]


def test_what_runs_between_blocks_is_where_it_runs() -> None:
    priced, graph = network("googlenet", 96)
    names = [row for row, _, _ in rows(BlockRun("full", priced, graph), graph.blocks)]
    # The auxiliary classifiers run behind 4a and 4d, and are defined behind all blocks.
    assert names[names.index("inception4a") + 1] == "aux1"
    assert names[names.index("inception4d") + 1] == "aux2"
    assert names[names.index("inception3b") + 1] == "maxpool3"


def test_layers_are_in_their_block_or_below_between_above_or_around_the_blocks() -> None:
    run = BlockRun(
        "full",
        footprint(
            layer("", 1, 70),
            layer("conv", 2, 1),
            layer("norm", 4, 9),
            layer("body", 8, 3),
            layer("body.1", 16, 2),
            layer("body.1.a", 32, 5),
            layer("body.pool.a", 64, 4),
            layer("body.pool.b", 128, 6),
            layer("body.10", 256, 7),
            layer("fc.0", 512, 8),
            layer("fc.1", 1024, 1),
        ),
    )
    assert rows(run, blocks("body.1", "body.10")) == [
        ("stem", 2 + 4, 9),
        ("body.1", 16 + 32, 5),
        ("body.pool", 64 + 128, 6),
        ("body.10", 256, 7),
        ("head", 512 + 1024, 8),
        ("(model)", 1 + 8, 70),
    ]


def test_without_blocks_each_outermost_module_is_a_row() -> None:
    run = BlockRun("full", footprint(layer("", 1), layer("a.x", 2), layer("a.y", 4), layer("b", 8)))
    assert rows(run, ()) == [("a", 2 + 4, 0), ("b", 8, 0), ("(model)", 1, 0)]


def test_the_recorded_step_says_what_runs_before_what() -> None:
    graph = chain()
    backwards = dataclasses.replace(price(graph), layers=price(graph).layers[::-1])
    assert [name for name, _, _ in rows(BlockRun("", backwards, graph), blocks("layers.1", "layers.2"))] == [
        *("stem", "layers.1", "layers.2", "head", "(model)")
    ]
    # As they are defined now, layers.3 comes first.
    assert [name for name, _, _ in rows(BlockRun("", backwards), blocks("layers.2", "layers.1"))] == [
        *("stem", "layers.2", "layers.1", "head", "(model)")
    ]
    assert rows(BlockRun("", dataclasses.replace(backwards, layers=backwards.layers[:1])), blocks("layers.1")) == [
        ("layers.1", 0, 0),
        ("head", 8 * MB, 16 * MB),
    ]


def test_a_block_that_is_called_head_is_not_the_head() -> None:
    run = BlockRun("full", footprint(layer("a", 1), layer("head", 2), layer("z", 4)))
    assert rows(run, blocks("head")) == [("stem", 1, 0), ("head", 2, 0), ("head", 4, 0)]


def test_two_runs_share_their_rows() -> None:
    first = BlockRun("first", footprint(layer("a", 1, 3), layer("b", 2, 1)))
    second = BlockRun("second", footprint(layer("b", 4, 2), layer("c", 8, 5)))
    assert block_bytes((first, second), blocks("b")) == (
        BlockBytes("stem", (1, 0), (3, 0)),
        BlockBytes("b", (2, 4), (1, 2)),
        BlockBytes("head", (0, 8), (0, 5)),
    )


@pytest.mark.parametrize("width", [52, 60, 80, 200])
def test_every_figure_is_the_jsons_and_columns_add_up(width: int) -> None:
    record = analysis()
    data = analysis_to_json(record, "0.1.0")
    text = shown(analysis_report(record, bars=True), width)
    lines = parsed(text[text.index("Saved and temp") :])
    names = [*(block["path"] for block in data["blocks"]), "head", "(model)", "all"]
    assert [name for name, *_ in lines] == [entry for name in names for entry in (name, "")]
    for place, method in enumerate(data["methods"]):
        own = lines[place::2]
        layers = {each["name"]: each for each in method["layers"]}
        paths = {**{name: name for name in names}, "head": "layers.3", "(model)": ""}
        expected = [layers[paths[name]] for name in names[:-1]]
        assert [line[1] for line in own] == [
            *(format_bytes(each["saved_bytes"]) for each in expected),
            format_bytes(method["saved_bytes"]),
        ]
        assert [line[3] for line in own] == [
            *(format_bytes(each["temp_bytes"]) for each in expected),
            f"max {format_bytes(max(each['temp_bytes'] for each in expected))}",
        ]
        # The bytes of the toy are whole MB, so that what is shown adds up too.
        numbers = [float(line[1].removesuffix(" MB")) for line in own]
        assert sum(numbers[:-1]) == numbers[-1]


@pytest.mark.parametrize("width", [52, 80, 120, 200])
def test_bars_are_in_proportion_and_the_widest_is_the_largest(width: int) -> None:
    sizes = [1, 40, 1_000, 333, 0, 500]
    run = BlockRun("full", footprint(*(layer(f"b{n}", size * MB, size * MB // 2) for n, size in enumerate(sizes))))
    text = shown(Bars((run,), blocks(*(f"b{n}" for n in range(6)))), width)
    lines = parsed(text)[:-1]
    lengths = [(len(saved), len(temp)) for _, _, saved, _, temp in lines]
    room = max(length for pair in lengths for length in pair)
    assert lengths[2][0] == room  # 1,000 MB is the largest of all
    for size, pair in zip(sizes, lengths, strict=True):
        for length, exact in zip(pair, (size * room / 1_000, size * room / 2_000), strict=True):
            assert abs(length - exact) <= 0.5 or (size > 0 and exact < 0.5 and length == 1)
    # On a wide screen bars stop growing, on a narrow one they are six long at least.
    assert 6 <= room <= 50
    assert max(map(len, text.splitlines())) <= min(width, 120)


def test_a_bar_is_nearest_to_its_number_and_none_is_none() -> None:
    assert [bar_length(size, 10, 20) for size in (0, 1, 5, 10)] == [0, 2, 10, 20]
    assert [bar_length(size, 1_000_000, 20) for size in (1, 24_999, 25_000, 74_999, 75_000)] == [1, 1, 1, 1, 2]


@pytest.mark.parametrize(("count", "hidden"), [(20, 0), (21, 0), (22, 2), (100, 80)])
def test_the_middle_of_a_long_network_is_one_row(count: int, hidden: int) -> None:
    run = BlockRun("full", footprint(*(layer(f"b{n}", (n + 1) * MB, n * MB) for n in range(count))))
    lines = parsed(shown(Bars((run,), blocks(*(f"b{n}" for n in range(count))))))
    names = [name for name, *_ in lines]
    total = f"{count * (count + 1) // 2:,}.0 MB"
    if not hidden:
        assert names == [*(f"b{n}" for n in range(count)), "all"]
    else:
        assert names == [
            *(f"b{n}" for n in range(10)),
            f"...and {hidden} more",
            *(f"b{n}" for n in range(count - 10, count)),
            "all",
        ]
        # The rows 10 to count - 11 keep 11 + ... + (count - 10) MB; the largest temp of them is the last one's.
        kept = sum(range(11, count - 9))
        assert lines[10][1:] == (f"{kept:,}.0 MB", "", f"max {count - 11}.0 MB", "")
    assert lines[-1][1:] == (total, "", f"max {count - 1}.0 MB", "")


def test_the_best_plan_or_else_the_lowest_peak_stands_beside_the_first_method() -> None:
    record = analysis(budget_bytes=70 * MB)
    assert [run.label for run in compared_runs(record)] == ["stock full", "stock top-k k=1"]
    suggested = dataclasses.replace(record, suggestion=planned())
    assert [run.label for run in compared_runs(suggested)] == ["stock full", "best plan in 80.0 MB"]
    alone = dataclasses.replace(record, methods=record.methods[:1])
    assert [run.label for run in compared_runs(alone)] == ["stock full"]
    assert "# stock full  = best plan in 80.0 MB\n" in shown(analysis_report(suggested, bars=True))
    assert "= " not in shown(analysis_report(alone, bars=True))


def test_bars_are_shown_on_demand_only() -> None:
    assert "each block" not in shown(analysis_report(analysis(), top=3))
    assert "each block" not in shown(plan_report(planned()))


def test_the_reports_with_bars_at_80_columns(golden: Golden) -> None:
    golden("analysis-bars-80.txt", shown(analysis_report(analysis(budget_bytes=70 * MB), bars=True)))
    golden("plan-bars-80.txt", shown(plan_report(planned(), bars=True)))


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_any_name_is_text_on_one_line(name: str) -> None:
    path = name.replace(".", "") or "nothing"
    run = BlockRun(name, footprint(layer(path, MB), layer("z", MB)))
    lines = [line.plain for line in Bars((run, run), blocks(path)).lines(80)]
    # Headings, three rows of two runs each, and what tells the runs apart.
    assert len(lines) == 1 + 3 * 2 + 1
    assert max(map(cell_len, lines)) <= 80
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u202e]", "".join(lines))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", shown(Bars((run, run), blocks(path))))


PAGE = Path(__file__).parents[2] / "docs" / "terminal.md"


def fence(heading: str) -> str:
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2]
    return section.partition("```text\n")[2].partition("```")[0]


def test_the_page_shows_what_is_printed() -> None:
    record = analyze("mobilenet_v3_small", batch_size=2, methods=("full",), budget="24MB")
    # What the plan does is the search's affair, and scratch the machine's: what stock saves is the same everywhere.
    shown_rows = parsed(fence("Bytes of each block"))[::2]
    printed = parsed(shown(analysis_report(record, bars=True), 80).partition("Saved and temp")[2])
    assert [(name, saved) for name, saved, *_ in shown_rows] == [(name, saved) for name, saved, *_ in printed]
    saved = [float(line[1].removesuffix(" MB")) for line in shown_rows]
    assert abs(sum(saved[:-1]) - saved[-1]) <= 0.05 * len(saved)
    timeline = [line.plain for line in Picture(record.methods[0].footprint.timeline, "MB", 24 * MB).lines(80)]
    told = fence("Memory over the step").splitlines()
    assert [re.sub(r"[\d.]+", "#", line[:11]) for line in told] == [
        re.sub(r"[\d.]+", "#", line[:11]) for line in timeline
    ]
    assert (told[-2].split(), told[-1]) == (timeline[-2].split(), timeline[-1])


@pytest.mark.corpus
def test_the_page_shows_the_front_that_is_found() -> None:
    found = pareto("mobilenet_v3_small", batch_size=2, points=10)
    printed = [line for line in Plot(found).lines(80) if "|" in line]
    told = [line for line in fence("The front").splitlines() if "|" in line]
    assert [line.split("|")[0] for line in told] == [line.split("|")[0] for line in printed]
    signs = [sum(line.count(sign) for line in lines) for lines in (told, printed) for sign in "o~"]
    assert signs[:2] == signs[2:]


#: Every picture that the terminal has.
PICTURES: dict[str, Callable[[], Any]] = {
    "timeline": lambda: Picture(analysis().methods[0].footprint.timeline, "MB", 70 * MB),
    "bars": lambda: Bars(compared_runs(analysis()), analysis().blocks),
    "front": lambda: Plot(front()),
}


def on_screen(picture: RenderableType, width: int, encoding: str) -> str:
    """Return what a terminal of an encoding shows, without colours."""
    written = io.BytesIO()
    screen = io.TextIOWrapper(written, encoding=encoding)
    Console(file=screen, width=width, force_terminal=True, color_system=None, legacy_windows=False, _environ={}).print(
        picture
    )
    screen.flush()
    return written.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [52, 53, 80, 200])
@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_the_same_in_a_pipe_and_without_unicode(name: str, width: int) -> None:
    piped = shown(PICTURES[name](), width)
    assert piped.isascii()
    assert "\x1b" not in piped
    assert piped == on_screen(PICTURES[name](), width, "ascii")
    assert max(map(len, piped.splitlines())) <= width
    drawn = on_screen(PICTURES[name](), width, "utf-8")
    assert not drawn.isascii()
    assert [len(line) for line in drawn.splitlines()] == [len(line) for line in piped.splitlines()]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_left_out_where_there_is_no_room(name: str) -> None:
    assert shown(PICTURES[name](), 51) == ""
    assert shown(PICTURES[name](), 52) != ""


@pytest.mark.parametrize("name", PICTURES)
def test_a_terminal_gets_colours_and_the_same_signs(name: str) -> None:
    text = shown(PICTURES[name](), 80, terminal=True)
    assert "\x1b[" in text
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == on_screen(PICTURES[name](), 80, "utf-8")
