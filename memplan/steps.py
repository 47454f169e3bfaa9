"""Steps of one model on fake tensors: under stock PyTorch for each choice of what trains, and as memplan runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from memplan.errors import AnalysisError, MemplanError, NothingTrainsError, UsageError
from memplan.graph.blocks import find_blocks, located_blocks
from memplan.graph.head import end_of_module, head_layers, layers_above, parameters_used
from memplan.graph.records import Block
from memplan.graph.step_graph import StepGraph
from memplan.memory import Implementation, price
from memplan.methods import Method, Plan, Scope, Structure
from memplan.methods.lean import with_everywhere
from memplan.methods.plan import Microbatch
from memplan.methods.recomputation import RECOMPUTED_SHARE, bounded_schedule
from memplan.methods.treatments import treatment_named
from memplan.methods.tune import with_confirmed_pairs
from memplan.methods.untreated import untreated
from memplan.subject import AMP_DTYPES, Subject, first_batch

if TYPE_CHECKING:
    from torch import nn

#: Blocks that train when k is not given, or all of them in a model that has fewer.
DEFAULT_K: Final = 5


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A plan, the step it gives when memplan runs it, and how its optimizer updates."""

    plan: Plan
    step: StepGraph
    implementation: Implementation


@dataclass(frozen=True, slots=True)
class RunnerStep:
    """The step of a method as a runner gives it, and how its optimizer updates; stock PyTorch's has no plan."""

    step: StepGraph
    implementation: Implementation
    plan: Plan | None = None


