"""A recorded step in segments: what lies below the blocks, each block with what follows it, and what lies above."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from memplan.graph.flow import chains_of
from memplan.graph.step_graph import StepGraph
from memplan.methods.recomputation import op_work


@dataclass(frozen=True)
class Segments:
    """The segments of a recording, from 0 below the blocks to ``count - 1`` above them.

    Segment i + 1 begins with block i and ends where the next one begins, so that what stands between two blocks trains
    with the lower one. The last segment begins behind the last block; it has the loss too.
    """

    graph: StepGraph

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first forward op of each segment."""
        blocks = self.graph.blocks
        if not blocks:
            return (0, 0)
        return (0, *(block.first_op for block in blocks), blocks[-1].last_op + 1)

    @property
    def count(self) -> int:
        """How many segments there are."""
        return len(self.starts)

    @cached_property
    def of_op(self) -> tuple[int, ...]:
        """The segment of each op. Those of the backward run from the last segment to the first, and never return."""
        found: list[int] = []
        current = self.count - 1
        for op in self.graph.ops:
            if op.phase == "forward":
                found.append(bisect_right(self.starts, op.index) - 1)
                continue
            if op.phase == "backward":
                current = min(current, self.of_layer.get(op.layer, current))
            found.append(current)
        return tuple(found)

    @cached_property
    def flops(self) -> tuple[int, ...]:
        """The floating-point operations of each segment, forward and backward."""
        return self._sums([op.flops for op in self.graph.ops])

    @cached_property
    def work(self) -> tuple[int, ...]:
        """The work of each segment, forward and backward: see :func:`op_work`."""
        return self._sums([op_work(op) for op in self.graph.ops])

    def _sums(self, numbers: Sequence[int]) -> tuple[int, ...]:
        sums = [0] * self.count
        for segment, number in zip(self.of_op, numbers, strict=True):
            sums[segment] += number
        return tuple(sums)

    @cached_property
    def of_layer(self) -> dict[int, int]:
        """The segment of each layer whose forward lies in one; containers and the root as a rule have none."""
        chains = chains_of(self.graph.layers)
        seen: dict[int, set[int]] = defaultdict(set)
        for op in self.graph.ops:
            if op.phase == "forward":
                segment = bisect_right(self.starts, op.index) - 1
                for layer in chains[op.layer]:
                    seen[layer].add(segment)
        return {layer: next(iter(segments)) for layer, segments in seen.items() if len(segments) == 1}

    @cached_property
    def of_reader(self) -> dict[int, int]:
        """For each storage that the forward reads, the segment of the first op that does."""
        found: dict[int, int] = {}
        for op in self.graph.ops:
            if op.phase == "forward":
                for view in op.inputs:
                    found.setdefault(view.storage, self.of_op[op.index])
        return found

    @cached_property
    def of_storage(self) -> dict[int, int]:
        """The segment of each activation of the forward: where it is made, or the first later one that reads it.

        What one segment hands to the next is kept for the next one's sake, whatever is done to the one that made it.
        """
        forward = self.graph.phase_ops("forward")
        found = {
            storage.index: self.of_op[storage.born]
            for storage in self.graph.storages
            if storage.role == "activation" and storage.born in forward
        }
        handed: dict[int, int] = {}
        for index in forward:
            here = self.of_op[index]
            for view in self.graph.ops[index].inputs:
                if found.get(view.storage, here) < here:
                    handed.setdefault(view.storage, here)
        return found | handed
