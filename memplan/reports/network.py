"""The network as a graph of blocks or of layers: what each needs and what is done to it, as DOT or GraphML text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from memplan.graph.blocks import find_blocks, located_blocks
from memplan.graph.flow import chains_of
from memplan.graph.head import end_of_module
from memplan.graph.records import Block, Op, Parameter
from memplan.graph.step_graph import StepGraph
from memplan.memory import Footprint
from memplan.memory.optimizers import optimizer_rule
from memplan.methods import Plan
from memplan.reports.calls import Call, calls_of, handed_on
from memplan.reports.sizes import size
from memplan.tables import plain

if TYPE_CHECKING:
    import networkx

#: Light colours, told apart by those who see fewer.
_FILLS: Final = {"trained": "#cfe3f7", "frozen": "#e6e6e6", "": "#ffffff"}

#: What XML does not take, or gives back as a line break, which networkx writes for some of it: SVG is XML too.
_NOT_IN_XML: Final = re.compile("[\x00-\x08\x0b-\x1f\x85\u2028\u2029\ud800-\udfff\ufffe\uffff]")


def block_network(
    graph: StepGraph,
    footprint: Footprint,
    plan: Plan | None = None,
    *,
    optimizer: str = "sgd",
    blocks: Sequence[Block] = (),
) -> networkx.DiGraph[int]:
    """Return the data flow between blocks, and the modules below, between and above them.

    Nodes are numbered as they run, with the attributes of :func:`layer_network`; what runs in no block is of the
    outermost module that holds none. ``blocks`` are those of another recording of the model, for a step without any.
    """
    graph = _with_blocks(graph, blocks)
    paths = {block.path for block in graph.blocks}
    found = {layer.index for layer in graph.layers if layer.path in paths}
    chains = chains_of(graph.layers)
    around = {module for block in found for module in chains[block][:-1]}
    units = [next((module for module in chain if module not in around), layer) for layer, chain in enumerate(chains)]
    return _network(graph, footprint, plan, optimizer, units)


def layer_network(
    graph: StepGraph,
    footprint: Footprint,
    plan: Plan | None = None,
    *,
    optimizer: str = "sgd",
    blocks: Sequence[Block] = (),
) -> networkx.DiGraph[int]:
    """Return the data flow between the layers that run ops of the forward, numbered as they run.

    A module that runs ops of its own, as a residual block its addition, is a node for these. A layer that is called on
    what an earlier call of it has made is a node for each call.

    Nodes have

    - ``name``: the module's path, with the number of the call from the second on; ``path``, ``type``;
    - ``block``: the path of the block that it is or lies in, or nothing;
    - ``saved_bytes``: what it is the first to keep; over all nodes they add up to the model's;
    - ``temp_bytes``: the largest over its layers of what is alive beside the saved while one of them runs;
    - ``resident_bytes``: parameters that it is the first to read, their gradients and optimizer state;
    - ``flops_forward``, ``flops_backward``: the latter at the first call;
    - ``trained``, ``frozen``: it has parameters, and some train or none does; ``pruned``, ``recomputed``;
    - ``treatments``: those of the plan that are on there, with commas.

    Edges have the ``bytes`` that are handed on, of each storage once.
    """
    return _network(_with_blocks(graph, blocks), footprint, plan, optimizer, range(len(graph.layers)))


def _with_blocks(graph: StepGraph, blocks: Sequence[Block]) -> StepGraph:
    if graph.blocks:
        return graph
    return located_blocks(
        graph, tuple(blocks) or find_blocks(graph.layers, graph.ops, graph.storages, graph.parameters)
    )


def _network(
    graph: StepGraph, footprint: Footprint, plan: Plan | None, optimizer: str, units: Sequence[int]
) -> networkx.DiGraph[int]:
    import networkx

    network: networkx.DiGraph[int] = networkx.DiGraph()
    # Calls on data of their own, as the parts of a batch, are one node, if that makes no circle.
    for merged in (True, False):
        calls = calls_of(graph, units, merged=merged)
        network.clear()
        network.add_nodes_from(range(len(calls)))
        for (source, target), storages in handed_on(graph, calls).items():
            network.add_edge(source, target, bytes=sum(graph.storages[storage].bytes for storage in storages))
        if networkx.is_directed_acyclic_graph(network):
            break
    attributes = _Attributes(graph, footprint, plan, optimizer, units, calls)
    for node in network:
        network.nodes[node].update(attributes.of(node))
    return network


class _Attributes:
    """What the nodes of a network say."""

    def __init__(
        self,
        graph: StepGraph,
        footprint: Footprint,
        plan: Plan | None,
        optimizer: str,
        units: Sequence[int],
        calls: Sequence[Call],
    ) -> None:
        self._graph = graph
        self._calls = calls
        self._rule = optimizer_rule(optimizer)
        self._chains = chains_of(graph.layers)
        self._call_of = {op: place for place, call in enumerate(calls) for op in call.ops}
        first = {call.unit: place for place, call in reversed(list(enumerate(calls))) if call.number == 1}
        #: For each layer the node of it, or of the module around it that has one, if any.
        self._home = [
            next((first[units[module]] for module in (*reversed(chain), 0) if units[module] in first), None)
            for chain in self._chains
        ]
        self._paths = {layer.path: layer.index for layer in graph.layers}
        self._saved = self._saved_bytes()
        self._backward = self._backward_flops()
        self._parameters = self._read_first()
        self._temp: dict[int, int] = defaultdict(int)
        for layer in footprint.layers:
            unit = units[self._paths[layer.path]]
            self._temp[unit] = max(self._temp[unit], layer.temp_bytes)
        self._plan = _Planned(graph, plan)
        self._blocks = {block.path for block in graph.blocks}

    def of(self, node: int) -> dict[str, Any]:
        """Return the attributes of a node."""
        call = self._calls[node]
        layer = self._graph.layers[call.unit]
        ops = [self._graph.ops[op] for op in call.ops]
        parameters = self._parameters[node]
        block = next(
            (path for module in self._chains[call.unit] if (path := self._graph.layers[module].path) in self._blocks),
            "",
        )
        name = layer.path or "(model)"
        return {
            "name": name if call.number == 1 else f"{name} ({call.number})",
            "path": layer.path,
            "type": layer.type,
            "block": block,
            "saved_bytes": self._saved[node],
            "temp_bytes": self._temp[call.unit],
            "resident_bytes": sum(map(self._held_bytes, parameters)),
            "flops_forward": sum(op.flops for op in ops),
            "flops_backward": self._backward[node],
            "trained": any(parameter.trains for parameter in parameters),
            "frozen": bool(parameters) and not any(parameter.trains for parameter in parameters),
            "pruned": any(parameter.name in self._plan.pruned for parameter in parameters),
            "recomputed": not self._plan.recomputed.isdisjoint(call.ops),
            "treatments": ", ".join(self._plan.treatments(ops)),
        }

    def _saved_bytes(self) -> dict[int | None, int]:
        saved, charged = frozenset(self._graph.saved), set[int]()
        found: dict[int | None, int] = defaultdict(int)
        for op in self._graph.ops:
            for storage in op.saves:
                if storage in saved and storage not in charged:
                    charged.add(storage)
                    found[self._call_of.get(op.index)] += self._graph.storages[storage].bytes
        return found

    def _backward_flops(self) -> dict[int | None, int]:
        found: dict[int | None, int] = defaultdict(int)
        for op in self._graph.ops:
            if op.phase == "backward":
                found[self._home[op.layer]] += op.flops
        return found

    def _read_first(self) -> dict[int, list[Parameter]]:
        """Return for each node the parameters that it is the first to read."""
        readers: dict[int, int] = {}
        for op in self._graph.ops:
            if op.index in self._call_of:
                for view in op.inputs:
                    readers.setdefault(view.storage, self._call_of[op.index])
        found: dict[int, list[Parameter]] = defaultdict(list)
        for parameter in self._graph.parameters:
            if parameter.storage in readers:
                found[readers[parameter.storage]].append(parameter)
        return found

    def _held_bytes(self, parameter: Parameter) -> int:
        size = self._graph.storages[parameter.storage].bytes
        if parameter.gradient is None:
            return size
        return size + self._graph.storages[parameter.gradient].bytes + self._rule.state(size)


class _Planned:
    """What a plan does, by op and by parameter; nothing without a plan."""

    def __init__(self, graph: StepGraph, plan: Plan | None) -> None:
        self._graph = graph
        self._entries = {} if plan is None else {layer.path: layer.treatments for layer in plan.layers}
        whole: dict[str, list[str]] = defaultdict(list)
        self.pruned = set[str]()
        self.recomputed = set[int]()
        self._prefix = 0
        if plan is not None:
            for pair in plan.tuned:
                whole[pair.convolution].append("tune")
                whole[pair.norm].append("tune")
            for path in plan.int8:
                whole[path].append("frozen-int8")
            for branch in plan.lite:
                whole[branch.path].append("lite-residual")
            self.pruned.update(axis.tensor for group in plan.pruned for axis in group.axes if axis.dropped)
            forward = [op for op in graph.ops if op.phase == "forward"]
            # With a micro-batch the schedule begins behind the prefix, so that the ends agree.
            for op, scheduled in zip(reversed(forward), reversed(plan.schedule), strict=False):
                if scheduled.recomputed and scheduled.name == op.name:
                    self.recomputed.add(op.index)
            if plan.microbatch is not None:
                self._prefix = end_of_module(plan.microbatch.boundary, graph.layers, graph.ops)
        self._whole = whole

    def treatments(self, ops: Sequence[Op]) -> tuple[str, ...]:
        """Return the names of the treatments of some ops, each once."""
        found: dict[str, None] = {}
        for path in dict.fromkeys(self._graph.layers[op.layer].path for op in ops):
            around = list(_paths_around(path))
            found.update(dict.fromkeys(next((self._entries[each] for each in around if each in self._entries), ())))
            found.update(dict.fromkeys(name for each in around for name in self._whole.get(each, ())))
        if any(op.index in self.recomputed for op in ops):
            found["recompute"] = None
        if any(op.index < self._prefix for op in ops):
            found["prefix-microbatch"] = None
        return tuple(found)


def _paths_around(path: str) -> Iterator[str]:
    """Yield a module's path and those of the modules around it, up to the model's."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def to_graphml(network: networkx.DiGraph[int]) -> str:
    """Return a network as GraphML text; what XML cannot hold is written as Python writes it."""
    import networkx

    clean: networkx.DiGraph[int] = networkx.DiGraph()
    for node, attributes in network.nodes(data=True):
        texts = {name: _for_xml(value) if isinstance(value, str) else value for name, value in attributes.items()}
        clean.add_node(node, **texts)
    clean.add_edges_from(network.edges(data=True))
    return "\n".join(networkx.generate_graphml(clean)) + "\n"


