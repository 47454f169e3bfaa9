"""The file of what every check needed when it was last accepted: one entry for a check, one line for a layer."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from memplan.errors import UsageError
from memplan.gate.records import Reading
from memplan.memory.estimate import upper_estimate
from memplan.reports.decoding import decoded
from memplan.reports.files import write_whole
from memplan.reports.machine import to_text

SCHEMA: Final = "memplan.baseline/1"
BASELINE_FILE: Final = "memplan-baseline.json"

#: What cannot be read is not overwritten: it may be somebody's only copy.
_NEXT: Final = "restore it, or delete it and write it with --update-baseline"

#: The most that the bytes of a machine can have.
_DIGITS: Final = 19

#: What git tells its hooks of their repository, as though every folder were the top of it; a baseline's own folder is
#: asked instead. What configures git (GIT_CONFIG_COUNT and the like) stays: safe.directory may be given that way.
_OF_REPOSITORY: Final = frozenset(
    f"GIT_{name}"
    for name in (
        *("DIR", "COMMON_DIR", "OBJECT_DIRECTORY", "ALTERNATE_OBJECT_DIRECTORIES", "INDEX_FILE"),
        *("PREFIX", "INTERNAL_SUPER_PREFIX", "IMPLICIT_WORK_TREE", "SHALLOW_FILE", "GRAFT_FILE"),
    )
)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What was accepted: readings by the name of a check, and by the node id of a pytest test.

    ``torch`` is the version that the entries were written with; ``origin`` names the file, and the revision it is from.
    """

    checks: Mapping[str, Reading] = field(default_factory=dict)
    tests: Mapping[str, Reading] = field(default_factory=dict)
    torch: str = ""
    origin: str = ""


def baseline_text(baseline: Baseline, version: str) -> str:
    """Return the text of a baseline's file, sorted by name so that a change shows as few lines; ``version`` is
    memplan's.
    """
    return to_text(
        {
            "schema": SCHEMA,
            "memplan": version,
            "torch": baseline.torch,
            "checks": _entries(baseline.checks),
            "tests": _entries(baseline.tests),
        }
    )


def _entries(readings: Mapping[str, Reading]) -> dict[str, Any]:
    """Return readings as JSON's own types, which know no tuple."""
    entries: dict[str, Any] = json.loads(json.dumps({name: asdict(readings[name]) for name in sorted(readings)}))
    return entries


