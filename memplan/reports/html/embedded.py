"""The figures of a page as JSON: every one a record's own, long lists as columns, each text once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, Final

from memplan.graph.records import Block
from memplan.graph.step_graph import StepGraph
from memplan.memory import Footprint, Implementation, LayerFootprint
from memplan.memory.lifetimes import Allocation, Moment, allocations, moments
from memplan.methods import Plan
from memplan.reports.console import short_op
from memplan.reports.html.network import STATES, LayerState, Network, layer_states, network_of
from memplan.reports.network import layer_network
from memplan.tables import plain

PAGE_SCHEMA: Final = "memplan.page/1"

#: The kinds of an allocation, by the number that stands for each.
KINDS: Final = ("resident", "saved", "temp")

#: What HTML or JavaScript could take for the end of the data.
_ESCAPES: Final = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


@dataclass(frozen=True, slots=True)
class Run:
    """One step that a page shows: who runs it, what it needs, and the recording it was priced from, if there is one.

    ``limit_bytes`` is what its own peak is held to, where the runs of a page have no common budget, and ``model`` tells
    which of the page's models it is of.
    """

    label: str
    footprint: Footprint
    optimizer: str
    implementation: Implementation
    plan: Plan | None = None
    step: StepGraph | None = None
    limit_bytes: int | None = None
    model: int = 0


class Texts:
    """Texts, each once, and the places that stand for them."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        """Return the place of ``text``, a new one if it has none."""
        return self._places.setdefault(text, len(self._places))

    def places(self, texts: Iterable[str]) -> list[int]:
        """Return the place of each text."""
        return [self.place(text) for text in texts]

    @property
    def all(self) -> list[str]:
        """The texts in the order of their places, as they are shown: two that look alike keep their own places."""
        return [plain(text) for text in self._places]


def runs_to_data(
    runs: Sequence[Run],
    blocks: Sequence[Block],
    *,
    chosen: Sequence[int],
    budget_bytes: int | None = None,
    texts: Texts | None = None,
) -> dict[str, Any]:
    """Return what the pictures of a page are drawn from.

    Args:
        runs: the steps that can be shown.
        blocks: the model's blocks, as a recording of it has them; none to find them in each model's first step.
        chosen: the places of the runs that are shown first, one or two.
        budget_bytes: the budget, if it is on the peak.
        texts: those that the page has beside.
    """
    texts = Texts() if texts is None else texts
    networks: dict[int, Network] = {}
    states = []
    for run in runs:
        nodes = []
        if run.step is not None:
            layers = layer_network(run.step, run.footprint, run.plan, optimizer=run.optimizer, blocks=blocks)
            nodes = [attributes for _, attributes in layers.nodes(data=True)]
            if run.model not in networks:
                networks[run.model] = network_of(run.step, layers, tuple(blocks))
        states.append(layer_states(run.footprint, nodes))
    places = {model: place for place, model in enumerate(networks)}
    return {
        "schema": PAGE_SCHEMA,
        "budget_bytes": budget_bytes,
        "chosen": list(chosen),
        "kinds": KINDS,
        "states": STATES,
        "networks": [_network(network, texts) for network in networks.values()],
        "runs": [
            {
                **_run(run, texts),
                "network": places.get(run.model),
                "layers": _layers(run.footprint, state, networks.get(run.model), texts),
            }
            for run, state in zip(runs, states, strict=True)
        ],
        "texts": texts.all,
    }


def to_script(data: dict[str, Any]) -> str:
    """Return ``data`` as JSON text that can stand in a ``script`` element.

    >>> to_script({"layer": "</script>"})
    '{"layer":"\\\\u003c/script\\\\u003e"}'
    """
    return json.dumps(data, separators=(",", ":")).translate(_ESCAPES)


def _run(run: Run, texts: Texts) -> dict[str, Any]:
    footprint, timeline = run.footprint, run.footprint.timeline
    return {
        "label": plain(run.label),
        "limit_bytes": run.limit_bytes,
        "saved_bytes": footprint.saved_bytes,
        "temp_bytes": footprint.temp_bytes,
        "resident_bytes": footprint.resident_bytes,
        "peak_bytes": footprint.peak_bytes,
        "peak_moment": footprint.peak.moment,
        "phases": [[phase, len(list(run))] for phase, run in groupby(timeline.phases)],
        "timeline": None if run.step is not None else {kind: list(getattr(timeline, kind)) for kind in KINDS},
        "moments": None if run.step is None else _moments(moments(run.step, run.optimizer, run.implementation), texts),
        "allocations": (
            None if run.step is None else _allocations(allocations(run.step, run.optimizer, run.implementation), texts)
        ),
    }


def _moments(given: Sequence[Moment], texts: Texts) -> dict[str, list[int]]:
    return {
        "layer": texts.places(moment.layer for moment in given),
        "op": texts.places(short_op(moment.op) for moment in given),
    }


def _allocations(given: Sequence[Allocation], texts: Texts) -> dict[str, list[int]]:
    return {
        "bytes": [each.bytes for each in given],
        "kind": [KINDS.index(each.kind) for each in given],
        "what": texts.places(each.what for each in given),
        "layer": texts.places(each.layer for each in given),
        "op": texts.places(short_op(each.op) for each in given),
        "first": [each.first for each in given],
        "last": [each.last for each in given],
    }


def _layers(
    footprint: Footprint, states: dict[str, LayerState], network: Network | None, texts: Texts
) -> dict[str, list[int]]:
    rows = footprint.layers
    quantities = [field.name for field in fields(LayerFootprint) if field.name.endswith("_bytes")]
    return {
        "path": texts.places(row.path for row in rows),
        "type": texts.places(row.type for row in rows),
        **{name: [getattr(row, name) for row in rows] for name in quantities},
        "segment": [0 if network is None else network.segment_of(row.path) for row in rows],
        "state": [states[row.path].bits for row in rows],
        "treatments": texts.places(", ".join(states[row.path].treatments) for row in rows),
    }


def _network(network: Network, texts: Texts) -> dict[str, list[int]]:
    return {
        "segments": texts.places(network.segments),
        "layer": texts.places(network.calls),
        "segment": list(network.inside),
        "from": [source for source, _ in network.edges],
        "to": [target for _, target in network.edges],
    }
