"""Run calls of torch under a treatment's replacements, and compare with stock: results, gradients, bytes kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.graph.records import Argument, Op, TensorView
from memplan.methods.treatments.record import Treatment
from tests.activation import Activation

Call = Callable[[Tensor], Any]


class Treated(TorchFunctionMode):
    """Call the replacement of each function that has one, as the hook on a model's root does."""

    def __init__(self, replacements: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.replacements = replacements
        self.treated = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = self.replacements.get(func)
        if replacement is not None:
            result = replacement(*args, **(kwargs or {}))
            if result is not NotImplemented:
                self.treated += 1
                return result
        return func(*args, **(kwargs or {}))


class Ops(TorchDispatchMode):
    """Write down each op as a record, with positional arguments in schema order."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        defaults = [argument.default_value for argument in func._schema.arguments[len(args) :]]
        outputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        records = tuple(_record(value) for value in (*args, *defaults))
        views = tuple(_record(value) for value in outputs)
        self.ops.append(Op(len(self.ops), "forward", str(func), 0, records, views, (), 0))
        return result


def _record(value: Any) -> Argument:
    if isinstance(value, Tensor):
        return TensorView(0, tuple(value.shape), value.stride(), str(value.dtype).removeprefix("torch."))
    if isinstance(value, (list, tuple)):
        return tuple(_record(item) for item in value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def rule_bytes(treatment: Treatment, call: Call, x: Tensor) -> int:
    """The sum of the rule over the ops that stock PyTorch runs for ``call``."""
    activation: Tensor = Activation.apply(x.detach().requires_grad_())
    with Ops() as seen:
        call(activation)
    return sum(treatment.saved[op.name](op) for op in seen.ops if op.name in treatment.saved)


def kept_bytes(replacements: Mapping[Any, Any], call: Call, x: Tensor) -> int:
    """Bytes of the storages that autograd keeps from ``call`` under the treatment."""
    storages: dict[int, int] = {}
    held = []

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    activation: Tensor = Activation.apply(x.detach().requires_grad_())
    mode = Treated(replacements)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), mode:
        result = call(activation)
    assert mode.treated == 1
    del result
    return sum(storages.values())


def kept_bytes_on_fake(replacements: Mapping[Any, Any], call: Call, x: Tensor) -> int:
    """As ``kept_bytes``, on fake tensors."""
    with FakeTensorMode():
        fake = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
        return kept_bytes(replacements, call, fake)


def step(call: Call, x: Tensor, gradient: Tensor | None = None, mode: Treated | None = None) -> list[Tensor]:
    """All results of ``call`` on a copy of ``x`` that keeps its strides, then the gradient of ``x``."""
    torch.manual_seed(7)
    leaf = x.detach().requires_grad_()
    activation: Tensor = Activation.apply(leaf)
    if mode is None:
        result = call(activation)
    else:
        with mode:
            result = call(activation)
        assert mode.treated == 1
    results: Sequence[Tensor] = result if isinstance(result, (tuple, list)) else (result,)
    results[0].backward(torch.ones_like(results[0]) if gradient is None else gradient)
    assert leaf.grad is not None
    return [tensor.detach() for tensor in results] + [leaf.grad]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether all values are equal bit for bit, NaN equal to NaN."""
    return all(
        a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
        for a, b in zip(first, second, strict=True)
    )


def special(dtype: torch.dtype, *bounds: float) -> Tensor:
    """The bounds, the numbers next to them on both sides, infinities, NaN, both zeros and the smallest numbers."""
    values = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), torch.finfo(dtype).tiny, -torch.finfo(dtype).tiny]
    around = torch.tensor(bounds, dtype=dtype)
    infinity = torch.tensor(float("inf"), dtype=dtype)
    return torch.cat(
        [
            torch.tensor(values, dtype=dtype),
            around,
            torch.nextafter(around, infinity),
            torch.nextafter(around, -infinity),
        ]
    )
