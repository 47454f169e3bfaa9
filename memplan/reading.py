"""What the step of a check needs: run as it asks, priced, and taken apart by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memplan.gate.records import Check, LayerPart, PricedStep, Reading, layer_name
from memplan.graph.step_graph import StepGraph
from memplan.memory import Footprint, price
from memplan.memory.estimate import lower_estimate, upper_estimate
from memplan.memory.parts import Parts, parts_of
from memplan.methods import Plan, method_named
from memplan.methods.method import runners_of
from memplan.setting import check_k, implementation_of, setting_of
from memplan.shapes import format_shape
from memplan.steps import RunnerStep, Steps


@dataclass(frozen=True, slots=True)
class Priced:
    """The step of a check, who runs it, how the method is called, and its quantity by layer."""

    step: PricedStep
    runner: str
    method: str
    parts: Parts
    first_bytes: int

    @property
    def predicted_bytes(self) -> int:
        """The quantity; of the peak that of the first step, where it needs ``first_bytes`` more than the steady one."""
        return self.parts.bytes + self.first_bytes


def priced(steps: Steps, check: Check, plan: Plan | None = None) -> Priced:
    """Return the step of a check, with ``plan`` in the place of its method, and what it needs.

    Raises:
        UsageError, AnalysisError: a combination that does not work, or the step cannot be recorded.
    """
    ran, runner, method = _ran(steps, check, plan)
    footprint = price(ran.step, check.optimizer, ran.implementation)
    parts = parts_of(ran.step, footprint, check.of, ran.implementation)
    # The first step, before the optimizer has state, needs less but for updates that meet the last activations.
    first = max(0, footprint.first_step_peak_bytes - footprint.peak_bytes) if check.of == "peak" else 0
    step = PricedStep(f"{runner} {method}", ran.step, footprint, ran.implementation, ran.plan)
    return Priced(step, runner, method, parts, first)


def reading_of(steps: Steps, check: Check, priced: Priced) -> Reading:
    """Return what the step of a check needs, given the step."""
    step, predicted = priced.step, priced.predicted_bytes
    setting = setting_of(steps.subject, steps, check.optimizer, step.implementation)
    return Reading(
        of=check.of,
        bytes=upper_estimate(predicted, check.of),
        predicted_bytes=predicted,
        lower_bytes=lower_estimate(predicted, check.of),
        where=_where(step.graph, step.footprint, priced.parts),
        model=setting.model,
        inputs=setting.inputs,
        dtype=setting.dtype if setting.amp is None else f"{setting.dtype}, autocast {setting.amp}",
        method=priced.method,
        runner=priced.runner,
        optimizer=f"{setting.optimizer} ({setting.implementation})",
        machine=setting.machine,
        rest_bytes=priced.parts.rest + priced.first_bytes,
        layers=tuple(_layers(step.graph, step.footprint, priced.parts)),
        unpriced=step.footprint.unpriced,
    )


def _ran(steps: Steps, check: Check, plan: Plan | None) -> tuple[RunnerStep, str, str]:
    how = implementation_of(check.foreach, steps.model.device.type)
    if plan is not None:
        step = RunnerStep(steps.run(plan), "in-backward" if plan.fused_update else how, plan)
        return step, "memplan", f"plan {plan.label}"
    check_k(check.k)
    method = method_named(check.method)
    blocks = steps.settled_k(method, check.k)
    runner = runners_of(method, check.runner, check.treatments)[0]
    step = steps.by_runner(
        runner, method, blocks, treatments=check.treatments, optimizer=check.optimizer, implementation=how
    )
    return step, runner, method.name if blocks is None else f"{method.name} k={blocks}"


def _where(graph: StepGraph, footprint: Footprint, parts: Parts) -> str:
    """Return the moment at which the quantity is largest, in words."""
    if parts.moment is None:
        return "end of the forward"
    if parts.moment >= len(graph.ops):
        return "optimizer.step"
    op = graph.ops[parts.moment]
    layer = graph.layers[op.layer].path
    name = op.name.split(".")[1] if op.name.count(".") else op.name
    return f"{footprint.timeline.phases[parts.moment]} of {layer_name(layer)}, {name}"


def _layers(graph: StepGraph, footprint: Footprint, parts: Parts) -> Iterator[LayerPart]:
    """Yield the layers that have bytes of any kind, in the model's order."""
    outputs = {op.layer: op.outputs for op in graph.ops if op.phase == "forward"}
    trained = {parameter.layer for parameter in graph.parameters if parameter.trains}
    index_of = {layer.path: layer.index for layer in graph.layers}
    own = {index_of[layer.path]: layer for layer in footprint.layers}
    for index in sorted({*own, *parts.layers}):
        layer, bytes_of = graph.layers[index], own.get(index)
        shape = next((view.shape for view in outputs.get(index, ()) if view is not None), ())
        yield LayerPart(
            layer=layer.path,
            type=layer.type,
            output=format_shape(shape) if shape else "",
            trains=index in trained,
            bytes=parts.layers.get(index, 0),
            saved_bytes=0 if bytes_of is None else bytes_of.saved_bytes,
            temp_bytes=0 if bytes_of is None else bytes_of.temp_bytes,
            held_bytes=0
            if bytes_of is None
            else bytes_of.parameter_bytes + bytes_of.gradient_bytes + bytes_of.state_bytes,
        )
