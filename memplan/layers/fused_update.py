"""fused-update: the optimizer updates a parameter as soon as its gradient is ready, and lets go of the gradient."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.optim.optimizer import ParamsT
from torch.utils.hooks import RemovableHandle

from memplan.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Self

_KINDS: Final[dict[str, type[torch.optim.Optimizer]]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


class FusedUpdate(torch.optim.Optimizer):
    """SGD, Adam or AdamW that runs inside the backward, so that the gradients never exist all together.

    ``FusedUpdate(torch.optim.SGD, model.parameters(), lr=0.1, momentum=0.9)`` takes the place of
    ``torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)``. The training loop stays as it is, and so does every
    bit of the parameters: each update is PyTorch's own, with ``foreach=False``, on one parameter. ``param_groups``,
    ``state`` and ``state_dict()`` are those of the plain optimizer, and either loads what the other saved.

    When ``backward()`` returns, the parameters are updated and their gradients gone. ``step()`` updates what still has
    a gradient: parameters whose gradient was set by hand, or kept by :meth:`accumulating`. A learning rate that changes
    between two backward passes holds from the next one on.

    - Every backward updates. To sum gradients over several, run all but the last inside :meth:`accumulating`; the last
      adds its own and updates. Two plain backward passes are two updates.
    - What needs all gradients at once cannot work: clipping by their global norm, or a ``GradScaler``, which
      :meth:`step` refuses. ``DistributedDataParallel`` averages gradients too late.
    - A parameter used more than once is updated once in each backward, when its whole gradient is ready. Not so under
      ``checkpoint(use_reentrant=True)``, which runs a backward of its own for each segment.
    - Adam's loop makes two temporaries as large as the parameter, now while activations are still alive; with
      ``fused=True`` PyTorch's kernel makes none, and rounds differently.
    - The hooks on the parameters live as long as this object: keep it. :meth:`remove`, or leaving a ``with`` block,
      takes them away; then ``step()`` updates everything, as any optimizer does.

    Args:
        optimizer: ``torch.optim.SGD``, ``Adam`` or ``AdamW``, or its name in lower case.
        params: as any optimizer takes them: tensors, named tensors, or dicts of groups. One that is frozen now takes
            part from the first :meth:`zero_grad` or :meth:`step` after it was made trainable.
        options: the optimizer's own, without ``foreach`` and ``differentiable``.

    Raises:
        UsageError: another optimizer, or an option that needs all gradients at once.

    Source: torch.Tensor.register_post_accumulate_grad_hook, and torch/optim.
    """

    #: A GradScaler then hands its scale to ``step``, which refuses it, instead of complaining of absent gradients.
    _step_supports_amp_scaling = True

    def __init__(self, optimizer: type[torch.optim.Optimizer] | str, params: ParamsT, **options: Any) -> None:
        self._kind = _kind(optimizer)
        self._in_backward = True
        self._begin()
        plain = self._kind(params, **options)
        super().__init__(plain.param_groups, plain.defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as any optimizer does.

        Raises:
            UsageError: the group asks for an option that needs all gradients at once.
        """
        for option in ("foreach", "differentiable"):
            if isinstance(param_group, dict) and param_group.get(option, self.defaults.get(option)):
                raise UsageError(
                    f"FusedUpdate updates one parameter at a time, so {option}=True cannot be; leave it out"
                )
        super().add_param_group(param_group)
        self._hook_parameters()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients that are still there."""
        self._hook_parameters()
        super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update each parameter that still has a gradient, and return what ``closure`` returned.

        Raises:
            UsageError: a ``GradScaler`` calls; by then the backward has updated with scaled gradients.
        """
        of_scaler = [self.__dict__.pop(name, None) for name in ("grad_scale", "found_inf")]
        if any(value is not None for value in of_scaler):
            raise UsageError(
                "FusedUpdate has already updated with scaled gradients: it cannot work with GradScaler; use bfloat16"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._hook_parameters()
        self._update([{**group, "foreach": False} for group in self.param_groups])
        return loss

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Leave gradients to add up over the backward passes inside, without updates."""
        self._accumulating += 1
        try:
            yield
        finally:
            self._accumulating -= 1

    def remove(self) -> None:
        """Take the hooks away from the parameters, for good."""
        self._in_backward = False
        _remove(self._handles)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kind": self._kind, "_in_backward": self._in_backward}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a loaded state dict, or begin as a copy."""
        super().__setstate__(state)
        if "_handles" not in self.__dict__:
            self._begin()
        self._plain(self.param_groups).__setstate__({})
        self._hook_parameters()

    def _begin(self) -> None:
        self._accumulating = 0
        self._handles: dict[torch.Tensor, RemovableHandle] = {}
        self._group_of: dict[torch.Tensor, int] = {}
        # The plain step without its wrappers, which would call every step hook once for each parameter.
        self._plain_step: Callable[[torch.optim.Optimizer], Any] = inspect.unwrap(self._kind.step)
        own = weakref.ref(self)

        def update(parameter: torch.Tensor) -> None:
            optimizer = own()
            if optimizer is not None:
                optimizer._update_in_backward(parameter)

        self._hook = update
        weakref.finalize(self, _remove, self._handles).atexit = False

    def _hook_parameters(self) -> None:
        """Hook each parameter that trains by now; torch refuses hooks on the others."""
        for index, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                self._group_of[parameter] = index
                if (
                    self._in_backward
                    and parameter not in self._handles
                    and parameter.requires_grad
                    and parameter.is_leaf
                ):
                    self._handles[parameter] = parameter.register_post_accumulate_grad_hook(self._hook)

    def _update_in_backward(self, parameter: torch.Tensor) -> None:
        if self._accumulating or parameter.grad is None:
            return
        group = self.param_groups[self._group_of[parameter]]
        self._update([{**group, "params": [parameter], "foreach": False}])
        parameter.grad = None
        self._opt_called = True  # what learning-rate schedulers look at, should the loop leave ``step()`` out

    def _update(self, groups: list[dict[str, Any]]) -> None:
        with torch.no_grad():
            self._plain_step(self._plain(groups))

    def _plain(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return an optimizer of the plain class over ``groups``, with this one's state.

        It is made anew for each update, since the backward of several devices runs in as many threads.
        """
        plain = object.__new__(self._kind)
        plain.__dict__.update(
            defaults=self.defaults,
            state=self.state,
            param_groups=groups,
            _warned_capturable_if_run_uncaptured=True,
        )
        return plain


def optimizer_class(kind: type[torch.optim.Optimizer] | str) -> type[torch.optim.Optimizer]:
    """Return the class that ``sgd``, ``adam`` or ``adamw`` names, or ``kind`` itself.

    Raises:
        UsageError: there is no such optimizer.
    """
    return _kind(kind) if isinstance(kind, str) else kind


def _kind(optimizer: type[torch.optim.Optimizer] | str) -> type[torch.optim.Optimizer]:
    if isinstance(optimizer, str):
        if optimizer in _KINDS:
            return _KINDS[optimizer]
        raise UsageError(
            f"FusedUpdate has no {optimizer!r}{did_you_mean(optimizer, _KINDS)}; choose sgd, adam or adamw"
        )
    if any(optimizer is kind for kind in _KINDS.values()):
        return optimizer
    name = getattr(optimizer, "__name__", type(optimizer).__name__)
    raise UsageError(f"FusedUpdate runs torch.optim's SGD, Adam and AdamW, not {name}; name one of these")


def _remove(handles: dict[torch.Tensor, RemovableHandle]) -> None:
    for handle in handles.values():
        handle.remove()
    handles.clear()
