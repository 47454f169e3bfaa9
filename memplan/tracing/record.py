"""Record one training step of a model on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.fx import Graph
from torch.nn.modules import module as module_hooks

from memplan.graph.blocks import find_blocks
from memplan.graph.records import Buffer, Layer, Parameter, Phase
from memplan.graph.step_graph import StepGraph
from memplan.tracing.fake import FakeModel, fake_model
from memplan.tracing.fx import fx_graph
from memplan.tracing.lowering import lower
from memplan.tracing.machine import machine_of
from memplan.tracing.recorder import Call, Recorder
from memplan.tracing.step import Loss, forward_of, run_step, tensors_in, uncollected


@dataclass(frozen=True)
class StepRecord:
    """One recorded training step: the calls, and the torch-free StepGraph lowered from them.

    ``given`` names what exists before the step, with its storage.
    """

    step: StepGraph
    calls: tuple[Call, ...]
    given: tuple[tuple[str, int], ...]

    @cached_property
    def graph(self) -> Graph:
        """The step as a ``torch.fx`` graph, in which each op is a ``call_function`` node.

        Its ``meta`` names phase, layer, storages and FLOPs. An op with several results is one node. What exists before
        the step is a placeholder.
        """
        return fx_graph(self.calls, self.given)


def record_step(model: FakeModel, *, loss: Loss | None = None, amp: torch.dtype | None = None) -> StepRecord:
    """Record forward, loss and backward of ``model`` with gradients absent before, as in any step after zero_grad.

    Raises:
        AnalysisError: the model fails on its inputs, or needs values that fake tensors do not have; the message names
            the layer that was reached.
    """
    recorder = Recorder(model.mode)
    layers = tuple(layers_of(model.module))
    saved: list[int] = []
    parameters = {
        id(tensor): recorder.give(name, tensor, "parameter") for name, tensor in model.module.named_parameters()
    }
    buffers = {name: recorder.give(name, tensor, "buffer") for name, tensor in model.module.named_buffers()}
    for name, tensor in model.tensors():
        recorder.give(name, tensor, "input")

    def enter(phase: Phase) -> None:
        if phase == "loss":
            saved.extend(life.index for life in recorder.held())
        recorder.phase, recorder.layer = phase, 0

    for parameter in model.module.parameters():
        parameter.grad = None
    hooks = torch.autograd.graph.saved_tensors_hooks(recorder.pack, recorder.unpack)
    with (
        model.explained(recorder, layers),
        uncollected(),
        model.mode,
        recorder,
        _layers_told(model.module, recorder),
        hooks,
    ):
        run_step(model.module, model.args, model.kwargs, loss=loss, amp=amp, enter=enter)
    step = lower(
        recorder,
        machine=machine_of(model.device),
        layers=layers,
        parameters=tuple(_parameters(model.module, recorder, layers, parameters)),
        saved=tuple(sorted(saved)),
        outputs=tuple(sorted(recorder.outputs)),
        unpriced=tuple(f"tensors of layout {layout}" for layout in sorted(recorder.unpriced)),
        buffers=tuple(_buffers(buffers, layers)),
    )
    return StepRecord(step, tuple(recorder.calls), tuple(recorder.given))


def trace(
    model: torch.nn.Module,
    inputs: Any = (),
    *,
    loss: Loss | None = None,
    amp: torch.dtype | None = None,
    device: str | None = None,
) -> StepRecord:
    """Return the record of one training step of ``model`` as it is: its mode, and what its parameters require.

    Args:
        model: any module, on any device; it is copied to fake tensors and not changed.
        inputs: what its forward takes: a tensor, a tuple, or a dict of keyword arguments; meta tensors will do.
        loss: from the model's output to a scalar; by default the sum of the means of all float outputs.
        amp: run forward and loss under autocast with this dtype.
        device: where the step would run; by default where the model is.

    Raises:
        AnalysisError: the model cannot be copied or its step cannot be recorded.
    """
    record = record_step(fake_model(model, *forward_of(inputs), device=device), loss=loss, amp=amp)
    step = record.step
    blocks = find_blocks(step.layers, step.ops, step.storages, step.parameters)
    return replace(record, step=replace(step, blocks=blocks))


def layers_of(module: torch.nn.Module) -> Iterator[Layer]:
    """Yield the model's modules in definition order, the root first; a shared module appears once."""
    containers = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)
    for index, (path, child) in enumerate(module.named_modules()):
        yield Layer(index, path, type(child).__name__, type(child) in containers)


def _parameters(
    module: torch.nn.Module, recorder: Recorder, layers: tuple[Layer, ...], storages: Mapping[int, int | None]
) -> Iterator[Parameter]:
    layer_of = {layer.path: layer.index for layer in layers}
    for name, tensor in module.named_parameters():
        storage = storages[id(tensor)]
        if storage is None:
            continue
        gradient = None if tensor.grad is None else recorder.give(f"{name}.grad", tensor.grad, "gradient")
        layer = layer_of[name.rpartition(".")[0]]
        yield Parameter(name, layer, storage, tensor.numel(), tensor.requires_grad, gradient)


def _buffers(storages: Mapping[str, int | None], layers: tuple[Layer, ...]) -> Iterator[Buffer]:
    layer_of = {layer.path: layer.index for layer in layers}
    for name, storage in storages.items():
        if storage is not None:
            yield Buffer(name, layer_of[name.rpartition(".")[0]], storage)


@contextmanager
def _layers_told(root: torch.nn.Module, recorder: Recorder) -> Iterator[None]:
    """Tell the recorder which module runs, through hooks on all modules rather than on the user's."""
    index_of = {id(child): index for index, child in enumerate(root.modules())}
    entered: list[tuple[int, int, bool]] = []  # a module that runs, and what was told before it began

    def leave(module: int) -> None:
        while entered:
            last, recorder.layer, recorder.in_module = entered.pop()
            if last == module:
                return

    def before(module: torch.nn.Module, args: Any) -> None:
        index = index_of.get(id(module))
        if index is None:
            return
        if any(index == running for running, _, _ in entered):
            leave(index)  # it was left by an interruption, which calls no hooks, and begins anew
        entered.append((index, recorder.layer, recorder.in_module))
        recorder.layer, recorder.in_module = index, True

    def after(module: torch.nn.Module, args: Any, output: Any) -> None:
        index = index_of.get(id(module))
        if index is not None and any(index == running for running, _, _ in entered):
            leave(index)
        if module is root:
            recorder.note_outputs(tensors_in(output))

    handles = [
        module_hooks.register_module_forward_pre_hook(before),
        module_hooks.register_module_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
