"""What runs a planned model: a forward in each module's place that says, while it runs, which layer runs."""

from __future__ import annotations

import importlib
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeAlias

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from memplan.errors import AnalysisError, UsageError
from memplan.layers.recompute import Recompute
from memplan.layers.tune import tuned_convolution
from memplan.methods.plan import Plan
from memplan.methods.treatments import treatment_named
from memplan.transform.microbatch import PrefixRun

#: For a function of torch, what to try in its place, in this order.
Treated: TypeAlias = "Mapping[Callable[..., Any], tuple[Callable[..., Any], ...]]"

_NOTHING: Final[Treated] = {}


class Runtime:
    """A plan at work on the modules of one model. It holds the plan alone, so that a model is copied and pickled whole.

    While a forward runs that records gradients, a mode sees each function that the model calls, and calls in its place
    what the plan says for the layer that runs. The modules, their hooks and their parameters stay what they are.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.modules: dict[str, weakref.ref[nn.Module]] = {}
        self._tables: dict[str, Treated] | None = None
        self._here = threading.local()
        self._fixed = _Fixed()

    def __reduce__(self) -> Any:
        return Runtime, (self.plan,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Runtime:
        return Runtime(self.plan)

    @property
    def run(self) -> Run | None:
        """The forward that this thread is in."""
        return getattr(self._here, "run", None)

    @property
    def tables(self) -> dict[str, Treated]:
        """What is treated in each module, by its path.

        Raises:
            UsageError: there is no treatment of a name that the plan gives.
        """
        if self._tables is None:
            self._tables = _tables(self.plan, self.modules)
        return self._tables

    def add(self, path: str, module: nn.Module) -> None:
        """Count a module in."""
        self.modules[path] = weakref.ref(module)
        self._tables = None

    @contextmanager
    def running(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Run]:
        """Begin a forward of the module at ``path``, and end it, whatever happens in it."""
        plan = self.plan
        with ExitStack() as stack:
            fixed = (self.modules.get(name) for name in (*plan.running, *plan.evaluated))
            stack.enter_context(self._fixed.held(fixed))
            run = self._here.run = Run(self.tables)
            stack.callback(setattr, self._here, "run", None)
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                root = self.modules[""]() if not path else None
                if root is not None and plan.microbatch is not None and root.training and self._is_frozen_as_planned():
                    run.prefix = PrefixRun(plan.microbatch, args, kwargs)
                stack.enter_context(_Substitution(run))
                if root is not None and plan.schedule:
                    recompute = stack.enter_context(Recompute(plan.schedule, waiting=plan.microbatch is not None))
                    if plan.microbatch is not None:
                        run.after_boundary = plan.microbatch.boundary, recompute.begin
            yield run

    def _is_frozen_as_planned(self) -> bool:
        trained = frozenset(self.plan.trained)
        for path, reference in self.modules.items():
            module = reference()
            for name, parameter in () if module is None else module._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    own = f"{path}.{name}" if path else name
                    if own not in trained and not any(own.startswith(f"{lite.path}.") for lite in self.plan.lite):
                        return False
        return True


class Run:
    """One forward of a model: the treatments of the layer that runs now, the prefix that runs in parts, and what begins
    when the module at a path has answered for the whole batch.
    """

    __slots__ = ("after_boundary", "prefix", "table", "tables")

    def __init__(self, tables: Mapping[str, Treated]) -> None:
        self.tables = tables
        self.table = _NOTHING
        self.prefix: PrefixRun | None = None
        self.after_boundary: tuple[str, Callable[[], None]] | None = None


class PlannedForward:
    """The forward of one module of a planned model, in the instance's own attributes.

    A hook would not do: PyTorch calls none when a forward is interrupted, and then a mode would stay behind.
    """

    def __init__(self, runtime: Runtime, path: str, module: nn.Module, inner: Callable[..., Any] | None) -> None:
        self.runtime = runtime
        self.path = path
        self.inner = inner
        # Not the module itself: a cycle would keep a model in memory that nobody uses any more.
        self._module = weakref.ref(module)
        runtime.add(path, module)

    def __reduce__(self) -> Any:
        return PlannedForward, (self.runtime, self.path, self.module, self.inner)

    @property
    def module(self) -> nn.Module:
        """The module whose forward it is.

        Raises:
            RuntimeError: it is gone.
        """
        module = self._module()
        if module is None:
            raise RuntimeError("the planned model is gone; keep it for as long as its forward is called")
        return module

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The forward that the module has without a plan."""
        module = self.module
        return types.MethodType(type(module).forward, module) if self.inner is None else self.inner

    @property
    def __code__(self) -> types.CodeType:
        """The code of that forward, in which ``torch.export`` looks for names."""
        code: types.CodeType = self.__wrapped__.__code__
        return code

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module gives, trained by the plan."""
        runtime = self.runtime
        run = runtime.run
        if run is not None:
            return self._in(run, args, kwargs)
        with runtime.running(self.path, args, kwargs) as run:
            if run.prefix is not None:
                args, kwargs = run.prefix.run_all_but_last(lambda *args, **kwargs: self._in(run, args, kwargs))
            return self._in(run, args, kwargs)

    def _in(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outer, run.table = run.table, run.tables.get(self.path, _NOTHING)
        try:
            output = self.__wrapped__(*args, **kwargs)
        finally:
            run.table = outer
        if run.prefix is not None:
            output = run.prefix.answered(self.path, output)
        if run.after_boundary is not None and run.after_boundary[0] == self.path:
            run.after_boundary[1]()
        return output


class _Fixed:
    """Modules that run in eval mode for the time of a forward, or of several at once in as many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entered = 0
        self._were: list[nn.Module] = []

    @contextmanager
    def held(self, modules: Iterator[weakref.ref[nn.Module] | None]) -> Iterator[None]:
        """Hold ``modules`` in eval mode."""
        with self._lock:
            self._entered += 1
            if self._entered == 1:
                for reference in modules:
                    module = None if reference is None else reference()
                    if module is not None and module.training:
                        self._were.append(module)
                        object.__setattr__(module, "training", False)  # nn.Module's own takes as long as a small layer
        try:
            yield
        finally:
            with self._lock:
                self._entered -= 1
                if not self._entered:
                    for module in self._were:
                        object.__setattr__(module, "training", True)
                    self._were.clear()


