"""Files of rows: what is added is there, what is torn is cut off, and what is something else is refused."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memplan.errors import UsageError
from memplan.reports.row_files import Row, RowFile

pyarrow = pytest.importorskip("pyarrow.parquet")

COLUMNS = {"model": str, "k": int, "fits": bool, "seconds": float, "error": str}
FIRST: Row = {"model": 'a "b", c', "k": 1, "fits": True, "seconds": 0.1, "error": None}
SECOND: Row = {"model": "d\u2028ü", "k": None, "fits": False, "seconds": 2.0, "error": "no, 'x'"}
KINDS = [".jsonl", ".csv", ".parquet"]
LINES = [".jsonl", ".csv"]


def add(path: Path, *rows: Row, finish: bool = True, replace: bool = False) -> None:
    with RowFile(path, COLUMNS, replace=replace) as file:
        file.begin()
        for row in rows:
            file.add([row])
        if finish:
            file.finish()


def rows_of(path: Path) -> list[Row]:
    with RowFile(path, COLUMNS) as file:
        return file.rows


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_read_as_they_were_added(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows{kind}"
    add(path, FIRST)
    add(path, SECOND)
    assert rows_of(path) == [FIRST, SECOND]
    assert [list(row) for row in rows_of(path)] == [list(COLUMNS)] * 2
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_other_programs_read_the_rows(tmp_path: Path) -> None:
    for kind in KINDS:
        add(tmp_path / f"rows{kind}", FIRST, SECOND)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [FIRST, SECOND]
    with (tmp_path / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["model"] for row in table] == [FIRST["model"], SECOND["model"]]
    assert [row["k"] for row in table] == ["1", ""]
    assert pyarrow.read_table(tmp_path / "rows.parquet").to_pylist() == [FIRST, SECOND]


@pytest.mark.parametrize("kind", KINDS)
def test_a_torn_end_is_cut_off_wherever_it_is_torn(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows{kind}"
    growing = path if kind in LINES else tmp_path / "rows.parquet.journal"
    add(path, FIRST, SECOND, finish=False)
    data = growing.read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")][-2:]
    for size in range(len(data)):
        growing.write_bytes(data[:size])
        left = [row for row, end in zip((FIRST, SECOND), ends, strict=True) if end <= size]
        assert rows_of(path) == left
        add(path, *(row for row in (FIRST, SECOND) if row not in left), finish=False)
        assert growing.read_bytes() == data


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_changed_before_the_first_row_may_come(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows{kind}"
    add(path, FIRST)
    before = path.read_bytes()
    with RowFile(path, COLUMNS, replace=True) as file:
        assert file.rows == []
    assert path.read_bytes() == before
    with RowFile(tmp_path / f"new{kind}", COLUMNS):
        pass
    assert not (tmp_path / f"new{kind}").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_replaced_has_the_new_rows_alone_even_when_it_is_left_early(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows{kind}"
    add(path, FIRST)
    add(path, SECOND, replace=True, finish=False)
    assert rows_of(path) == [SECOND]


def test_a_journal_is_the_truth_until_the_parquet_file_is_whole(tmp_path: Path) -> None:
    path, journal = tmp_path / "rows.parquet", tmp_path / "rows.parquet.journal"
    add(path, FIRST, finish=False)
    assert not path.exists()
    assert rows_of(path) == [FIRST]
    kept = journal.read_bytes()
    add(path)
    assert not journal.exists()
    # Killed after the file was written and before the journal was removed.
    journal.write_bytes(kept)
    assert rows_of(path) == [FIRST]
    add(path, SECOND, finish=False)
    assert rows_of(path) == [FIRST, SECOND]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_on_the_disk_when_they_are_added(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows{kind}"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom tests.reports.test_row_files import COLUMNS, FIRST\n"
        "from memplan.reports.row_files import RowFile\nfile = RowFile(Path(sys.argv[1]), COLUMNS)\n"
        "file.begin(); file.add([FIRST]); os._exit(9)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False).returncode == 9
    assert rows_of(path) == [FIRST]


@pytest.mark.parametrize("kind", LINES)
def test_empty_lines_are_no_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows{kind}"
    add(path, FIRST)
    path.write_bytes(path.read_bytes() + b"\n\n")
    assert rows_of(path) == [FIRST]
    add(path, SECOND)
    assert rows_of(path) == [FIRST, SECOND]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_goes_while_it_is_written_is_told(tmp_path: Path, kind: str, replaced: bool) -> None:
    path = tmp_path / f"rows{kind}"
    growing = path if kind in LINES else tmp_path / "rows.parquet.journal"
    with RowFile(path, COLUMNS) as file:
        file.begin()
        file.add([FIRST])
        kept = growing.read_bytes()
        growing.unlink()
        if replaced:
            growing.write_bytes(kept)
        with pytest.raises(UsageError) as caught:
            file.add([SECOND])
    told = f"{str(growing)!r} was removed or replaced while it was written; run the same command again"
    assert str(caught.value) == told


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        RowFile(path, COLUMNS)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_at_a_time_writes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows{kind}"
    with RowFile(path, COLUMNS):
        assert "is being written by another process" in refusal(path)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", "hello", "holds something else, or rows of other columns; name another file, or add --force"),
        ("a.jsonl", '{"model": "a", "k": 1}\n', "row 1 of"),
        ("a.jsonl", json.dumps({**FIRST, "k": "1"}) + "\n", "cannot be read: k is '1'"),
        ("a.jsonl", json.dumps({**FIRST, "more": 1}) + "\n", "its columns are other ones"),
        ("a.jsonl", json.dumps(FIRST) + "\n" + '{"model": \n', "row 2 of"),
        ("a.csv", "model,k\n", "holds something else, or rows of other columns"),
        ("a.csv", "model,k,fits,seconds,error\na,1\n", "row 1 of"),
        ("a.csv", "model,k,fits,seconds,error\na,one,,,\n", "invalid literal"),
        ("a.parquet", "hello", "holds something else than these rows"),
        ("a.parquet.journal", "hello", "holds something else"),
    ],
)
def test_a_file_of_other_things_is_refused_in_one_line_and_stays(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    told = refusal(tmp_path / name.removesuffix(".journal"))
    assert says in told
    assert str(path) in told
    assert "\n" not in told
    assert path.read_text() == text


def test_a_parquet_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    import pyarrow as arrow

    path = tmp_path / "rows.parquet"
    pyarrow.write_table(arrow.Table.from_pylist([{"model": "a"}]), path)
    assert "(its columns are other ones)" in refusal(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "rows.json",
            "cannot tell the kind of '{}' by its end; did you mean '.jsonl'?; end it with .jsonl, .csv or .parq",
        ),
        ("rows", "cannot tell the kind of '{}' by its end; end it with .jsonl, .csv or .parquet"),
        ("no/rows.csv", "cannot write '{}': there is no directory"),
        ("folder.csv", "cannot write '{}': it is a directory"),
        ("pipe.csv", "cannot write '{}': it is no regular file; name another one"),
    ],
)
def test_what_can_be_no_file_of_rows_is_told(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    assert refusal(tmp_path / name).startswith(says.format(tmp_path / name))


def test_parquet_without_pyarrow_is_told_up_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    told = refusal(tmp_path / "rows.parquet")
    assert told.endswith("needs pyarrow; run: pip install 'memplan[parquet]', or end it with .jsonl or .csv")


def test_a_full_disk_is_told_in_one_line_and_costs_no_whole_row(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "rows.jsonl"
    line = len(json.dumps(FIRST)) + 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RowFile(path, COLUMNS) as file:
        file.begin()
        file.add([FIRST])
        resource.setrlimit(resource.RLIMIT_FSIZE, (line + line // 2, hard))
        try:
            with pytest.raises(UsageError, match=r"rows.jsonl': File too large; what is in it is kept$"):
                file.add([FIRST])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == line + line // 2
    assert rows_of(path) == [FIRST]
