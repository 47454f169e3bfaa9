"""The files beside a report: checked before the work, written whole, and of the right row."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click
import networkx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import memplan
from memplan import __version__
from memplan.cli.contents import (
    ViewedStep,
    of_analysis,
    of_front,
    of_plan,
    of_step,
    of_verification,
    viewed_analysis,
    viewed_plan,
    viewed_verification,
)
from memplan.cli.files import KINDS, VIEWERS, file_options, take_files, write_files
from memplan.cli.options import with_options
from memplan.errors import UsageError
from memplan.memory import price
from memplan.planner.records import Budget
from memplan.reports.html import analysis_page, front_page, planned_page, verification_page
from memplan.reports.plan_file import Asked
from memplan.results import Analysis
from tests.models_for_cli import Net
from tests.reports import plans
from tests.reports.html import records
from tests.reports.toy import chain


def toy_step() -> ViewedStep:
    graph = chain()
    return ViewedStep("stock full", graph, price(graph, "adam"), None, "adam", "loop", graph.blocks, 90_000_000)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return memplan.analyze(
        Net(), torch.empty(8, 8), methods=("full", "lossless"), optimizer="momentum", budget="20KB", suggest=True
    )


def options(**files: str) -> dict[str, Any]:
    return {f"{name}_file": files.get(name) for name in KINDS} | {"optimizer": "sgd"}


def test_every_file_holds_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    viewed = toy_step()
    files = {name: tmp_path / name for name in VIEWERS}
    write_files({name: str(file) for name, file in files.items()}, of_step(viewed), label=viewed.label)
    assert capsys.readouterr().err == "".join(f"wrote {tmp_path / name}: --{name} of stock full\n" for name in VIEWERS)
    snapshot = pickle.loads(files["snapshot"].read_bytes())
    assert len(snapshot["device_traces"][0]) > 10
    trace = json.loads(files["trace"].read_text())["traceEvents"]
    assert {"total", "budget"} <= {event["name"] for event in trace if event["ph"] == "C"}
    assert files["dot"].read_text().startswith("digraph {\n")
    assert len(networkx.read_graphml(files["graphml"])) == 4
    bytes_at_peak = sum(int(line.rpartition(" ")[2]) for line in files["flamegraph"].read_text().splitlines())
    assert bytes_at_peak == viewed.footprint.peak_bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(VIEWERS)


def test_the_options_are_those_of_a_command(tmp_path: Path) -> None:
    @click.command()
    @with_options(file_options(*VIEWERS))
    def command(**given: Any) -> None:
        write_files(take_files(given), of_step(toy_step()))
        assert given == {}

    words = [word for name in VIEWERS for word in (f"--{name}", str(tmp_path / name))]
    run = CliRunner().invoke(command, words)
    assert run.exit_code == 0, run.output
    assert all((tmp_path / name).stat().st_size for name in VIEWERS)
    help_text = CliRunner().invoke(command, ["--help"]).output
    for name in VIEWERS:
        assert f"--{name} FILE." in help_text


def test_what_is_not_asked_for_is_not_written(tmp_path: Path) -> None:
    given = options(dot=str(tmp_path / "a.dot"))
    assert take_files(given) == {"dot": str(tmp_path / "a.dot")}
    assert given == {"optimizer": "sgd"}
    assert take_files(options()) == {}
    write_files({}, of_step(toy_step()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"trace": "a", "dot": "./a"}, "--trace and --dot name the same file './a'; name two"),
        ({"graphml": "out.json", "json": "out.json"}, "--json and --graphml name the same file 'out.json'; name two"),
        ({"html": "plan.json"}, "--out and --html name the same file 'plan.json'; name two"),
        ({"json": "-", "markdown": "-"}, "--json and --markdown name the same file '-'; name two"),
        ({"html": "-"}, "--html cannot be written to standard output; name a file, such as report.html"),
        ({"snapshot": "-"}, "--snapshot cannot be written to standard output; name a file, such as step.pickle"),
        ({"flamegraph": "."}, "cannot write '.': it is a directory; name a file in it"),
        ({"trace": "none/a.json"}, "cannot write 'none/a.json': there is no directory"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(
    files: dict[str, str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        take_files(options(**files), out="plan.json")
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_standard_output_of_json_is_no_file() -> None:
    assert take_files(options(dot="-.dot", json="-")) == {"dot": "-.dot", "json": "-"}


def test_a_pickle_goes_where_a_link_points(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    target, link = tmp_path / "kept" / "a.pickle", tmp_path / "link.pickle"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_files({"snapshot": str(link)}, of_step(toy_step()))
    assert link.is_symlink()
    assert pickle.loads(target.read_bytes())["segments"]


def test_a_pickle_goes_into_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_files({"snapshot": str(pipe)}, of_step(toy_step()))
    reader.join(timeout=60)
    assert pickle.loads(read[0])["segments"]
    assert pipe.is_fifo()


def test_without_a_plan_the_first_row_is_meant(analysis: Analysis) -> None:
    alone = dataclasses.replace(analysis, suggestion=None)
    viewed = viewed_analysis(alone)
    assert viewed.label == "stock full"
    assert (viewed.footprint, viewed.plan) == (alone.methods[0].footprint, None)
    assert (viewed.optimizer, viewed.implementation, viewed.budget_bytes) == ("momentum", "loop", 20_000)
    assert [block.path for block in viewed.blocks] == ["blocks.0", "blocks.1"]
    priced = price(viewed.graph, viewed.optimizer, viewed.implementation)
    assert priced.peak_bytes == viewed.footprint.peak_bytes
    second = viewed_analysis(dataclasses.replace(alone, methods=alone.methods[1:]))
    assert second.label == "memplan lossless"
    assert second.plan == alone.methods[1].plan
    assert second.implementation == alone.methods[1].implementation == "in-backward"


def test_a_suggested_plan_is_meant_before_any_row(analysis: Analysis, tmp_path: Path) -> None:
    planned = analysis.suggestion
    assert planned is not None
    viewed = viewed_analysis(analysis)
    assert viewed == viewed_plan(planned)
    assert viewed.label == f"the plan for k={planned.plan.k}"
    assert (viewed.plan, viewed.budget_bytes) == (planned.plan, 20_000)
    assert price(viewed.graph, viewed.optimizer, viewed.implementation).peak_bytes == planned.bytes
    of_kept = dataclasses.replace(planned, budget=Budget(20_000, "kept"))
    assert viewed_plan(of_kept) == dataclasses.replace(viewed, budget_bytes=None)
    write_files({"graphml": str(tmp_path / "a.graphml")}, of_step(viewed))
    read = networkx.read_graphml(tmp_path / "a.graphml")
    nodes = {attributes["name"]: attributes for _, attributes in read.nodes(data=True)}
    assert nodes["blocks.0.up"]["block"] == "blocks.0"
    trained = {name.rpartition(".")[0] for name in planned.plan.trained}
    assert {name for name, attributes in nodes.items() if attributes["trained"]} == trained


def test_a_verification_shows_what_was_predicted(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    verification = memplan.verify(model, torch.empty(4, 8), method="lossless", budget="1MB")
    viewed = viewed_verification(verification)
    assert (viewed.label, viewed.implementation) == ("memplan lossless", "in-backward")
    assert viewed.budget_bytes == 1_000_000
    assert viewed.footprint is verification.footprint
    files = {name: str(tmp_path / name) for name in VIEWERS}
    write_files(files, of_verification(verification))
    assert all(Path(file).stat().st_size for file in files.values())


def test_each_record_is_written_as_its_page() -> None:
    asked = Asked()
    front = plans.front()
    assert of_analysis(records.analysis())["html"]() == analysis_page(records.analysis(), __version__)
    assert of_plan(records.planned(), asked)["html"]() == planned_page(records.planned(), __version__)
    assert of_front(front)["html"]() == front_page(front, __version__)
    assert of_verification(records.verification())["html"]() == verification_page(records.verification(), __version__)


def test_help_needs_nothing_heavy() -> None:
    heavy = {"torch", "networkx", "numpy", "rich", "jinja2"}
    code = f"import sys, memplan.cli.files, memplan.cli.contents; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
