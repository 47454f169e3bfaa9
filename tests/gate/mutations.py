"""What a pull request may do to a real model, and the layers that are to blame for what it then needs."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memplan.subject import subject_of


@dataclass(frozen=True)
class Mutation:
    """A change of a model: ``blamed`` are the layers, or what they are in, of which one is named."""

    name: str
    base: str
    apply: Callable[[nn.Module], None]
    blamed: tuple[str, ...]
    of: str = "peak"
    options: tuple[tuple[str, Any], ...] = ()


MUTATIONS: list[Mutation] = []


def built(base: str, batch_size: int = 2, **options: Any) -> tuple[nn.Module, Any]:
    """Return a model on the meta device, and its inputs."""
    module, args, kwargs = subject_of(base, batch_size=batch_size, **options).built("meta")
    return module, args or kwargs


def mutation(
    base: str, *blamed: str, of: str = "peak", **options: Any
) -> Callable[[Callable[[nn.Module], None]], Callable[[nn.Module], None]]:
    def collect(change: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
        def apply(module: nn.Module) -> None:
            with torch.device("meta"):
                change(module)

        name = change.__name__.replace("_", "-")
        MUTATIONS.append(Mutation(name, base, apply, blamed, of, tuple(options.items())))
        return change

    return collect


@mutation("resnet18", "layer2.1.conv1", "layer2.1.conv2", "layer2.1.bn1")
def wider_convolution(net: Any) -> None:
    block = net.layer2[1]
    block.conv1 = nn.Conv2d(128, 256, 3, padding=1, bias=False)
    block.bn1 = nn.BatchNorm2d(256)
    block.conv2 = nn.Conv2d(256, 128, 3, padding=1, bias=False)


@mutation("resnet18", "conv1", "bn1")
def wider_stem(net: Any) -> None:
    net.conv1, net.bn1 = nn.Conv2d(3, 96, 7, 2, 3, bias=False), nn.BatchNorm2d(96)
    net.layer1[0].conv1 = nn.Conv2d(96, 64, 3, padding=1, bias=False)
    net.layer1[0].downsample = nn.Conv2d(96, 64, 1)


@mutation("vgg11", "classifier.0")
def wider_hidden_layer(net: Any) -> None:
    net.classifier[0], net.classifier[3] = nn.Linear(25088, 6000), nn.Linear(6000, 4096)


@mutation("resnet18", "fc")
def more_classes(net: Any) -> None:
    net.fc = nn.Linear(512, 20_000)


@mutation("resnet18", "layer1.2")
def one_more_block(net: Any) -> None:
    net.layer1.append(copy.deepcopy(net.layer1[1]))


@mutation("mobilenet_v3_small", "features.0.0")
def stem_without_stride(net: Any) -> None:
    net.features[0][0].stride = (1, 1)


@mutation("mobilenet_v2", "features.2.conv.1.0")
def later_stride(net: Any) -> None:
    net.features[2].conv[1][0].stride = (1, 1)


@mutation("resnet18", "maxpool", of="saved")
def pooling_removed(net: Any) -> None:
    net.maxpool = nn.Identity()


@mutation("resnet18", "layer3.1.relu", of="saved")
def dropout_behind_activation(net: Any) -> None:
    net.layer3[1].relu = nn.Sequential(net.layer3[1].relu, nn.Dropout(0.1))


@mutation("mobilenet_v2", "features.5")
def dropout_that_renames_layers(net: Any) -> None:
    net.features.insert(5, nn.Dropout(0.2))


@mutation("mobilenet_v2", "features.3.conv.1.0")
def larger_kernel(net: Any) -> None:
    old = net.features[3].conv[1][0]
    net.features[3].conv[1][0] = nn.Conv2d(144, 144, 7, old.stride, 3, groups=144, bias=False)


@mutation("mobilenet_v2", "features.3.conv.1.0")
def depthwise_made_dense(net: Any) -> None:
    net.features[3].conv[1][0] = nn.Conv2d(144, 144, 3, 1, 1, bias=False)


@mutation("mobilenet_v2", "features.2.conv")
def higher_expansion(net: Any) -> None:
    from torchvision.models.mobilenetv2 import InvertedResidual

    net.features[2] = InvertedResidual(16, 24, 2, 12)


@mutation("resnet18", "layer1.0.relu")
def relu_to_gelu(net: Any) -> None:
    net.layer1[0].relu = nn.GELU()


@mutation("timm:darknet17", "stages.0.conv_down.bn.act", input_shape=(3, 64, 64))
def activation_out_of_place(net: Any) -> None:
    net.stages[0].conv_down.bn.act.inplace = False


@mutation("vgg11", "features.1", of="saved")
def in_place_relu_to_silu(net: Any) -> None:
    net.features[1] = nn.SiLU(inplace=False)


@mutation("resnet18", "layer1.1", "layer1.1.extra")
def new_branch(net: Any) -> None:
    block = net.layer1[1]
    block.extra = nn.Conv2d(64, 64, 3, padding=1)
    block.forward = types.MethodType(lambda self, x: type(self).forward(self, x) + self.extra(x), block)


@mutation("mobilenet_v3_small", "features.4.block.2")
def squeeze_made_wider(net: Any) -> None:
    squeeze = net.features[4].block[2]
    squeeze.fc1, squeeze.fc2 = nn.Conv2d(96, 4096, 1), nn.Conv2d(4096, 96, 1)


@mutation("mobilenet_v3_small", "features.1.norm")
def norm_added(net: Any) -> None:
    net.features[1].norm = nn.BatchNorm2d(16)
    block = net.features[1]
    block.forward = types.MethodType(lambda self, x: self.norm(type(self).forward(self, x)), block)


@mutation("resnet18", "layer1.0.conv2")
def bottleneck_grown(net: Any) -> None:
    net.layer1[0].conv2 = nn.Sequential(nn.Conv2d(64, 256, 1), nn.ReLU(), nn.Conv2d(256, 64, 3, padding=1))


@mutation("squeezenet1_1", "features.3.expand3x3", "features.4")
def wider_fire(net: Any) -> None:
    net.features[3].expand3x3 = nn.Conv2d(16, 256, 3, padding=1)
    net.features[4].squeeze = nn.Conv2d(64 + 256, 16, 1)


@mutation("squeezenet1_1", "features.2", of="saved")
def pooling_without_stride(net: Any) -> None:
    net.features[2].stride = 1


@mutation("shufflenet_v2_x0_5", "stage2.1.branch2")
def wider_branch(net: Any) -> None:
    branch = net.stage2[1].branch2
    branch[0], branch[1] = nn.Conv2d(24, 384, 1, bias=False), nn.BatchNorm2d(384)
    branch[3], branch[4] = nn.Conv2d(384, 384, 3, 1, 1, groups=384, bias=False), nn.BatchNorm2d(384)
    branch[5] = nn.Conv2d(384, 24, 1, bias=False)


@mutation("mnasnet0_5", "layers.8")
def stage_repeated(net: Any) -> None:
    net.layers[8].append(copy.deepcopy(net.layers[8][1]))


@mutation("densenet121", "features.denseblock1.denselayer2", input_shape=(3, 64, 64))
def dense_layer_made_wider(net: Any) -> None:
    layer = net.features.denseblock1.denselayer2
    layer.conv1, layer.norm2 = nn.Conv2d(96, 1024, 1, bias=False), nn.BatchNorm2d(1024)
    layer.conv2 = nn.Conv2d(1024, 32, 3, padding=1, bias=False)


@mutation("resnet18", "layer4.1.conv1", of="saved", method="top-k", k=1)
def trained_layer_made_deeper(net: Any) -> None:
    net.layer4[1].conv1 = nn.Sequential(nn.Conv2d(512, 512, 1), nn.GELU(), nn.Conv2d(512, 512, 3, padding=1))


@mutation("resnet18", "layer4.1.conv2")
def convolution_with_more_kernels(net: Any) -> None:
    net.layer4[1].conv2 = nn.Conv2d(512, 512, 5, padding=2, bias=False)


@mutation("mobilenet_v3_small", "classifier.0", "classifier.3")
def wider_head(net: Any) -> None:
    net.classifier[0], net.classifier[3] = nn.Linear(576, 8192), nn.Linear(8192, 1000)


@mutation("resnet18", "layer1.1.bn2", of="saved")
def batch_norm_to_layer_norm(net: Any) -> None:
    net.layer1[1].bn2 = nn.Sequential(nn.GroupNorm(64, 64), nn.BatchNorm2d(64))


@mutation("timm:convnext_atto", "stages.0.blocks.0.mlp", input_shape=(3, 64, 64))
def wider_mlp(net: Any) -> None:
    mlp = net.stages[0].blocks[0].mlp
    mlp.fc1, mlp.fc2 = nn.Conv2d(40, 640, 1), nn.Conv2d(640, 40, 1)


@mutation("timm:vit_tiny_patch16_224", "blocks.3.attn.proj")
def deeper_projection(net: Any) -> None:
    net.blocks[3].attn.proj = nn.Sequential(nn.Linear(192, 192), nn.GELU(), nn.Linear(192, 192))


@mutation("hf:bert", "bert.encoder.layer.3.intermediate", "bert.encoder.layer.3.output", input_shape=(32,))
def wider_feed_forward(net: Any) -> None:
    layer = next(module for name, module in net.named_modules() if name.endswith("encoder.layer.3"))
    layer.intermediate.dense, layer.output.dense = nn.Linear(768, 6144), nn.Linear(6144, 768)
