"""Blocks and heads of real models, against the counts that their authors give or that can be read off their code."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import pytest

from memplan.graph.blocks import find_blocks
from memplan.graph.head import head_layers

pytest.importorskip("torch")

FAST: Final = {
    "torchvision:alexnet": (5, "classifier"),  # plain: the convolutions
    "torchvision:googlenet": (9, "aux1 aux2 fc"),
    "torchvision:mobilenet_v2": (17, "classifier"),  # features.1 to 17; neither the stem nor the last convolution
    "torchvision:mobilenet_v3_large": (15, "classifier"),
    "torchvision:resnet18": (8, "fc"),
    "torchvision:squeezenet1_1": (8, "classifier"),
    "torchvision:vit_b_16": (12, "heads"),
    "hf:whisper": (4 + 4, "proj_out"),
}

SLOW: Final = {
    "torchvision:convnext_tiny": (3 + 3 + 9 + 3, "classifier"),
    "torchvision:deeplabv3_mobilenet_v3_large": (15, "aux_classifier classifier"),
    "torchvision:densenet121": (4, "classifier"),
    "torchvision:efficientnet_b0": (16, "classifier"),
    "torchvision:efficientnet_v2_s": (2 + 4 + 4 + 6 + 9 + 15, "classifier"),
    "torchvision:inception_v3": (3 + 1 + 4 + 1 + 2, "AuxLogits fc"),
    "torchvision:maxvit_t": (2 + 2 + 5 + 2, "classifier"),
    "torchvision:mnasnet1_0": (3 + 3 + 3 + 2 + 4 + 1, "classifier"),
    "torchvision:mobilenet_v3_small": (11, "classifier"),
    "torchvision:regnet_y_400mf": (1 + 3 + 6 + 6, "fc"),
    "torchvision:resnet50": (3 + 4 + 6 + 3, "fc"),
    "torchvision:s3d": (9, "classifier"),
    "torchvision:shufflenet_v2_x1_0": (4 + 8 + 4, "fc"),
    "torchvision:swin_t": (2 + 2 + 6 + 2, "head"),
    "torchvision:swin_v2_t": (2 + 2 + 6 + 2, "head"),
    "torchvision:vgg16": (13, "classifier"),
    "timm:cait_xxs24_224": (24 + 2, "head"),
    "timm:convmixer_768_32": (32, "head"),  # a residual and a pointwise convolution in a Sequential of no name
    "timm:convnext_tiny": (3 + 3 + 9 + 3, "head"),
    "timm:cspdarknet53": (5, "head"),  # cross-stage ones: the path around a stage makes it one stretch
    "timm:deit_tiny_distilled_patch16_224": (12, "head head_dist"),
    "timm:densenet201": (4, "classifier"),
    "timm:dla34": (4, "fc"),
    "timm:dm_nfnet_f0": (1 + 2 + 6 + 3, "head"),
    "timm:dpn68": (3 + 4 + 12 + 3, "classifier"),  # each hands two values on
    "timm:edgenext_small_rw": (3 + 3 + 9 + 3, "head"),
    "timm:efficientvit_m0": (1 + 2 + 3, "head"),
    "timm:eva02_tiny_patch14_224": (12, ""),  # made without a classifier
    "timm:hrnet_w18_small": (23, "classifier"),
    "timm:inception_resnet_v2": (10 + 1 + 20 + 1 + 10, "classif"),
    "timm:inception_v4": (4 + 1 + 7 + 1 + 3, "last_linear"),
    "timm:lcnet_050": (13, "classifier"),  # plain: no residual, and squeeze-and-excite in two of them
    "timm:maxvit_tiny_tf_224": (2 + 2 + 5 + 2, "head"),
    "timm:mobilenetv2_100": (17, "classifier"),
    "timm:mobilenetv3_large_100": (15, "classifier"),
    "timm:mobilevit_s": (10, "head"),
    "timm:nasnetalarge": (18 + 2, "last_linear"),  # cells read the two before them
    "timm:poolformer_s12": (2 + 2 + 6 + 2, "head"),
    "timm:repvgg_a0": (1 + 2 + 4 + 14 + 1, "head"),
    "timm:res2net50_26w_4s": (16, "fc"),
    "timm:resnet18": (8, "fc"),
    "timm:resnetv2_18": (8, "head"),
    "timm:swin_tiny_patch4_window7_224": (12, "head"),
    "timm:tf_mobilenetv3_small_minimal_100": (11, "classifier"),
    "timm:vit_relpos_small_patch16_rpn_224": (12, "head"),
    "timm:vovnet39a": (6, "head"),
    "timm:xception41": (13, "head"),
    "hf:albert": (1, "classifier"),  # one layer, run twelve times
    "hf:bart": (12 + 12, "lm_head"),
    "hf:bert": (12, "classifier"),
    "hf:deberta-v2": (24, "classifier"),
    "hf:distilbert": (6, "classifier"),
    "hf:gpt2": (12, "lm_head"),
    "hf:mobilevit": (7, "classifier"),
    "hf:t5": (6 + 6, "lm_head"),
    "hf:vit": (12, "classifier"),
}


@pytest.mark.parametrize(
    ("spec", "expected"), [*FAST.items(), *(pytest.param(*item, marks=pytest.mark.corpus) for item in SLOW.items())]
)
@pytest.mark.filterwarnings("default")
def test_blocks_and_head(spec: str, expected: tuple[int, str]) -> None:
    from memplan.sources import build, resolve
    from memplan.sources.packages import is_installed
    from memplan.tracing import fake_model, record_step

    package = spec.partition(":")[0].replace("hf", "transformers")
    if not is_installed(package):
        pytest.skip(f"{package} is not installed")
    model = build(resolve(spec, batch_size=2), "meta")
    step = record_step(fake_model(model.module, model.args, model.kwargs)).step

    blocks = find_blocks(step.layers, step.ops, step.storages, step.parameters)
    head = head_layers(step.layers, step.ops, step.storages, step.parameters, blocks)

    paths = {step.layers[layer].path for layer in head}
    outermost = [path for path in sorted(paths) if path.rpartition(".")[0] not in paths]
    assert (len(blocks), " ".join(outermost)) == expected
    assert all(block.first_op <= block.last_op < len(step.ops) for block in blocks)
    assert all(one.last_op < other.first_op for one, other in pairwise(blocks))
