"""prefix-microbatch: the frozen prefix runs a few samples at a time, and hands the whole batch on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from memplan.methods.plan import Microbatch


class PrefixRun:
    """One forward whose samples run apart up to the output of one module.

    The model's own forward runs for each part and is left when the module has answered. The last part runs on: in the
    module's answer it meets the answers of all, and what follows sees the whole batch.
    """

    def __init__(self, how: Microbatch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._boundary = how.boundary
        self._samples = how.samples
        self._inputs = (args, kwargs)
        tensors = [leaf for leaf in pytree.tree_leaves(self._inputs) if isinstance(leaf, torch.Tensor)]
        self._batch = next((tensor.shape[0] for tensor in tensors if tensor.dim()), 0)
        # Whoever asks for an input's gradient needs the prefix in one piece, with its graph.
        self._whole_at_once = self._batch <= self._samples or any(tensor.requires_grad for tensor in tensors)
        self._whole: torch.Tensor | None = None
        self._done = 0
        self._answered: Callable[[Any], Any] | None = None

    def run_all_but_last(self, forward: Callable[..., Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Run every part but the last up to the boundary; return the inputs of the last part."""
        if self._whole_at_once:
            return self._inputs
        last = (self._batch - 1) // self._samples * self._samples
        self._answered = self._leave
        with torch.no_grad():
            for first in range(0, last, self._samples):
                args, kwargs = self._part(first, first + self._samples)
                try:
                    forward(*args, **kwargs)
                except _Reached:
                    del args, kwargs
                else:  # this forward takes another way
                    self._answered = self._whole = None
                    return self._inputs
        self._answered = self._deliver
        inputs: tuple[tuple[Any, ...], dict[str, Any]] = self._part(last, self._batch)
        return inputs

    def answered(self, path: str, output: Any) -> Any:
        """Return what the module at ``path`` gives, having made ``output``."""
        return output if self._answered is None or path != self._boundary else self._answered(output)

    def _part(self, first: int, end: int) -> Any:
        def cut(leaf: Any) -> Any:
            whole = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == self._batch
            return leaf[first:end] if whole else leaf

        return pytree.tree_map(cut, self._inputs)

    def _leave(self, output: torch.Tensor) -> None:
        self._add(output)
        raise _Reached

    def _deliver(self, output: torch.Tensor) -> torch.Tensor | None:
        with torch.no_grad():
            self._add(output)
        self._answered = None
        whole, self._whole = self._whole, None
        return whole

    def _add(self, output: torch.Tensor) -> None:
        if self._whole is None:
            self._whole = output.new_empty((self._batch, *output.shape[1:]))
            if output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last):
                self._whole = self._whole.contiguous(memory_format=torch.channels_last)
        self._whole[self._done : self._done + output.shape[0]].copy_(output)
        self._done += output.shape[0]


class _Reached(BaseException):
    """The boundary has answered; the rest of this forward is not needed. No failure, which a model might catch."""