class Steps:
    """Records the steps of one subject, each choice of what trains once.

    The blocks are found on the first recording; where a method needs them before there is one, the forward alone is
    recorded.
    """

    def __init__(self, subject: Subject, device: str | None = None) -> None:
        """Make the fake copy that is recorded.

        Raises:
            UsageError, AnalysisError: the model cannot be built or copied.
        """
        import torch

        from memplan.tracing import fake_model
        from memplan.tracing.fake import one_line

        try:
            module, args, kwargs = subject.built("meta")
        except MemplanError:
            raise
        except Exception as error:
            raise AnalysisError(
                f"{subject.name} cannot be built with its inputs: {one_line(error)}; "
                "check the batch and the input's shape"
            ) from error
        self.model = fake_model(module, args, kwargs, device=device)
        if subject.training is not None:
            self.model.module.train(subject.training)
        self.subject = subject
        self._loss = subject.loss
        self._amp = None if subject.amp is None else getattr(torch, AMP_DTYPES[subject.amp])
        self._own = frozenset(name for name, tensor in self.model.module.named_parameters() if tensor.requires_grad)
        self._structure: StepGraph | None = None
        self._recorded: dict[frozenset[str], StepGraph] = {}
        self._run: dict[Plan, StepGraph] = {}

    def named(self, plan: Plan) -> Plan:
        """Return a plan with the fingerprint of this model."""
        from memplan.transform.apply import fingerprint

        return replace(plan, model=fingerprint(self.model.module))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The model's blocks, from its input to its output."""
        return self._structured().blocks

    def settled_k(self, method: Method, k: int | None) -> int | None:
        """Return how many blocks train under ``method``: as asked, else ``DEFAULT_K``; ``None`` if it takes no k."""
        if not method.needs_k:
            return None
        return min(DEFAULT_K, len(self.blocks)) if k is None else k

    def trained(self, method: Method, k: int | None = None) -> frozenset[str]:
        """Return the names of the parameters that train under ``method``.

        Raises:
            UsageError: ``k`` does not fit the model.
            NothingTrainsError: the method trains nothing of this model.
        """
        names = [name for name, _ in self.model.module.named_parameters()]
        if method.name == "as-is":
            return self._own
        if method.name == "full":
            return frozenset(names)
        graph = self._structured()
        scope = self._scope(graph, method, k)
        chosen = frozenset(parameter.name for parameter in graph.parameters if method.trains(parameter, scope))
        if not chosen:
            raise NothingTrainsError(f"method {method.name!r} trains no parameter of this model; use full or as-is")
        return chosen

    def step(self, method: Method, k: int | None = None) -> StepGraph:
        """Return the recorded step of ``method`` under stock PyTorch.

        Raises:
            UsageError, AnalysisError: see :meth:`trained`; or the model's step cannot be recorded.
        """
        trained = self.trained(method, k)
        if trained not in self._recorded:
            graph = self._record(trained)
            if self._structure is None:
                self._structure = _with_blocks(graph)
            self._recorded[trained] = located_blocks(graph, self._structure.blocks)
        return self._recorded[trained]

    def by_runner(
        self,
        runner: str,
        method: Method,
        k: int | None = None,
        *,
        treatments: Sequence[str] = (),
        optimizer: str = "sgd",
        implementation: Implementation = "loop",
    ) -> RunnerStep:
        """Return the step of ``method`` that ``runner`` gives: :meth:`step` of stock, :meth:`planned` of memplan.

        Raises:
            UsageError, AnalysisError: see there.
        """
        if runner == "memplan":
            made = self.planned(method, k, treatments=treatments, optimizer=optimizer, implementation=implementation)
            return RunnerStep(made.step, made.implementation, made.plan)
        return RunnerStep(self.step(method, k), implementation)

    def notes_on(self, method: Method) -> tuple[str, ...]:
        """Return what is to be said of ``method`` on this model, whoever runs it; mostly nothing."""
        return ("the model has no blocks: the head alone trains",) if method.needs_k and not self.blocks else ()

    def planned(
        self,
        method: Method,
        k: int | None = None,
        *,
        treatments: Sequence[str] = (),
        optimizer: str = "sgd",
        implementation: Implementation = "loop",
        recomputed_share: float = RECOMPUTED_SHARE,
    ) -> PlannedStep:
        """Return the plan of ``method`` and its step as memplan runs it, recorded from the planned model.

        ``treatments`` are given to all layers beside the method's own; where the method recomputes, it may add
        ``recomputed_share`` of the step's FLOPs.

        Raises:
            UsageError, AnalysisError: see :meth:`trained`; or the step cannot be recorded.
        """
        trained = self.trained(method, k)
        # Which parameters train decides what stock keeps, and so what is worth a mask; where weights are frozen and
        # convolutions keep nothing, all masks are, and any recording shows the layers.
        stock = self._structured() if method.any_recording else self.step(method, k)
        names = tuple(parameter.name for parameter in stock.parameters if parameter.name in trained)
        plan = Plan(method.name, k, names, method.gradients)
        if method.treat is not None:
            plan = method.treat(plan, Structure(stock, k if method.needs_k else None))
        for name in treatments:
            plan = with_everywhere(plan, treatment_named(name), stock)
        plan = replace(plan, notes=(*plan.notes, *self.notes_on(method)))
        step = self.run(replace(plan, microbatch=None))
        if plan.tuned:
            tuned, plan = plan, with_confirmed_pairs(plan, step, stock)
            step = step if plan is tuned else self.run(plan)
        if plan.microbatch is not None:
            plan, step = self._in_parts(plan, plan.microbatch, step)
        if method.recomputes:
            plan = replace(plan, schedule=bounded_schedule(located_blocks(step, stock.blocks), recomputed_share))
            if not any(op.recomputed for op in plan.schedule):
                plan = replace(plan, notes=(*plan.notes, "recompute does not apply: nothing kept is worth its price"))
            step = self.run(plan)
        if plan.fused_update:
            early, late = (price(step, optimizer, how, alive=0).peak_bytes for how in ("in-backward", implementation))
            if late < early:
                note = (
                    f"fused-update is left out: {optimizer}'s temporaries would meet more activations in the backward"
                )
                plan = replace(plan, fused_update=False, notes=(*plan.notes, note))
        if not method.recomputes:
            plan = replace(plan, untreated=untreated(step))
        return PlannedStep(plan, step, "in-backward" if plan.fused_update else implementation)

    def run(self, plan: Plan) -> StepGraph:
        """Return the recorded step of the model as ``plan`` makes it; what is recorded once is not recorded again.

        Raises:
            AnalysisError: the plan is for another model, or its step cannot be recorded.
        """
        from memplan.transform.apply import apply_, restore_

        # What does not change the model does not change its step.
        at_work = replace(
            plan, method="", k=None, gradients="exact", fused_update=False, notes=(), untreated=(), model=None
        )
        if at_work not in self._run:
            module = self.model.module
            with self.model.mode:
                apply_(module, plan)
            try:
                self._run[at_work] = self._recording()
            finally:
                with self.model.mode:
                    restore_(module, keep_branches=False)
        return self._run[at_work]

    def _in_parts(self, plan: Plan, parts: Microbatch, whole: StepGraph) -> tuple[Plan, StepGraph]:
        """Return the plan with its prefix in parts as large as the rest of the step leaves room for, and its step.

        ``whole`` is the step with the prefix as one batch. Where that does not set the peak, it stays one.
        """
        plain = replace(plan, microbatch=None)
        totals = price(whole, alive=0).timeline.totals
        end = end_of_module(parts.boundary, whole.layers, whole.ops)
        rest, prefix = max(totals[end:]), max(totals[:end])
        if prefix <= rest:
            return plain, whole
        # Beside the parts there are what is resident, the inputs, and the output of the whole batch.
        fixed = totals[0] + sum(whole.storages[view.storage].bytes for view in whole.ops[end - 1].outputs[:1] if view)
        batch = first_batch(self.model.args, self.model.kwargs) or 1
        samples = max(1, min(batch - 1, int(batch * (rest - fixed) / max(prefix - fixed, 1))))
        plan = replace(plan, microbatch=Microbatch(parts.boundary, samples))
        try:
            step = self.run(plan)
        except AnalysisError:
            step = None
        if step is None or loss_shapes(step) != loss_shapes(whole):
            note = "the frozen prefix runs as one batch: the model's forward uses the size of its batch"
            return replace(plain, notes=(*plan.notes, note)), whole
        return (plan, step) if price(step, alive=0).peak_bytes < max(totals) else (plain, whole)

    def _record(self, trained: frozenset[str]) -> StepGraph:
        choose_trained(self.model.module, trained)
        return self._recording()

    def _recording(self) -> StepGraph:
        from memplan.tracing import record_step

        graph = record_step(self.model, loss=self._loss, amp=self._amp).step
        for problem in mixed_dtypes(graph):
            raise AnalysisError(f"{problem}; check the dtype of the inputs")
        return graph

    def _structured(self) -> StepGraph:
        if self._structure is None:
            self._structure = _with_blocks(self._record(frozenset()))
        return self._structure

    def _scope(self, graph: StepGraph, method: Method, k: int | None) -> Scope:
        count = len(graph.blocks)
        if method.needs_k and (k is None or not 0 <= k <= count):
            raise UsageError(f"k must be from 0 to {count}, the blocks of this model, not {k}")
        internal = Structure(graph, k).internal_norms if method.needs_k else frozenset()
        head = frozenset(head_layers(graph.layers, graph.ops, graph.storages, graph.parameters, graph.blocks))
        above = frozenset(layers_above(k or 0, graph.blocks, graph.ops, graph.parameters))
        return Scope(
            layers=graph.layers,
            # A weight tied to an embedding bears the embedding's name, and is the head's all the same.
            head=frozenset(graph.parameters[i].name for i in parameters_used(graph.ops, graph.parameters, layers=head)),
            top=frozenset(parameter.name for parameter in graph.parameters if parameter.layer in above),
            internal_norms=internal,
        )


