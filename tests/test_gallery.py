"""docs/gallery.md shows what the commands print now, and every picture that it names."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gallery import BUDGET, COMMANDS, OUTPUTS, PAGE, PICTURES, SHOTS, STEPS, Ran, marked, run, with_outputs

TEXT = PAGE.read_text(encoding="utf-8")
SHOWN = re.findall(r"!\[(.*?)\]\((.*?)\)", TEXT)
_MACHINE = re.compile(r"torch \S+, \S+ .*, threads \d+")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The two analyses, the second one with its plan; the front takes half a minute more."""
    return run(tmp_path_factory.mktemp("gallery"), ("before", "after"))


def assert_same(before: dict[str, str], now: dict[str, str], *, elsewhere: bool) -> None:
    """Compare outputs; where they were made on another machine only words, since kernels take other scratch there."""
    for name, shown in before.items():
        if not elsewhere:
            assert now[name] == shown, f"refresh {name}: python benchmarks/gallery.py"
        elif name.startswith("timeline") or name in ("bars", "markdown"):
            assert _words(now[name]) == _words(shown), f"refresh {name}: python benchmarks/gallery.py"


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]{2,}", text)


def machine(text: str) -> str:
    found = _MACHINE.search(text)
    assert found is not None
    return found[0]


def test_the_outputs_are_what_the_commands_print_now(ran: Ran) -> None:
    now = with_outputs(TEXT, ran)
    assert_same(marked(TEXT), marked(now), elsewhere=machine(now) != machine(TEXT))


@pytest.mark.corpus
def test_the_front_is_what_the_command_prints_now(tmp_path: Path) -> None:
    front = run(tmp_path, ("front",))
    elsewhere = machine(" ".join(front.printed["front"].split())) != machine(TEXT)
    assert_same(marked(TEXT), marked(with_outputs(TEXT, front)), elsewhere=elsewhere)


def test_a_change_of_one_figure_is_found_and_elsewhere_only_one_of_words(ran: Ran) -> None:
    now = marked(with_outputs(TEXT, ran))
    number = {"bars": now["bars"].replace("features.2    73.1 MB", "features.2    73.2 MB")}
    word = {"bars": now["bars"].replace("stock full", "stock last")}
    with pytest.raises(AssertionError, match="refresh bars"):
        assert_same(number, now, elsewhere=False)
    assert_same(number, now, elsewhere=True)
    with pytest.raises(AssertionError, match="refresh bars"):
        assert_same(word, now, elsewhere=True)


def test_every_output_stands_in_the_page_and_is_not_empty() -> None:
    assert list(marked(TEXT)) == list(OUTPUTS)
    assert all(len(shown.splitlines()) > 4 for shown in marked(TEXT).values())


def test_the_commands_of_the_page_are_those_that_were_run() -> None:
    shown = [body for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S) if language == "bash"]
    lines = [line for body in shown for line in body.replace("\\\n    ", "").splitlines()]
    assert lines == list(COMMANDS.values())


def test_no_command_of_the_page_runs_with_the_tests_of_all_pages() -> None:
    assert not re.search(r"^```(console|python)$", TEXT, re.M)


def test_every_figure_in_the_prose_stands_in_an_output() -> None:
    outputs = "".join(marked(TEXT).values())
    prose = TEXT
    for shown in marked(TEXT).values():
        prose = prose.replace(shown, "")
    figures = set(re.findall(r"\d+\.\d MB", prose))
    assert figures
    assert figures <= set(re.findall(r"\d+\.\d MB", outputs))


def test_the_peaks_of_the_table_add_up_and_are_those_of_the_commands(ran: Ran) -> None:
    table = list(_rows(marked(with_outputs(TEXT, ran))["peaks"]))
    peaks = []
    for place, name in enumerate(STEPS, start=1):
        events = json.loads((ran.folder / f"{name}.json").read_text())["traceEvents"]
        (peak,) = (event["args"]["bytes"] for event in events if event["name"] == "peak")
        cells = {row[0]: float(row[place].removesuffix(" MB")) for row in table}
        peaks.append(peak)
        assert cells["total"] == round(peak / 1e6, 1)
        # Three rounded figures are at most 3 * 0.05 from their sum, and the sum 0.05 from its own.
        assert cells["resident"] + cells["saved"] + cells["temp"] == pytest.approx(cells["total"], abs=0.2)
    assert peaks[1] <= BUDGET == 64_000_000 < peaks[0]


def _rows(table: str) -> Iterator[list[str]]:
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[-1].endswith(" MB") and cells[0] != "at the peak":
            yield cells


def test_the_plan_lies_between_two_points_of_the_front_that_the_page_shows() -> None:
    """What the page says of the front: sixteen plans; eleven of fifteen blocks train below the budget, no more do."""
    front = marked(TEXT)["front"]
    points = [
        (float(peak), 15 if k == "all" else int(k))
        for peak, k in re.findall(r"^ +(\d+\.\d) MB +(\w+) +\d+ blocks?", front, re.M)
    ]
    assert len(points) == 16
    assert points == sorted(points, key=lambda point: point[0])
    below = [k for peak, k in points if peak <= BUDGET / 1e6]
    assert max(below) == below[-1] == 11
    assert "the last 12 of 15 blocks" in marked(TEXT)["answer"]
    assert points[len(below)][1] == 13


def test_every_picture_that_is_shown_is_there_and_every_one_there_is_shown() -> None:
    assert sorted(target for _, target in SHOWN) == sorted(f"gallery/{name}.png" for name in ("front", *SHOTS))
    assert {file.name for file in PICTURES.iterdir()} == {Path(target).name for _, target in SHOWN}


@pytest.mark.parametrize(("words", "target"), SHOWN, ids=[target for _, target in SHOWN])
def test_a_picture_has_a_description_and_is_small(words: str, target: str) -> None:
    picture = (PAGE.parent / target).read_bytes()
    assert len(words.split()) >= 8
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture[16:24])
    assert 700 <= width <= 1200
    assert 200 <= height <= 1200
    assert 5_000 < len(picture) < 150_000


def test_all_pictures_together_take_less_than_a_megabyte() -> None:
    assert sum(file.stat().st_size for file in PICTURES.iterdir()) < 1_000_000
