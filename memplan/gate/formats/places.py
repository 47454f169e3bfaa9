"""Where a file is for those who read a report elsewhere: its path from the root of the repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

#: Variables in which GitHub and GitLab name the directory that the repository is checked out to.
_ROOTS: Final = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")


def repository_path(file: str) -> str:
    """Return the path of ``file`` from the root of the checkout, with slashes; as it is where it lies elsewhere.

    Without a variable that names the checkout, the current directory is taken for it.
    """
    root = next((os.environ[name] for name in _ROOTS if os.environ.get(name)), os.getcwd())
    try:
        return Path(os.path.abspath(file)).relative_to(os.path.abspath(root)).as_posix()
    except ValueError:  # it lies elsewhere, or no file has such a name
        return Path(file).as_posix()


def relative_uri(file: str) -> str:
    """Return the path of ``file`` from the root of the checkout as a URI reference.

    >>> relative_uri("ci/my gate#1.toml")
    'ci/my%20gate%231.toml'
    """
    return quote(repository_path(file).encode("utf-8", "replace"), safe="/")
