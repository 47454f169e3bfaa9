"""What methods ask of a model: its norms, activations and blocks, and what lies below the lowest trained block."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from memplan.graph.flow import chains_of
from memplan.graph.head import layers_in_block
from memplan.graph.records import Block, Layer, Op, TensorView
from memplan.graph.step_graph import StepGraph
from memplan.methods.plan import LiteBranch, TunedPair
from memplan.methods.treatments.lite_residual import Norm, lite_shape

BATCH_NORMS: Final = frozenset({"aten.native_batch_norm.default", "aten.cudnn_batch_norm.default"})
CONVOLUTION: Final = "aten.convolution.default"
_MATRICES: Final = frozenset({CONVOLUTION, "aten.addmm.default", "aten.mm.default", "aten.bmm.default"})
_RANDOM: Final = ("bernoulli", "dropout", "rand")
#: Positions among a batch norm's arguments.
_RUNNING_MEAN, _TRAINING = 3, 5


@dataclass(frozen=True)
class Structure:
    """A recorded step of stock PyTorch with its blocks, and how many of the top blocks train (all by default).

    ``start_op`` is the first op that is not of the frozen prefix, where that is not the lowest trained block's.
    """

    graph: StepGraph
    k: int | None = None
    start_op: int | None = None

    @cached_property
    def forward(self) -> tuple[Op, ...]:
        """The ops of the forward."""
        return tuple(op for op in self.graph.ops if op.phase == "forward")

    @cached_property
    def norms(self) -> dict[int, tuple[Op, ...]]:
        """The batch norms that have running statistics, by layer."""
        found: dict[int, list[Op]] = defaultdict(list)
        for op in self.forward:
            if op.name in BATCH_NORMS and op.args[_RUNNING_MEAN] is not None and is_norm(self.graph.layers[op.layer]):
                found[op.layer].append(op)
        return {layer: tuple(ops) for layer, ops in found.items()}

    @cached_property
    def top(self) -> tuple[Block, ...]:
        """The blocks that train."""
        blocks = self.graph.blocks
        return blocks if self.k is None else blocks[max(len(blocks) - self.k, 0) :]

    @cached_property
    def internal_norms(self) -> frozenset[int]:
        """The norms of trained blocks behind which, inside their block, another convolution or matrix follows.

        One on a single position, as in squeeze-and-excite, does not count.
        """
        return frozenset(
            layer
            for block in self.top
            for layer in layers_in_block(block, self.graph.layers)
            if layer in self.norms and self._feeds_matrix(self.norms[layer], block)
        )

    def _feeds_matrix(self, norms: tuple[Op, ...], block: Block) -> bool:
        first = norms[0]
        reached = {view.storage for view in first.outputs[:1] if view is not None}
        for op in self.graph.ops[first.index + 1 : block.last_op + 1]:
            if not any(view.storage in reached for view in op.inputs):
                continue
            if op.name in _MATRICES and not _on_one_position(op):
                return True
            reached.update(view.storage for view in op.outputs if view is not None)
        return False

    @cached_property
    def start(self) -> int:
        """The first op of the lowest trained block; of what follows all blocks when none trains."""
        if self.start_op is not None:
            return self.start_op
        if self.top:
            return self.top[0].first_op
        blocks = self.graph.blocks
        return blocks[-1].last_op + 1 if blocks else 0

    @cached_property
    def prefix(self) -> tuple[Layer, ...]:
        """The modules of which all ops lie below the lowest trained block."""
        return tuple(layer for layer in self.graph.layers if self._last_ops.get(layer.index, math.inf) < self.start)

    @cached_property
    def _last_ops(self) -> dict[int, int]:
        """The last op of the forward that ran in each module but the root, or in a module inside it."""
        chains = chains_of(self.graph.layers)
        return {layer: op.index for op in self.forward for layer in chains[op.layer]}

    def boundary(self) -> str | None:
        """Return the path of the module whose output is all that the rest needs of the prefix, the highest such."""
        last_ops = {layer.index: self._last_ops[layer.index] for layer in self.prefix}
        for end in sorted(set(last_ops.values()), reverse=True):
            crossing = self._crossing(end)
            written = {view.storage for view in self.graph.ops[end].outputs if view is not None}
            if len(crossing) == 1 and crossing <= written:
                outermost = min(layer for layer, last in last_ops.items() if last == end)
                return self.graph.layers[outermost].path
        return None

    def _crossing(self, end: int) -> set[int]:
        """Return the activations and inputs that exist at ``end`` and are used after it in the forward."""
        storages = self.graph.storages
        return {
            view.storage
            for op in self.forward
            if op.index > end
            for view in op.inputs
            if storages[view.storage].role in ("activation", "input") and storages[view.storage].born <= end
        }

    def prefix_mixes_samples(self, *, evaluated: bool) -> str | None:
        """Return why samples of the prefix cannot run apart, in words; ``None`` when they can."""
        inside = {layer.index for layer in self.prefix}
        for op in self.forward:
            layer = self.graph.layers[op.layer]
            if op.layer not in inside:
                continue
            if op.name in BATCH_NORMS and op.args[_TRAINING] and not (evaluated and op.layer in self.norms):
                return f"{layer.path} normalises by the statistics of the batch"
            if not evaluated and any(word in op.name for word in _RANDOM):
                return f"{layer.path} draws random numbers"
        return None

    def tuned_pairs(self) -> Iterator[TunedPair]:
        """Yield each convolution whose result goes into one batch norm and nowhere else, with that norm."""
        readers: dict[int, list[Op]] = defaultdict(list)
        runs: dict[int, int] = defaultdict(int)
        for op in self.forward:
            for view in op.inputs:
                readers[view.storage].append(op)
            if op.name == CONVOLUTION or op.name in BATCH_NORMS:
                runs[op.layer] += 1
        for op in self.forward:
            if op.name != CONVOLUTION or op.outputs[0] is None or runs[op.layer] != 1:
                continue
            users = readers[op.outputs[0].storage]
            if len(users) == 1 and users[0].layer in self.norms and runs[users[0].layer] == 1:
                layers = self.graph.layers
                yield TunedPair(layers[op.layer].path, layers[users[0].layer].path)

    def lite_branches(self) -> Iterator[LiteBranch]:
        """Yield a branch beside each block but the first from images to images."""
        for block in self.graph.blocks[1:]:
            entry = self._entry_of(block)
            leaving = next(iter(self.graph.ops[block.last_op].outputs), None)
            shape = (
                None if entry is None or leaving is None else lite_shape(entry.shape, leaving.shape, norm=self._norm())
            )
            if shape is not None:
                yield LiteBranch(block.path, shape)

    def _entry_of(self, block: Block) -> TensorView | None:
        """Return the first activation from before the block that its ops read."""
        storages = self.graph.storages
        for op in self.graph.ops[block.first_op : block.last_op + 1]:
            for view in op.inputs:
                if (
                    storages[view.storage].role in ("activation", "input")
                    and storages[view.storage].born < block.first_op
                ):
                    return view
        return None

    def _norm(self) -> Norm:
        return "batch" if self.norms or not any("group_norm" in op.name for op in self.forward) else "group"


def is_norm(layer: Layer) -> bool:
    """Whether a layer normalises, judged by its class name: BatchNorm2d, LayerNorm, GroupNormAct, RMSNorm ..."""
    return "norm" in layer.type.lower() and not layer.container


def _on_one_position(op: Op) -> bool:
    source = op.args[0] if op.name == CONVOLUTION else op.outputs[0]
    return isinstance(source, TensorView) and math.prod(source.shape[2:]) == 1
