"""The option that writes a page: what it refuses, and what it writes."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from memplan import __version__
from memplan.cli.html import HTML_OPTION, check_html, write_html
from memplan.errors import UsageError
from memplan.reports.html import analysis_page, front_page, planned_page, verification_page
from tests.reports import plans
from tests.reports.html.records import analysis, planned, verification


def test_the_option_takes_a_file() -> None:
    @click.command()
    @HTML_OPTION
    def command(html_file: str | None) -> None:
        click.echo(html_file)

    assert CliRunner().invoke(command, ["--html", "a.html"]).output == "a.html\n"


def test_each_record_is_written_as_its_page(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    for record, page in (
        (analysis(), analysis_page),
        (planned(), planned_page),
        (plans.front(), front_page),
        (verification(), verification_page),
    ):
        write_html(str(file), record)
        assert file.read_text(encoding="utf-8") == page(record, __version__)  # type: ignore[operator]


def test_no_file_is_written_where_none_is_asked_for(tmp_path: Path) -> None:
    check_html(None)
    write_html(None, analysis())
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_not_written_to_standard_output() -> None:
    with pytest.raises(UsageError, match=r"--html - would write the page to standard output; name a file, such as"):
        check_html("-")


def test_a_missing_directory_is_named_before_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no directory"):
        check_html(str(tmp_path / "none" / "report.html"))


def test_a_file_is_not_two_things(tmp_path: Path) -> None:
    file = str(tmp_path / "report.html")
    check_html(file, json=None, out=str(tmp_path / "plan.json"))
    check_html(file, json="-")
    with pytest.raises(UsageError, match=r"--html and --json name the same file '.*report\.html'; name two"):
        check_html(file, json=str(tmp_path / "." / "report.html"))
