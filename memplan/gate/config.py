"""The checks of a configuration's file and their shared defaults: each value is read once, every error has its line."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memplan.errors import MemplanError, UsageError, did_you_mean
from memplan.gate.baseline import BASELINE_FILE
from memplan.gate.consistency import check_consistent
from memplan.gate.keys import CHECK_KEYS, GATE_KEYS
from memplan.gate.lines import line_of
from memplan.gate.records import INSTRUCTION_SET, THREADS, Check, Limits, Place
from memplan.methods import METHODS
from memplan.tables import plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The file that is read where none is named.
CONFIG_FILE: Final = "pyproject.toml"


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a file asks of the gate: ``checks`` are those that run, ``names`` those of all that it has.

    ``threads`` and ``instruction_set`` name the machine that steps are priced for.
    """

    file: Path
    checks: tuple[Check, ...]
    names: frozenset[str]
    baseline: Path
    threads: int = THREADS
    instruction_set: str = INSTRUCTION_SET
    jobs: int = 1
    require_baseline: bool = False


#: Keys of a check that describe the model, by their names as arguments of ``memplan.subject.subject_of``.
_SUBJECT: Final = {
    "batch-size": "batch_size",
    "input": "input_shape",
    "classes": "classes",
    "dtype": "dtype",
    "weights": "weights",
    "train": "training",
    "amp": "amp",
    "loss": "loss",
}

#: Keys that say more of a method, and so are moot where the command line names another one.
_OF_METHOD: Final = frozenset({"k", "treatments", "plan"})

#: Keys that can be overridden and contradict another one; what is told of it has their names.
_CONTRADICTING: Final = ("budget", "max-growth", "min-growth", "method", "k", "runner")

_CHECKS: Final = "checks"


def read_configuration(
    file: Path | None = None, overrides: Mapping[str, Any] | None = None, *, only: tuple[str, ...] = ()
) -> Configuration:
    """Return what a file asks of the gate, by default ``pyproject.toml`` in the current directory.

    Args:
        file: TOML with a table ``[tool.memplan]``; in a file of another name its keys may stand by themselves.
        overrides: keys as they are written in the file, and their values, that take the place of every check's own.
        only: names of checks; by default all.

    Raises:
        UsageError: the file cannot be read, or asks what cannot be understood; the message names file and line.
    """
    path = Path(CONFIG_FILE) if file is None else file
    text = _text_of(path)
    reader = _Reader(path, text, *_table_of(path, text))
    return reader.configuration(overrides or {}, only)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            f"there is no {str(path)!r} here; write checks under [tool.memplan] in it, or name a file with --config"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"the configuration {str(path)!r} is not text; name another file with --config") from error
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}; name another file with --config") from error


