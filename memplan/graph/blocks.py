"""Blocks: the stretches of the network between one value and the next, along module boundaries."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property

from memplan.graph.flow import Flow, Region, chains_of
from memplan.graph.records import Block, Layer, Op, Parameter, Storage
from memplan.graph.step_graph import StepGraph


def find_blocks(
    layers: tuple[Layer, ...],
    ops: tuple[Op, ...],
    storages: tuple[Storage, ...],
    parameters: tuple[Parameter, ...],
) -> tuple[Block, ...]:
    """Return the blocks in execution order; none when the network is only a head.

    The rule is argued in ``docs/decisions/0003-blocks.md``: the outermost modules with one value in and one out whose
    class has a branch; else such modules with more than one value; else, in a plain chain, its repeated units; else its
    weighted layers. The head is never a block.
    """
    flow = Flow(layers, ops, storages, parameters)
    modules = _choose(flow)
    found: list[Block] = []
    for module in _in_order(modules, flow):
        ran = flow.regions[module].ops
        found.append(Block(len(found), layers[module].path, layers[module].type, ran[0], ran[-1]))
    return tuple(found)


def located_blocks(graph: StepGraph, blocks: tuple[Block, ...]) -> StepGraph:
    """Return ``graph`` with the blocks of another recording of the same model, found there by their modules."""
    paths = {block.path for block in blocks}
    modules = {layer.index for layer in graph.layers if layer.path in paths}
    chains = chains_of(graph.layers)
    spans: dict[str, tuple[int, int]] = {}
    for op in graph.ops:
        around = reversed(chains[op.layer]) if op.phase == "forward" else ()
        module = next((layer for layer in around if layer in modules), None)
        if module is not None:
            path = graph.layers[module].path
            spans[path] = (spans.get(path, (op.index, 0))[0], op.index)
    found = [block for block in blocks if block.path in spans]
    located = (Block(index, block.path, block.type, *spans[block.path]) for index, block in enumerate(found))
    return replace(graph, blocks=tuple(located))


def _in_order(modules: Iterable[int], flow: Flow) -> Iterator[int]:
    """Yield modules as they run, without those that begin before the one before them has ended."""
    end = -1
    for module in sorted(modules, key=flow.first):
        if flow.first(module) > end:
            yield module
            end = flow.regions[module].ops[-1]


def _choose(flow: Flow) -> list[int]:
    """Return the first answer that makes up enough of the network, else the first at all."""
    branched = _BranchedNet(flow).blocks()
    if _share(branched, flow) >= 1 / 2:
        return branched
    loose = _BranchedNet(flow, strict=False).blocks()
    if _share(loose, flow) >= 3 / 4:
        return loose
    return branched or _plain_units(flow) or loose or _plain_layers(flow)


def _share(modules: list[int], flow: Flow) -> float:
    """Return how much of the network lies in modules, as a fraction of the ops that apply a weight."""
    return sum(map(flow.matrices, modules)) / max(sum(flow.matrix), 1)


class _BranchedNet:
    """A network whose path splits and joins: residual, inception, dense.

    With ``strict`` a block has one value in and one out. Without, it may have more, as a NASNet cell has.
    """

    def __init__(self, flow: Flow, strict: bool = True) -> None:
        self.flow = flow
        self.strict = strict
        self.children: dict[int, list[int]] = defaultdict(list)
        for module in flow.regions:
            self.children[(0, *flow.chains[module])[-2]].append(module)
        self.units = [module for module in flow.regions if flow.kinds[module]]
        self.stretches = {module for module in self.units if is_stretch(module, flow, strict)}

    def blocks(self) -> list[int]:
        """Return the blocks, in no order."""
        found = sorted(self._within(0), key=self.flow.first)
        counts = Counter(map(self.flow.type, found))
        repeated = [place for place, module in enumerate(found) if counts[self.flow.type(module)] > 1]
        if repeated:  # what is there once, before them or after them, is a stem or a head
            found = found[repeated[0] : repeated[-1] + 1]
            return found + self._neighbours(found)
        return [module for module in found if not self.flow.gives_output(module)]

    @cached_property
    def block_kinds(self) -> dict[str, int]:
        """The kinds that are blocks, with the number of modules of each that lie in no other of the same kind."""
        flow = self.flow
        of_kind = Counter(flow.kinds[module] for module in self.units)
        stretched = Counter(flow.kinds[module] for module in self.stretches)
        branched = {flow.kinds[module] for module in self.stretches if has_branches(module, flow)[0]}
        kinds = {kind for kind in branched if 2 * stretched[kind] >= of_kind[kind]}
        members: dict[str, set[int]] = defaultdict(set)
        for module in self.units:
            if flow.kinds[module] in kinds:
                members[flow.kinds[module]].add(module)
        outer = {kind: flow.outermost(members[kind]) for kind in kinds}
        repeated = set().union(*(modules for modules in outer.values() if len(modules) > 1))
        return {kind: len(modules) for kind, modules in outer.items() if not self._is_part(modules, repeated)}

    def _is_part(self, modules: list[int], blocks: set[int]) -> bool:
        """Whether most of ``modules`` lie in blocks of another kind."""
        inside = [module for module in modules if not blocks.isdisjoint(self.flow.chains[module][:-1])]
        return 2 * len(inside) > len(modules)

    def _within(self, module: int) -> list[int]:
        return [block for child in self.children[module] for block in self._below(child)]

    def _below(self, module: int) -> list[int]:
        kind = self.flow.kinds[module]
        if not kind:
            return self._within(module)
        if kind in self.block_kinds and kind not in self.parts:
            if self.block_kinds[kind] > 1:
                return [module]
            inner = self._within(module)
            return inner if len(set(map(self.flow.type, inner))) < len(inner) else [module]
        if kind in self.composed_kinds:
            return [module]
        return self._within(module)

    @cached_property
    def composed_kinds(self) -> frozenset[str]:
        """The kinds without a branch of their own that are a fixed series of blocks rather than a list of them."""
        flow = self.flow
        members: dict[str, list[int]] = defaultdict(list)
        for module in self.units:
            if flow.kinds[module] not in self.block_kinds:
                members[flow.kinds[module]].append(module)
        inner = {module: self._parts(module) for modules in members.values() if len(modules) > 1 for module in modules}
        return frozenset(
            kind
            for kind, modules in members.items()
            if len(flow.outermost(set(modules))) > 1
            and 2 * len(self.stretches.intersection(modules)) >= len(modules)
            and self._is_series(modules, inner)
        )

    @cached_property
    def parts(self) -> frozenset[str]:
        """The block kinds most of whose modules lie in a series."""
        flow = self.flow
        whole = {module for module in self.units if flow.kinds[module] in self.composed_kinds}
        members: dict[str, list[int]] = defaultdict(list)
        for module in self.units:
            members[flow.kinds[module]].append(module)
        return frozenset(kind for kind in self.block_kinds if self._is_part(members[kind], whole))

    def _parts(self, module: int) -> list[int]:
        """Return the outermost modules of block kinds under ``module``."""
        found = []
        for child in self.children[module]:
            found.extend([child] if self.flow.kinds[child] in self.block_kinds else self._parts(child))
        return found

    def _is_series(self, modules: list[int], inner: dict[int, list[int]]) -> bool:
        """Whether modules of one kind hold blocks under names of their own, or always one each of several kinds.

        A stage instead holds numbered blocks of one class, more or fewer of them. A module around a single block counts
        only if it has weights beside it.
        """
        flow = self.flow
        filled = [module for module in modules if inner[module]]
        if 2 * len(filled) < len(modules):
            return False
        beside = [flow.matrices(module) - sum(map(flow.matrices, inner[module])) for module in filled]
        single = max(len(inner[module]) for module in filled) == 1
        if single and not all(beside):
            return False
        if all(_are_named([flow.below(part, module) for part in inner[module]]) for module in filled):
            return True
        if single and not flow.layers[modules[0]].container:
            return False
        parts = [[flow.kinds[part] for part in inner[module]] for module in filled]
        uses = Counter(kind for kinds in parts for kind in kinds)
        different = all(len(set(kinds)) == len(kinds) for kinds in parts)
        return different and all(self.block_kinds[kind] == count for kind, count in uses.items())

    def _neighbours(self, blocks: list[int]) -> list[int]:
        """Return what stands in one list with ``blocks`` and has two weighted layers or more.

        A list that begins with the stem says nothing. MobileNet's first block has no expansion, and in timm neither the
        residual nor the class of the others.
        """
        flow = self.flow
        stem = {0, *flow.chains[flow.stem]}
        lists = {flow.place(around) for around in map(flow.list_around, blocks) if around not in stem}
        taken = {ancestor for module in blocks for ancestor in flow.chains[module]}
        return [
            module
            for module in self.stretches - taken
            if flow.composite[module]
            and (around := flow.list_around(module)) not in stem
            and flow.place(around) in lists
            and flow.matrices(module) > 1
            and not flow.gives_output(module)
        ]


def _are_named(paths: list[str]) -> bool:
    """Whether paths are names rather than places in a list.

    >>> _are_named(["conv", "attn_block"]), _are_named(["blocks.0"]), _are_named(["block1", "block2"])
    (True, False, False)
    """
    if any(name.isdigit() for path in paths for name in path.split(".")):
        return False
    return len(paths) == 1 or len({re.sub(r"\d+", "", path) for path in paths}) > 1


def is_stretch(module: int, flow: Flow, strict: bool = True) -> bool:
    """Whether one value enters ``module`` and one leaves, and nothing of another module runs in between.

    What one module hands to the next of its type counts as one value: it may be a tuple. Without ``strict`` the
    number of values does not matter.
    """
    region = flow.regions[module]
    spanned = flow.carried_before[region.ops[-1] + 1] - flow.carried_before[region.ops[0]]
    if not region.entries or not region.exits or sum(map(flow.carries, region.ops)) != spanned:
        return False
    if not strict:
        return True
    sources = {
        ("value", value) if maker is None else ("module", maker)
        for value, maker in region.entries.items()
        if (value, flow.type(module)) not in flow.context
    }
    readers = set().union(*region.exits.values())
    one_exit = len(region.exits) == 1 or (len(readers) == 1 and None not in readers)
    return len(sources) <= 1 and one_exit


def has_branches(module: int, flow: Flow) -> tuple[bool, bool]:
    """Return whether the path through ``module`` splits and joins at its own level, and whether a gate joins it.

    The modules inside are single steps here. Two values belong together as long as nothing with parameters lies
    between them, so that ``x * sigmoid(x)`` is no branch and ``x + conv(x)`` is one.
    """
    kind = flow.type(module)
    region = flow.regions[module]
    handed = {value for value in region.entries if (value, kind) not in flow.context} or set(region.entries)
    groups: dict[int, int] = dict.fromkeys(region.entries.keys() - handed, -1)
    groups |= dict.fromkeys(handed, 0)
    count, gated, depth = 1, False, len(flow.chains[module])
    for step, run in _steps(region, flow, depth):
        inside = {value for op in run for value in flow.makes[op]}
        read = {value for op in run for value in flow.reads[op]} - inside
        if step is not None:
            read = {value for value in read if (value, flow.type(step)) not in flow.context}
        sources = {groups[value] for value in read} - {-1}
        if len(sources) > 1:
            if step is not None or not flow.gates[run[0]]:
                return True, gated
            gated = True
        if len(sources) == 1 and not any(flow.weighted[op] for op in run):
            (group,) = sources
        else:
            group, count = count, count + 1
        groups |= dict.fromkeys(inside, group)
    return False, gated


def _steps(region: Region, flow: Flow, depth: int) -> Iterator[tuple[int | None, list[int]]]:
    """Yield the steps of a module: an op of its own or of a leaf, or the ops of one call of a module of modules."""
    current, run = None, list[int]()
    for op in region.ops:
        if not flow.carries(op):
            continue
        chain = flow.chains[flow.layer_of[op]]
        step = next((module for module in chain[depth:] if flow.composite[module]), None)
        if run and (step is None or step != current):
            yield current, run
            run = []
        current = step
        run.append(op)
    if run:
        yield current, run


def _plain_units(flow: Flow) -> list[int]:
    """Return the repeated modules of a chain: outermost, and always with the same number of weighted layers.

    A gate beside the chain, such as squeeze-and-excite, does not count as one more layer.
    """
    units = [module for module in flow.regions if flow.kinds[module]]
    gates = {module for module in units if has_branches(module, flow)[1]}
    head = flow.head()
    members: dict[str, set[int]] = defaultdict(set)
    for module in units:
        inside = not head.isdisjoint(flow.chains[module])
        if module not in gates and not inside and flow.matrices(module) and is_stretch(module, flow):
            members[flow.kinds[module]].add(module)
    weights = {
        module: flow.matrices(module)
        - sum(flow.matrices(gate) for gate in flow.outermost(gates) if module in flow.chains[gate])
        for modules in members.values()
        for module in modules
    }
    regular = {kind for kind, modules in members.items() if len({weights[module] for module in modules}) == 1}
    candidates = {module for kind in regular for module in members[kind]}
    while True:
        outer = flow.outermost(candidates)
        counts = Counter(flow.kinds[module] for module in outer)
        single = {module for module in outer if counts[flow.kinds[module]] == 1}
        if not single:
            return outer
        candidates -= single


def _plain_layers(flow: Flow) -> list[int]:
    """Return the weighted layers of a chain, the head's left out."""
    head = flow.head()
    weighted = {flow.layer_of[op] for op, matrix in enumerate(flow.matrix) if matrix} - {0}
    return [module for module in weighted if head.isdisjoint(flow.chains[module]) and is_stretch(module, flow)]
