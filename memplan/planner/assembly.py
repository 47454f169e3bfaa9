"""A choice of options made a plan: what trains, and what is done to which layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from memplan.graph.head import layers_in_block
from memplan.graph.step_graph import StepGraph
from memplan.methods.cut import ScheduledOp, schedule
from memplan.methods.lean import LEAN, MASK, merged, unrepeatable, with_lean_layers, with_microbatch, worth_masking
from memplan.methods.method import is_bias
from memplan.methods.plan import Microbatch, Plan, TreatedLayer
from memplan.methods.structure import Structure
from memplan.planner.options import Choice, Option
from memplan.planner.segments import Segments


def assembled(stock: StepGraph, choice: Choice, trained: Collection[str], *, name: str, k: int | None) -> Plan:
    """Return the plan of a choice, its schedule left out.

    Args:
        stock: a recording of the model under stock PyTorch in which everything trains, with its blocks.
        choice: the options of the trained segments.
        trained: the parameters of the trained segments.
        name: what the plan calls its method.
        k: how many blocks train.
    """
    segments = Segments(stock)
    first = segments.count - len(choice.options)
    below = first_use(stock, trained)
    structure = Structure(stock, start_op=below)
    options = dict(enumerate(choice.options, first))
    approximated = [
        block for index, block in enumerate(stock.blocks, 1) if index in options and options[index].approximate
    ]
    inside = {layer for block in approximated for layer in layers_in_block(block, stock.layers)}
    shifted = {"shift-only"} & {name for option in choice.options for name in option.approximate}
    internal = sorted(structure.internal_norms & inside) if shifted else []
    frozen = {
        parameter.name for parameter in stock.parameters if parameter.layer in internal and not is_bias(parameter)
    }
    names = tuple(parameter.name for parameter in stock.parameters if parameter.name in set(trained) - frozen)
    paths = {layer: stock.layers[layer].path for layer in internal}
    plan = Plan(
        name,
        k,
        names,
        gradients="approximate" if approximated else "exact",
        running=tuple(paths[layer] for layer in internal),
        evaluated=tuple(layer.path for layer in structure.prefix),
        fused_update=choice.fused_update,
    )
    if any(layer.index in structure.norms for layer in structure.prefix):
        plan = replace(plan, notes=("the frozen part runs in eval mode: its norms use their running statistics",))
    plan = with_lean_layers(plan, structure, _masked(structure, segments, options))
    signed = tuple({name: name for option in choice.options for name in option.approximate if name == "signed-mask"})
    blocks = tuple(TreatedLayer(block.path, (*signed, MASK, LEAN)) for block in approximated)
    norms = tuple(TreatedLayer(path, ("shift-only", *signed, MASK, LEAN)) for path in paths.values())
    around = {f"{block.path}." for block in approximated}
    outside = tuple(entry for entry in plan.layers if not any(entry.path.startswith(path) for path in around))
    plan = replace(plan, layers=merged(outside, (*blocks, *norms)))
    if choice.samples is not None:
        plan = with_microbatch(plan, structure)
        if plan.microbatch is not None:
            plan = replace(plan, microbatch=Microbatch(plan.microbatch.boundary, choice.samples))
    return plan


def scheduled(step: StepGraph, options: Mapping[int, Option]) -> tuple[ScheduledOp, ...]:
    """Return the schedule of a step in which each segment recomputes at its own price; empty where none does.

    Args:
        step: recorded from the planned model, with its blocks.
        options: of the trained segments, by their index.
    """
    segments = Segments(step)
    prices: dict[int, float] = {}
    for index in step.phase_ops("forward"):
        option = options.get(segments.of_op[index])
        if option is not None and option.price is not None:
            prices[index] = option.price
    if not prices:
        return ()
    found = schedule(step, flops_per_byte=prices)
    return found if any(op.recomputed for op in found) else ()


def _masked(structure: Structure, segments: Segments, options: Mapping[int, Option]) -> frozenset[int]:
    """Return the layers that get bit masks: all that are worth it, or where the rest is recomputed what cannot be."""
    worth, alone = worth_masking(structure), unrepeatable(structure)
    found: set[int] = set()
    for op in structure.forward:
        option = options.get(segments.of_op[op.index])
        if option is not None and op.layer in (worth if option.masked else alone if option.price is not None else ()):
            found.add(op.layer)
    return frozenset(found)


def first_use(graph: StepGraph, trained: Collection[str]) -> int:
    """Return the first forward op that reads a parameter that trains."""
    storages = {parameter.storage for parameter in graph.parameters if parameter.name in trained}
    reading = (
        op.index for op in graph.ops if op.phase == "forward" and any(view.storage in storages for view in op.inputs)
    )
    return next(reading, 0)
