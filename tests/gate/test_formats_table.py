"""What holds for every format: the table has it, it is text that can be written, and nothing heavy is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from memplan.gate.formats import FORMATS
from memplan.gate.records import GateResult
from tests.gate import toy

PAGE = Path(__file__).parents[2] / "docs" / "gate-formats.md"

RESULTS = {
    "mixed": toy.mixed(),
    "warnings": toy.mixed(warn_only=True),
    "no baseline": toy.without_baseline(),
    "none": toy.empty(),
    **{ascii(name): toy.hostile(name) for name in toy.HOSTILE},
}


def test_the_formats_are_these_and_each_is_explained() -> None:
    assert list(FORMATS) == ["console", "markdown", "html", "json", "junit", "sarif", "github"]
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text().partition("\n## ")[0], re.MULTILINE)
    assert rows == list(FORMATS)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_text_that_can_be_written_and_always_the_same(name: str, format_name: str) -> None:
    text = FORMATS[format_name](RESULTS[name], toy.VERSION)
    text.encode()
    assert text.endswith("\n") or (format_name == "github" and not text)
    assert FORMATS[format_name](RESULTS[name], toy.VERSION) == text


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format_names_every_check_that_fails(format_name: str) -> None:
    text = FORMATS[format_name](toy.mixed(), toy.VERSION)
    assert all(name in text for name in ("deep/stock", "growing", "broken"))


@pytest.mark.parametrize("format_name", ["console", "markdown", "html", "json", "junit", "sarif"])
def test_every_file_tells_memplans_version(format_name: str) -> None:
    assert toy.VERSION in FORMATS[format_name](GateResult((), "x.toml"), toy.VERSION)


def test_a_console_report_in_a_file_has_a_fixed_width_and_no_colours() -> None:
    text = FORMATS["console"](toy.mixed(), toy.VERSION)
    assert text.startswith(f"memplan {toy.VERSION}\n5 checks of {toy.CONFIG}")
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text


def test_the_table_itself_imports_nothing_heavy_and_no_format_needs_torch() -> None:
    code = (
        "import sys\n"
        "from memplan.gate.formats import FORMATS\n"
        "heavy = {'rich', 'numpy', 'networkx', 'json', 'xml.etree.ElementTree'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "sys.modules['torch'] = None\n"
        "from tests.gate import toy\n"
        "print([bool(write(toy.mixed(), '1')) for write in FORMATS.values()])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.splitlines(), done.stderr) == (["[]", str([True] * len(FORMATS))], "")
