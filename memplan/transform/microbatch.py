"""prefix-microbatch: the frozen prefix runs a few samples at a time, and hands the whole batch on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from memplan.methods.plan import Microbatch


class PrefixRun:
    """One forward whose samples run apart up to the output of one module.

    The model's own forward runs for each part and is left when the module has answered. The last part runs on: in the
    module's answer it meets the answers of all, and what follows sees the whole batch.
    """

    def __init__(self, root: nn.Module, how: Microbatch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._root = root
        self._boundary = root.get_submodule(how.boundary)
        self._samples = how.samples
        self._inputs = (args, kwargs)
        self._batch = next(
            (
                leaf.shape[0]
                for leaf in pytree.tree_leaves(self._inputs)
                if isinstance(leaf, torch.Tensor) and leaf.dim()
            ),
            0,
        )
        self._whole: torch.Tensor | None = None
        self._done = 0

    def run_all_but_last(self, layers: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Run every part but the last up to the boundary; return the inputs of the last part."""
        if self._batch <= self._samples:
            return self._inputs
        last = (self._batch - 1) // self._samples * self._samples
        layers.intercept = self._leave
        depth = list(layers._stack), layers.current
        with torch.no_grad():
            for first in range(0, last, self._samples):
                args, kwargs = self._part(first, first + self._samples)
                try:
                    self._root.forward(*args, **kwargs)
                except _Reached:
                    layers._stack[:], layers.current = list(depth[0]), depth[1]
                del args, kwargs
        layers.intercept = self._deliver
        return self._part(last, self._batch)

    def _part(self, first: int, end: int) -> Any:
        def cut(leaf: Any) -> Any:
            whole = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == self._batch
            return leaf[first:end] if whole else leaf

        return pytree.tree_map(cut, self._inputs)

    def _leave(self, module: nn.Module, output: Any) -> None:
        if module is self._boundary:
            self._add(output)
            raise _Reached

    def _deliver(self, module: nn.Module, output: Any) -> Any:
        if module is not self._boundary:
            return None
        with torch.no_grad():
            self._add(output)
        whole, self._whole = self._whole, None
        return whole

    def _add(self, output: torch.Tensor) -> None:
        if self._whole is None:
            self._whole = output.new_empty((self._batch, *output.shape[1:]))
            if output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last):
                self._whole = self._whole.contiguous(memory_format=torch.channels_last)
        self._whole[self._done : self._done + output.shape[0]].copy_(output)
        self._done += output.shape[0]


class _Reached(Exception):
    """The boundary has answered; the rest of this forward is not needed."""