def _with_blocks(graph: StepGraph) -> StepGraph:
    return replace(graph, blocks=find_blocks(graph.layers, graph.ops, graph.storages, graph.parameters))


def loss_shapes(graph: StepGraph) -> list[tuple[int, ...]]:
    """Return the shapes of what the loss is made of: a model that runs in parts must give the whole batch's."""
    return [view.shape for op in graph.ops if op.phase == "loss" for view in op.inputs]


def mixed_dtypes(graph: StepGraph) -> Iterator[str]:
    """Yield, for each product of tensors of different dtypes in the forward, its layer and the dtypes.

    Fake tensors multiply these, real ones do not.
    """
    for op in graph.ops:
        dtypes = list(dict.fromkeys(view.dtype for view in op.inputs))
        if op.phase == "forward" and op.name in _PRODUCTS and len(dtypes) > 1:
            layer = graph.layers[op.layer]
            yield f"layer {layer.path!r} ({layer.type}) multiplies {' by '.join(dtypes)}, which PyTorch refuses"


#: Operators whose tensors must have one dtype.
_PRODUCTS: Final = frozenset(f"aten.{name}.default" for name in ("mm", "addmm", "bmm", "baddbmm", "convolution"))


def choose_trained(module: nn.Module, trained: frozenset[str]) -> None:
    """Set ``requires_grad`` of every parameter of ``module``: true for the names in ``trained``;
    gradients are dropped.
    """
    for name, tensor in module.named_parameters():
        tensor.requires_grad_(name in trained)
        tensor.grad = None
