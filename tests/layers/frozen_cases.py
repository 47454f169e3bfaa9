"""What the tests of frozen and folded layers share: convolutions of every kind, and runs of a treatment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from memplan.methods.treatments.record import Treatment
from memplan.tracing.record import trace
from memplan.transform.measure import saved_on_a_real_step


@dataclass(frozen=True)
class Case:
    """A convolution: the function, the shapes of input and weight, the output's channels, and how it slides."""

    function: Callable[..., Tensor]
    input: tuple[int, ...]
    weight: tuple[int, ...]
    channels: int
    how: Mapping[str, Any] = field(default_factory=dict)
    positional: tuple[Any, ...] = ()

    def tensors(self, dtype: torch.dtype, *, channels_last: bool = False, bias: bool = True) -> list[Tensor | None]:
        """Input, weight and bias, each a leaf that needs no gradient yet."""
        torch.manual_seed(len(self.input) + sum(self.weight))
        found = [torch.randn(self.input), torch.randn(self.weight)]
        if channels_last:
            found[0] = found[0].contiguous(memory_format=torch.channels_last)
        last = torch.randn(self.channels).to(dtype) if bias else None
        return [*(tensor.to(dtype) for tensor in found), last]

    def run(self, function: Callable[..., Any], *tensors: Tensor | None, **more: Any) -> Any:
        return function(*tensors, *self.positional, **self.how, **more)


CASES: dict[str, Case] = {
    "1x1": Case(torch.conv2d, (2, 6, 7, 5), (4, 6, 1, 1), 4),
    "3x3": Case(torch.conv2d, (2, 6, 7, 5), (4, 6, 3, 3), 4, {"padding": 1}),
    "strided with a rest": Case(torch.conv2d, (2, 3, 12, 11), (4, 3, 3, 3), 4, {"stride": (2, 3), "padding": [1]}),
    "1x1 strided": Case(torch.conv2d, (2, 6, 8, 8), (4, 6, 1, 1), 4, {"stride": 2}),
    "padded beyond the kernel": Case(torch.conv2d, (2, 6, 4, 4), (4, 6, 1, 1), 4, {"padding": 2}),
    "dilated": Case(torch.conv2d, (2, 4, 9, 9), (6, 4, 3, 3), 6, {"dilation": (2, 1), "padding": (2, 0)}),
    "grouped": Case(torch.conv2d, (2, 6, 7, 7), (9, 2, 3, 3), 9, {"groups": 3}),
    "depthwise": Case(torch.conv2d, (2, 6, 7, 7), (6, 1, 3, 3), 6, {"groups": 6, "padding": 1}),
    "depthwise, strided": Case(torch.conv2d, (2, 6, 8, 8), (12, 1, 5, 5), 12, {"groups": 6, "padding": 2, "stride": 2}),
    "same": Case(torch.conv2d, (2, 3, 7, 7), (4, 3, 3, 3), 4, {"padding": "same"}),
    "same, uneven": Case(torch.conv2d, (2, 3, 7, 6), (4, 3, 2, 4), 4, {"padding": "same", "dilation": (1, 3)}),
    "valid": Case(torch.conv2d, (2, 3, 7, 7), (4, 3, 3, 3), 4, {"padding": "valid", "stride": 2}),
    "one image": Case(torch.conv2d, (3, 7, 7), (4, 3, 3, 3), 4),
    "all positional": Case(torch.conv2d, (2, 6, 7, 7), (4, 3, 3, 3), 4, {}, (2, 1, 1, 2)),
    "1d": Case(torch.conv1d, (2, 4, 11), (6, 2, 3), 6, {"groups": 2, "stride": 2, "padding": 1}),
    "1d, same, one sequence": Case(torch.conv1d, (4, 10), (6, 4, 4), 6, {"padding": "same"}),
    "3d": Case(torch.conv3d, (2, 3, 5, 6, 4), (4, 3, 3, 2, 1), 4, {"stride": (1, 2, 1), "padding": (1, 0, 0)}),
    "transposed 1d": Case(torch.conv_transpose1d, (2, 4, 5), (4, 3, 4), 3, {"stride": 2, "padding": 1}),
    "transposed": Case(torch.conv_transpose2d, (2, 4, 5, 6), (4, 3, 2, 2), 3, {"stride": 2}),
    "transposed, grouped": Case(
        torch.conv_transpose2d, (2, 4, 5, 6), (4, 3, 3, 3), 6, {"stride": 2, "output_padding": 1, "groups": 2}
    ),
    "transposed, dilated": Case(
        torch.conv_transpose2d, (2, 4, 5, 6), (4, 3, 3, 3), 3, {"dilation": 3, "output_padding": (2, 1), "padding": 1}
    ),
    "transposed 3d": Case(torch.conv_transpose3d, (1, 4, 3, 4, 3), (4, 2, 2, 3, 1), 2, {"stride": (2, 1, 3)}),
    "in full": Case(torch.convolution, (2, 6, 7, 7), (4, 3, 3, 3), 4, {}, ((2, 2), (1, 1), (1, 1), False, (0, 0), 2)),
}


class Treated(nn.Module):
    """A module whose calls of torch's functions are replaced while it runs with gradients on."""

    def __init__(self, module: nn.Module, replacements: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.module = module
        self.replacements = dict(replacements)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with Replaced(self.replacements):
            return self.module(*args, **kwargs)


class Replaced(TorchFunctionMode):
    """Call the replacements of torch's functions, where they apply."""

    def __init__(self, replacements: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.replacements = replacements
        self.applied = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = self.replacements.get(func) if torch.is_grad_enabled() else None
        if replacement is not None:
            result = replacement(*args, **(kwargs or {}))
            if result is not NotImplemented:
                self.applied += 1
                return result
        return func(*args, **(kwargs or {}))


def ruled_bytes(treatment: Treatment, stock: nn.Module, *inputs: Tensor, amp: torch.dtype | None = None) -> int:
    """Bytes that the rule gives for the ops of the stock module's forward."""
    step = trace(stock, inputs, amp=amp).step
    ruled = [treatment.saved[op.name](op) for op in step.ops if op.phase == "forward" and op.name in treatment.saved]
    assert ruled
    return sum(ruled)


def faked_bytes(module: nn.Module, *inputs: Tensor, amp: torch.dtype | None = None) -> int:
    """Bytes that autograd keeps of a step on fake tensors, parameters and buffers left out."""
    step = trace(module, inputs, amp=amp).step
    kept = [step.storages[index] for index in step.saved]
    return sum(storage.bytes for storage in kept if storage.role not in ("parameter", "buffer"))


def real_bytes(module: nn.Module, *inputs: Tensor, amp: torch.dtype | None = None) -> int:
    """Bytes that autograd keeps of a real step, parameters and buffers left out."""
    return saved_on_a_real_step(module, inputs, {}, amp=amp)


def gradients(output: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    """Gradients of a weighted sum of ``output``, None for what needs none."""
    torch.manual_seed(7)
    weights = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
    wanted = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, weights))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in tensors]
