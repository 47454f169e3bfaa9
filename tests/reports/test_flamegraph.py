"""Collapsed stacks: bytes by module that add up, in lines that flamegraph.pl and speedscope read. No torch here."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import get_args
from urllib.parse import unquote

import pytest

from memplan.graph import StepGraph
from memplan.memory import OPTIMIZERS, Implementation, price
from memplan.reports.flamegraph import flamegraph, frame_name
from tests.memory.test_timeline import chain as short_chain
from tests.planner.toy import step
from tests.reports.toy import VALUE, WEIGHT, chain

#: How flamegraph.pl and speedscope take a line apart.
LINES = (re.compile(r"^(.*)\s+?(\d+(?:\.\d*)?)$"), re.compile(r"^(.*) (\d+)$"))


def stacks(text: str) -> dict[tuple[str, ...], int]:
    """Read collapsed stacks: every reader gets the same frames, none of them empty, and no stack comes twice."""
    found: Counter[tuple[str, ...]] = Counter()
    assert text.endswith("\n")
    for line in text.removesuffix("\n").split("\n"):
        matches = [pattern.match(line) for pattern in LINES]
        assert all(matches), line
        assert len({match.groups() for match in matches if match}) == 1
        stack, count = matches[0].groups()  # type: ignore[union-attr]
        frames = tuple(stack.split(";"))
        assert all(frames), line
        assert frames not in found
        assert int(count) > 0
        found[frames] = int(count)
    return dict(found)


def renamed(graph: StepGraph, names: dict[str, str]) -> StepGraph:
    layers = (dataclasses.replace(layer, path=names.get(layer.path, layer.path)) for layer in graph.layers)
    return dataclasses.replace(graph, layers=tuple(layers))


@pytest.mark.parametrize("implementation", get_args(Implementation))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_bytes_of_the_peak_add_up(optimizer: str, implementation: Implementation) -> None:
    for graph in (chain(), chain(trained=1), step()):
        found = stacks(flamegraph(graph, optimizer, implementation))
        assert sum(found.values()) == price(graph, optimizer, implementation).peak_bytes


def test_each_layer_has_a_frame_for_what_is_its_own() -> None:
    """At the peak the top layer has its weight's gradient and makes that of what came in."""
    graph = chain(trained=2)
    assert price(graph, "momentum").peak.moment == 4 + 1 + 1 + 1
    assert stacks(flamegraph(graph, "momentum")) == {
        ("(model)", "Chain", "temp"): 2 * VALUE,  # the input, and the gradient of the output
        ("layers", "0", "Linear", "parameter"): WEIGHT,
        ("layers", "1", "Linear", "parameter"): WEIGHT,
        ("layers", "1", "Linear", "saved"): VALUE,
        ("layers", "2", "Linear", "parameter"): WEIGHT,
        ("layers", "2", "Linear", "saved"): VALUE,
        ("layers", "2", "Linear", "state"): WEIGHT,
        ("layers", "3", "Linear", "parameter"): WEIGHT,
        ("layers", "3", "Linear", "state"): WEIGHT,
        ("layers", "3", "Linear", "gradient"): WEIGHT,
        ("layers", "3", "Linear", "temp"): VALUE,
    }


def test_the_temporaries_of_an_update_have_a_frame() -> None:
    small = (dataclasses.replace(each, bytes=1 if each.role == "activation" else 8) for each in short_chain().storages)
    graph = dataclasses.replace(short_chain(), storages=tuple(small))
    found = stacks(flamegraph(graph, "adam"))
    # The parameter, the input that is saved, the gradient; two moments and a counter; two temporaries.
    assert found == {
        ("scale", "Scale", "parameter"): 8,
        ("scale", "Scale", "gradient"): 8,
        ("scale", "Scale", "state"): 2 * 8 + 4,
        ("scale", "Scale", "update"): 2 * 8,
        ("(model)", "Net", "saved"): 8,
    }


def test_saved_bytes_stand_at_the_layer_that_keeps_them() -> None:
    found = stacks(flamegraph(chain(trained=2), of="saved"))
    assert found == {("layers", "2", "Linear"): VALUE, ("layers", "3", "Linear"): VALUE}
    footprint = price(chain())
    found = stacks(flamegraph(chain(), of="saved"))
    assert found == {
        (*layer.path.split("."), layer.type): layer.saved_bytes for layer in footprint.layers if layer.saved_bytes
    }
    assert sum(found.values()) == footprint.saved_bytes


@pytest.mark.parametrize(
    "name", ["a b", "a;b", "a\nb", "a\tb 7", "100%", "%20", "a\u2028b", "\x00\x1b[31m", "\ud800", "café", "a 1", " "]
)
def test_a_name_is_one_frame_whatever_is_in_it(name: str) -> None:
    found = stacks(flamegraph(renamed(chain(), {"layers.0": name}), of="saved"))
    frames = [stack for stack in found if stack[:1] != ("layers",)]
    assert [len(stack) for stack in frames] == [2]
    assert unquote(frames[0][0], errors="surrogatepass") == name
    assert frame_name("café") == "café"
