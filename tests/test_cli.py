"""The command line: what it prints, where, and the exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from memplan import __version__
from memplan.cli import main, output
from memplan.cli.commands import DEFAULT_METHODS, METHODS_FOR_A_BUDGET
from memplan.graph import from_json
from memplan.methods import METHODS

ROOT = Path(__file__).parent.parent
MODELS = "tests/models_for_cli.py"
NET = f"{MODELS}:net"


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner(env={"COLUMNS": "80", **environment}).invoke(main, list(arguments))


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def steadied(text: str) -> str:
    """Replace what differs from run to run and from machine to machine."""
    text = re.sub(r"recorded in [0-9.]+ s", "recorded in #.# s", text)
    return re.sub(r"torch [0-9.]+, cpu \w+, threads [0-9]+", "torch #, cpu #, threads #", text)


def test_an_analysis_at_80_columns(golden: Callable[[str, str], None]) -> None:
    result = invoke("analyze", NET, "--budget", "12KB", "--optimizer", "adam", "--top", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    golden("analyze-80.txt", steadied(result.stdout))


def test_a_choice_of_methods_is_listed_by_default_under_the_runner_that_can() -> None:
    rows = re.findall(r"^  (stock|memplan) +(\S+)", invoke("analyze", NET).stdout, re.MULTILINE)
    by_flags = [name for name in DEFAULT_METHODS if METHODS[name].flags]
    assert rows == [("stock", name) for name in by_flags] + [
        ("memplan", name) for name in DEFAULT_METHODS if name not in by_flags
    ]


def test_all_methods_are_listed_under_both_runners() -> None:
    data = json.loads(invoke("analyze", NET, "--method", "all", "--json", "-").stdout)
    rows = {(row["runner"], row["name"]) for row in data["methods"]}
    listed = METHODS.keys() - {"as-is"}
    assert rows == {("memplan", name) for name in listed} | {("stock", n) for n in listed if METHODS[n].flags}
    counts = [row["k"] for row in data["methods"] if (row["runner"], row["name"]) == ("memplan", "mobiletl")]
    assert counts == sorted({min(k, len(data["blocks"])) for k in (1, 3, 5)})


@pytest.mark.parametrize(
    ("budget", "code"), [(None, 0), ("1GB", 0), ("1GiB", 0), ("1,000,000", 0), ("100 B", 1), ("1", 1)]
)
def test_the_exit_code_says_whether_something_fits(budget: str | None, code: int) -> None:
    arguments = [] if budget is None else ["--budget", budget]
    assert invoke("analyze", NET, *arguments).exit_code == code


def test_methods_and_k_are_repeatable() -> None:
    result = invoke("analyze", NET, "--method", "last", "--method", "top-k", "--k", "0", "--k", "2")
    assert result.exit_code == 0
    assert re.findall(r"^  stock  (\S+(?: k=\d)?) ", result.stdout, re.MULTILINE) == ["last", "top-k k=0", "top-k k=2"]


def test_what_the_factory_froze_is_respected_as_is() -> None:
    data = json.loads(invoke("analyze", f"{MODELS}:frozen", "--method", "as-is", "--json", "-").stdout)
    assert data["methods"][0]["trained_parameters"] == 8 * 4 + 4


def test_json_on_stdout_is_nothing_else() -> None:
    result = invoke("analyze", NET, "--json", "-", "--budget", "1GB", "--batch-size", "3")
    data = json.loads(result.stdout)
    assert result.stderr == ""
    assert (data["schema"], data["batch_size"], data["budget_bytes"]) == ("memplan.analysis/1", 3, 10**9)
    assert [method["name"] for method in data["methods"]] == [*METHODS_FOR_A_BUDGET]


def test_json_in_a_file_comes_with_the_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    result = invoke("analyze", NET, "--method", "full", "--json", str(path))
    assert json.loads(path.read_text())["model"] == "net"
    assert "Where stock full peaks" in result.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_options_reach_the_analysis() -> None:
    options = ["--optimizer", "adamw", "--foreach", "--eval", "--amp", "bf16", "--loss", f"{MODELS}:square"]
    more = ["--input", "5x8", "--batch-size", "4", "--dtype", "float64", "--method", "full"]
    data = json.loads(invoke("analyze", f"{MODELS}:Net", *options, *more, "--json", "-").stdout)
    assert data["inputs"] == ["4x5x8 float64"]
    assert (data["dtype"], data["amp"], data["training"]) == ("float64", "bf16", False)
    assert (data["optimizer"], data["optimizer_implementation"]) == ("adamw", "foreach")
    assert data["methods"][0]["timeline"]["phases"][1]["phase"] == "loss"


def test_an_own_loss_is_run() -> None:
    own, default = (
        json.loads(invoke("analyze", NET, "--method", "full", "--json", "-", *loss).stdout)["methods"][0]
        for loss in (["--loss", f"{MODELS}:square"], [])
    )
    assert own["saved_bytes"] == default["saved_bytes"]
    assert own["timeline"]["phases"] != default["timeline"]["phases"]


def test_libraries_and_models_do_not_write_into_the_report() -> None:
    result = invoke("analyze", f"{MODELS}:chatty", "--method", "full", "--json", "-")
    assert json.loads(result.stdout)["model"] == "chatty"
    assert result.stderr == "hello\n" * 2 or result.stderr == "hello\n"


def test_debug_shows_warnings() -> None:
    for options, count in (["--debug"], 1), ([], 0):
        process = start("analyze", f"{MODELS}:chatty", "--method", "full", *options, stdout=subprocess.PIPE)
        shown, error = process.communicate()
        assert (process.returncode, error.count("UserWarning: look out")) == (0, count)
        assert "look out" not in shown


def test_strict_fails_on_what_is_not_priced() -> None:
    model = [f"{MODELS}:sparse", "--method", "full"]
    relaxed, strict = invoke("analyze", *model), invoke("analyze", *model, "--strict")
    assert (relaxed.exit_code, strict.exit_code) == (0, 3)
    assert "not priced: " in relaxed.stdout
    assert strict.stderr.startswith("memplan: --strict: not priced: ")
    assert invoke("analyze", NET, "--method", "full", "--strict").exit_code == 0


def test_strict_fails_on_what_has_no_rule() -> None:
    model = [f"{MODELS}:odd", "--method", "tinytl-bias"]
    relaxed, strict = invoke("analyze", *model), invoke("analyze", *model, "--strict")
    assert (relaxed.exit_code, strict.exit_code) == (0, 3)
    # 2 x 8 x 16 x 16 floats, as there is no mask for an ELU.
    assert strict.stderr.startswith(
        "memplan: --strict: without a rule, kept as stock does: tinytl-bias: elu keeps 16.4 KB"
    )


def test_verify_prints_predicted_against_measured() -> None:
    result = invoke("verify", NET, "--method", "top-k", "--k", "1", "--optimizer", "momentum", "--steps", "3", "--rss")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "method stock top-k k=1; optimizer momentum (loop)" in result.stdout
    assert re.search(r"^  saved +[0-9,.]+ K?B +[0-9,.]+ K?B +equal  byte for byte$", result.stdout, re.MULTILINE)
    assert result.stdout.count("steady state") == 2
    assert "Holds: saved bytes equal" in result.stdout
    assert "RSS of this process" in result.stdout


def test_verify_writes_json() -> None:
    data = json.loads(invoke("verify", NET, "--json", "-").stdout)
    assert (data["schema"], data["holds"], data["saved_equal"]) == ("memplan.verification/1", True, True)
    assert data["measured_saved_bytes"] == data["predicted_saved_bytes"]


def test_verify_exits_with_1_outside_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    import memplan.verification

    monkeypatch.setattr(memplan.verification, "TOLERANCE", (0.5, 0.6))
    result = invoke("verify", NET)
    assert result.exit_code == 1
    assert "Does not hold: saved bytes equal, worst peak " in result.stdout


def test_trace_prints_one_operator_per_line() -> None:
    lines = invoke("trace", NET, "--method", "last").stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == [*range(len(lines))]
    assert "blocks.0.norm" in lines[0]
    assert "native_layer_norm" in lines[0]


def test_trace_writes_a_step_that_can_be_read_back() -> None:
    assert len(from_json(invoke("trace", NET, "--json", "-").stdout).blocks) == 2


def test_methods_are_listed() -> None:
    shown = invoke("methods").stdout
    assert [line for line in shown.splitlines() if not line.startswith(" ")] == [*METHODS]


def test_version_and_help() -> None:
    assert invoke("--version").stdout == f"memplan {__version__}\n"
    for command in ([], ["analyze"], ["verify"], ["trace"], ["methods"]):
        result = invoke(*command, "--help")
        assert result.exit_code == 0
        assert result.stdout == invoke(*command, "-h").stdout
        cut = [line for line in result.stdout.replace("ARGS]...", "").splitlines() if line.endswith("...")]
        assert not cut, "a summary in the list of commands is cut"


def test_without_a_command_help_is_shown() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_is_for_terminals_that_want_it(
    environment: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output._Screen, "isatty", lambda screen: True)
    result = invoke("analyze", NET, "--budget", "1GB", **{"TERM": "xterm-256color", **environment})
    assert ("\x1b[" in result.stdout) is coloured


def test_a_pipe_gets_plain_text() -> None:
    result = invoke("analyze", NET, "--budget", "1GB", TERM="xterm-256color")
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout


def test_a_screen_that_has_no_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output._Screen, "isatty", lambda screen: True)
    monkeypatch.setattr(output, "_encoding", lambda: "ascii")
    assert invoke("analyze", NET, TERM="dumb").stdout.isascii()


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_every_line_fits_the_terminal(columns: int) -> None:
    for command in (["analyze", NET, "--budget", "1KB", "--top", "9"], ["verify", NET, "--rss"], ["methods"]):
        lines = invoke(*command, COLUMNS=str(columns)).stdout.splitlines()
        assert max(map(len, lines)) <= columns


def test_an_interrupt_is_quiet() -> None:
    result = invoke("analyze", f"{MODELS}:interrupted")
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (130, "", "")


def start(*arguments: str, **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "memplan", *arguments], stderr=subprocess.PIPE, text=True, **how)


def test_a_reader_that_leaves_is_no_failure() -> None:
    process = start("methods", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, error = process.communicate()
    assert (process.returncode, error) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_stdout_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        process = start("methods", stdout=full)
        _, error = process.communicate()
    assert (process.returncode, error) == (2, "memplan: cannot write to standard output: No space left on device\n")


def test_a_whole_command_as_a_shell_runs_it() -> None:
    process = start("analyze", NET, "--budget", "1GB", stdout=subprocess.PIPE)
    shown, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    assert shown.isascii()
    assert "Fits in 1,000.0 MB: stock full (" in shown
