"""Which forward op hands which value to which, and across which modules' borders."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Final

from memplan.graph.records import BEFORE, Layer, Op, Parameter, Storage, TensorView

#: Ops that weigh one value with another. They join two paths, as a squeeze-and-excite or an attention does, without
#: leaving either a way around.
GATES: Final = frozenset({"mul", "mul_", "div", "div_", "mm", "bmm", "matmul", "baddbmm"})

_FROM_FLOAT, _FROM_INTEGER, _FROM_PARAMETER = 1, 2, 4


@dataclass(slots=True)
class Region:
    """The forward ops that ran under one module, and the values that cross its border."""

    layer: int
    ops: list[int] = field(default_factory=list)
    entries: dict[int, int | None] = field(default_factory=dict)  # value -> the sibling that made it
    exits: dict[int, set[int | None]] = field(default_factory=dict)  # value -> the siblings that read it


class Flow:
    """The forward's data flow. A *value* is what one op left in one storage; views of it are the same value.

    Only the values that a gradient could follow from the output to the model's input count: what is computed from
    parameters alone (position tables) or from integer inputs alone (masks) goes wherever it likes without being part of
    the network's path.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        ops: Iterable[Op],
        storages: tuple[Storage, ...],
        parameters: tuple[Parameter, ...],
    ) -> None:
        self.layers = layers
        self.producers: list[int] = []  # by value: the op that made it, BEFORE for the model's input
        self.reads: list[tuple[int, ...]] = []  # by op: the values it reads
        self.makes: list[tuple[int, ...]] = []  # by op: the values it makes
        self.weighted: list[bool] = []  # by op: reads a parameter, or what is computed from parameters alone
        self.gates: list[bool] = []  # by op
        self.matrix: list[bool] = []  # by op: weighted so, with two axes or more, and carries
        self.outputs: tuple[int, ...] = ()
        self._follow(ops, storages, {parameter.storage for parameter in parameters})
        self.layer_of = _place_shared(self._run_by, self.chains)

    @cached_property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """For each layer, itself and the modules around it: see :func:`chains_of`."""
        return chains_of(self.layers)

    @cached_property
    def composite(self) -> tuple[bool, ...]:
        """For each layer, whether it is a module of modules and not one of torch's containers; the root is not."""
        parents = {chain[-2] for chain in self.chains if len(chain) > 1}
        return tuple(layer.index in parents and not layer.container for layer in self.layers)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """For each layer its class name if it may be a block, else "".

        A ``Sequential`` of different layers in a list is a unit without a name and goes by its layers.
        """
        names: dict[int, list[str]] = defaultdict(list)
        for chain in self.chains:
            if len(chain) > 2 and self.type(chain[-2]) == "Sequential" and self.layers[chain[-3]].container:
                names[chain[-2]].append(self.type(chain[-1]))
        kinds = [self.type(layer) if composite else "" for layer, composite in enumerate(self.composite)]
        for layer, children in names.items():
            if len(set(children)) > 1:
                kinds[layer] = f"Sequential({', '.join(children)})"
        return tuple(kinds)

    @cached_property
    def regions(self) -> dict[int, Region]:
        """The region of every layer, except the root, under which something ran."""
        regions: dict[int, Region] = {}
        for op, layer in enumerate(self.layer_of):
            for module in self.chains[layer]:
                regions.setdefault(module, Region(module)).ops.append(op)
        for source, target, value in self._edges():
            before = self.chains[self.layer_of[source]] if source != BEFORE else ()
            after = self.chains[self.layer_of[target]] if target < len(self.layer_of) else ()
            shared = _common(before, after)
            maker, reader = _at(before, shared), _at(after, shared)
            alike = maker is not None and reader is not None and self.type(maker) == self.type(reader)
            for module in after[shared:]:
                regions[module].entries[value] = maker if alike and module == reader else None
            for module in before[shared:]:
                readers = regions[module].exits.setdefault(value, set())
                readers.add(reader if alike and module == maker else None)
        return regions

    @cached_property
    def context(self) -> frozenset[tuple[int, str]]:
        """The pairs (value, type) where several modules of this type read a value that none of them made.

        An encoder's output in every layer of a decoder is one. It is not what the layers hand on to each other. What is
        made in the same place of another stage counts too, even if only one module reads it there.
        """
        readers: dict[tuple[int, str], set[int]] = defaultdict(set)
        makers: set[tuple[int, str]] = set()
        for module, region in self.regions.items():
            if self.composite[module]:
                makers.update((value, self.type(module)) for value in region.exits)
                for value in region.entries:
                    readers[value, self.type(module)].add(module)
        for pair in makers & readers.keys():
            del readers[pair]
        places = {pair: {self._place(pair[0], module) for module in modules} for pair, modules in readers.items()}
        several = [pair for pair, modules in readers.items() if len(self.outermost(modules)) > 1]
        known = {(place, kind) for value, kind in several for place in places[value, kind]}
        return frozenset(
            (value, kind) for value, kind in readers if any((place, kind) in known for place in places[value, kind])
        )

    def _place(self, value: int, reader: int) -> str:
        """Return the place of the outermost module that a value leaves on its way to a reader."""
        producer = self.producers[value]
        if producer == BEFORE:
            return f"input {value}"
        chain = self.chains[self.layer_of[producer]]
        outermost = chain[: _common(chain, self.chains[reader]) + 1]
        return self.place(outermost[-1]) if outermost else ""

    def place(self, layer: int) -> str:
        """Return a layer's path with all numbers alike."""
        return re.sub(r"\d+", "0", self.layers[layer].path)

    def outermost(self, modules: set[int]) -> list[int]:
        """Return those of ``modules`` that lie in no other of them."""
        return [module for module in modules if not modules.intersection(self.chains[module][:-1])]

    def type(self, layer: int) -> str:
        """Return the class name of a layer."""
        return self.layers[layer].type

    def first(self, module: int) -> int:
        """Return the first op that ran under a module."""
        return self.regions[module].ops[0]

    def matrices(self, module: int) -> int:
        """Count the ops under a module that apply a weight of two axes or more."""
        return sum(self.matrix[op] for op in self.regions[module].ops)

    def below(self, module: int, ancestor: int) -> str:
        """Return the path of a module from one that it lies in."""
        return self.layers[module].path[len(self.layers[ancestor].path) + 1 :]

    def list_around(self, module: int) -> int:
        """Return the outermost of torch's containers that leads to a module through others only; 0 if there is none."""
        around = 0
        for ancestor in reversed(self.chains[module][:-1]):
            if not self.layers[ancestor].container:
                break
            around = ancestor
        return around

    def gives_output(self, module: int) -> bool:
        """Whether a value that leaves a module is an output of the model."""
        return not self.regions[module].exits.keys().isdisjoint(self.outputs)

    @cached_property
    def stem(self) -> int:
        """The first weighted layer that runs."""
        return next((self.layer_of[op] for op, matrix in enumerate(self.matrix) if matrix), 0)

    def head(self, blocks: Iterable[int] = ()) -> frozenset[int]:
        """Return the modules that hold the last weighted layers before each output of the model.

        Each is the outermost module around such a layer that contains neither a block nor the first weighted layer.
        """
        inside = set(blocks)
        below = {ancestor for module in (*inside, self.stem) for ancestor in self.chains[module]}
        heads = set()
        for layer in self._last_weighted(inside):
            heads.add(next((module for module in self.chains[layer] if module not in below), layer))
        return frozenset(heads)

    def _last_weighted(self, blocks: set[int]) -> set[int]:
        """Return the layers whose matrices an output meets first on the way back to the next block or the input."""
        found: set[int] = set()
        waiting = [self.producers[value] for value in self.outputs]
        seen = set(waiting)
        while waiting:
            op = waiting.pop()
            if op == BEFORE or not blocks.isdisjoint(self.chains[self.layer_of[op]]):
                continue
            if self.matrix[op]:
                found.add(self.layer_of[op])
                continue
            for value in self.reads[op]:
                if self.producers[value] not in seen:
                    seen.add(self.producers[value])
                    waiting.append(self.producers[value])
        return found

    def carries(self, op: int) -> bool:
        """Whether an op reads or makes a value."""
        return bool(self.reads[op] or self.makes[op])

    @cached_property
    def carried_before(self) -> tuple[int, ...]:
        """For each op, how many ops before it read or make a value; one entry more for the end."""
        return tuple(accumulate((self.carries(op) for op in range(len(self.reads))), initial=0))

    def _edges(self) -> Iterator[tuple[int, int, int]]:
        """Yield (maker, reader, value); the loss reads as the op after the last."""
        for op, values in enumerate(self.reads):
            for value in values:
                yield self.producers[value], op, value
        for value in self.outputs:
            yield self.producers[value], len(self.reads), value

    def _follow(self, ops: Iterable[Op], storages: tuple[Storage, ...], parameters: set[int]) -> None:
        fixed = {storage.index for storage in storages if storage.role == "buffer"} | parameters
        origin: dict[int, int] = dict.fromkeys(parameters, _FROM_PARAMETER)
        current: dict[int, int] = {}
        self._run_by: list[int] = []
        inputs = set(_inputs(storages))
        outputs: dict[int, None] = {}
        for op in ops:
            if op.phase not in ("forward", "loss"):
                break
            given = tuple(op.inputs)
            for view in given:
                if view.storage in inputs:
                    inputs.discard(view.storage)
                    origin[view.storage] = _FROM_FLOAT if _is_float(view) else _FROM_INTEGER
                    if _is_float(view):
                        current[view.storage] = self._new_value(BEFORE)
            reads = dict.fromkeys(current[view.storage] for view in given if view.storage in current)
            if op.phase == "loss":
                outputs.update(reads)
            if op.phase != "forward":
                continue
            origins = 0
            for view in given:
                origins |= origin.get(view.storage, 0)
            makes = []
            in_place = _is_in_place(op)
            touched = {view.storage for view in given}
            for result in op.outputs:
                if result is None or result.storage in fixed or (result.storage in touched and not in_place):
                    continue
                origin[result.storage] = origins
                known = origins & _FROM_FLOAT or (origins & _FROM_INTEGER and origins & _FROM_PARAMETER)
                if known and _is_float(result):
                    current[result.storage] = self._new_value(len(self.reads))
                    makes.append(current[result.storage])
            weights = [view for view in given if origin.get(view.storage) == _FROM_PARAMETER]
            self.weighted.append(bool(weights))
            self.matrix.append(bool(reads or makes) and any(len(view.shape) > 1 for view in weights))
            self.gates.append(_is_gate(op))
            self.reads.append(tuple(reads))
            self.makes.append(tuple(makes))
            self._run_by.append(op.layer)
        if not outputs and self.producers:
            outputs[len(self.producers) - 1] = None
        self.outputs = tuple(outputs)

    def _new_value(self, producer: int) -> int:
        self.producers.append(producer)
        return len(self.producers) - 1


