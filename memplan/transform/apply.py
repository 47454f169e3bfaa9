"""Make a module what a plan says, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from memplan.errors import AnalysisError, UsageError
from memplan.layers.frozen_int8 import dequantize_, quantize_
from memplan.layers.lite_residual import LiteResidual
from memplan.methods.plan import Plan
from memplan.methods.treatments.lite_residual import LiteShape
from memplan.transform.runtime import Runtime

#: Names that a planned model has beside its own.
_RUNTIME = "_memplan_runtime"
_BRANCH = "lite_residual"


def apply_(module: nn.Module, plan: Plan) -> nn.Module:
    """Make ``module`` train as ``plan`` says, in place, and return it.

    Raises:
        UsageError: a plan is applied to it already, or the plan names what it does not have.
    """
    if plan_of(module) is not None:
        raise UsageError(f"a plan is applied to this {type(module).__name__} already; memplan.restore it first")
    _check(module, plan)
    own = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    trained = frozenset(plan.trained)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
        parameter.grad = None
    for path in plan.int8:
        quantize_(module.get_submodule(path))
    for branch in plan.lite:
        _add_branch(module.get_submodule(branch.path), branch.shape)
    runtime = Runtime(plan)
    handles = (
        module.register_forward_pre_hook(runtime.before, with_kwargs=True),
        module.register_forward_hook(runtime.after, with_kwargs=True, always_call=True),
    )
    object.__setattr__(module, _RUNTIME, _Applied(plan, tuple(handle.id for handle in handles), own))
    return module


def restore_(module: nn.Module, *, keep_branches: bool = True) -> nn.Module:
    """Make a planned ``module`` plain again, in place, with what it has learnt; return it.

    Weights stored in 8 bits come back as the numbers that were used. Lite residual branches, which have been trained
    with the rest, stay, unless ``keep_branches`` is off: without them the network would be another one.

    Raises:
        UsageError: no plan is applied to it.
    """
    applied = module.__dict__.get(_RUNTIME)
    if applied is None:
        raise UsageError(
            f"no plan is applied to this {type(module).__name__}; give a model that memplan.apply returned"
        )
    before, after = applied.hooks
    for hooks, number in ((module._forward_pre_hooks, before), (module._forward_hooks, after)):
        hooks.pop(number, None)
    for table in (module._forward_pre_hooks_with_kwargs, module._forward_hooks_with_kwargs):
        table.pop(before, None)
        table.pop(after, None)
    module._forward_hooks_always_called.pop(after, None)
    for path in applied.plan.int8:
        dequantize_(module.get_submodule(path))
    for branch in () if keep_branches else applied.plan.lite:
        _remove_branch(module.get_submodule(branch.path))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(applied.required.get(name, True))
    for path in (*applied.plan.running, *applied.plan.evaluated):
        module.get_submodule(path).training = module.training
    object.__delattr__(module, _RUNTIME)
    return module


def plan_of(module: nn.Module) -> Plan | None:
    """Return the plan that is applied to ``module``, or ``None``."""
    applied = module.__dict__.get(_RUNTIME)
    return None if applied is None else applied.plan


class _Applied:
    """What ``restore_`` needs: the plan, the hooks' numbers, and which parameters required gradients before."""

    def __init__(self, plan: Plan, hooks: tuple[int, ...], required: dict[str, bool]) -> None:
        self.plan = plan
        self.hooks = hooks
        self.required = required


def _add_branch(block: nn.Module, shape: LiteShape) -> None:
    like = next((parameter for parameter in block.parameters() if parameter.is_floating_point()), torch.empty(0))
    default = torch.get_default_dtype()
    torch.set_default_dtype(like.dtype)
    try:
        with like.device:
            branch = LiteResidual(shape)
    finally:
        torch.set_default_dtype(default)
    block.add_module(_BRANCH, branch)
    block.register_forward_hook(add_branch)


def _remove_branch(block: nn.Module) -> None:
    delattr(block, _BRANCH)
    for number, hook in list(block._forward_hooks.items()):
        if hook is add_branch:
            del block._forward_hooks[number]


def add_branch(block: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    """Return a block's output with its branch's added: a forward hook."""
    added: torch.Tensor = block.lite_residual(args[0], output.shape[2:])
    return output + added


def _check(module: nn.Module, plan: Plan) -> None:
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
            raise AnalysisError(f"the plan is for another model: this {type(module).__name__} has no module {path!r}")
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name in plan.trained:
        if name not in parameters:
            raise AnalysisError(
                f"the plan is for another model: this {type(module).__name__} has no parameter {name!r}"
            )
