"""StepGraph to JSON and back, so that all that follows recording works, and is tested, without torch."""

from __future__ import annotations

import json
from typing import Any, Final

from memplan.errors import AnalysisError
from memplan.graph.records import Argument, Block, Buffer, Layer, Machine, Op, Parameter, Storage, TensorView
from memplan.graph.step_graph import StepGraph

SCHEMA: Final = "memplan.step-graph/2"

_ROWS: Final = {"layers": Layer, "parameters": Parameter, "buffers": Buffer, "storages": Storage, "blocks": Block}


def to_json(graph: StepGraph) -> str:
    """Return ``graph`` as JSON text: one record per line, records as rows of their fields in order."""
    lines = [f'{{"schema": {json.dumps(SCHEMA)},', f'"machine": {json.dumps(_row(graph.machine))},']
    lines += [f'"{name}": {json.dumps(getattr(graph, name))},' for name in ("saved", "outputs", "unpriced")]
    for name in (*_ROWS, "ops"):
        rows = ",\n".join(json.dumps(_row(record)) for record in getattr(graph, name))
        lines.append(f'"{name}": [\n{rows}\n]' + ("" if name == "ops" else ","))
    return "\n".join(lines) + "}\n"


def from_json(text: str) -> StepGraph:
    """Return the StepGraph that :func:`to_json` wrote.

    Raises:
        AnalysisError: the text is not JSON, or of another schema, or its records contradict each other.
    """
    try:
        data = json.loads(text)
        schema = data["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise AnalysisError(f"not a recorded step: {error}; write one with memplan.graph.to_json") from error
    if schema != SCHEMA:
        raise AnalysisError(
            f"the recorded step has the schema {schema!r}, this memplan reads {SCHEMA!r}; record it again"
        )
    try:
        rows = {name: tuple(record(*row) for row in data[name]) for name, record in _ROWS.items()}
        ops = tuple(_op(row) for row in data["ops"])
        return StepGraph(
            machine=Machine(*data["machine"]),
            ops=ops,
            saved=tuple(data["saved"]),
            outputs=tuple(data["outputs"]),
            unpriced=tuple(data["unpriced"]),
            **rows,
        )
    except (KeyError, TypeError, IndexError) as error:
        raise AnalysisError(
            f"the recorded step is malformed ({type(error).__name__}: {error}); record it again"
        ) from error


def _row(record: Any) -> list[Any]:
    return [_plain(getattr(record, name)) for name in record.__slots__]


def _plain(value: Any) -> Any:
    """Write a tensor as an object and all else as JSON does, so that reading tells them apart."""
    if isinstance(value, TensorView):
        row = {"s": value.storage, "shape": value.shape, "strides": value.strides, "dtype": value.dtype}
        return {**row, "offset": value.offset} if value.offset else row
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _argument(value: Any) -> Argument:
    if isinstance(value, dict):
        shape, strides = tuple(value["shape"]), tuple(value["strides"])
        return TensorView(value["s"], shape, strides, value["dtype"], value.get("offset", 0))
    if isinstance(value, list):
        return tuple(_argument(item) for item in value)
    return value  # type: ignore[no-any-return]


def _op(row: list[Any]) -> Op:
    index, phase, name, layer, args, outputs, saves, flops = row
    return Op(index, phase, name, layer, _argument(args), _argument(outputs), tuple(saves), flops)  # type: ignore[arg-type]
