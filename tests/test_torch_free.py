"""The torch-free tower imports, and draws its reports, where torch cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import memplan

PACKAGE = Path(memplan.__file__).parent

#: What may not need torch: everything but these rooms, which run models or import them.
NEEDS_TORCH = {"layers", "networks", "sources", "tracing", "transform"}

BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "transformers"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCK + code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def torch_free_modules() -> list[str]:
    paths = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    names = (".".join(path.parts).removesuffix(".__init__") for path in paths)
    return sorted(name for name in names if not {*name.split(".")[1:2]} & NEEDS_TORCH and "__main__" not in name)


def test_the_torch_free_tower_imports_without_torch() -> None:
    modules = torch_free_modules()
    rooms = {"memplan.graph", "memplan.methods", "memplan.memory", "memplan.reports", "memplan.results", "memplan.cli"}
    assert rooms < set(modules)
    done = run(f"import importlib\nfor name in {modules!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_a_room_that_needs_torch_does_fail() -> None:
    done = run("import memplan.tracing.record")
    assert done.returncode == 1
    assert "ImportError: torch is blocked" in done.stderr


def test_a_report_is_drawn_without_torch() -> None:
    done = run(
        "from tests.reports.toy import analysis, shown\n"
        "from memplan.reports.console import analysis_report\n"
        "from memplan.reports.machine import analysis_to_json, to_text\n"
        "print(shown(analysis_report(analysis())), to_text(analysis_to_json(analysis(), '0.1.0')))"
    )
    assert done.returncode == 0, done.stderr
    assert "Where stock full peaks" in done.stdout


def test_help_and_version_import_nothing_heavy() -> None:
    heavy = ("torch", "torchvision", "rich", "networkx")
    for option in ("--help", "--version"):
        done = run(
            "from memplan.cli import main\n"
            f"try: main([{option!r}])\n"
            f"finally: print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
        )
        assert (done.returncode, done.stderr) == (0, "[]\n")
        assert "memplan" in done.stdout