def write_baseline(path: Path, baseline: Baseline, version: str) -> None:
    """Write a baseline's file, whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    write_whole(path, baseline_text(baseline, version))


def read_baseline(path: Path, ref: str | None = None) -> Baseline | None:
    """Return the baseline in a file, or as it was in the git revision ``ref``; ``None`` where there is no such file.

    Raises:
        UsageError: it cannot be read, is of another schema, or was changed by hand so that it contradicts itself.
    """
    text = _file_text(path) if ref is None else _text_at(path, ref)
    origin = str(path) if ref is None else f"{path} at {ref}"
    return None if text is None else baseline_from(text, origin)


def baseline_from(text: str, origin: str) -> Baseline:
    """Return the baseline that a file's text holds; ``origin`` names the file for errors.

    Raises:
        UsageError: see :func:`read_baseline`.
    """

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, times in Counter(key for key, _ in pairs).items():
            if times > 1:
                raise UsageError(f"{_place(key, text, origin)}: {key!r} is written twice; leave one of them out")
        return dict(pairs)

    try:
        values = json.loads(text, object_pairs_hook=object_of, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise UsageError(f"{origin}:{error.lineno}: this is not JSON: {error.msg}; {_NEXT}") from error
    except ValueError as error:
        raise UsageError(f"{origin}: {error}; {_NEXT}") from error
    except RecursionError as error:
        raise UsageError(f"{origin}: this is JSON without an end; {_NEXT}") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        kind = f"of the schema {schema!r}" if schema else "no baseline of memplan"
        raise UsageError(f"{origin} is {kind}, and this memplan reads {SCHEMA!r}; {_NEXT}")
    found: dict[str, dict[str, Reading]] = {}
    for section in ("checks", "tests"):
        entries = values.get(section)
        if not isinstance(entries, dict):
            raise UsageError(f"{origin}: {section} is {entries!r}, not an object; {_NEXT}")
        found[section] = {name: _reading(entry, name, text, origin) for name, entry in entries.items()}
    return Baseline(found["checks"], found["tests"], str(values.get("torch", "")), origin)


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"{digits[:_DIGITS]}... has {len(digits):,} digits: it was changed by hand")
    return int(digits)


def _reading(entry: Any, name: str, text: str, origin: str) -> Reading:
    try:
        reading: Reading = decoded(Reading, entry, name)
        _check_sums(reading)
    except ValueError as error:
        raise UsageError(f"{_place(name, text, origin)}: {error}; {_NEXT}") from error
    return reading


def _check_sums(reading: Reading) -> None:
    """Raise where an entry is not what memplan can have written."""
    parts = sum(part.bytes for part in reading.layers) + reading.rest_bytes
    if parts != reading.predicted_bytes:
        raise ValueError(
            f"predicted_bytes is {reading.predicted_bytes:,}, but the parts add up to {parts:,}: it was changed by hand"
        )
    high = upper_estimate(reading.predicted_bytes, reading.of) - reading.predicted_bytes
    # Another release may know the accuracy better; a limit that is far off was not written by any.
    if not reading.predicted_bytes <= reading.bytes <= reading.predicted_bytes + 20 * max(high, 1):
        raise ValueError(
            f"bytes is {reading.bytes:,} where {reading.predicted_bytes:,} are predicted: it was changed by hand"
        )
    if reading.lower_bytes > reading.predicted_bytes:
        raise ValueError(
            f"lower_bytes is {reading.lower_bytes:,} where {reading.predicted_bytes:,} are predicted: "
            "it was changed by hand"
        )


def _place(name: str, text: str, origin: str) -> str:
    """Return the file and the line of an entry."""
    # Entries stand four blanks in, so that a key of the same name within one is not meant.
    match = re.search(rf"^    {re.escape(json.dumps(name))}: ", text, re.MULTILINE)
    return origin if match is None else f"{origin}:{text.count(chr(10), 0, match.end()) + 1}"


def _file_text(path: Path) -> str | None:
    try:
        # A device may never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"the baseline {str(path)!r} is no regular file; name another file")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise UsageError(f"the baseline {str(path)!r} is not text; {_NEXT}") from error
    except OSError as error:
        raise UsageError(f"cannot read the baseline {str(path)!r}: {error.strerror}; name another file") from error


def _text_at(path: Path, ref: str) -> str | None:
    """Return a file's text in a revision; ``None`` where that revision has no such file."""
    if ref.startswith("-"):
        raise UsageError(f"no git revision {ref!r}; name a branch, a tag or a commit")
    # Of a link both the folder and the name are its target's.
    folder, name = path.resolve().parent, path.resolve().name
    known = _git(folder, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if known.returncode:
        unknown = _first_line(_git(folder, "rev-parse", "--git-dir").stderr)
        reason = unknown or _first_line(known.stderr) or "there is no such revision"
        helps = "run it in a clone of the repository" if unknown else "fetch it first"
        raise UsageError(f"cannot read the baseline at {ref!r}: {reason}; {helps}, or leave out the revision")
    if _git(folder, "cat-file", "-e", f"{ref}:./{name}").returncode:
        return None
    shown = _git(folder, "show", f"{ref}:./{name}")
    if shown.returncode:
        raise UsageError(f"cannot read the baseline {str(path)!r} at {ref!r}: {_first_line(shown.stderr)}")
    try:
        return shown.stdout.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"the baseline {str(path)!r} at {ref!r} is not text; {_NEXT}") from error


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    # A work tree is given by users alone, for whom the directory beside it is the repository that they mean.
    dropped = frozenset() if "GIT_WORK_TREE" in os.environ else _OF_REPOSITORY
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    try:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False, env=environment)
    except OSError as error:
        raise UsageError(f"cannot run git: {error.strerror}; install it, or read the baseline from a file") from error


def _first_line(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip().partition("\n")[0]