def _table_of(path: Path, text: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return memplan's table in a file, and where it stands in it."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = getattr(error, "lineno", None) or _line_in(str(error))
        raise UsageError(f"{Place(str(path), line)}: this is not TOML: {error}; correct it") from error
    except (ValueError, RecursionError) as error:
        what = (
            "its brackets are nested too deep"
            if isinstance(error, RecursionError)
            else "a number in it has too many digits"
        )
        raise UsageError(f"{path}: {what}; correct it") from error
    table = values.get("tool", {})
    table = table.get("memplan") if isinstance(table, dict) else None
    if isinstance(table, dict):
        return table, ("tool", "memplan")
    if path.name == CONFIG_FILE or "tool" in values:
        raise UsageError(f"{path} has no table [tool.memplan]; write one with [[tool.memplan.checks]] in it")
    return values, ()


def _line_in(message: str) -> int | None:
    match = re.search(r"at line (\d+)", message)
    return int(match[1]) if match else None


class _Reader:
    """Reads one file's table."""

    def __init__(self, path: Path, text: str, table: dict[str, Any], where: tuple[str, ...]) -> None:
        self._path, self._text, self._table, self._where = path, text, table, where

    def configuration(self, overrides: Mapping[str, Any], only: tuple[str, ...]) -> Configuration:
        """Return all that the table asks for."""
        known = {**CHECK_KEYS, **GATE_KEYS, _CHECKS: None}
        shared: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in self._table.items():
            if key == _CHECKS:
                continue
            if key not in known or key == "name":
                raise self._unknown(key, {name: None for name in known if name != "name"}, self._where, None)
            read = self._read(key, value, self._where, None)
            (own if key in GATE_KEYS else shared)[key] = read
        given = {key: self._given(key, value) for key, value in overrides.items()}
        own.update({key: value for key, value in given.items() if key in GATE_KEYS})
        above = {key: value for key, value in given.items() if key in CHECK_KEYS}
        checks = self._checks(shared, above)
        named = {check.name: check for check in checks}
        for name in only:
            if name not in named:
                hint = did_you_mean(name, named) or f"; its checks are {', '.join(named)}"
                raise UsageError(f"no check {name!r} in {self._path}{hint}")
        return Configuration(
            file=self._path,
            checks=tuple(check for check in checks if not only or check.name in only),
            names=frozenset(named),
            baseline=self._beside(own.get("baseline", BASELINE_FILE), shown="baseline" not in given),
            threads=own.get("threads", THREADS),
            instruction_set=own.get("instruction-set", INSTRUCTION_SET),
            jobs=own.get("jobs", 1),
            require_baseline=own.get("require-baseline", False),
        )

    def _checks(self, shared: Mapping[str, Any], above: Mapping[str, Any]) -> list[Check]:
        entries = self._table.get(_CHECKS)
        if not entries or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            heading = ".".join((*self._where, _CHECKS))
            what = f"{_CHECKS} that are no tables" if entries else "no checks"
            raise UsageError(f"{self._path} has {what}; write each under [[{heading}]], with name and model")
        checks: list[Check] = []
        lines: dict[str, int | None] = {}
        for number, entry in enumerate(entries):
            where = (*self._where, _CHECKS)
            values = dict(shared)
            for key, value in entry.items():
                if key not in CHECK_KEYS:
                    raise self._unknown(key, CHECK_KEYS, where, number)
                values[key] = self._read(key, value, where, number)
            moot = _OF_METHOD if "method" in above else frozenset()
            values = {**{key: value for key, value in values.items() if key not in moot}, **above}
            place = Place(str(self._path), line_of(self._text, where, number=number))
            if "model" not in values:
                raise UsageError(f'{place}: this check has no model; write for example model = "mobilenet_v3"')
            values.setdefault("name", values["model"])
            check = self._check(values, place, {*entry} - {*above} - moot, above)
            shown = plain(check.name)
            if shown in lines:
                first = Place(str(self._path), lines[shown])
                raise UsageError(f"{place}: a check {shown!r} is at {first} already; give this one another name")
            lines[shown] = place.line
            checks.append(check)
        return checks

    def _check(self, values: Mapping[str, Any], place: Place, own: set[str], above: Collection[str]) -> Check:
        subject = {name: values[key] for key, name in _SUBJECT.items() if key in values}
        if "weights" in subject:
            subject["weights"] = str(self._beside(subject["weights"]))
        if "loss" in subject:
            subject["loss"] = self._spec(subject["loss"])
        plan, method = values.get("plan"), values.get("method", "full")
        check = Check(
            name=values["name"],
            model=self._spec(values["model"]),
            of=values.get("of", "peak"),
            limits=Limits(values.get("budget"), values.get("max-growth"), values.get("min-growth", 0)),
            method=method,
            # A shared k is for those checks whose method takes one.
            k=values.get("k") if METHODS[method].needs_k else None,
            treatments=values.get("treatments", ()),
            plan=None if plan is None else str(self._beside(plan)),
            runner=values.get("runner"),
            optimizer=values.get("optimizer", "sgd"),
            foreach=values.get("foreach"),
            strict=values.get("strict", False),
            subject=tuple(sorted(subject.items())),
            place=place,
        )
        try:
            check_consistent(check, own)
        except UsageError as error:
            words = re.findall(r"[\w-]+", str(error))
            given = " and ".join(_option(key) for key in _CONTRADICTING if key in above and key in words)
            head = f"{given}: check {check.name!r} at {place}" if given else f"{place}: check {check.name!r}"
            raise UsageError(f"{head}: {error}") from error
        return check

    def _read(self, key: str, value: Any, where: tuple[str, ...], number: int | None) -> Any:
        try:
            return {**CHECK_KEYS, **GATE_KEYS}[key].read(value)
        except MemplanError as error:
            place = Place(str(self._path), line_of(self._text, where, key, number=number))
            raise UsageError(f"{place}: {_told(key, error)}") from error

    def _given(self, key: str, value: Any) -> Any:
        try:
            return {**CHECK_KEYS, **GATE_KEYS}[key].read(value)
        except MemplanError as error:
            raise UsageError(_told(_option(key), error)) from error

    def _unknown(self, key: str, known: Mapping[str, Any], where: tuple[str, ...], number: int | None) -> UsageError:
        place = Place(str(self._path), line_of(self._text, where, key, number=number))
        hint = did_you_mean(key, known) or f"; choose from {', '.join(known)}"
        return UsageError(f"{place}: no key {key!r}{hint}")

    def _beside(self, path: str, *, shown: bool = True) -> Path:
        """Return a path that is relative to the configuration's file, or as it was given on the command line."""
        return self._path.parent / path if shown else Path(path)

    def _spec(self, text: str) -> str:
        """Return a spec whose file, if it is one beside the configuration, is found from the current directory."""
        file, colon, rest = text.partition(":")
        beside = self._path.parent / file
        return f"{beside}{colon}{rest}" if ("/" in file or file.endswith(".py")) and beside.exists() else text


def _option(key: str) -> str:
    """Return how a key is given outside the file."""
    return f"--{key} (or MEMPLAN_{key.replace('-', '_').upper()})"


def _told(key: str, error: MemplanError) -> str:
    text = str(error)
    return f"{key} {text}" if text.startswith("is ") else f"{key}: {text}"