def chains_of(layers: tuple[Layer, ...]) -> tuple[tuple[int, ...], ...]:
    """Return for each layer itself and the modules around it, from the outermost inwards; the root is left out.

    >>> chains_of((Layer(0, "", "Net", False), Layer(1, "features", "Sequential", True),
    ...            Layer(2, "features.1", "Conv2d", False), Layer(3, "classifier", "Linear", False)))
    ((), (1,), (1, 2), (3,))
    """
    chains: dict[str, tuple[int, ...]] = {"": ()}
    for layer in sorted(layers, key=lambda layer: layer.path.count(".")):
        if layer.path:
            chains[layer.path] = (*chains.get(layer.path.rpartition(".")[0], ()), layer.index)
    return tuple(chains[layer.path] for layer in layers)


def _inputs(storages: tuple[Storage, ...]) -> Iterator[int]:
    """Yield the model's inputs. A constant that an op is given later comes after the first activation."""
    for storage in storages:
        if storage.role == "activation":
            return
        if storage.role == "input":
            yield storage.index


def _is_float(view: TensorView) -> bool:
    return view.dtype.startswith(("float", "bfloat", "complex"))


def _packet(op: Op) -> str:
    return op.name.split(".")[1] if op.name.count(".") else op.name


def _is_in_place(op: Op) -> bool:
    return _packet(op).endswith("_") or op.name.endswith("out")


