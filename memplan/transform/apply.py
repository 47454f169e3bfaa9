"""Make a module what a plan says, and back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from memplan.errors import AnalysisError, UsageError
from memplan.layers.frozen_int8 import dequantize_, quantize_
from memplan.layers.lite_residual import LiteResidual
from memplan.methods.plan import Fingerprint, Plan
from memplan.methods.treatments.lite_residual import LiteShape
from memplan.transform.runtime import PlannedForward, Runtime
from memplan.transform.surgery import prune_

#: Names that a planned model has beside its own.
_APPLIED: Final = "_memplan_applied"
_BRANCH: Final = "lite_residual"
_BRANCH_HOOK: Final = "_memplan_branch_hook"

_FORWARD: Final = "forward"


def apply_(module: nn.Module, plan: Plan) -> nn.Module:
    """Make ``module`` train as ``plan`` says, in place, and return it.

    Raises:
        UsageError: a plan is applied to it, or to a module in it, already; or a treatment is not known.
        AnalysisError: the plan is for another model.
    """
    check_unplanned(module)
    _check(module, plan)
    unprune = prune_(module, plan.pruned)
    try:
        _arrange(module, plan)
    except BaseException:
        unprune()
        raise
    if any(group.dropped for group in plan.pruned) and _without_data(module):
        module.__dict__[_APPLIED].unprune = unprune
    return module


def _without_data(module: nn.Module) -> bool:
    return any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in module.parameters())


def _arrange(module: nn.Module, plan: Plan) -> None:
    """Do to a pruned ``module`` what ``plan`` says besides."""
    own = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    trained = frozenset(plan.trained)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
        parameter.grad = None
    for path in plan.int8:
        _quantize(module, path)
    for branch in plan.lite:
        _add_branch(module.get_submodule(branch.path), branch.shape)
    runtime = Runtime(plan)
    for path, part in module.named_modules():
        if not isinstance(part, torch.jit.ScriptModule) and _has_forward(part):
            part.__dict__[_FORWARD] = PlannedForward(runtime, path, part, part.__dict__.get(_FORWARD))
    runtime.tables  # noqa: B018  # a treatment that cannot be found is told now, not in the first forward
    module.__dict__[_APPLIED] = _Applied(plan, own)


def restore_(module: nn.Module, *, keep_branches: bool = True) -> nn.Module:
    """Make a planned ``module`` plain again, in place, with what it has learnt; return it.

    Weights stored in 8 bits come back as the numbers that were used. Lite residual branches, which have been trained
    with the rest, stay, unless ``keep_branches`` is off: without them the network would be another one. So do pruned
    channels stay away; with ``keep_branches`` off, a module without data gets them back.

    Raises:
        UsageError: no plan is applied to it, or a forward of it has been replaced since; or ``keep_branches`` is off
            and it has lost channels with data.
    """
    applied = module.__dict__.get(_APPLIED)
    if applied is None:
        raise UsageError(
            f"no plan is applied to this {type(module).__name__}; give a model that memplan.apply returned"
        )
    if not isinstance(module.__dict__.get(_FORWARD), PlannedForward):
        kind = type(module).__name__
        raise UsageError(f"the forward of this {kind} was replaced after memplan.apply; put that one back first")
    if not keep_branches and applied.unprune is None and any(group.dropped for group in applied.plan.pruned):
        raise UsageError(f"this {type(module).__name__} has lost channels for good; build the model anew")
    for part in module.modules():
        forward = part.__dict__.get(_FORWARD)
        if isinstance(forward, PlannedForward):
            del part.__dict__[_FORWARD]
            if forward.inner is not None:
                part.__dict__[_FORWARD] = forward.inner
    for path in applied.plan.int8:
        dequantize_(module.get_submodule(path))
    for branch in () if keep_branches else applied.plan.lite:
        block = module.get_submodule(branch.path)
        block.__dict__.pop(_BRANCH_HOOK).remove()
        delattr(_home(block), _BRANCH)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(applied.required.get(name, True))
    if not keep_branches and applied.unprune is not None:
        applied.unprune()
    del module.__dict__[_APPLIED]
    return module


def plan_of(module: Any) -> Plan | None:
    """Return the plan that is applied to ``module``, or ``None``."""
    applied = getattr(unwrapped(module), "__dict__", {}).get(_APPLIED)
    return None if applied is None else applied.plan


def unwrapped(module: Any) -> Any:
    """Return the module that a compiled one was compiled from, or ``module`` itself."""
    return getattr(module, "_orig_mod", module)


def check_unplanned(module: nn.Module) -> None:
    """Raise where a plan is applied to ``module`` or to a module in it.

    Raises:
        UsageError: one is.
    """
    for path, part in unwrapped(module).named_modules():
        if plan_of(part) is not None:
            where = f"{path!r} in this {type(module).__name__}" if path else f"this {type(part).__name__}"
            raise UsageError(f"a plan is applied to {where} already; memplan.restore it first")


class _Applied:
    """What ``restore_`` needs: the plan, and which parameters required gradients before.

    ``unprune`` holds the pruned tensors, and so is there only where they have no data.
    """

    def __init__(self, plan: Plan, required: dict[str, bool]) -> None:
        self.plan = plan
        self.required = required
        self.unprune: Callable[[], None] | None = None


def _quantize(module: nn.Module, path: str) -> None:
    try:
        quantize_(module.get_submodule(path))
    except TypeError as error:
        raise AnalysisError(f"{path!r} cannot be stored in 8 bits: {error}; make another plan") from error


def _has_forward(module: nn.Module) -> bool:
    return _FORWARD in module.__dict__ or getattr(type(module).forward, "__name__", "") != "_forward_unimplemented"


def _add_branch(block: nn.Module, shape: LiteShape) -> None:
    like = next((parameter for parameter in block.parameters() if parameter.is_floating_point()), torch.empty(0))
    default = torch.get_default_dtype()
    torch.set_default_dtype(like.dtype)
    try:
        with like.device, torch.random.fork_rng([like.device] if like.is_cuda else []):
            branch = LiteResidual(shape)
    finally:
        torch.set_default_dtype(default)
    _home(block).add_module(_BRANCH, branch.train(block.training))
    # Kept beside the hook, the handle comes along when the model is pickled: PyTorch then gives its number to no other.
    block.__dict__[_BRANCH_HOOK] = block.register_forward_hook(add_branch, with_kwargs=True)


def _home(block: nn.Module) -> nn.Module:
    """Return the module that a block's branch belongs to: a container would run a branch of its own as a member."""
    while isinstance(block, (nn.Sequential, nn.ModuleDict, nn.ModuleList)) and len(block):
        block = list(block.children())[-1]
    return block


