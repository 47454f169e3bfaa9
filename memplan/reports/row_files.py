"""Files of rows that grow as rows are made: JSON lines, CSV, or Parquet, which has a journal until it is written.

Rows are whole lines, on the disk before the next one is made. What a killed process left of a line is cut off.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from memplan.errors import UsageError, did_you_mean
from memplan.reports.files import check_writable, write_folder

Value: TypeAlias = str | int | float | bool | None
Row: TypeAlias = dict[str, Value]

#: The columns of a file, in their order, and the type of each one's values; any value may be missing.
Columns: TypeAlias = Mapping[str, type]

PARQUET: Final = ".parquet"

_ANEW: Final = "name another file, or add --force to start anew"


@dataclass(frozen=True, slots=True)
class _Lines:
    """How rows are lines: the line before them, what a file begins with, how a row is written, and how it is read.

    What cannot be read raises ``ValueError``.
    """

    head: Callable[[Columns], str]
    start: Callable[[Columns], str]
    write: Callable[[Row, Columns], str]
    read: Callable[[str, Columns], Row]


class RowFile:
    """A file of rows, locked for as long as it is open: the rows that are there, and those that are added."""

    def __init__(self, path: Path, columns: Columns, *, replace: bool = False) -> None:
        """Open the file and read its rows; nothing is changed before :meth:`begin`.

        Raises:
            UsageError: the suffix is none of the three, the file cannot be written or is written by another process,
                or it holds other things than such rows and ``replace`` is off.
        """
        check_row_file(path)
        self.path = path
        self._columns, self._replace = columns, replace
        self._growing = path.with_name(f"{path.name}.journal") if path.suffix == PARQUET else path
        self._lines = _LINES.get(path.suffix, _LINES[".jsonl"])
        self._new = not self._growing.exists()
        self._file = _locked(self._growing)
        try:
            self.rows, self._whole_bytes = ([], 0) if replace else self._read()
            if path.suffix == PARQUET and not replace:
                self.rows = _without_repeats([*_parquet_rows(path, columns), *self.rows])
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Cut off what is no whole row, or everything when the file is to be replaced."""
        with self._told():
            self._file.truncate(self._whole_bytes)
            if self._replace and self._growing != self.path:
                self.path.unlink(missing_ok=True)
            if self._whole_bytes == 0:
                self._write(self._lines.head(self._columns))

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows; they are on the disk when this returns.

        Raises:
            UsageError: the disk does not take them, or the file is no longer where it was.
        """
        added = [{name: row[name] for name in self._columns} for row in rows]
        with self._told():
            self._check_there()
            self._write("".join(self._lines.write(row, self._columns) for row in added))
        self.rows.extend(added)

    def finish(self) -> None:
        """Write the Parquet file, whole, and remove its journal; other files are complete as they are."""
        if self.path.suffix != PARQUET:
            self._check_there()
            return
        whole = self.path.resolve()
        write_folder(
            whole.parent, {whole.name: lambda draft: _write_parquet(draft, self.rows, self._columns)}, replace=True
        )
        with self._told():
            self._growing.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; one that is new and has nothing in it is removed."""
        with contextlib.suppress(OSError):
            if self._new and self._is_there() and self._growing.stat().st_size == 0:
                self._growing.unlink()
        self._file.close()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_there(self) -> None:
        if not self._is_there():
            raise UsageError(
                f"{str(self._growing)!r} was removed or replaced while it was written; run the same command again"
            )

    def _is_there(self) -> bool:
        """Return whether the path still leads to the open file: what is written to another one is gone with it."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._file.fileno()), self._growing.stat())
        return False

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"cannot write {str(self._growing)!r}: {why}; what is in it is kept") from error

    def _read(self) -> tuple[list[Row], int]:
        """Return the whole rows, and the bytes that they and the line before them take."""
        data = self._growing.read_bytes()
        text, start = data.decode("utf-8", "replace"), self._lines.start(self._columns)
        if not (text.startswith(start) or start.startswith(text)):
            raise UsageError(f"{str(self._growing)!r} holds something else, or rows of other columns; {_ANEW}")
        whole = text[len(self._lines.head(self._columns)) : text.rfind("\n") + 1]
        rows = [self._row(line, number) for number, line in enumerate(whole.split("\n"), 1) if line.strip()]
        return _without_repeats(rows), data.rfind(b"\n") + 1

    def _row(self, line: str, number: int) -> Row:
        try:
            return _checked(self._lines.read(line, self._columns), self._columns)
        except ValueError as error:
            raise UsageError(f"row {number} of {str(self._growing)!r} cannot be read: {error}; {_ANEW}") from error


def check_row_file(path: Path) -> None:
    """Raise where ``path`` cannot be a file of rows.

    Raises:
        UsageError: its suffix is none of the three, what Parquet needs is missing, or it cannot be written.
    """
    known = (*_LINES, PARQUET)
    if path.suffix not in known:
        hint = did_you_mean(path.suffix, known)
        raise UsageError(
            f"cannot tell the kind of {str(path)!r} by its end{hint}; end it with .jsonl, .csv or .parquet"
        )
    if path.suffix == PARQUET and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"{str(path)!r} needs pyarrow; run: pip install 'memplan[parquet]', or end it with .jsonl or .csv"
        )
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: it is no regular file; name another one")
    check_writable(path)


def _locked(path: Path) -> io.FileIO:
    """Return the file, opened to be added to by this process alone; the lock goes with the process."""
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror or error}; name another file") from error
    try:
        import fcntl
    except ImportError:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UsageError(
            f"{str(path)!r} is being written by another process; wait for it, or name another file"
        ) from error
    except OSError:
        pass  # a file system without locks
    return file


def _checked(row: Any, columns: Columns) -> Row:
    """Return a row with its columns in order, or raise ``ValueError`` where columns or their values are other ones."""
    if not isinstance(row, dict) or row.keys() != columns.keys():
        raise ValueError("its columns are other ones")
    for name, kind in columns.items():
        if row[name] is not None and type(row[name]) is not kind:
            raise ValueError(f"{name} is {row[name]!r}")
    return {name: row[name] for name in columns}


def _without_repeats(rows: Iterable[Row]) -> list[Row]:
    """Return each row once: what a Parquet file and the journal both have."""
    return list({tuple(row.values()): row for row in rows}.values())


def _json_line(row: Row, _: Columns) -> str:
    return json.dumps(row) + "\n"


def _json_row(line: str, _: Columns) -> Any:
    return json.loads(line)


def _json_start(columns: Columns) -> str:
    return f"{{{json.dumps(next(iter(columns)))}: "


def _csv_head(columns: Columns) -> str:
    return _csv_line({name: name for name in columns}, columns)


def _csv_line(row: Row, columns: Columns) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(_csv_cell(row[name]) for name in columns)
    return line.getvalue()


def _csv_cell(value: Value) -> str:
    if isinstance(value, bool):
        return json.dumps(value)
    return "" if value is None else str(value).replace("\n", " ")


def _csv_row(line: str, columns: Columns) -> Row:
    (cells,) = csv.reader([line], strict=True)
    if len(cells) != len(columns):
        raise ValueError(f"it has {len(cells)} columns, not {len(columns)}")
    return {name: _csv_value(cell, kind) for cell, (name, kind) in zip(cells, columns.items(), strict=True)}


def _csv_value(cell: str, kind: type) -> Value:
    value: Value = None if cell == "" else json.loads(cell) if kind is bool else kind(cell)
    return value


def _parquet_rows(path: Path, columns: Columns) -> list[Row]:
    if not path.exists():
        return []
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        return [_checked(row, columns) for row in read_table(path).to_pylist()]
    except (ArrowException, OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise UsageError(f"{str(path)!r} holds something else than these rows ({why}); {_ANEW}") from error


def _write_parquet(path: Path, rows: list[Row], columns: Columns) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)


#: The kinds of files whose rows are lines, by their suffix; a Parquet file's journal is JSON lines.
_LINES: Final = {
    ".jsonl": _Lines(lambda _: "", _json_start, _json_line, _json_row),
    ".csv": _Lines(_csv_head, _csv_head, _csv_line, _csv_row),
}