def _is_gate(op: Op) -> bool:
    packet = _packet(op)
    return packet in GATES or packet.startswith("_scaled_dot_product")


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Return how many modules two chains share."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _at(chain: tuple[int, ...], position: int) -> int | None:
    return chain[position] if position < len(chain) else None


def _place_shared(run_by: list[int], chains: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Return for each op the layer it belongs to.

    That is the layer that ran it, except where one module object serves several modules, such as an activation that is
    handed to every block: it has the path of its first owner, and its ops belong to whoever called it.
    """
    runs: dict[int, list[int]] = defaultdict(list)
    for op, layer in enumerate(run_by):
        for module in (0, *chains[layer]):
            runs[module].append(op)
    owners = {layer: (0, *chains[layer])[-2] for layer in set(run_by) if layer}
    scattered = {layer for layer, owner in owners.items() if _is_scattered(runs[layer], runs[owner], owner == 0)}
    if not scattered:
        return tuple(run_by)
    before = _last_outside(run_by, scattered)
    after = _last_outside(run_by[::-1], scattered)[::-1]
    placed = list(run_by)
    for layer in scattered:
        owner = owners[layer]
        core = [op for op in runs[owner] if run_by[op] not in scattered] if owner else []
        if owner and (not core or core[-1] - core[0] >= len(runs[owner])):
            continue  # the owner itself is called several times
        for op in runs[layer]:
            if core and core[0] - 1 <= op <= core[-1] + 1:
                continue
            shared = _common(chains[before[op]], chains[after[op]])
            if shared or owner:
                placed[op] = chains[before[op]][shared - 1] if shared else 0
    return tuple(placed)


def _is_scattered(mine: list[int], owned: list[int], by_root: bool) -> bool:
    """Whether there are ops between a layer's that its owner did not run; if that is the root, that others ran."""
    span = mine[-1] - mine[0]
    if by_root:
        return span >= len(mine)
    return bisect_right(owned, mine[-1]) - bisect_left(owned, mine[0]) <= span


def _last_outside(run_by: list[int], scattered: set[int]) -> list[int]:
    """For each op, the layer of the last op up to it that is not scattered; the root if there is none."""
    last, found = 0, []
    for layer in run_by:
        last = last if layer in scattered else layer
        found.append(last)
    return found