class _Substitution(TorchFunctionMode):
    """Call, in place of a function of torch, what the plan says for the layer that runs."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        replacements = self._run.table.get(func)
        if replacements is not None and torch.is_grad_enabled():
            for treated in replacements:
                result = treated(*args, **kwargs)
                if result is not NotImplemented:
                    return result
        return func(*args, **kwargs)


def _tables(plan: Plan, modules: Mapping[str, weakref.ref[nn.Module]]) -> dict[str, Treated]:
    """Return what is treated in each module: as the plan says for it, or else for the one that contains it."""
    given = {layer.path: _table(layer.treatments) for layer in plan.layers}
    tables: dict[str, Treated] = {}
    for path in modules:
        around = path
        while around and around not in given:
            around = around.rpartition(".")[0]
        tables[path] = given.get(around, _NOTHING)
    for pair in plan.tuned:
        if pair.norm in modules and pair.convolution in modules:
            tuned = _Tuned(modules[pair.norm], pair.norm)
            tables[pair.convolution] = {**tables[pair.convolution], **tuned.of_convolution}
            tables[pair.norm] = {**tables[pair.norm], **dict.fromkeys(_BATCH_NORMS, (tuned.pass_on,))}
    return tables


def _table(treatments: tuple[str, ...]) -> Treated:
    table: dict[Callable[..., Any], tuple[Callable[..., Any], ...]] = {}
    for name in treatments:
        treatment = treatment_named(name)
        try:
            replacements = importlib.import_module(treatment.twin).REPLACEMENTS
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(
                f"treatment {name!r} has no layer: {error}; its twin must name a module with REPLACEMENTS"
            ) from error
        for function, treated in replacements.items():
            table[function] = (*table.get(function, ()), treated)
    return table


class _Tuned:
    """A norm that runs inside the convolution before it."""

    def __init__(self, norm: weakref.ref[nn.Module], path: str) -> None:
        self._norm = norm
        self._path = path
        self._here = threading.local()
        self.of_convolution = {function: (self._replacement(function),) for function in _CONVOLUTIONS}

    def _replacement(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def convolution(*args: Any, **kwargs: Any) -> Any:
            norm: Any = self._norm()
            output = tuned_convolution(
                function,
                *args,
                running_mean=norm.running_mean,
                running_var=norm.running_var,
                gamma=norm.weight,
                beta=norm.bias,
                eps=norm.eps,
                **kwargs,
            )
            self._here.output = None if output is NotImplemented else weakref.ref(output)
            return output

        return convolution

    def pass_on(self, input: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Return the result of a convolution that ran with this norm folded in; other tensors are still to be normed.

        Raises:
            AnalysisError: what the convolution gave was changed on its way.
        """
        expected, self._here.output = getattr(self._here, "output", None), None
        if expected is None:
            return NotImplemented
        if expected() is not input:
            raise AnalysisError(
                f"{self._path!r} is folded into the convolution before it, whose result was changed on its way, as a "
                "forward hook can do; remove the hook, or apply another method"
            )
        return input


_BATCH_NORMS: Final = (torch.nn.functional.batch_norm, torch.batch_norm)
_CONVOLUTIONS: Final = (
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
)
