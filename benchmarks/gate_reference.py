"""The tables of docs/gate-reference.md: what can be configured, what fails, and what a baseline holds, from the code.

    python benchmarks/gate_reference.py    # writes them into the page: a second

Each table stands between two marks in the page, and is replaced there.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

import click
import yaml

from memplan import __version__
from memplan.cli.gating import gate
from memplan.cli.output import READER_GONE
from memplan.errors import UsageError
from memplan.gate.baseline import Baseline, baseline_text
from memplan.gate.growth import parse_growth
from memplan.gate.judge import judged, unanalysed
from memplan.gate.keys import CHECK_KEYS, GATE_KEYS, Key
from memplan.gate.records import Check, FailureKind, GateResult, LayerPart, Limits, Place, Reading, Verdict
from memplan.graph.records import Machine
from memplan.memory.parts import Measurand

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "gate-reference.md"

_MARKED: Final = re.compile(r"<!-- table ([\w-]+) -->\n.*?<!-- end -->\n", re.DOTALL)

_TYPES: Final[Mapping[Any, str]] = {
    int: "integer",
    str: "string",
    bool: "boolean",
    Measurand: "string",
    Machine: "object",
    tuple[str, ...]: "list of strings",
    tuple[LayerPart, ...]: "list",
}

#: What the keys of a baseline's file hold; a key that is missing here stops the generator.
FILE_KEYS: Final = {
    "schema": "form of the file and its version",
    "memplan": "version of memplan that wrote it",
    "torch": "version of PyTorch that the entries were written with",
    "checks": "entries by the name of the check",
    "tests": "entries by the node id of the pytest test",
}
READING_KEYS: Final = {
    "of": "the quantity: `peak`, `saved` or `temp`",
    "bytes": "the upper estimate, which limits are held against",
    "predicted_bytes": "the prediction",
    "lower_bytes": "the lower estimate",
    "where": "the moment at which it is largest",
    "model": "the model's own name",
    "inputs": "shapes and dtypes of the inputs",
    "dtype": "of the parameters",
    "method": "what trains",
    "runner": "who runs the step: `stock` or `memplan`",
    "optimizer": "who updates, and how",
    "machine": "what the step was priced for",
    "rest_bytes": "no layer's: the batch, and what the optimizer holds at that moment",
    "layers": "each layer's part; with `rest_bytes` they add up to `predicted_bytes`",
    "unpriced": "what could not be priced",
}
MACHINE_KEYS: Final = {
    "device": "where the step runs",
    "instruction_set": "what its kernels are chosen by",
    "threads": "threads of PyTorch",
    "torch": "version of PyTorch",
}
LAYER_KEYS: Final = {
    "layer": "path of the module, empty for the model itself",
    "type": "its class",
    "output": "shape of what it gives",
    "trains": "whether a parameter of it trains",
    "bytes": "its part of the quantity",
    "saved_bytes": "kept from its forward to its backward",
    "temp_bytes": "the most that is temporary while it runs",
    "held_bytes": "its parameters, their gradients and optimizer state",
}

#: When a check fails so.
KINDS: Final[Mapping[FailureKind, str]] = {
    "budget": "the quantity is above the budget",
    "growth": "it grew by more than max-growth and by more than min-growth",
    "baseline": "the baseline has no entry of the check, and one is required",
    "unpriced": "the check is strict, and something could not be priced",
    "analysis": "the model could not be loaded or recorded; nothing is known of it",
}


def main() -> None:
    text = PAGE.read_text()
    refreshed = with_tables(text)
    if refreshed != text:
        PAGE.write_text(refreshed)
        print(PAGE.name)


def with_tables(text: str) -> str:
    """Return the page's text with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        return "\n".join((f"<!-- table {match[1]} -->", *TABLES[match[1]](), "<!-- end -->", ""))

    return _MARKED.sub(table, text)


def keys_table(keys: Mapping[str, Key]) -> Iterator[str]:
    yield "| key | takes | default | meaning |"
    yield "|---|---|---|---|"
    for name, key in keys.items():
        default = "" if key.default is None else f"`{json.dumps(key.default)}`"
        yield f"| `{name}` | {key.takes} | {default} | {key.meaning} |"


def options_table() -> Iterator[str]:
    context = click.Context(gate, info_name="memplan gate")
    yield "| option | takes | variable | meaning |"
    yield "|---|---|---|---|"
    for option in gate.params:
        if isinstance(option, click.Option):
            names = " ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
            takes = "" if option.is_flag else _taken(option.make_metavar(context))
            variable = f"`{option.envvar}`" if option.envvar else ""
            record = option.get_help_record(context)
            assert record is not None
            meaning = re.sub(r"\s+\[default: (.*)\]$", r" Default: `\1`.", record[1])
            yield f"| {names} | {takes} | {variable} | {meaning} |"


def _taken(metavar: str) -> str:
    """Return a metavar without the bars that would end a cell."""
    if metavar.startswith("["):
        return ", ".join(f"`{name}`" for name in metavar.strip("[]").split("|"))
    return " or ".join(f"`{name}`" for name in metavar.split("|"))