def add_branch(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
    """Return a block's output with its branch's added: a forward hook."""
    source = args[0] if args else next(iter(kwargs.values()))
    added: torch.Tensor = getattr(_home(block), _BRANCH)(source, output.shape[2:])
    return output + added


def fingerprint(module: nn.Module) -> Fingerprint:
    """Return what tells ``module`` apart from other models, whatever its numbers are."""
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    text = "\n".join(f"{name} {shape}" for name, shape in shapes.items())
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Fingerprint(len(shapes), sum(map(math.prod, shapes.values())), digest)


def _check(module: nn.Module, plan: Plan) -> None:
    """Raise where ``plan`` is not for ``module``."""
    kind = type(module).__name__
    own = fingerprint(module)
    if plan.model is not None and plan.model != own:
        differ = (
            "names or shapes differ"
            if (own.parameters, own.numbers) == (plan.model.parameters, plan.model.numbers)
            else f"it has {plan.model}"
        )
        raise AnalysisError(
            f"the plan is for another model than this {kind} with {own}: {differ}; "
            "apply it to the model that it was made for, or make another plan"
        )
    modules = dict(module.named_modules())
    named = [
        *(layer.path for layer in plan.layers),
        *plan.running,
        *plan.evaluated,
        *plan.int8,
        *(branch.path for branch in plan.lite),
        *(path for pair in plan.tuned for path in (pair.convolution, pair.norm)),
        *([plan.microbatch.boundary] if plan.microbatch else []),
    ]
    for path in named:
        if path not in modules:
            raise AnalysisError(f"the plan is for another model: this {kind} has no module {path!r}; make another plan")
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name in plan.trained:
        if name not in parameters:
            raise AnalysisError(
                f"the plan is for another model: this {kind} has no parameter {name!r}; make another plan"
            )
    for branch in plan.lite:
        if hasattr(_home(modules[branch.path]), _BRANCH):
            raise AnalysisError(
                f"{branch.path!r} of this {kind} has a lite residual branch already; train it with as-is or top-k"
            )
