"""torchvision's models and their metadata; torchvision beside a torch that it was not built for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from memplan.errors import UsageError
from memplan.sources import BuiltModel, InputSpec, build, resolve


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("inception_v3", (8, 3, 299, 299), 1000),
        ("efficientnet_b7", (8, 3, 600, 600), 1000),
        ("swin_v2_t", (8, 3, 256, 256), 1000),
        ("vit_h_14", (8, 3, 518, 518), 1000),
        ("deeplabv3_mobilenet_v3_large", (8, 3, 520, 520), 21),
        ("r3d_18", (8, 3, 16, 112, 112), 400),
        ("swin3d_t", (8, 3, 32, 224, 224), 400),
    ],
)
def test_shape_and_classes_are_those_of_the_default_weights(name: str, shape: tuple[int, ...], classes: int) -> None:
    source = resolve(f"torchvision:{name}")
    assert source.args == (InputSpec(shape),)
    assert source.classes == classes


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small", "resnet18", "regnet_y_400mf", "googlenet", "inception_v3", "lraspp_mobilenet_v3_large"],
)
def test_meta_and_cpu_builds_have_the_same_tensors(
    name: str, assert_same_tensors: Callable[[BuiltModel, BuiltModel], None]
) -> None:
    source = resolve(f"torchvision:{name}", batch_size=2)
    assert_same_tensors(build(source, "meta"), build(source, "cpu"))


@pytest.mark.parametrize("name", ["vit_b_16", "maxvit_t", "regnet_y_400mf", "googlenet", "mobilenet_v2"])
def test_a_model_runs_on_meta(name: str) -> None:
    size = 224 if name == "maxvit_t" else 96
    model = build(resolve(f"torchvision:{name}", batch_size=2, input_shape=(3, size, size), classes=7), "meta")
    model.module.eval()
    assert tuple(model.module(*model.args).shape) == (2, 7)


@pytest.mark.parametrize(
    ("name", "outputs"), [("googlenet", 3), ("inception_v3", 2), ("fcn_resnet50", 2), ("deeplabv3_resnet50", 2)]
)
def test_auxiliary_outputs_are_kept(name: str, outputs: int) -> None:
    model = build(resolve(f"torchvision:{name}", batch_size=2), "meta")
    assert len(model.module(*model.args)) == outputs


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "fasterrcnn_resnet50_fpn",
            "a detection model takes lists of images and boxes; write a factory that returns (module, inputs)",
        ),
        ("raft_small", "an optical-flow model takes pairs of images; write a factory that returns (module, inputs)"),
        ("quantized_resnet18", "a quantized model cannot be trained; take the one without quantized_"),
    ],
)
def test_what_cannot_be_trained_from_example_images_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UsageError) as raised:
        resolve(f"torchvision:{name}")
    assert str(raised.value) == f"torchvision:{name} is not supported: {reason}"


def test_building_on_the_cpu_follows_torchs_seed() -> None:
    source = resolve("mobilenet_v3_small", batch_size=1)
    torch.manual_seed(3)
    first = build(source, "cpu")
    torch.manual_seed(3)
    second = build(source, "cpu")
    assert torch.equal(first.args[0], second.args[0])
    assert all(map(torch.equal, first.module.parameters(), second.module.parameters()))


def test_torchvision_imports_quietly_whatever_torch_it_was_built_for() -> None:
    code = (
        "from memplan.sources.torchvision_compat import declare_missing_operators;"
        "needed = declare_missing_operators();"
        "import torchvision.models, torchvision.extension;"
        "print(needed == (not torchvision.extension._has_ops()), len(torchvision.models.list_models()) > 100)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_operators_that_load_are_left_alone() -> None:
    code = (
        "import torch, memplan.sources.torchvision_compat as compat;"
        "compat._loads_own_operators = lambda package: True;"
        "print(compat.declare_missing_operators(), hasattr(torch.ops.torchvision, 'nms'))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False False\n", "")
