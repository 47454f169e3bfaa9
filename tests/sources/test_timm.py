"""timm's models and their metadata."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memplan.errors import UsageError
from memplan.sources import BuiltModel, InputSpec, build, resolve
from memplan.sources.packages import is_installed

pytestmark = pytest.mark.skipif(not is_installed("timm"), reason="timm is not installed")


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("tiny_vit_5m_224", (3, 224, 224), 21841),
        ("test_vit", (3, 160, 160), 1000),
        ("vit_base_patch16_clip_224.openai", (3, 224, 224), 512),
    ],
)
def test_shape_and_classes_are_those_of_the_pretrained_configuration(
    name: str, shape: tuple[int, ...], classes: int
) -> None:
    source = resolve(f"timm:{name}", batch_size=4)
    assert (source.name, source.origin, source.classes) == (name, "timm", classes)
    assert source.args == (InputSpec((4, *shape)),)


def test_a_bare_name_that_torchvision_lacks_is_timms() -> None:
    assert resolve("tiny_vit_5m_224").origin == "timm"
    assert resolve("resnet18").origin == "torchvision"


@pytest.mark.parametrize("name", ["test_vit", "mobilevitv2_050", "ghostnet_050", "regnety_002"])
def test_meta_and_cpu_builds_have_the_same_tensors(
    name: str, assert_same_tensors: Callable[[BuiltModel, BuiltModel], None]
) -> None:
    source = resolve(f"timm:{name}", batch_size=2)
    assert_same_tensors(build(source, "meta"), build(source, "cpu"))


@pytest.mark.parametrize("name", ["test_vit", "resnet18"])
def test_input_and_classes_reach_the_model(name: str) -> None:
    model = build(resolve(f"timm:{name}", batch_size=2, input_shape=(1, 96, 64), classes=5), "meta")
    assert tuple(model.module(*model.args).shape) == (2, 5)


def test_an_unknown_model_is_refused_with_the_closest() -> None:
    with pytest.raises(UsageError) as raised:
        resolve("timm:tiny_vit_5m_244")
    assert (
        str(raised.value) == "no model 'tiny_vit_5m_244' in timm; did you mean 'tiny_vit_5m_224' or 'tiny_vit_21m_224'?"
    )
