"""Floating-point operations of one op: PyTorch's own formulas, and the few that it lacks or gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_flop_count

aten: Final = torch.ops.aten


def _convolution_backward(gradient: Any, value: Any, weight: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    """Each gradient of a convolution is as many products as its forward.

    PyTorch's formula for the weight's gradient leaves the groups out, which makes a depthwise convolution's backward as
    dear as a dense one's.
    """
    transposed, mask = rest[4], rest[-1]
    once: int = int(conv_flop_count(value, weight, gradient, transposed=transposed))
    return once * int(mask[0] + mask[1])


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, *rest: Any, out_shape: Any, **named: Any
) -> int:
    """Five products of the size of the forward's two: the scores again, and the gradients of scores, q, k and v."""
    return 5 * _attention(query, key, value, out_shape=out_shape) // 2


def _recurrent(value: Any, weight: Any, recurrent_weight: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    """The products of an LSTM layer with its input and its state, for every step and sample."""
    steps, samples = value[0], value[1]
    return int(2 * steps * samples * (weight[0] * weight[1] + recurrent_weight[0] * recurrent_weight[1]))


def _recurrent_backward(
    value: Any, weight: Any, recurrent_weight: Any, *rest: Any, out_shape: Any, **named: Any
) -> int:
    return 2 * _recurrent(value, weight, recurrent_weight, out_shape=out_shape)


#: Formulas over shapes that stand before PyTorch's.
FORMULAS: Final[dict[Any, Callable[..., int]]] = {
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.mkldnn_rnn_layer: _recurrent,
    aten.mkldnn_rnn_layer_backward: _recurrent_backward,
}


def flop_count(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Return the floating-point operations of one call: two for each multiply-add, 0 for an op without a formula.

    Source: ``torch/utils/flop_counter.py``, and the formulas above.
    """
    formula = FORMULAS.get(op) or flop_registry.get(op)
    if formula is None:
        return 0
    over_shapes = FORMULAS.get(op) or getattr(formula, "__wrapped__", None)
    if over_shapes is None:
        return int(formula(*args, **kwargs, out_val=result))
    named = {name: _shape(value) for name, value in kwargs.items()}
    return int(over_shapes(*map(_shape, args), **named, out_shape=_shape(result)))


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, (tuple, list)):
        return [_shape(item) for item in value]
    return value
