"""What GitHub's runner does with the steps of a composite action and of a workflow, as far as those of here need it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parent.parent.parent
ACTION: Final[dict[str, Any]] = yaml.safe_load((ROOT / "action.yml").read_text())

_EXPRESSION: Final = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
_CONDITION: Final = re.compile(r"inputs\.([\w-]+) (==|!=) '(.*)'")


@dataclass(frozen=True, slots=True)
class Ran:
    """What running an action or a script came to; ``used`` are the actions that a runner would have fetched."""

    exit_code: int
    stdout: str
    stderr: str
    outputs: Mapping[str, str] = field(default_factory=dict)
    used: tuple[str, ...] = ()


class Runner:
    """A job's machine: a folder with the commands of its PATH, and the files that steps write to."""

    def __init__(self, folder: Path) -> None:
        self.commands = folder / "bin"
        self.temp = folder / "temp"
        self.summary = folder / "summary.md"
        self._output = folder / "output"
        for each in (self.commands, self.temp):
            each.mkdir(parents=True)
        self.command("python", f'exec "{sys.executable}" "$@"')
        self.command("memplan", f'exec "{sys.executable}" -m memplan "$@"')

    def command(self, name: str, script: str) -> None:
        """Write a command that the scripts find before any other of that name."""
        path = self.commands / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def recorded(self, name: str, file: Path, code: int = 0) -> None:
        """Write a command that does nothing but write its arguments to ``file``, one on a line, an empty line last."""
        self.command(name, f'printf "%s\\n" "$@" "" >> "{file}"; exit {code}')

    def action(self, folder: Path, given: Mapping[str, str] | None = None) -> Ran:
        """Run the composite action of this repository in ``folder``, with these inputs."""
        unknown = set(given or {}) - set(ACTION["inputs"])
        assert not unknown, f"the action has no inputs {unknown}"
        inputs = {name: str(each["default"]) for name, each in ACTION["inputs"].items()} | dict(given or {})
        told: dict[str, str] = {}
        stdout = stderr = ""
        code, used = 0, []
        for step in ACTION["runs"]["steps"]:
            if code or not _holds(step.get("if"), inputs):
                continue
            if "uses" in step:
                used.append(step["uses"])
                continue
            variables = {name: _filled(value, inputs) for name, value in step.get("env", {}).items()}
            ran = self.script(step["run"], folder / _filled(step["working-directory"], inputs), variables)
            stdout, stderr, code = stdout + ran.stdout, stderr + ran.stderr, ran.exit_code
            told |= {f"steps.{step.get('id')}.outputs.{name}": value for name, value in ran.outputs.items()}
        outputs = {name: told.get(_expression(each["value"]), "") for name, each in ACTION["outputs"].items()}
        return Ran(code, stdout, stderr, outputs, tuple(used))

    def script(self, script: str, folder: Path, variables: Mapping[str, str] | None = None) -> Ran:
        """Run a script in ``folder`` as a step with ``shell: bash`` is run."""
        self._output.write_text("")
        file = self.temp / "step.sh"
        file.write_text(script)
        own = {
            name: value for name, value in os.environ.items() if not name.startswith(("MEMPLAN_", "GITHUB_", "GIT_"))
        }
        run = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(file)],
            cwd=folder,
            env={
                **own,
                "PATH": os.pathsep.join([str(self.commands), own["PATH"]]),
                "PYTHONPATH": str(ROOT),
                "CI": "true",
                "GITHUB_ACTIONS": "true",
                "GITHUB_ACTION_PATH": str(ROOT),
                "GITHUB_OUTPUT": str(self._output),
                "GITHUB_STEP_SUMMARY": str(self.summary),
                "RUNNER_TEMP": str(self.temp),
                **(variables or {}),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        outputs = dict(line.split("=", 1) for line in self._output.read_text().splitlines())
        return Ran(run.returncode, run.stdout, run.stderr, outputs)


def _expression(text: str) -> str:
    match = _EXPRESSION.fullmatch(text)
    assert match, f"{text!r} is no single expression"
    return match[1]


def _filled(text: str, inputs: Mapping[str, str]) -> str:
    return _EXPRESSION.sub(lambda found: inputs[found[1].removeprefix("inputs.")], text)


def _holds(condition: str | None, inputs: Mapping[str, str]) -> bool:
    if condition is None:
        return True
    match = _CONDITION.fullmatch(condition)
    assert match, f"this runner cannot tell whether {condition!r} holds"
    return (inputs[match[1]] == match[3]) is (match[2] == "==")
