"""Where a file is for those who read a report elsewhere: its path from the root of the repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

#: Variables in which GitHub and GitLab name the directory that the repository is checked out to.
_ROOTS: Final = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")


def repository_path(file: str) -> str:
    """Return the path of ``file`` from the root of the checkout, with slashes; as it is where it lies elsewhere."""
    return _inside(file) or Path(file).as_posix()


def artifact_location(file: str) -> dict[str, str]:
    """Return the location of ``file`` for SARIF, from the root of the checkout or, where it lies elsewhere, absolute.

    >>> artifact_location("ci/my gate#1.toml")
    {'uri': 'ci/my%20gate%231.toml', 'uriBaseId': '%SRCROOT%'}
    """
    inside = _inside(file)
    if inside is not None:
        return {"uri": _quoted(inside), "uriBaseId": "%SRCROOT%"}
    return {"uri": f"file:///{_quoted(Path(os.path.abspath(file)).as_posix().lstrip('/'))}"}


def _inside(file: str) -> str | None:
    """Return the path of ``file`` from the root of the checkout, with slashes; ``None`` where it lies elsewhere.

    Without a variable that names the checkout, the current directory is taken for it.
    """
    root = next((os.environ[name] for name in _ROOTS if os.environ.get(name)), os.getcwd())
    try:
        return Path(os.path.abspath(file)).relative_to(os.path.abspath(root)).as_posix()
    except ValueError:
        return None


def _quoted(path: str) -> str:
    return quote(path.encode("utf-8", "replace"), safe="/")
