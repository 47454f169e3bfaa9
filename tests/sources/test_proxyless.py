"""ProxylessNAS-Mobile: the network, TinyTL's setting of it, and its spec."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import memplan
from memplan.errors import UsageError
from memplan.layers.lite_residual import LiteResidual, WithLiteResidual
from memplan.networks.proxyless import proxyless_mobile
from memplan.networks.tinytl import StandardisedConv2d, proxyless_mobile_tinytl, train_parts
from memplan.sources import BuiltModel, InputSpec, build, resolve


def test_the_parameters_are_the_published_ones() -> None:
    with torch.device("meta"):
        network = proxyless_mobile()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_080_512


@pytest.mark.parametrize("spec", ["proxyless_mobile", "memplan:proxyless_mobile_tinytl"])
def test_it_is_named_like_any_model(spec: str, assert_same_tensors: Callable[[BuiltModel, BuiltModel], None]) -> None:
    source = resolve(spec, batch_size=2, input_shape=(3, 64, 64), classes=7)
    assert (source.origin, source.name) == ("memplan", spec.removeprefix("memplan:"))
    assert source.args == (InputSpec((2, 3, 64, 64)),)
    built = build(source, "cpu")
    assert_same_tensors(build(source, "meta"), built)
    assert built.module(*built.args).shape == (2, 7)


def test_its_own_sizes_are_imagenets() -> None:
    source = resolve("proxyless_mobile")
    assert source.args == (InputSpec((8, 3, 224, 224)),)
    assert source.classes == 1000


def test_a_wrong_name_is_told() -> None:
    with pytest.raises(UsageError) as raised:
        resolve("memplan:proxyless_mobil")
    assert (
        str(raised.value)
        == "no network 'proxyless_mobil' in memplan; did you mean 'proxyless_mobile' or 'proxyless_mobile_tinytl'?"
    )


def test_it_is_analysed_block_by_block() -> None:
    analysis = memplan.analyze("proxyless_mobile", batch_size=2, input_shape=(3, 32, 32), classes=10, methods=("last",))
    assert len(analysis.blocks) == 1 + 2 + 4 + 4 + 4 + 4 + 1
    assert analysis.methods[0].footprint.trained_parameters == 1280 * 10 + 10


def test_every_block_but_the_first_has_a_branch_inside_its_shortcut() -> None:
    with torch.device("meta"):
        network = proxyless_mobile_tinytl()
    first, *others = network.blocks
    assert not isinstance(first.branch, WithLiteResidual)
    assert all(isinstance(block.branch, WithLiteResidual) for block in others)
    lites = [block.branch.lite.shape for block in others]
    # The nominal map, 128 halved at each stride, is pooled to 64 before the first block and to 4 after the fifth stage.
    assert [lite.kernel for lite in lites] == [5, 5] + [5] * 4 + [5] * 4 + [5] * 4 + [5, 3, 3, 3] + [3]
    assert [lite.stride for lite in lites] == [2, 1] + [2, 1, 1, 1] * 2 + [1] * 4 + [2, 1, 1, 1] + [1]
    assert {(lite.groups, lite.in_channels == lite.mid_channels) for lite in lites} == {(2, True)}
    assert not [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert all(norm.num_channels == 8 * norm.num_groups for norm in norms)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(isinstance(convolution, StandardisedConv2d) for convolution in convolutions)


def test_new_branches_leave_the_output_as_it_is() -> None:
    torch.manual_seed(0)
    network = proxyless_mobile_tinytl(5).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        with_branches = network(x)
        for block in list(network.blocks)[1:]:
            block.branch = block.branch.block
        assert torch.equal(with_branches, network(x))


def test_standardised_filters_have_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    convolution = StandardisedConv2d(3, 4, 3, bias=False)
    taps = convolution(torch.eye(27).view(27, 3, 3, 3)).view(27, 4)
    torch.testing.assert_close(taps.mean(0), torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(taps.std(0), torch.ones(4), rtol=0, atol=1e-3)


def trained(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_what_trains_is_what_was_asked_for() -> None:
    with torch.device("meta"):
        network = proxyless_mobile_tinytl(5)
    head = {"classifier.weight", "classifier.bias"}
    train_parts(network)
    assert trained(network) == head
    train_parts(network, biases=True)
    shifts = {name for name, _ in network.named_parameters() if name.endswith(".bias")}
    assert trained(network) == head | shifts
    train_parts(network, lite=True)
    branches = {name for name, _ in network.named_parameters() if ".lite." in name}
    assert trained(network) == head | branches
    train_parts(network, lite=True, biases=True)
    last_shifts = {name for name in branches if name.endswith("lite.last_norm.bias")}
    assert len(last_shifts) == sum(isinstance(module, LiteResidual) for module in network.modules()) == 19
    assert trained(network) == (head | branches | shifts) - last_shifts
    train_parts(network, norms=True)
    assert trained(network) == head | {name for name in trained(network) if "weight" in name or "bias" in name}
    assert {type(network.get_submodule(name.rpartition(".")[0])) for name in trained(network)} == {
        nn.Linear,
        nn.GroupNorm,
    }
    train_parts(network, all_weights=True)
    assert len(trained(network)) == len(list(network.parameters()))
