"""Forward graphs written by hand, a line for each op."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from memplan.graph import Block, Layer, Machine, Op, Parameter, StepGraph, Storage, TensorView
from memplan.graph.blocks import find_blocks

CONTAINERS: Final = ("Sequential", "ModuleList")


class Toy:
    """A network that is run line by line: ``conv``, ``add`` and the like each return the storage of their result.

    ``types`` names the class of a path, in which ``#`` stands for any number; other paths are of class ``Layer``.
    """

    def __init__(self, types: Mapping[str, str]) -> None:
        self.types = types
        self.layers = {"": Layer(0, "", "Net", False)}
        self.storages: list[Storage] = []
        self.parameters: list[Parameter] = []
        self.ops: list[Op] = []
        self.input = self._storage("input")
        self._weights: dict[str, int] = {}
        self._integers: list[int] = []

    def conv(self, path: str, *reads: int, tied: str | None = None) -> int:
        """Run an op with a weight, its own or the one ``tied`` to it."""
        return self._run("aten.convolution.default", path, reads, self._weight(tied or path))

    def norm(self, path: str, *reads: int) -> int:
        """Run an op with a parameter of one axis."""
        return self._run("aten.native_layer_norm.default", path, reads, self._weight(f"{path}:1"))

    def op(self, path: str, *reads: int, name: str = "aten.relu.default") -> int:
        """Run an op without parameters."""
        return self._run(name, path, reads, None)

    def add(self, path: str, *reads: int) -> int:
        return self.op(path, *reads, name="aten.add.Tensor")

    def relu_(self, path: str, storage: int) -> int:
        """Run an op that writes into what it reads."""
        self._append("aten.relu_.default", path, (_view(storage),), _view(storage))
        return storage

    def view(self, path: str, storage: int) -> int:
        self._append("aten.view.default", path, (_view(storage),), _view(storage))
        return storage

    def ids(self) -> int:
        """Give the network an integer input."""
        self._integers.append(self._storage("input"))
        return self._integers[-1]

    def mask(self) -> int:
        """Give the network an integer input and turn it into a float mask."""
        return self.op("", self.ids(), name="aten.where.self")

    def graph(self, *outputs: int) -> StepGraph:
        """Return the step that ends in ``outputs``."""
        for output in outputs:
            loss = self._storage("activation")
            self._append("aten.mean.default", "", (_view(output),), _view(loss), loss=True)
        last = len(self.ops)
        return StepGraph(
            machine=Machine("cpu", "", 1, ""),
            layers=tuple(self.layers.values()),
            parameters=tuple(self.parameters),
            storages=tuple(replace(storage, last=last) for storage in self.storages),
            ops=tuple(self.ops),
            saved=(),
        )

    def _storage(self, role: str) -> int:
        born = len(self.ops) if role == "activation" else -1
        self.storages.append(Storage(len(self.storages), 4, role, born, 0))  # type: ignore[arg-type]
        return len(self.storages) - 1

    def _layer(self, path: str) -> int:
        if path not in self.layers:
            self._layer(path.rpartition(".")[0])
            place = ".".join("#" if name.isdigit() else name for name in path.split("."))
            kind = self.types.get(path, self.types.get(place, "Layer"))
            self.layers[path] = Layer(len(self.layers), path, kind, kind in CONTAINERS)
        return self.layers[path].index

    def _weight(self, path: str) -> TensorView:
        path, _, axes = path.partition(":")
        if path not in self._weights:
            self._weights[path] = self._storage("parameter")
            self.parameters.append(Parameter(f"{path}.weight", self._layer(path), self._weights[path], 4, True, None))
        shape = (4,) if axes else (2, 2)
        return TensorView(self._weights[path], shape, (1,) * len(shape), "float32")

    def _run(self, name: str, path: str, reads: tuple[int, ...], weight: TensorView | None) -> int:
        views = (_view(storage, "int64" if storage in self._integers else "float32") for storage in reads)
        given = (*views, *([weight] if weight else []))
        result = self._storage("activation")
        self._append(name, path, given, _view(result))
        return result

    def _append(
        self, name: str, path: str, given: tuple[TensorView, ...], result: TensorView, *, loss: bool = False
    ) -> None:
        phase = "loss" if loss else "forward"
        self.ops.append(Op(len(self.ops), phase, name, self._layer(path), given, (result,), (), 0))  # type: ignore[arg-type]


def _view(storage: int, dtype: str = "float32") -> TensorView:
    return TensorView(storage, (2, 2), (2, 1), dtype)


def blocks_of(graph: StepGraph) -> tuple[Block, ...]:
    return find_blocks(graph.layers, graph.ops, graph.storages, graph.parameters)


def paths_of(graph: StepGraph) -> list[str]:
    return [block.path for block in blocks_of(graph)]


def numbered(path: str, count: int) -> Iterator[str]:
    return (f"{path}.{number}" for number in range(count))
