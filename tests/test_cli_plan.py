"""The commands about plans: find, explain, verify, apply and compare one, the front, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import memplan
from memplan.cli import main
from memplan.cli.options import IMPORTANCES
from memplan.methods.plan import plan_from_json, plan_to_json
from memplan.reports.plan_file import account_from_json
from memplan.transform import importance
from memplan.units import parse_bytes
from tests.reports.plans import front, planned
from tests.threads import torch_threads

ROOT = Path(__file__).parent.parent
MODELS = "tests/models_for_cli.py"
NET = f"{MODELS}:convolutions"
BUDGET = "8MB"


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner(env={"COLUMNS": "80", **environment}).invoke(main, list(arguments))


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for the network within the budget, at a batch that is not the default."""
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        arguments = ("--budget", BUDGET, "--batch-size", "6", "--optimizer", "momentum", "--out", str(path))
        result = invoke("plan", NET, *arguments)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return path


def test_a_plan_is_found_written_and_within_the_budget(plan_file: Path) -> None:
    account = account_from_json(plan_file.read_text())
    assert account.budget.bytes == parse_bytes(BUDGET)
    assert account.predicted.bytes <= account.budget.bytes < account.stock.bytes
    assert (account.asked.spec, account.made_for.batch_size, account.made_for.optimizer) == (NET, 6, "momentum")
    assert memplan.load_plan(plan_file) == account.plan
    assert [entry.name for entry in plan_file.parent.iterdir()] == ["plan.json"]


def test_a_plan_is_printed_with_what_to_do_next(tmp_path: Path) -> None:
    out = tmp_path / "my plan.json"
    result = invoke("plan", NET, "--budget", BUDGET, "--out", str(out))
    assert result.exit_code == 0
    assert result.stdout.isascii()
    report, _, commands = result.stdout.partition("\nWritten to ")
    assert max(map(len, report.splitlines())) <= 80
    account = account_from_json(out.read_text())
    assert f"predicted peak {account.predicted.bytes / 1e6:.1f} MB of 8.0 MB" in report
    for line in commands.splitlines()[1:]:
        words = shlex.split(line)
        assert words[0] == "memplan"
        assert str(out) in words


def test_json_has_the_numbers_of_the_report() -> None:
    data = json.loads(invoke("plan", NET, "--budget", BUDGET, "--json", "-").stdout)
    assert (data["schema"], data["fits"]) == ("memplan.planned/1", True)
    assert data["margin_bytes"] == parse_bytes(BUDGET) - data["predicted"]["bytes"] >= 0
    assert plan_from_json(json.dumps(data["plan"])).k == data["plan"]["k"]


