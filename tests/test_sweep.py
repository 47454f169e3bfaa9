"""A sweep: every combination has its row, a failure is a row, and a file is gone on with."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import memplan.sweeping
from memplan import __version__, analyze, plan
from memplan.cases import Case, cases_for
from memplan.cli.border import Commands
from memplan.cli.sweeping import sweep as command
from memplan.errors import UsageError
from memplan.processes import Died
from memplan.reports.row_files import Row, RowFile
from memplan.sweeping import COLUMNS, sweep, tasks_of

MODELS = Path(__file__).parent / "models_for_cli.py"
NET, CONVOLUTIONS, FAILS, EXITS = (f"{MODELS}:{name}" for name in ("net", "convolutions", "fails", "exits"))

main = Commands(name="memplan")
main.add_command(command)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, ["sweep", *words])


def rows_in(path: Path) -> list[Row]:
    with RowFile(path, COLUMNS) as file:
        return file.rows


def untimed(rows: list[Row]) -> set[tuple[Any, ...]]:
    """Return rows as they are every time they are made."""
    return {tuple(value for name, value in row.items() if name != "seconds") for row in rows}


def asked(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", "batch_size", "optimizer", "method", "k", "runner", "budget_bytes"))


def test_the_columns_begin_with_what_is_asked() -> None:
    names = [field.name for field in fields(Case)]
    assert list(COLUMNS)[: len(names)] == names


def test_every_combination_has_its_row() -> None:
    rows = list(
        sweep(
            [NET, CONVOLUTIONS],
            batch_sizes=[1, 2],
            methods=["full", "top-k", "mobiletl"],
            k=[0, 1],
            budgets=["10KB", 10**6],
            optimizers=["sgd", "adam"],
            runner="both",
        )
    )
    ways = [("full", None, "stock"), ("full", None, "memplan")]
    ways += [("top-k", k, runner) for k in (0, 1) for runner in ("stock", "memplan")]
    ways += [("mobiletl", k, "memplan") for k in (0, 1)]
    expected = product((NET, CONVOLUTIONS), (1, 2), ("sgd", "adam"), ways, (10_000, 1_000_000))
    assert sorted(map(str, map(asked, rows))) == sorted(str((m, b, o, *way, size)) for m, b, o, way, size in expected)
    assert all(list(row) == list(COLUMNS) for row in rows)
    assert all(row["error"] is None for row in rows)
    assert all(row["fits"] is (row["peak_bytes"] <= row["budget_bytes"]) for row in rows)


def test_rows_say_what_analyze_says() -> None:
    rows = list(sweep(CONVOLUTIONS, batch_sizes=3, methods=["full", "lossless", "mobiletl"], optimizers="adam"))
    analysis = analyze(CONVOLUTIONS, batch_size=3, methods=["full", "lossless", "mobiletl"], optimizer="adam")
    names = ("saved", "temp", "resident", "peak", "first_step_peak")
    for row, method in zip(rows, analysis.methods, strict=True):
        found = method.footprint
        assert row["method"] == method.name
        assert [row[f"{name}_bytes"] for name in names] == [getattr(found, f"{name}_bytes") for name in names]
        assert (row["flops_forward"], row["flops_backward"]) == (found.flops_forward, found.flops_backward)
        assert (row["trained_parameters"], row["parameters"]) == (found.trained_parameters, found.parameters)
        assert (row["gradients"], row["trained_blocks"]) == (method.gradients, method.k)
        assert row["treatments"] == (None if method.plan is None else ",".join(method.plan.treatments))
        assert (row["inputs"], row["name"], row["origin"]) == ("3x3x32x32 float32", "convolutions", "file")
        machine = analysis.setting.machine
        assert (row["device"], row["threads"]) == (machine.device, machine.threads)
        assert (row["instruction_set"], row["torch"]) == (machine.instruction_set, machine.torch)
        assert row["memplan"] == __version__
    assert [row["trained_blocks"] for row in rows] == [None, None, 3]  # it has three blocks, fewer than five


def test_a_plan_is_the_planners_for_each_budget() -> None:
    fitting, small = sweep(CONVOLUTIONS, batch_sizes=1, methods="plan", budgets=["1MB", "10KB"])
    found = plan(CONVOLUTIONS, batch_size=1, budget="1MB")
    assert (fitting["peak_bytes"], fitting["fits"], fitting["trained_blocks"]) == (found.bytes, True, found.plan.k)
    assert (fitting["treatments"], fitting["gradients"]) == (",".join(found.plan.treatments), found.plan.gradients)
    # That nothing fits is an answer, not a failure.
    assert (small["peak_bytes"], small["fits"], small["error"]) == (None, False, None)
    assert str(small["notes"]).startswith("nothing fits 10.0 KB")


def test_a_failure_is_a_row_with_its_reason_and_stops_nothing() -> None:
    rows = list(sweep([FAILS, EXITS, "mobilenet_v33", NET], methods=["full", "top-k"], k=9))
    assert [row["peak_bytes"] is None for row in rows] == [True] * 6 + [False, True]
    reasons = [str(row["error"]) for row in rows]
    assert "ValueError: a width of 3" in reasons[0]
    assert reasons[2] == "the model's own code exits (7); remove its call of exit"
    assert reasons[4].startswith("no model 'mobilenet_v33'; did you mean")
    assert reasons[7] == "k must be from 0 to 2, the blocks of this model, not 9"
    assert all("\n" not in reason for reason in reasons)
    assert rows[6]["error"] is None


def test_a_worker_that_dies_is_a_row_for_each_of_its_cases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    died = Died("the worker process exited with 9")
    monkeypatch.setattr(memplan.sweeping, "stream_all", lambda *_, **__: iter([(0, died)]))
    rows = list(sweep(NET, methods=["full", "last"], out=tmp_path / "rows.csv"))
    assert [row["error"] for row in rows] == [died.reason] * 2
    assert rows_in(tmp_path / "rows.csv") == rows


def test_workers_give_the_rows_of_one_process(tmp_path: Path) -> None:
    given: dict[str, Any] = {"batch_sizes": [1, 2], "methods": ["full", "lossless"], "optimizers": "momentum"}
    alone, together = (list(sweep([NET, CONVOLUTIONS, FAILS], **given, jobs=jobs)) for jobs in (1, 2))
    assert len(alone) == len(together) == 12
    assert untimed(alone) == untimed(together)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_what_is_in_the_file_is_not_made_again(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    analysed = memplan.sweeping.analysed
    monkeypatch.setattr(memplan.sweeping, "analysed", lambda task: made.append(len(task.cases)) or analysed(task))
    out = tmp_path / f"rows.{kind}"
    first = list(sweep(NET, methods=["full", "last"], out=out))
    told: list[tuple[int, int]] = []
    more = list(
        sweep(
            [NET, CONVOLUTIONS], methods=["last", "full", "norm-last"], out=out, progress=lambda *t: told.append(t[:2])
        )
    )
    assert made == [2, 1, 3]
    assert told == [(number, 6) for number in range(2, 7)]
    assert more[:2] == first[::-1]  # as they are asked for now
    assert untimed(rows_in(out)) == untimed(more)
    list(sweep(NET, methods="full", out=out, force=True))
    assert [asked(row)[3] for row in rows_in(out)] == ["full"]


def test_rows_of_other_settings_share_a_file(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    for settings in ({}, {"amp": "bf16"}, {"dtype": "float64"}, {"training": False}, {"classes": 7}):
        list(sweep(f"{MODELS}:Net", inputs="8", **settings, out=out))  # type: ignore[arg-type]
    rows = rows_in(out)
    assert [(row["amp"], row["dtype"], row["mode"], row["classes"]) for row in rows] == [
        (None, None, "train", None),
        ("bf16", None, "train", None),
        (None, "float64", "train", None),
        (None, None, "eval", None),
        (None, None, "train", 7),
    ]
    assert rows[2]["inputs"] == "8x8 float64"


def test_a_task_is_what_shares_recordings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = cases_for([NET, "resnet18"], batch_sizes=[1, 2], methods=["full", "last"], optimizers=["sgd", "adam"])
    tasks = tasks_of(cases)
    assert [len(task.cases) for task in tasks] == [2] * 8
    assert [task.model for task in tasks] == [NET] * 4 + ["resnet18"] * 4
    # A cluster's workers run in other folders, on other machines.
    monkeypatch.chdir(MODELS.parent)
    (tmp_path / "config.json").write_text("{}")
    specs = ["models_for_cli.py:net", "resnet18", os.path.relpath(tmp_path)]
    there = tasks_of(cases_for(specs), anywhere=True)
    assert [task.model for task in there] == [NET, "resnet18", str(tmp_path)]
    assert [task.cases[0].model for task in there] == specs
    assert all(task.machine is not None for task in there)


def test_memory_is_given_back_where_the_collector_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(gc, "freeze", lambda: None)  # what is frozen is not listed

    def tensors() -> int:
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    rows = sweep([NET] + [f"{MODELS}:{name}" for name in ("Convolutions", "more_classes", "convolutions")], inputs=())
    gc.collect()
    gc.disable()
    try:
        next(rows)
        before = tensors()
        list(rows)
        assert tensors() <= before + 5
    finally:
        gc.enable()


def test_the_command_writes_rows_and_a_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--models", f"{NET},{CONVOLUTIONS}", "--methods", "full,last", "--methods", "plan", "--batch-sizes", "1"]
    done = invoke(*words, "--budgets", "10KB,1MB", "--out", "rows.jsonl", "--jobs", "1")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    out = tmp_path / "rows.jsonl"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2 * 3 * 2
    assert [list(row) for row in rows] == [list(COLUMNS)] * 12
    shown = done.stdout.splitlines()
    assert shown[0] == "12 rows in rows.jsonl: 12 analysed, 0 failed"
    full, last, best = (line.split() for line in shown if line.startswith(("  stock", "  memplan")))
    # Two rows for each budget; the smaller model needs 9,600 bytes, the larger one 1.8 MB, or less by a plan.
    assert full[:9] == ["stock", "full", "4", "1", "of", "2", "1", "of", "2"]
    assert last[:9] == ["stock", "last", "4", "1", "of", "2", "2", "of", "2"]
    assert best[:9] == ["memplan", "plan", "4", "1", "of", "2", "2", "of", "2"]
    assert full[9:11] == ["9.6", "KB"]


def test_failures_are_counted_and_the_exit_code_tells(tmp_path: Path) -> None:
    words = [
        "--models",
        f"{FAILS},{NET},nowhere",
        "--out",
        str(tmp_path / "rows.csv"),
        "--jobs",
        "1",
        "--methods",
        "full,last",
    ]
    done = invoke(*words)
    assert done.exit_code == 3
    text = " ".join(done.stdout.split())
    assert "6 rows in" in text
    assert "2 analysed, 4 failed" in text
    assert "2 rows nowhere: no model 'nowhere'" in text
    again = invoke(*words)
    assert again.exit_code == 3
    assert "6 made before" in " ".join(again.stdout.split())


def test_models_are_listed_in_files(tmp_path: Path) -> None:
    (tmp_path / "models.txt").write_text(f"# nets\n{NET}\n\n  {CONVOLUTIONS}  # larger\n{NET}\n")
    out = tmp_path / "rows.csv"
    assert (
        invoke("--models", f"@{tmp_path / 'models.txt'}", "--models", NET, "--out", str(out), "--jobs", "1").exit_code
        == 0
    )
    assert [row["model"] for row in rows_in(out)] == [NET, CONVOLUTIONS]


def test_a_list_of_models_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "models.txt").write_text(f"{NET}\n", encoding="utf-8-sig")
    out = tmp_path / "rows.csv"
    invoke("--models", f"@{tmp_path / 'models.txt'}", "--out", str(out), "--jobs", "1")
    assert [row["model"] for row in rows_in(out)] == [NET]


def test_a_spec_that_no_file_can_hold_is_refused_before_work_begins(tmp_path: Path) -> None:
    done = invoke("--models", f"{NET},caf\udce9.py:tiny", "--out", str(tmp_path / "rows.parquet"), "--jobs", "1")
    assert done.exit_code == 2
    line = "memplan: model 'caf\\udce9.py:tiny' is no UTF-8, which files of rows are; rename its file\n"
    assert done.stderr == line
    assert list(tmp_path.iterdir()) == []


def test_what_is_given_twice_counts_once() -> None:
    cases = cases_for(
        ["a", "b", "a"],
        batch_sizes=[1, 1],
        inputs=["3x8x8", "3X8X8"],
        methods=["full", "full"],
        budgets=["1MB", 10**6, "1000KB"],
    )
    assert len(cases) == 2


def test_an_interrupt_keeps_the_rows_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["--models", f"{NET},{MODELS}:interrupted,{CONVOLUTIONS}", "--out", str(out), "--jobs", "1"]
    done = invoke(*words)
    assert done.exit_code == 130
    assert done.stderr == f"memplan: interrupted: 1 row is in {out}; the same command makes the others\n"
    assert [row["model"] for row in rows_in(out)] == [NET]
    assert "the same command, without --force, makes" in invoke(*words, "--force").stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--models {net}", "no --out is given; write for example --out rows.jsonl"),
        ("--out {out}", "no model is given; write for example resnet50"),
        ("--models , --out {out}", "no model is given; write for example resnet50"),
        ("--models @no.txt --out {out}", "cannot read the list of models 'no.txt': No such file or directory; "),
        ("--models {net} --methods ful --out {out}", "no method 'ful'; did you mean 'full'?"),
        ("--models {net} --methods plan --out {out}", "method plan needs a budget; write for example --budgets 64MB"),
        ("--models {net} --methods lossless --runner stock --out {out}", "stock PyTorch cannot run lossless by "),
        ("--models {net} --optimizers adm --out {out}", "no optimizer 'adm'; did you mean 'adam'"),
        ("--models {net} --backend dsk --out {out}", "no backend 'dsk'; did you mean 'dask'?"),
        ("--models {net} --runner memplann --out {out}", "no runner 'memplann'; did you mean 'memplan'?"),
        ("--models {net} --k 3 --out {out}", "k 3 needs a method that trains k blocks; add "),
        ("--models {net} --k x --out {out}", "--k: 'x' is not a whole number; write for example --k 1,8"),
        ("--models {net} --methods top-k --k -1 --out {out}", "k must be at least 0, not -1"),
        ("--models {net} --batch-sizes 1,-2 --out {out}", "batch size must be at least 1, not -2"),
        ("--models {net} --batch-sizes 1.5 --out {out}", "--batch-sizes: '1.5' is not a whole number"),
        ("--models {net} --inputs 3by3 --out {out}", "cannot read '3by3' as an input shape"),
        ("--models {net} --budgets 64MBs --out {out}", "cannot read '64MBs' as a size"),
        ("--models {net} --dtype float31 --out {out}", "no dtype 'float31'; did you mean"),
        ("--models {net} --jobs 0 --out {out}", "jobs must be 1 or more, not 0"),
        (
            "--models {net} --out rows.json",
            "cannot tell the kind of 'rows.json' by its end; did you mean '.jsonl'?; end",
        ),
        ("--models {net} --out no/rows.csv", "cannot write 'no/rows.csv': there is no directory"),
        (
            "--models {net} --out {out} --scheduler tcp://a:1",
            "scheduler 'tcp://a:1' is for backend dask, not loky; add ",
        ),
        ("--models {net} --out {out} --backend dask", "backend dask needs its scheduler's address; write for example "),
        ("--models {net} --out {out} --backend dask --jobs 2", "--jobs 2 is for this machine and for Ray; a Dask "),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke(*words.format(net=NET, out="rows.jsonl").split())
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"memplan: {line}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_something_else_stays(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("name,age\nAda,36\n")
    done = invoke("--models", NET, "--out", str(out), "--jobs", "1")
    assert (done.exit_code, out.read_text()) == (2, "name,age\nAda,36\n")
    assert done.stderr.endswith(
        "holds something else, or rows of other columns; name another file, or add --force to start anew\n"
    )


def test_the_library_tells_the_same_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model is given"):
        sweep([])
    with pytest.raises(UsageError, match="cannot tell the kind"):
        sweep(NET, out=tmp_path / "rows.txt")
