"""TinyTL's setting of a network: group norm, standardised weights, and lite residual branches beside the blocks."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from memplan.layers.lite_residual import LiteResidual, WithLiteResidual, lite_residual_for
from memplan.methods.treatments.lite_residual import norm_groups
from memplan.networks.proxyless import InvertedResidual, ProxylessMobile

#: The side of the map that the kernels of the branches are chosen for, before the first block that has one.
#: Source: TinyTL's code, ``max_resolution``; it is nominal, the same for every image size.
NOMINAL_SIZE: Final = 128

#: Added to the standard deviation of a filter. Source: TinyTL's code, ``ws_eps``.
WEIGHT_EPSILON: Final = 1e-5


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and deviation 1 when they are used.

    Source: Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization (2019).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of ``x`` with the standardised filters."""
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (deviation + WEIGHT_EPSILON)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def proxyless_mobile_tinytl(classes: int = 1000) -> ProxylessMobile:
    """Return ProxylessNAS-Mobile as TinyTL fine-tunes it, with random weights.

    Every block but the first has a lite residual branch, inside the shortcut. Source: TinyTL (NeurIPS 2020).
    """
    network = ProxylessMobile(classes)
    insert_lite_residuals(network)
    replace_batch_norms(network)
    standardise_weights(network)
    return network


def insert_lite_residuals(network: ProxylessMobile) -> None:
    """Put a branch beside each block but the first; a block's shortcut goes around both."""
    size = NOMINAL_SIZE
    for block in list(network.blocks)[1:]:
        assert isinstance(block, InvertedResidual)
        lite = lite_residual_for(block.in_channels, block.out_channels, block.stride, size=size, norm="group")
        block.branch = WithLiteResidual(block.branch, lite)
        size //= block.stride


def replace_batch_norms(network: nn.Module) -> None:
    """Put a group norm of eight channels a group, with the same scale and shift, in place of each batch norm."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                norm = nn.GroupNorm(norm_groups(child.num_features), child.num_features, eps=child.eps)
                norm.weight, norm.bias = child.weight, child.bias
                setattr(module, name, norm)


def standardise_weights(network: nn.Module) -> None:
    """Standardise the filters of every convolution without bias, the ones that a norm follows."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.bias is None:
            module.__class__ = StandardisedConv2d


def train_parts(
    network: nn.Module, *, biases: bool = False, norms: bool = False, lite: bool = False, all_weights: bool = False
) -> None:
    """Say what of a network trains: its classifier, the last linear layer, and what is asked for.

    Where biases and branches train together, a branch's last shift stays frozen: the block's own does the same.
    """
    network.requires_grad_(all_weights)
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    linear[-1].requires_grad_(True)
    for module in network.modules():
        if norms and isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            module.requires_grad_(True)
        if biases and isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            bias.requires_grad_(True)
    for module in network.modules():
        if lite and isinstance(module, LiteResidual):
            module.requires_grad_(True)
            if biases or norms:
                module.last_norm.bias.requires_grad_(False)
