"""What is set for a whole run: on the command line, in the environment, in pytest's ini file, in this order."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from memplan.errors import UsageError


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting by its names; a switch has no ``metavar``."""

    help: str
    flag: str | None = None
    variable: str | None = None
    ini: str | None = None
    metavar: str | None = None


#: Every setting of a run, in the order of its help.
SETTINGS: Final[dict[str, Setting]] = {
    "report": Setting("Print a table of all checked tests.", "--memplan-report", ini="memplan_report"),
    "limit": Setting("Limit of markers that give no size.", ini="memplan_limit", metavar="SIZE"),
    "max_growth": Setting(
        "Growth that is allowed to every marked test: 2% or 1MB.",
        "--memplan-max-growth",
        "MEMPLAN_MAX_GROWTH",
        "memplan_max_growth",
        "N%|SIZE",
    ),
    "baseline": Setting(
        "What growth is measured from; by default memplan-baseline.json in the rootdir.",
        "--memplan-baseline",
        "MEMPLAN_BASELINE",
        "memplan_baseline",
        "FILE",
    ),
    "update": Setting("Accept what is needed now, and write the baseline.", "--memplan-update-baseline"),
    "require": Setting("Fail marked tests that have no baseline.", "--memplan-require-baseline"),
}

#: The file's name is that of the gate, which shares it; to import it from there would cost every run.
BASELINE_FILE: Final = "memplan-baseline.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one run. Sizes and growth are as they were written, and can be read."""

    report: bool
    limit: str | None
    max_growth: str | None
    baseline: Path
    update: bool
    require: bool


def add_settings(parser: pytest.Parser) -> None:
    """Make the settings known to pytest."""
    group = parser.getgroup("memplan", "training memory")
    for name, setting in SETTINGS.items():
        if setting.flag is not None:
            how: dict[str, Any] = (
                {"action": "store_true"} if setting.metavar is None else {"metavar": setting.metavar, "default": None}
            )
            # argparse takes a percent sign for a format.
            group.addoption(setting.flag, dest=_dest(name), help=setting.help.replace("%", "%%"), **how)
        if setting.ini is not None:
            kind: Literal["bool", "string"] = "bool" if setting.metavar is None else "string"
            parser.addini(setting.ini, setting.help, type=kind, default=None)


def settings_of(config: pytest.Config) -> Settings:
    """Return the settings of a run.

    Raises:
        UsageError: pytest's; a setting cannot be read.
    """
    found = {name: _value(config, name) for name in SETTINGS}
    _check(found)
    return Settings(
        report=bool(found["report"][0]),
        limit=found["limit"][0],
        max_growth=found["max_growth"][0],
        baseline=_baseline(config, *found["baseline"]),
        update=bool(found["update"][0]),
        require=bool(found["require"][0]),
    )


def _dest(name: str) -> str:
    return f"memplan_{name}"


def _value(config: pytest.Config, name: str) -> tuple[Any, str]:
    """Return a setting's value and the name that it was given by; what is empty is not given."""
    setting = SETTINGS[name]
    if setting.flag is not None and config.getoption(_dest(name)):
        return config.getoption(_dest(name)), setting.flag
    if setting.variable is not None and os.environ.get(setting.variable):
        return os.environ[setting.variable], setting.variable
    if setting.ini is not None and (value := _ini_value(config, setting.ini, setting.metavar)):
        return value, setting.ini
    return None, ""


def _ini_value(config: pytest.Config, name: str, metavar: str | None) -> Any:
    try:
        return config.getini(name)
    except (ValueError, pytest.UsageError) as error:
        if metavar is not None:
            raise
        # pytest does not say which setting it could not read.
        raise pytest.UsageError(f"{name}: {error}; write true or false") from error


def _check(found: dict[str, tuple[Any, str]]) -> None:
    """Raise where a size or a growth cannot be read, before any test runs."""
    if found["limit"][0] is None and found["max_growth"][0] is None:
        return
    from memplan.gate.growth import parse_growth
    from memplan.units import parse_bytes

    for name, read in (("limit", parse_bytes), ("max_growth", parse_growth)):
        text, given = found[name]
        if text is not None:
            try:
                read(text)
            except UsageError as error:
                raise pytest.UsageError(f"{given}: {error}") from error


def _baseline(config: pytest.Config, file: str | None, given: str) -> Path:
    """Return the baseline's file: what the ini file names is beside it, what a person types is in the directory.

    Raises:
        UsageError: pytest's; it is no regular file.
    """
    if file is None:
        return config.rootpath / BASELINE_FILE
    beside_ini = config.rootpath if config.inipath is None else config.inipath.parent
    path = (beside_ini if given == SETTINGS["baseline"].ini else config.invocation_params.dir) / file
    # A pipe would be read to its end, and nobody may ever close it.
    if os.path.exists(path) and not os.path.isfile(path):
        raise pytest.UsageError(f"{given}: {file!r} is no regular file; name one, such as {BASELINE_FILE}")
    return path