def test_nothing_that_fits_is_one_line_and_exit_1(tmp_path: Path) -> None:
    result = invoke("plan", NET, "--budget", "20KB", "--out", str(tmp_path / "plan.json"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_real_step_fits_and_the_plan_settles_what_is_left_open(plan_file: Path) -> None:
    result = invoke("verify", NET, str(plan_file), "--json", "-")
    data = json.loads(result.stdout)
    account = account_from_json(plan_file.read_text())
    assert (result.exit_code, data["holds"], data["fits"]) == (0, True, True)
    assert (data["batch_size"], data["optimizer"], data["budget_bytes"]) == (6, "momentum", parse_bytes(BUDGET))
    assert data["predicted_saved_bytes"] == account.predicted.saved_bytes
    assert data["steps"][1]["predicted_peak_bytes"] == account.predicted.peak_bytes
    assert data["budgeted_bytes"] == max(step["measured_peak_bytes"] for step in data["steps"]) <= parse_bytes(BUDGET)


def test_a_step_beyond_the_budget_exits_with_1(plan_file: Path, tmp_path: Path) -> None:
    data = json.loads(plan_file.read_text())
    data["budget"]["bytes"] = data["predicted"]["bytes"] // 2
    (tmp_path / "tight.json").write_text(json.dumps(data))
    result = invoke("verify", NET, str(tmp_path / "tight.json"))
    assert result.exit_code == 1
    assert "Holds: saved bytes equal" in result.stdout
    assert re.search(r"Does not fit in \S+ MB: the\s+highest\s+peak\s+is\s", result.stdout)


@pytest.mark.parametrize("of", ["activations", "kept"])
def test_a_budget_on_something_else_is_verified(of: str, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    assert invoke("plan", NET, "--budget", "3MB", "--budget-of", of, "--out", str(out)).exit_code == 0
    data = json.loads(invoke("verify", NET, str(out), "--json", "-").stdout)
    assert (data["budget_of"], data["fits"]) == (of, True)
    if of == "kept":
        assert data["budgeted_bytes"] == data["measured_saved_bytes"]
    else:
        assert data["budgeted_bytes"] >= account_from_json(out.read_text()).predicted.bytes


def test_another_option_than_the_plans_is_said(plan_file: Path) -> None:
    result = invoke("verify", NET, str(plan_file), "--batch-size", "2", "--optimizer", "sgd")
    text = " ".join(result.stdout.split())
    assert "note: --batch-size 2 is given; the plan was made for 6" in text
    assert "note: --optimizer sgd is given; the plan was made for momentum" in text
    same = " ".join(invoke("verify", NET, str(plan_file), "--batch-size", "6").stdout.split())
    assert "is given" not in same


def test_a_plan_is_applied_with_its_account(plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "applied"
    result = invoke("apply", NET, str(plan_file), "--out", str(out))
    assert (result.exit_code, result.stderr) == (0, "")
    assert (out / "plan.json").read_text() == plan_file.read_text()
    from tests.models_for_cli import Convolutions

    model = memplan.apply(Convolutions(), memplan.load_plan(out))
    model.load_state_dict(torch.load(out / "model.pt"))
    found = account_from_json(plan_file.read_text())
    assert f"peak {found.predicted.bytes / 1e6:.1f} MB" in " ".join(invoke("explain", str(out)).stdout.split()).replace(
        "the peak is ", "peak "
    )


def test_a_plan_of_a_method_is_verified_and_applied_too(tmp_path: Path) -> None:
    assert invoke("apply", NET, "--method", "last", "--out", str(tmp_path / "last")).exit_code == 0
    result = invoke("verify", NET, str(tmp_path / "last"), "--json", "-")
    assert (result.exit_code, json.loads(result.stdout)["budget_bytes"]) == (0, None)
    assert invoke("apply", NET, str(tmp_path / "last"), "--out", str(tmp_path / "again")).exit_code == 0
    assert (tmp_path / "again" / "plan.json").read_text() == (tmp_path / "last" / "plan.json").read_text()


@pytest.mark.parametrize("command", ["verify", "apply"])
def test_another_model_is_refused_and_what_differs_said(command: str, plan_file: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")] if command == "apply" else []
    result = invoke(command, f"{MODELS}:more_classes", str(plan_file), *out)
    assert (result.exit_code, result.stdout) == (3, "")
    # One class more is 16 weights and a bias more.
    found = re.fullmatch(
        r"memplan: the plan was made for convolutions \(file\), not for more_classes \(file\), which has (\d+) "
        r"parameters of ([\d,]+) numbers: that one has (\d+) parameters of ([\d,]+) numbers; .*\n",
        result.stderr,
    )
    assert found is not None, result.stderr
    assert int(found[2].replace(",", "")) - int(found[4].replace(",", "")) == 16 + 1
    assert not list(tmp_path.iterdir())


def test_plans_are_explained_and_compared(plan_file: Path, tmp_path: Path) -> None:
    explained = invoke("explain", str(plan_file))
    assert (explained.exit_code, explained.stderr) == (0, "")
    for heading in ("Why k is ", "What binds: ", "What each segment does", "How it was found"):
        assert heading in explained.stdout
    larger = tmp_path / "larger.json"
    assert invoke("plan", NET, "--budget", "1GB", "--batch-size", "6", "--out", str(larger)).exit_code == 0
    assert invoke("diff", str(plan_file), str(plan_file)).exit_code == 0
    differ = invoke("diff", str(plan_file), str(larger))
    assert differ.exit_code == 1
    assert "  budget: 8.0 MB -> 1,000.0 MB\n" in differ.stdout
    assert "  optimizer: momentum -> sgd\n" in differ.stdout


def test_a_plan_is_for_the_machine_that_is_named_wherever_it_is_made(tmp_path: Path) -> None:
    """What fits with one thread need not with sixteen: kernels take scratch for each."""
    stock = {}
    for threads in ("1", "16"):
        machine = ("--threads", threads, "--instruction-set", "AVX2")
        stock[threads] = json.loads(invoke("analyze", NET, "--method", "full", *machine, "--json", "-").stdout)
        file = tmp_path / f"{threads}.json"
        result = invoke("plan", NET, "--budget", "11MB", *machine, "--out", str(file))
        assert (result.exit_code, result.stderr) == (0, "")
        made_for = account_from_json(file.read_text()).made_for.machine
        assert (made_for.threads, made_for.instruction_set) == (int(threads), "AVX2")
        assert f"cpu AVX2, threads {threads}" in " ".join(result.stdout.split())
    peaks = {threads: data["methods"][0]["peak_bytes"] for threads, data in stock.items()}
    assert peaks["1"] < peaks["16"]
    for threads, peak in peaks.items():
        verdict = memplan.check(NET, limit="1GB", threads=int(threads), instruction_set="AVX2")
        assert verdict.reading is not None
        assert verdict.reading.predicted_bytes == peak
    for arguments in (("--threads", "0"), ("--instruction-set", "AVX3")):
        assert invoke("analyze", NET, *arguments).exit_code == 2


def test_explaining_needs_no_torch(plan_file: Path) -> None:
    """All of it is in the file: nothing is recorded, and the seconds of that import are not spent."""
    code = (
        "import sys\n"
        "from memplan.cli import main\n"
        f"main(['explain', {str(plan_file)!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Why k is " in done.stdout


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The scratch of convolutions, and so what fits a budget, depends on the number of threads."""
    with torch_threads(1):
        yield


@pytest.mark.usefixtures("one_thread")
def test_channels_that_are_pruned_are_said_verified_and_applied(tmp_path: Path) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    bounds = ["--budget", "5.4MB", "--k", "2", "--max-prune", "0.5", "--round-to", "4"]
    bounds += ["--forbid", "signed-mask", "--forbid", "shift-only"]
    found = invoke("plan", NET, *bounds, "--out", str(file))
    assert (found.exit_code, found.stderr) == (0, "")
    rows = re.findall(r"^  (blocks\.\d\.up) +(\d+) +(\d+)$", found.stdout, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["blocks.1.up", "blocks.2.up"]
    assert invoke("verify", NET, str(file)).exit_code == 0
    assert "treatment: prune, 2 groups of channels" in invoke("apply", NET, str(file), "--out", str(out)).stdout
    weights = torch.load(out / "model.pt")
    for name, kept, channels in rows:
        assert weights[f"{name}.weight"].shape == (int(kept), 16, 1, 1)
        assert 16 <= int(kept) < int(channels) == 32
    assert invoke("plan", NET, *bounds, "--keep", "blocks.1", "--keep", "blocks.2").exit_code == 1


def test_the_largest_batch_is_found_and_written(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    arguments = ("--k", "1", "--lossless", "--batch-size", "auto", "--out", str(file))
    assert invoke("plan", NET, "--budget", "4MB", *arguments).exit_code == 0
    account = account_from_json(file.read_text())
    batch = account.made_for.batch_size
    assert batch is not None
    assert json.loads(invoke("verify", NET, str(file), "--json", "-").stdout)["batch_size"] == batch
    more = ("--k", "1", "--lossless", "--batch-size", str(batch + 1))
    assert invoke("plan", NET, "--budget", "4MB", *more).exit_code == 1


def test_the_same_request_gives_the_same_file(plan_file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    arguments = ("--budget", BUDGET, "--batch-size", "6", "--optimizer", "momentum", "--out", str(again))
    assert invoke("plan", NET, *arguments).exit_code == 0
    assert again.read_text() == plan_file.read_text()
    assert invoke("plan", NET, *arguments).exit_code == 2
    assert invoke("plan", NET, *arguments, "--force").exit_code == 0


def test_the_importances_are_those_that_there_are() -> None:
    assert tuple(importance.IMPORTANCES) == IMPORTANCES


def test_the_front_is_found_for_real() -> None:
    data = json.loads(invoke("pareto", NET, "--points", "6", "--json", "-").stdout)
    points = data["points"]
    assert 2 <= len(points) <= 6
    assert [point["bytes"] for point in points] == sorted(point["bytes"] for point in points)
    for point in points:  # none is beaten in everything by another one
        assert not [
            other
            for other in points
            if other != point
            and other["bytes"] <= point["bytes"]
            and other["trained_segments"] >= point["trained_segments"]
            and other["flops"] <= point["flops"]
            and other["approximations"] <= point["approximations"]
        ]


@pytest.fixture
def _a_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memplan.front.pareto", lambda *_, **__: front())


@pytest.mark.usefixtures("_a_front")
def test_the_front_is_shown_and_written(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    result = invoke("pareto", NET, "--json", str(path))
    assert (result.exit_code, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert [point["bytes"] for point in json.loads(path.read_text())["points"]] == [20_000_000, 40_000_000, 60_000_000]


@pytest.mark.usefixtures("_a_front")
def test_the_front_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = {kind: tmp_path / f"front.{kind}" for kind in ("svg", "png")}
    options = [word for kind, path in paths.items() for word in (f"--{kind}", str(path))]
    assert invoke("pareto", NET, *options).exit_code == 0
    first = {kind: path.read_bytes() for kind, path in paths.items()}
    assert invoke("pareto", NET, *options).exit_code == 0
    assert {kind: path.read_bytes() for kind, path in paths.items()} == first
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["front.png", "front.svg"]


def test_a_picture_without_matplotlib_is_refused_before_anything_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = invoke("pareto", f"{MODELS}:exits", "--svg", str(tmp_path / "front.svg"))
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert result.stderr == (
        "memplan: a picture needs matplotlib, which is not installed; pip install 'memplan[pictures]'\n"
    )


PLAN = f"plan {NET} --budget 8MB"

#: Command line -> the line on stderr, all of it usage: exit code 2.
CASES = {
    "plan": "MODEL is missing; write memplan plan [OPTIONS] MODEL",
    f"plan {NET}": "no --budget is given; write for example --budget 64MB",
    f"plan {NET} --budget 8XB": "cannot read '8XB' as a size; write a positive number and a unit, such as 64MB or ",
    f"plan {NET} --budget 0": "a size must be more than zero bytes, not '0'; write for example 64MB",
    f"{PLAN} --lossless --allow signed-mask": "lossless leaves out signed-mask, which is allowed too; say one of them",
    f"{PLAN} --lossless --max-prune 0.3": "lossless leaves out pruning, and max-prune is 0.3; say one of them",
    f"{PLAN} --allow bitmask --forbid bitmask": "bitmask is both allowed and forbidden; say one of them",
    f"{PLAN} --k 1 --min-k 2": "min-k 2 is more than k 1; say one of them",
    f"{PLAN} --k -1": "k is a number of blocks from 0 on, not -1",
    f"{PLAN} --k 4": "k must be from 0 to 3, the blocks of this model, not 4",
    f"{PLAN} --k two": "--k: 'two' is not a whole number; write for example 8",
    f"{PLAN} --runner stock --allow prune": "--runner stock cannot do --allow prune; use --runner memplan, or leave ",
    f"{PLAN} --runner stock --max-prune 0.3": "--runner stock cannot do --max-prune; use --runner memplan, or leave ",
    f"{PLAN} --calibration c.pt": "--calibration is for importance taylor or fisher, not l1; leave one of them out",
    f"{PLAN} --max-prune 0.3 --importance taylor": "importance 'taylor' needs data; give --calibration FILE",
    f"{PLAN} --max-prune 0.3 --importance taylor --calibration none.pt": "no calibration file 'none.pt'; save ",
    f"{PLAN} --keep stem": "--keep is about pruning, which is not allowed; add --max-prune 0.3",
    f"{PLAN} --max-prune nan": "max-prune is a share of a group's channels from 0 to less than 1, not nan",
    f"{PLAN} --max-prune 1.5": "max-prune is a share of a group's channels from 0 to less than 1, not 1.5",
    f"{PLAN} --max-prune some": "--max-prune: 'some' is not a number; write for example 0.3",
    f"{PLAN} --round-to 0": "channels are rounded to a number from 1 on, not 0",
    f"{PLAN} --max-flops many": "cannot read 'many' as FLOPs; write a number such as 30G, or 1.1x of full fine-tuning",
    f"{PLAN} --allow bitmusk": "no treatment 'bitmusk'; did you mean 'bitmask'?",
    f"{PLAN} --forbid recomput": "no treatment 'recomput'; did you mean 'recompute'?",
    f"{PLAN} --prefer sped": "no preference 'sped'; did you mean 'speed'?",
    f"{PLAN} --importance tailor": "no importance 'tailor'; did you mean 'taylor'?",
    f"{PLAN} --runner stok": "no runner 'stok'; did you mean 'stock'?",
    f"{PLAN} --budget-of peek": "no quantity 'peek'; did you mean 'peak'?",
    f"{PLAN} --batch-size many": "--batch-size: 'many' is neither a whole number nor auto; write for example 8",
    f"{PLAN} --batch-size auto --fix batch-size": "--fix batch-size is given with --batch-size auto; leave one of them",
    f"{PLAN} --fix batch": "no quantity to fix 'batch'; did you mean 'batch-size'?",
    f"{PLAN} --out none/plan.json": "cannot write 'none/plan.json': there is no directory ",
    f"{PLAN} --out tests": "cannot write 'tests': it is a directory; name a file in it",
    f"{PLAN} --out README.md": "'README.md' is there already; name another file, or add --force",
    f"{PLAN} --out new.json --json new.json": "--out and --json name the same file 'new.json'; name two",
    f"{PLAN} --json none/plan.json": "cannot write 'none/plan.json': there is no directory ",
    f"pareto {NET} --of peek": "no quantity 'peek'; did you mean 'peak'?",
    f"pareto {NET} --points 1": "a front has 2 points or more, not 1",
    f"pareto {NET} --allow prune": "the front leaves out pruning; memplan plan --max-prune shows what it gives at a ",
    f"pareto {NET} --svg none/front.svg": "cannot write 'none/front.svg': there is no directory ",
    f"pareto {NET} --png /dev/null": "cannot draw to '/dev/null': it is no regular file; name another one",
    "explain": "PLAN is missing; write memplan explain [OPTIONS] PLAN",
    "explain none.json": "cannot read 'none.json': No such file or directory; give a plan.json that ",
    "explain README.md": "'README.md' is not JSON: ",
    "diff none.json": "SECOND is missing; write memplan diff [OPTIONS] FIRST SECOND",
    "diff none.json none.json": "cannot read 'none.json': No such file or directory; give a plan.json that ",
    f"verify {NET} none.json": "cannot read 'none.json': No such file or directory; give a plan.json that ",
    f"verify {NET} none.json --method full": "--method is given with the plan 'none.json', which says it already; ",
    f"verify {NET} none.json --k 3": "--k is given with the plan 'none.json', which says it already; leave one of ",
    f"apply {NET} none.json --out new --treatment frozen-int8": "--treatment is given with the plan 'none.json', ",
}


@pytest.mark.parametrize("command", CASES)
def test_bad_input_is_one_line(command: str) -> None:
    before = sorted(entry.name for entry in ROOT.iterdir())
    result = invoke(*shlex.split(command))
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"memplan: {CASES[command]}")
    assert sorted(entry.name for entry in ROOT.iterdir()) == before


def test_a_plan_of_a_newer_memplan_is_refused_everywhere(plan_file: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {**json.loads(plan_file.read_text()), "schema": "memplan.plan/99"}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    commands = (["explain", path], ["diff", path, path], ["verify", NET, path], ["apply", NET, path, "--out", "new"])
    for command in commands:
        result = invoke(*map(str, command))
        assert (result.exit_code, result.stderr) == (
            2,
            f"memplan: '{path}' was written by a newer memplan (schema memplan.plan/99); upgrade memplan\n",
        )


def test_a_plan_made_in_python_is_verified_in_python() -> None:
    from tests.models_for_cli import Convolutions

    inputs = torch.ones(4, 3, 32, 32)
    plan = planned().plan
    with pytest.raises(memplan.UsageError, match=r"^k=2 is given with a plan, which says it already; "):
        memplan.verify(Convolutions(), inputs, method=plan, k=2)
    with pytest.raises(memplan.UsageError, match=r"^stock PyTorch cannot run a plan with signed-mask; "):
        memplan.verify(Convolutions(), inputs, method=plan, runner="stock")
    applied = memplan.plan_of(memplan.apply(Convolutions(), "lossless", inputs))
    assert applied is not None
    found = memplan.verify(Convolutions(), inputs, method=plan_from_json(plan_to_json(applied)), budget="1GB")
    assert (found.holds, found.fits, found.runner) == (True, True, "memplan")