def inputs_table() -> Iterator[str]:
    yield "| input | default | meaning |"
    yield "|---|---|---|"
    for name, each in _action()["inputs"].items():
        default = f"`{each['default']}`" if each["default"] else ""
        yield f"| `{name}` | {default} | {each['description']} |"


def outputs_table() -> Iterator[str]:
    yield "| output | what it is |"
    yield "|---|---|"
    for name, each in _action()["outputs"].items():
        yield f"| `{name}` | {each['description']} |"


def _action() -> dict[str, Any]:
    action: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return action


def exit_codes_table() -> Iterator[str]:
    held, failed = _verdict(0), _verdict(1)
    lost = unanalysed(held.check, "net: no such layer")
    codes = {
        "every check holds": GateResult((held,), "").exit_code,
        "a check fails": GateResult((held, failed), "").exit_code,
        "a check fails, with `--warn-only`": GateResult((failed,), "", warn_only=True).exit_code,
        "the command line, the configuration or the baseline cannot be understood": UsageError.exit_code,
        "a model cannot be analysed, with `--warn-only` too": GateResult((failed, lost), "", warn_only=True).exit_code,
        "whatever fails, with `--exit-zero`": GateResult((failed, lost), "", exit_zero=True).exit_code,
        "nobody reads standard output any more": READER_GONE,
    }
    yield "| when | exit code |"
    yield "|---|--:|"
    for when, code in codes.items():
        yield f"| {when} | {code} |"


def kinds_table() -> Iterator[str]:
    told = {failure.kind: failure.sentence for verdict in _examples() for failure in verdict.failures}
    assert set(told) == set(KINDS) == set(get_args(FailureKind))
    yield "| kind | when | such as |"
    yield "|---|---|---|"
    for kind, when in KINDS.items():
        yield f"| `{kind}` | {when} | {told[kind]} |"


def words_table() -> Iterator[str]:
    held, failed = _verdict(0), _verdict(1)
    words = {
        held.word: "nothing failed",
        failed.word: "a limit failed; reports say `warns` with `--warn-only`",
        unanalysed(held.check, "").word: "the model could not be analysed",
    }
    yield "| verdict | when |"
    yield "|---|---|"
    for word, when in words.items():
        yield f"| `{word}` | {when} |"


def file_table() -> Iterator[str]:
    written = json.loads(baseline_text(Baseline(torch="2.13.0"), __version__))
    kinds = {key: "object" if isinstance(value, dict) else _TYPES[type(value)] for key, value in written.items()}
    return _described(kinds, FILE_KEYS)


def record_table(record: type, meanings: Mapping[str, str]) -> Iterator[str]:
    hints = get_type_hints(record)
    kinds = {field.name: _TYPES[hints[field.name]] for field in dataclasses.fields(record)}
    return _described(kinds, meanings)


def _described(kinds: Mapping[str, str], meanings: Mapping[str, str]) -> Iterator[str]:
    assert list(kinds) == list(meanings), "a key is without meaning here, or without a place in the file"
    yield "| key | type | what it is |"
    yield "|---|---|---|"
    for key, kind in kinds.items():
        yield f"| `{key}` | {kind} | {meanings[key]} |"


def _reading(*widths: int, unpriced: tuple[str, ...] = ()) -> Reading:
    """Return a reading of layers that are a million bytes for each unit of their width."""
    layers = tuple(
        LayerPart(f"features.{index}", "Conv2d", f"8x{width}x56x56", True, width * 10**6, 0, 0, 0)
        for index, width in enumerate(widths)
    )
    total = sum(widths) * 10**6
    about = ("net", ("8x3x224x224 float32",), "float32", "full", "stock", "sgd (loop)")
    return Reading("peak", total, total, total, "", *about, Machine("cpu", "AVX2", 2, "2.13.0"), 0, layers, unpriced)


def _check(**options: Any) -> Check:
    return Check("net", "model.py:net", place=Place("pyproject.toml", 5), **options)


def _verdict(more: int) -> Verdict:
    """Return the verdict on a reading that is so many megabytes above its budget."""
    return judged(_check(limits=Limits(budget_bytes=60 * 10**6)), _reading(20, 40 + more))


def _examples() -> Iterator[Verdict]:
    yield _verdict(8)
    grown = _check(limits=Limits(max_growth=parse_growth("2%"), min_growth_bytes=10**6))
    yield judged(grown, _reading(20, 48), _reading(20, 40))
    yield judged(_check(), _reading(20, 40), require_baseline=True)
    yield judged(_check(strict=True), _reading(20, 40, unpriced=("features.1: an unknown op",)))
    yield unanalysed(_check(), "net: no 'nett' in model.py; did you mean 'net'?")


TABLES: Final[dict[str, Callable[[], Iterator[str]]]] = {
    "check-keys": lambda: keys_table(CHECK_KEYS),
    "gate-keys": lambda: keys_table(GATE_KEYS),
    "options": options_table,
    "inputs": inputs_table,
    "outputs": outputs_table,
    "exit-codes": exit_codes_table,
    "verdicts": words_table,
    "kinds": kinds_table,
    "file": file_table,
    "reading": lambda: record_table(Reading, READING_KEYS),
    "machine": lambda: record_table(Machine, MACHINE_KEYS),
    "layer": lambda: record_table(LayerPart, LAYER_KEYS),
}


if __name__ == "__main__":
    main()
