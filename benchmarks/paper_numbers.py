"""The published systems again: their networks, what trains in them, and each number as it is computed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.graph.step_graph import StepGraph
from memplan.memory.accounting import Accounted, account
from memplan.methods import method_named
from memplan.networks.proxyless import InvertedResidual, ProxylessMobile, proxyless_mobile
from memplan.networks.tinytl import proxyless_mobile_tinytl, standardise_weights, train_parts
from memplan.sources.torchvision_compat import declare_missing_operators
from memplan.steps import Steps, choose_trained
from memplan.subject import subject_of
from memplan.tracing import FakeModel, fake_model, record_step, run_step
from memplan.tracing.flops import flop_count

MB = 10**6
GIB = 2**30
BATCH = 8


@dataclass(frozen=True)
class Row:
    """One number: what it is, as it was published (or reproduced elsewhere), and computed here."""

    what: str
    published: float | None
    computed: float
    digits: int = 2
    remark: str = ""


def listed(rows: Callable[[], Iterator[Row]]) -> Callable[[], tuple[Row, ...]]:
    """Compute rows once."""
    return cache(lambda: tuple(rows()))


def on_fake(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> FakeModel:
    with torch.device("meta"):
        module = make()
    return fake_model(module, (torch.empty(shape, device="meta"),))


def recorded(model: FakeModel) -> StepGraph:
    return record_step(model).step


# -- TinyTL ------------------------------------------------------------------------------------------------------------

TINYTL_PARTS: dict[str, dict[str, bool]] = {
    "FT-Last": {},
    "TinyTL-B": {"biases": True},
    "TinyTL-L": {"lite": True},
    "TinyTL-L+B": {"lite": True, "biases": True},
    "FT-Norm+Last": {"norms": True},
    "FT-Full": {"all_weights": True},
}
TINYTL_REPRODUCED = {"FT-Last": (30.83, 31), "TinyTL-L+B": (37.13, 37), "FT-Full": (390.84, 391)}


@cache
def tinytl_model(size: int) -> FakeModel:
    return on_fake(lambda: proxyless_mobile_tinytl(102), (BATCH, 3, size, size))


@cache
def tinytl_account(parts: str, size: int = 224) -> Accounted:
    model = tinytl_model(size)
    train_parts(model.module, **TINYTL_PARTS[parts])
    return account(recorded(model), "tinytl")


def wide_mobilenet_v2() -> nn.Module:
    declare_missing_operators()
    from torchvision.models import mobilenet_v2

    module: nn.Module = mobilenet_v2(width_mult=1.4, num_classes=102)
    return module


@listed
def tinytl_rows() -> Iterator[Row]:
    for parts in TINYTL_PARTS:
        found = tinytl_account(parts)
        reproduced, paper = TINYTL_REPRODUCED.get(parts, (None, None))
        where = f"peak in `{found.peak_layer}`, {found.peak_bytes / MB:.2f}"
        name = parts if paper is None else f"{parts} ({paper})"
        yield Row(name, reproduced, found.total_bytes / MB, remark=where)
    yield Row("TinyTL-L+B at 320 (65)", 64.70, tinytl_account("TinyTL-L+B", 320).total_bytes / MB)
    wide = recorded(on_fake(wide_mobilenet_v2, (BATCH, 3, 224, 224)))
    yield Row("FT-Full MobileNetV2-1.4 (644)", 644.2, account(wide, "tinytl").total_bytes / MB, 1)


def hardswish_notes() -> tuple[str, ...]:
    return account(Steps(subject_of("torchvision:mobilenet_v3_small")).step(method_named("full")), "tinytl").notes


# -- Rep-Net -----------------------------------------------------------------------------------------------------------


class SideModule(nn.Module):
    """One step of Rep-Net's side network: pool, grouped convolution, norm, ReLU, 1x1 convolution, norm, upsample."""

    def __init__(self, channels: tuple[int, int, int], kernel: int, groups: int, pool: int, shrink: int) -> None:
        super().__init__()
        given, mid, made = channels
        self.pool, self.shrink = pool, shrink
        self.spatial = nn.Conv2d(given, mid, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(mid)
        self.activation = nn.ReLU(inplace=True)
        self.pointwise = nn.Conv2d(mid, made, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(made)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm(self.spatial(functional.avg_pool2d(x, self.pool))))
        size = [side // self.shrink for side in x.shape[2:]]
        return functional.interpolate(self.last_norm(self.pointwise(y)), size, mode="bilinear", align_corners=False)


class RepNet(nn.Module):
    """ProxylessNAS-Mobile with Rep-Net's side network, which meets it at the first block of each stage.

    Source: Rep-Net's released code, ``ProgramNet``.
    """

    POINTS = (1, 3, 7, 11, 15, 19)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = ProxylessMobile(classes)
        self.side = nn.ModuleList(
            [
                SideModule((3, 8, 32), kernel=5, groups=1, pool=4, shrink=2),
                SideModule((32, 32, 40), kernel=5, groups=2, pool=2, shrink=2),
                SideModule((40, 40, 80), kernel=5, groups=2, pool=2, shrink=2),
                SideModule((80, 80, 96), kernel=5, groups=2, pool=2, shrink=1),
                SideModule((96, 96, 192), kernel=3, groups=2, pool=2, shrink=2),
                SideModule((192, 192, 320), kernel=3, groups=2, pool=2, shrink=1),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        added = self.side[0](functional.avg_pool2d(x, 2))
        x = self.network.stem(x)
        for place, block in enumerate(self.network.blocks):
            y = block(x)
            if place in self.POINTS:
                side = self.POINTS.index(place)
                y = y + (self.side[side](x) if side else added)
            x = y
        logits: Tensor = self.network.classifier(self.network.mix(x).mean((2, 3)))
        return logits


@listed
def rep_net_rows() -> Iterator[Row]:
    model = on_fake(lambda: RepNet(102), (BATCH, 3, 224, 224))
    standardise_weights(model.module.side)
    for biases, published in ((False, 32.76), (True, None)):
        train_parts(model.module, biases=biases)
        model.module.side.requires_grad_(True)
        found = account(recorded(model), "tinytl")
        name = "Rep-Net, side network and biases" if biases else "Rep-Net, side network alone"
        yield Row(name, published, found.total_bytes / MB, remark=f"peak in `{found.peak_layer}`")


# -- MobileTL ----------------------------------------------------------------------------------------------------------


def v2_block() -> nn.Module:
    return InvertedResidual(96, 96, 3, 1, 6)


def v3_block() -> nn.Module:
    declare_missing_operators()
    from torchvision.models.mobilenetv3 import InvertedResidual as Block
    from torchvision.models.mobilenetv3 import InvertedResidualConfig

    module: nn.Module = Block(InvertedResidualConfig(96, 5, 576, 96, True, "HS", 1, 1, 1), nn.BatchNorm2d)
    return module


def shift_only(blocks: Iterable[nn.Module]) -> None:
    """Freeze the scale of every norm of a block but its last."""
    for block in blocks:
        for norm in [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][:-1]:
            norm.weight.requires_grad_(False)


def block_account(make: Callable[[], nn.Module], *, approximate: bool) -> Accounted:
    model = on_fake(make, (BATCH, 96, 7, 7))
    if approximate:
        shift_only([model.module])
    return account(recorded(model), "mobiletl", masked=approximate)


@listed
def block_rows() -> Iterator[Row]:
    for name, make, vanilla, ours in (("V2", v2_block, 4.032, 2.164), ("V3", v3_block, 6.670, 3.109)):
        before = block_account(make, approximate=False).kept_bytes
        after = block_account(make, approximate=True).kept_bytes
        yield Row(f"{name} block, vanilla", vanilla, before / MB, 3)
        yield Row(f"{name} block, MobileTL", ours, after / MB, 3)
        share = 46.3 if name == "V2" else 53.3
        yield Row(f"{name} block, saving in %", share, 100 * (1 - after / before), 1)


@listed
def block_item_rows() -> Iterator[Row]:
    elements = 576 * 49 * BATCH
    expected = {
        "vanilla": {
            "expand conv": elements // 6 * 4,
            "expand norm": 4 * elements + 4 * 576,
            "expand activation": elements // 4,
            "depthwise conv": 4 * elements,
            "depthwise norm": 4 * elements + 4 * 576,
            "depthwise activation": elements // 4,
            "project conv": 4 * elements,
            "project norm": elements // 6 * 4 + 4 * 96,
        },
        "MobileTL": {
            "expand conv": elements // 6 * 4,
            "expand norm": 0,
            "expand activation": elements // 8,
            "depthwise conv": 4 * elements,
            "depthwise norm": 0,
            "depthwise activation": elements // 8,
            "project conv": 4 * elements,
            "project norm": elements // 6 * 4 + 4 * 96,
        },
    }
    for way, items in expected.items():
        layers = block_account(v2_block, approximate=way == "MobileTL").layers
        for (what, size), layer in zip(items.items(), layers, strict=True):
            yield Row(f"V2 {way}, {what}", size / MB, layer.kept_bytes / MB, 6)


@cache
def small_steps() -> Steps:
    return Steps(subject_of("torchvision:mobilenet_v3_small", None, batch_size=BATCH, classes=10))


@listed
def top_k_rows() -> Iterator[Row]:
    steps = small_steps()
    every = account(steps.step(method_named("full")), "mobiletl")
    five = account(steps.step(method_named("top-k"), 5), "mobiletl")
    yield Row("all blocks, kept activations, MB", 129.75, every.kept_bytes / MB)
    yield Row("all blocks, with parameters, MB", None, every.total_bytes / MB)
    yield Row("last 5 blocks, with parameters, MB", None, five.total_bytes / MB)
    yield Row("memory saved by 5 blocks, %", 69, 100 * (1 - five.total_bytes / every.total_bytes), 1)


PUBLISHED_MFLOPS = {1: (968.8, 284.3), 3: (972.1, 655.4), 5: (975.0, 902.7), None: (1000.6, 1934.9)}


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts a step's arithmetic after PyTorch's own decompositions.

    A pointwise op counts one for each element of its result, a sum or mean one for each of its input, a variance three;
    a product as PyTorch's flop formulas say.
    """

    REDUCTIONS: ClassVar = {"sum": 1, "mean": 1, "var_mean": 3}

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch._decomp import core_aten_decompositions, get_decompositions

        # The core set leaves batch norm whole.
        batch_norm = get_decompositions([torch.ops.aten.native_batch_norm, torch.ops.aten.native_batch_norm_backward])
        self.rules = {**core_aten_decompositions(), **batch_norm}
        self.flops: Counter[str] = Counter()
        self.products: Counter[str] = Counter()
        self.phase = "forward"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.rules:
            with self:
                result = self.rules[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        products = flop_count(func.overloadpacket, args, kwargs, result)
        self.products[self.phase] += products
        if torch.Tag.pointwise in func.tags:
            self.flops[self.phase] += result.numel()
        elif (each := self.REDUCTIONS.get(func.overloadpacket.__name__)) is not None:
            self.flops[self.phase] += each * args[0].numel()
        self.flops[self.phase] += products
        return result


def counted_step(steps: Steps, k: int | None) -> Counted:
    """Count a step in which the last ``k`` blocks train, or all; norms that are frozen use running statistics."""
    model = steps.model
    choose_trained(model.module, steps.trained(method_named("full" if k is None else "top-k"), k))
    for module in model.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(module.weight.requires_grad)
    counter = Counted()

    def enter(phase: str) -> None:
        counter.phase = phase

    with model.mode, counter:
        run_step(model.module, model.args, model.kwargs, enter=enter)
    return counter


@listed
def flop_rows() -> Iterator[Row]:
    steps = small_steps()
    found = {k: counted_step(steps, k) for k in PUBLISHED_MFLOPS}
    for k, (forward, backward) in PUBLISHED_MFLOPS.items():
        name = "all blocks" if k is None else "last block" if k == 1 else f"last {k} blocks"
        yield Row(f"{name}, forward, M", forward, found[k].flops["forward"] / MB, 1)
        yield Row(f"{name}, backward, M", backward, found[k].flops["backward"] / MB, 1)
    published = 100 * (1 - sum(PUBLISHED_MFLOPS[5]) / sum(PUBLISHED_MFLOPS[None]))
    yield Row("FLOPs saved by 5 blocks, %", round(published, 1), saved_share(found, "flops"), 1)
    yield Row("the same, products alone, %", None, saved_share(found, "products"), 1)


def saved_share(found: dict[int | None, Counted], which: str) -> float:
    def total(k: int | None) -> int:
        counts: Counter[str] = getattr(found[k], which)
        return counts["forward"] + counts["backward"]

    return 100 * (1 - total(5) / total(None))


PROXYLESS_PUBLISHED = {"vanilla": (32.2, 35.5, 40.6, 50.2), "MobileTL": (32.2, 33.0, 33.7, 38.9)}


@cache
def proxyless_model() -> FakeModel:
    return on_fake(lambda: proxyless_mobile(102), (BATCH, 3, 224, 224))


def proxyless_account(way: str, k: int) -> Accounted:
    model = proxyless_model()
    network = model.module
    network.requires_grad_(False)
    top = list(network.blocks)[-k:]
    for module in (*top, network.mix, network.classifier):
        module.requires_grad_(True)
    if way == "MobileTL":
        shift_only(top)
    return account(recorded(model), "mobiletl", masked=way == "MobileTL")


@listed
def proxyless_rows() -> Iterator[Row]:
    for way, published in PROXYLESS_PUBLISHED.items():
        for k, figure in enumerate(published, start=1):
            found = proxyless_account(way, k)
            total = (found.parameter_bytes + found.peak_bytes) / MB
            beyond = figure - (found.parameter_bytes + found.kept_bytes) / MB
            remark = f"kept {found.kept_bytes / MB:.2f}; published less parameters and kept {beyond:.2f}"
            yield Row(f"{way}, k={k}", figure, total, 2, remark)


# -- temporary memory, and convolution with norm -----------------------------------------------------------------------

FMEC_PUBLISHED = {
    "features.2.conv.0.0": 5.620,
    "features.2.conv.1.0": 4.829,
    "features.1.conv.1": 2.408,
    "features.0.0": 2.208,
}


@listed
def fmec_rows() -> Iterator[Row]:
    steps = Steps(subject_of("torchvision:mobilenet_v2", None, batch_size=1))
    temps = {layer.path: layer.temp_bytes for layer in account(steps.step(method_named("full")), "tinytl").layers}
    for path, published in FMEC_PUBLISHED.items():
        yield Row(f"`{path}`", published, temps[path] / MB, 3)


def tune_bytes(graph: StepGraph) -> int:
    """Return what a step keeps when each norm is folded into its convolution: no norm's input, a folded weight each."""
    forward = [op for op in graph.ops if op.phase == "forward"]
    norms = {next(op.inputs).storage for op in forward if op.name == "aten.native_batch_norm.default"}
    weights = {parameter.storage: parameter.elements for parameter in graph.parameters}
    folded = sum(
        4 * weights[view.storage]
        for op in forward
        if op.name == "aten.convolution.default" and op.outputs[0] and op.outputs[0].storage in norms
        for view in op.inputs
        if view.storage in weights
    )
    return folded + sum(graph.storages[index].bytes for index in graph.saved if index not in norms)


@listed
def tune_rows() -> Iterator[Row]:
    steps = Steps(subject_of("torchvision:resnet50", None, batch_size=64, training=False))
    graph = steps.step(method_named("full"))
    yield Row("kept by stock PyTorch", 5.121, graph.saved_bytes / GIB, 3)
    yield Row("kept with folded norms", 2.558, tune_bytes(graph) / GIB, 3)
