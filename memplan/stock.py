"""Steps of stock PyTorch: one model on fake tensors, recorded anew for each choice of what trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from memplan.errors import AnalysisError, MemplanError, UsageError
from memplan.graph.blocks import find_blocks
from memplan.graph.head import head_layers, layers_above, parameters_used
from memplan.graph.records import Block
from memplan.graph.step_graph import StepGraph
from memplan.methods import Method, Scope
from memplan.subject import AMP_DTYPES, Subject

if TYPE_CHECKING:
    from torch import nn

#: Blocks that ``top-k`` trains when k is not given, or all of them in a model that has fewer.
DEFAULT_K: Final = 5


class StockSteps:
    """Records the steps of one subject under stock PyTorch, each choice of what trains once.

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
        self._loss = subject.loss
        self._amp = None if subject.amp is None else getattr(torch, AMP_DTYPES[subject.amp])
        self._own = frozenset(name for name, tensor in self.model.module.named_parameters() if tensor.requires_grad)
        self._structure: StepGraph | None = None

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
            AnalysisError: the method trains nothing of this model.
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
            raise AnalysisError(f"method {method.name!r} trains no parameter of this model; use full or as-is")
        return chosen

    def step(self, method: Method, k: int | None = None) -> StepGraph:
        """Return the recorded step of ``method``.

        Raises:
            UsageError, AnalysisError: see :meth:`trained`; or the model's step cannot be recorded.
        """
        graph = self._record(self.trained(method, k))
        if self._structure is None:
            self._structure = _with_blocks(graph)
        return replace(graph, blocks=self._structure.blocks)

    def _record(self, trained: frozenset[str]) -> StepGraph:
        from memplan.tracing import record_step

        choose_trained(self.model.module, trained)
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
        head = frozenset(head_layers(graph.layers, graph.ops, graph.storages, graph.parameters, graph.blocks))
        above = frozenset(layers_above(k or 0, graph.blocks, graph.ops, graph.parameters))
        return Scope(
            layers=graph.layers,
            # A weight tied to an embedding bears the embedding's name, and is the head's all the same.
            head=frozenset(graph.parameters[i].name for i in parameters_used(graph.ops, graph.parameters, layers=head)),
            top=frozenset(parameter.name for parameter in graph.parameters if parameter.layer in above),
        )


def _with_blocks(graph: StepGraph) -> StepGraph:
    return replace(graph, blocks=find_blocks(graph.layers, graph.ops, graph.storages, graph.parameters))


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
