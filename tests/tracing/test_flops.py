"""FLOPs by PyTorch's counter where it is right, by hand where it is not."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from memplan.tracing.record import trace


def test_a_dense_network_counts_as_pytorchs_own_counter_does() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten(), nn.Linear(4 * 81, 5)
    )
    x = torch.randn(2, 3, 22, 22)
    graph = trace(model, x).step
    with FlopCounterMode(display=False) as counter:
        y = model(x)
    assert graph.flops("forward") == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        y.mean().backward()
    assert graph.flops("backward") == counter.get_total_flops()


def test_a_depthwise_convolutions_backward_costs_two_forwards() -> None:
    graph = trace(nn.Conv2d(16, 16, 3, padding=1, groups=16), torch.randn(2, 16, 8, 8, requires_grad=True)).step
    forward = 2 * (2 * 16 * 8 * 8) * (3 * 3)
    assert graph.flops("forward") == forward
    assert graph.flops("backward") == 2 * forward


def test_a_transposed_convolutions_backward_costs_two_forwards() -> None:
    graph = trace(nn.ConvTranspose2d(6, 4, 2, stride=2), torch.randn(2, 6, 8, 8, requires_grad=True)).step
    forward = 2 * (2 * 6 * 8 * 8) * (4 * 2 * 2)
    assert graph.flops("forward") == forward
    assert graph.flops("backward") == 2 * forward


def test_attention_on_the_cpu_is_counted() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * self.scale
            return nn.functional.scaled_dot_product_attention(x, x, x)

    graph = trace(Attention(), torch.randn(2, 4, 10, 16)).step
    product = 2 * (2 * 4) * 10 * 10 * 16
    assert graph.flops("forward") == 2 * product
    assert graph.flops("backward") == 5 * product


def test_an_lstm_is_counted() -> None:
    graph = trace(nn.LSTM(8, 16), torch.randn(5, 3, 8)).step
    assert graph.flops("forward") == 2 * 5 * 3 * (4 * 16 * 8 + 4 * 16 * 16)