def to_dot(network: networkx.DiGraph[int]) -> str:
    """Return a network as the text of a directed graph in Graphviz's language.

    What trains is blue, what is frozen grey; a pruned node has a dashed line, a recomputed one a double line.
    """
    lines = ['  node [shape=box, style=filled, fontname="sans-serif"];', '  edge [fontname="sans-serif"];']
    lines += (f"  {node} [{_settings(_drawn(attributes))}];" for node, attributes in network.nodes(data=True))
    for source, target, attributes in network.edges(data=True):
        lines.append(f"  {source} -> {target} [{_settings({'label': size(attributes['bytes'])})}];")
    return "\n".join(("digraph {", *lines, "}", ""))


def _drawn(attributes: Mapping[str, Any]) -> dict[str, str]:
    sizes = [f"{kind} {size(attributes[f'{kind}_bytes'])}" for kind in ("saved", "temp", "resident")]
    lines = [attributes["name"], attributes["type"], ", ".join(sizes), attributes["treatments"]]
    state = "trained" if attributes["trained"] else "frozen" if attributes["frozen"] else ""
    return {
        "label": "\n".join(filter(None, (plain(_for_xml(line)) for line in lines))),
        "fillcolor": _FILLS[state],
        "style": "filled,dashed" if attributes["pruned"] else "filled",
        "peripheries": "2" if attributes["recomputed"] else "1",
    }


def _settings(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={_quoted(value)}" for name, value in values.items())


def _quoted(text: str) -> str:
    r"""Return a quoted string of DOT, in which a backslash begins an escape and a line ends with one.

    >>> print(_quoted('say "\\N"'))
    "say \"\\N\""
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _for_xml(text: str) -> str:
    r"""Return ``text`` with what XML cannot hold as Python writes it.

    >>> _for_xml("a\x00b")
    'a\\x00b'
    """
    return _NOT_IN_XML.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
