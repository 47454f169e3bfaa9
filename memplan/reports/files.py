"""Write a report to a file, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from memplan.errors import UsageError


def check_writable(path: Path) -> None:
    """Raise where ``path`` cannot be written, so that nobody waits for a report that has no place.

    Raises:
        UsageError: the path is a directory, its directory is missing, or either may not be written.
    """
    if path.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: it is a directory; name a file in it")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: there is no directory {str(folder)!r}; create it first")
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(f"cannot write {str(path)!r}: it is read-only; name another file")
    if (path.is_file() or not path.exists()) and not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write {str(path)!r}: the directory {str(folder)!r} is read-only; name another one")


def write_whole(path: Path, contents: str | bytes) -> None:
    """Write ``contents``, text as UTF-8, to ``path`` so that a reader sees the old file or the new one, never a part.

    A link is followed, and what is no regular file (a pipe, a device) is written to as it is.

    Raises:
        UsageError: the file cannot be written; what was there before is still there.
    """
    check_writable(path)
    data = contents.encode("utf-8") if isinstance(contents, str) else contents
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(path.resolve(), data)
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror or error}; name another file") from error


def check_folder(folder: Path, names: Iterable[str], *, replace: bool) -> None:
    """Raise where files with ``names`` cannot be written to ``folder``, which may be still to be made.

    Raises:
        UsageError: the folder cannot be made or written to, or has such a file and ``replace`` is off.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"cannot write to {str(folder)!r}: it is a file; name a directory")
    if folder.is_dir():
        for name in names:
            if (folder / name).exists() and not replace:
                raise UsageError(f"{str(folder)!r} has a {name} already; name another directory, or add --force")
            check_writable(folder / name)
    else:
        check_writable(folder)


def write_folder(folder: Path, files: Mapping[str, Callable[[Path], None]], *, replace: bool) -> None:
    """Write several files to ``folder``: all whole, or none; ``files`` maps names to what writes one to a path.

    A folder that is not there is made, and seen only when it is complete.

    Raises:
        UsageError: see :func:`check_folder`; or the files cannot be written, and what was there before still is.
    """
    check_folder(folder, files, replace=replace)
    there = folder.is_dir()
    try:
        drafts = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder if there else folder.resolve().parent))
        try:
            for name, write in files.items():
                write(drafts / name)
            if there:
                for name in files:
                    os.replace(drafts / name, folder / name)
            else:
                drafts.chmod(0o777 & ~_umask())
                os.replace(drafts, folder)
        finally:
            shutil.rmtree(drafts, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"cannot write to {str(folder)!r}: {error.strerror or error}; name another one") from error


def _replace(path: Path, data: bytes) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as draft:
            draft.write(data)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
