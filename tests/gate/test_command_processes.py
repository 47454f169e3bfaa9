"""The gate's command and what models do to its process: always the same bytes, and one fault hides no other."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import memplan
from tests.gate.command import CONFIG, gate, told, write


def test_one_broken_check_does_not_hide_the_others(folder: Path) -> None:
    extra = "".join(
        f'\n[[tool.memplan.checks]]\nname = "{name}"\nmodel = "model.py:{name}"\n'
        for name in ("fails", "leaves", "moved")
    )
    write(folder, config=CONFIG + extra)
    result = gate("--format", "json")
    assert result.exit_code == 3
    checks = told(result)["checks"]
    assert [check["name"] for check in checks] == ["net", "saved", "fails", "leaves", "moved"]
    assert [check["verdict"] for check in checks] == ["ok", "ok", "error", "error", "error"]
    sentences = [check["failures"][0]["sentence"] for check in checks[2:]]
    assert "no such data set" in sentences[0]
    assert all(sentence.startswith("pyproject.toml:") and "\n" not in sentence for sentence in sentences)


def test_a_worker_that_dies_is_one_checks_error(folder: Path) -> None:
    extra = '\n[[tool.memplan.checks]]\nname = "dies"\nmodel = "model.py:dies"\n'
    write(folder, config=CONFIG + extra)
    result = gate("--format", "json", "--jobs", "2")
    assert result.exit_code == 3
    checks = told(result)["checks"]
    assert [check["verdict"] for check in checks] == ["ok", "ok", "error"]
    assert checks[2]["failures"][0]["sentence"].endswith("dies: the worker process exited with 7")


def test_a_hundred_runs_give_the_same_bytes(folder: Path) -> None:
    model = memplan.check("model.py:net", suggest=False)
    assert model.reading is not None
    assert all(memplan.check("model.py:net", suggest=False).reading == model.reading for _ in range(99))


def test_hash_seeds_threads_and_jobs_do_not_matter(folder: Path) -> None:
    """A convolution's scratch depends on the threads of the machine: the gate's machine is a named one."""
    more = '\n[[tool.memplan.checks]]\nmodel = "mobilenet_v3_small"\nbatch-size = 2\nmethod = "lossless"\n'
    write(folder, config=CONFIG + more)
    runs = [("0", "1", "1"), ("1", "2", "2"), ("4321", "4", "1")]
    outputs = set()
    for seed, threads, jobs in runs:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        words = ("gate", "--format", "json", "--jobs", jobs)
        run = subprocess.run(
            [sys.executable, "-m", "memplan", *words], env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        outputs.add(re.sub(r'"seconds": [\d.]+', "", run.stdout))
    assert len(outputs) == 1


NOISY = """
import ctypes, os, sys


def noisy():
    os.write(1, b"raw\\n")
    os.system("echo child")
    ctypes.CDLL(None).puts(b"native")
    sys.__stdout__.write("original\\n")
    print("printed")
    return net()
"""


def shell(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "memplan", *words], text=True, check=False, **how)


@pytest.mark.skipif(os.name != "posix", reason="the C library has another name")
@pytest.mark.parametrize("words", [(), ("--debug",), ("--jobs", "2")])
def test_what_a_model_writes_past_python_is_not_in_the_report(folder: Path, words: tuple[str, ...]) -> None:
    noisy = "model.py:noisy"
    write(folder, config=CONFIG.replace("model.py:net", noisy, 1))
    with (folder / "model.py").open("a") as file:
        file.write(NOISY)
    run = shell("gate", "--format", "json", *words, capture_output=True)
    assert (run.returncode, json.loads(run.stdout)["checks"][0]["model"]) == (0, noisy), run.stderr
    heard = {"raw", "child", "native", "original", "printed"} & set(run.stderr.split())
    assert heard == ({"raw", "child", "native", "original", "printed"} if words == ("--debug",) else {"printed"})


def test_no_stdout_at_all_leaves_the_exit_code(folder: Path) -> None:
    for form, budget, code in (("json", "1MB", 0), ("console", "1KB", 1)):
        own = ("net", "--no-suggest", "--format", form, "--budget", budget)
        words = shlex.join([sys.executable, "-m", "memplan", "gate", *own])
        run = subprocess.run(["sh", "-c", f"{words} >&-"], capture_output=True, check=False)
        assert (run.returncode, run.stderr) == (code, b"")


def test_a_descriptor_is_put_back_after_every_command(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.write(1, b"before\n")
    assert gate("--format", "json").exit_code == 0
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "before\nafter\n"


def test_two_models_may_have_modules_of_one_name(folder: Path) -> None:
    for name, width in (("a", 8), ("b", 64)):
        (folder / name).mkdir()
        (folder / name / "layers.py").write_text(f"WIDTH = {width}\n")
        (folder / name / "model.py").write_text(
            "import torch\nfrom layers import WIDTH\n\n\ndef net():\n"
            "    return torch.nn.Linear(4, WIDTH), torch.empty(2, 4)\n"
        )
    checks = "".join(f'[[tool.memplan.checks]]\nmodel = "{name}/model.py:net"\n' for name in "abab")
    write(folder, config=checks.replace('b/model.py:net"', 'b/model.py:net"\nof = "peak"', 1))
    (folder / "pyproject.toml").write_text(
        "".join(f'[[tool.memplan.checks]]\nname = "{at}"\nmodel = "{at[0]}/model.py:net"\n' for at in ("a", "b", "a2"))
    )
    sizes = [check["predicted_bytes"] for check in told(gate("--format", "json"))["checks"]]
    assert sizes[0] == sizes[2]
    # Parameters and their gradients, 4 * WIDTH weights and WIDTH biases each.
    assert sizes[1] - sizes[0] >= 2 * 4 * 5 * (64 - 8)


def test_what_a_model_sets_for_the_process_does_not_reach_the_next(folder: Path) -> None:
    (folder / "odd.py").write_text(
        "import torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(True)\n\n\n"
        "def net():\n    return torch.nn.Linear(4, 4), torch.empty(2, 4)\n"
    )
    alone = told(gate("net", "--format", "json"))["checks"][0]["bytes"]
    write(folder, config='[[tool.memplan.checks]]\nname = "odd"\nmodel = "odd.py:net"\n' + CONFIG)
    odd, net, _ = told(gate("--format", "json"))["checks"]
    assert net["bytes"] == alone
    assert odd["verdict"] == "ok"
