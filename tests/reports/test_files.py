"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from memplan.errors import UsageError
from memplan.reports.files import check_writable, write_whole


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as raised:
        write_whole(path, "new")
    return str(raised.value)


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_whole(path, "old")
    path.chmod(0o640)
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_new_file_has_the_rights_that_any_other_would(tmp_path: Path) -> None:
    write_whole(tmp_path / "ours", "")
    (tmp_path / "other").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_device_is_written_to_and_not_replaced() -> None:
    write_whole(Path(os.devnull), "new")
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_device_is_one_line() -> None:
    assert refused(Path("/dev/full")) == "cannot write '/dev/full': No space left on device; name another file"


@pytest.mark.parametrize("step", ["replace", "chmod"])
def test_a_failure_leaves_the_old_file_and_no_other(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def fail(*args: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    assert refused(path) == f"cannot write '{path}': No space left on device; name another file"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_an_interrupt_leaves_no_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "report.json", "new")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "report.json"
    assert refused(missing) == f"cannot write '{missing}': there is no directory '{missing.parent}'; create it first"
    assert refused(tmp_path) == f"cannot write '{tmp_path}': it is a directory; name a file in it"


def test_what_is_read_only_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    # The superuser may write anything, so that rights alone would not do for this test.
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != path)
    assert refused(path) == f"cannot write '{path}': it is read-only; name another file"
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    assert refused(path) == f"cannot write '{path}': the directory '{tmp_path}' is read-only; name another one"
    assert path.read_text() == "old"


def test_checking_writes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "report.json")
    assert os.listdir(tmp_path) == []
