"""What runs a planned model: a hook on its root that is there for the time of a forward, and no longer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Final, TypeAlias

import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode

from memplan.layers.recompute import Recompute
from memplan.layers.tune import tuned_convolution
from memplan.methods.plan import Plan
from memplan.methods.treatments import treatment_named
from memplan.transform.microbatch import PrefixRun

#: For a function of torch, what to try in its place, in this order.
Treated: TypeAlias = "Mapping[Callable[..., Any], tuple[Callable[..., Any], ...]]"

_NOTHING: Final[Treated] = {}


class Runtime:
    """A plan at work on one module. It holds the plan alone, so that the module can be copied and pickled with it.

    While a forward runs that records gradients, a mode sees each function that the model calls, and calls in its place
    what the plan says for the layer that runs. The modules and their parameters stay what they are.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._bound: _Bound | None = None
        self._open: list[ExitStack] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"plan": self.plan}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["plan"])  # type: ignore[misc]

    def before(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Begin a forward of ``root``: a forward pre-hook."""
        stack = ExitStack()
        self._open.append(stack)
        if torch.compiler.is_compiling():
            return None
        bound = self._bound
        if bound is None or bound.root is not root:
            bound = self._bound = _Bound(root, self.plan)
        for module in bound.fixed:
            module.training = False
        if not torch.is_grad_enabled():
            return None
        layers = stack.enter_context(_LayersTold(bound.index_of))
        if self.plan.microbatch is not None and root.training:
            prefix = PrefixRun(root, self.plan.microbatch, args, kwargs)
            args, kwargs = prefix.run_all_but_last(layers)
        stack.enter_context(_Substitution(bound.tables, layers))
        if self.plan.schedule:
            stack.enter_context(Recompute(self.plan.schedule))
        return args, kwargs

    def after(self, root: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ARG002  # a hook's signature
        """End a forward, also one that has failed: a forward hook that is always called."""
        self._open.pop().close()


class _Bound:
    """A plan looked up in one module: which functions are treated in which layer. Not copied: it names objects."""

    def __init__(self, root: nn.Module, plan: Plan) -> None:
        self.root = root
        modules = dict(root.named_modules())
        self.index_of = {id(module): index for index, module in enumerate(modules.values())}
        self.fixed = [modules[path] for path in (*plan.running, *plan.evaluated)]
        given = {layer.path: _table(layer.treatments) for layer in plan.layers}
        self.tables: list[Treated] = []
        by_path: dict[str, Treated] = {}
        for path in modules:
            own = given.get(path)
            if own is None:
                own = by_path.get(path.rpartition(".")[0], _NOTHING) if path else _NOTHING
            by_path[path] = own
        for pair in plan.tuned:
            norm = modules[pair.norm]
            by_path[pair.convolution] = {**by_path[pair.convolution], **_tuned(norm)}
            by_path[pair.norm] = {**by_path[pair.norm], torch.nn.functional.batch_norm: (_already_normed,)}
        self.tables = [by_path[path] for path in modules]


def _table(treatments: tuple[str, ...]) -> Treated:
    table: dict[Callable[..., Any], tuple[Callable[..., Any], ...]] = {}
    for name in treatments:
        twin = importlib.import_module(treatment_named(name).twin)
        for function, treated in twin.REPLACEMENTS.items():
            table[function] = (*table.get(function, ()), treated)
    return table


def _tuned(norm: Any) -> Iterator[tuple[Callable[..., Any], tuple[Callable[..., Any], ...]]]:
    def replacement(function: Callable[..., Any]) -> Callable[..., Any]:
        def convolution(*args: Any, **kwargs: Any) -> Any:
            return tuned_convolution(
                function,
                *args,
                running_mean=norm.running_mean,
                running_var=norm.running_var,
                gamma=norm.weight,
                beta=norm.bias,
                eps=norm.eps,
                **kwargs,
            )

        return convolution

    return {function: (replacement(function),) for function in _CONVOLUTIONS}  # type: ignore[return-value]


_CONVOLUTIONS: Final = (
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
)


def _already_normed(input: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Return the result of a convolution that ran with its norm folded in."""
    return input


class _LayersTold:
    """While it is entered, knows the index of the innermost module of the model that runs."""

    def __init__(self, index_of: Mapping[int, int]) -> None:
        self._index_of = index_of
        self._stack: list[int] = []
        self.current = 0
        self.intercept: Callable[[nn.Module, Any], Any] | None = None

    def __enter__(self) -> _LayersTold:
        self._handles = (
            module_hooks.register_module_forward_pre_hook(self._before),
            module_hooks.register_module_forward_hook(self._after, always_call=True),
        )
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002  # a hook's signature
        index = self._index_of.get(id(module))
        if index is not None:
            self._stack.append(self.current)
            self.current = index

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG002  # a hook's signature
        if id(module) not in self._index_of:
            return None
        if self._stack:  # the root began before there were hooks
            self.current = self._stack.pop()
        return None if self.intercept is None else self.intercept(module, output)


class _Substitution(TorchFunctionMode):
    """Call, in place of a function of torch, what the plan says for the layer that runs."""

    def __init__(self, tables: list[Treated], layers: _LayersTold) -> None:
        super().__init__()
        self._tables = tables
        self._layers = layers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for treated in self._tables[self._layers.current].get(func, ()):
            result = treated(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)
