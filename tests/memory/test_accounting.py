"""The published accountings: their rules on networks that one can add up by hand, and their published numbers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from memplan.errors import UsageError
from memplan.graph.step_graph import StepGraph
from memplan.memory.accounting import ACCOUNTINGS, Accounted, account
from memplan.sources import build, resolve
from memplan.tracing import fake_model, record_step

ROOT = Path(__file__).parent.parent.parent


def recorded(module: nn.Module, *shape: int) -> StepGraph:
    return record_step(fake_model(module, (torch.empty(shape, device="meta"),))).step


def chain() -> nn.Sequential:
    """A convolution, a norm, ReLU6, a depthwise convolution and a classifier, on (N, 3, 4, 4)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


INPUT, MAP = 2 * 3 * 16, 2 * 8 * 16
CONV, NORM, DEPTHWISE, LINEAR = 3 * 8 * 9, 8 + 8, 8 * 9 + 8, 128 * 5 + 5


def by_path(found: Accounted, quantity: str) -> dict[str, int]:
    return {layer.path: getattr(layer, quantity) for layer in found.layers}


def test_tinytl_full() -> None:
    found = account(recorded(chain(), 2, 3, 4, 4), "tinytl")
    kept = {"0": 4 * INPUT, "1": 4 * MAP, "2": MAP // 8, "3": 4 * MAP, "5": 4 * MAP}
    assert by_path(found, "kept_bytes") == kept
    temps = {"0": 4 * (INPUT + MAP), "1": 4 * MAP, "2": 4 * MAP, "3": 4 * MAP + 4 * MAP // 8, "5": 4 * (MAP + 2 * 5)}
    assert by_path(found, "temp_bytes") == temps
    assert by_path(found, "parameter_bytes") == {"0": 4 * CONV, "1": 4 * NORM, "3": 4 * DEPTHWISE, "5": 4 * LINEAR} | {
        "2": 0
    }
    # What a layer keeps is there from the next layer on.
    before_last = kept["0"] + kept["1"] + kept["2"] + kept["3"]
    assert (found.peak_bytes, found.peak_layer) == (before_last + temps["5"], "5")
    assert found.kept_bytes == before_last + kept["5"]
    assert found.temp_bytes == 4 * (INPUT + MAP)
    assert found.total_bytes == found.peak_bytes + 4 * (CONV + NORM + DEPTHWISE + LINEAR)
    assert (found.notes, found.uncounted) == ((), ())


def test_tinytl_last_keeps_no_mask_and_frozen_parameters_take_a_byte() -> None:
    model = chain()
    model[:5].requires_grad_(False)
    found = account(recorded(model, 2, 3, 4, 4), "tinytl")
    assert found.kept_bytes == 4 * MAP
    assert found.parameter_bytes == CONV + NORM + DEPTHWISE + 4 * LINEAR
    # Nothing is kept before the widest layer, so that its own need is the peak.
    assert (found.peak_bytes, found.peak_layer) == (4 * (INPUT + MAP), "0")


def test_tinytl_bias_keeps_masks_only_and_says_what_it_leaves_out() -> None:
    model = chain()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name.startswith("5"))
    found = account(recorded(model, 2, 3, 4, 4), "tinytl")
    assert found.kept_bytes == MAP // 8 + 4 * MAP
    # The first norm is the lowest layer that trains: no gradient passes it.
    assert found.notes == ()
    model[0].requires_grad_(True)
    (note,) = account(recorded(model, 2, 3, 4, 4), "tinytl").notes
    assert note.startswith("norms with a frozen scale (1 here) count as keeping nothing")
    assert note.endswith(f"their input: {4 * MAP / 1000:.1f} KB more")
    model[1].eval()
    assert account(recorded(model, 2, 3, 4, 4), "tinytl").notes == ()


def test_every_relu_counts_for_tinytl_as_soon_as_one_needs_a_backward() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.LeakyReLU(), nn.Conv2d(8, 2, 1))
    model[:2].requires_grad_(False)
    graph = recorded(model, 2, 3, 4, 4)
    assert by_path(account(graph, "tinytl"), "kept_bytes")["1"] == MAP // 8
    assert by_path(account(graph, "mobiletl"), "kept_bytes")["1"] == 0
    assert by_path(account(graph, "mobiletl"), "kept_bytes")["3"] == MAP // 8


def test_mobiletl() -> None:
    graph = recorded(chain(), 2, 3, 4, 4)
    found = account(graph, "mobiletl")
    kept = {"0": 4 * INPUT, "1": 4 * MAP + 4 * 8, "2": MAP * 2 // 8, "3": 4 * MAP, "5": 4 * MAP}
    assert by_path(found, "kept_bytes") == kept
    assert found.total_bytes == sum(kept.values()) + 4 * (CONV + NORM + DEPTHWISE + LINEAR)
    assert account(graph, "mobiletl", masked=True).kept_bytes == found.kept_bytes - MAP // 8


def test_mobiletl_shift_only_keeps_nothing_of_the_norm() -> None:
    model = chain()
    model[1].weight.requires_grad_(False)
    found = account(recorded(model, 2, 3, 4, 4), "mobiletl")
    assert by_path(found, "kept_bytes")["1"] == 0
    assert by_path(found, "parameter_bytes")["1"] == 4 * 8 + 8
    assert len(found.notes) == 1


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.squeeze = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.hardswish(self.first(x))
        gate = functional.hardsigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        return functional.max_pool2d(functional.dropout(gate * y, 0.5), 2)


def test_a_gate_keeps_the_map_and_what_has_no_rule_is_named() -> None:
    graph = recorded(Gated(), 2, 3, 4, 4)
    mobiletl = account(graph, "mobiletl")
    # In the root: hard-swish, hard-sigmoid of one value per channel, and the gate.
    assert by_path(mobiletl, "kept_bytes")[""] == 4 * MAP + 4 * 2 * 8 + 4 * MAP
    assert by_path(account(graph, "mobiletl", masked=True), "kept_bytes")[""] == MAP // 8 + 4 * 2 * 8 + 4 * MAP
    pooled = "aten.max_pool2d_with_indices.default"
    assert mobiletl.uncounted == ("aten.mul.Tensor", pooled)  # dropout multiplies too, and is no gate
    tinytl = account(graph, "tinytl")
    assert set(tinytl.uncounted) == {"aten.mul.Tensor", pooled}
    assert tinytl.notes == ("TinyTL's own profiler does not see layers of type Gated and reports 1.1 KB less kept",)
    assert 4 * MAP + 4 * 2 * 8 == 1088


def test_hard_swish_is_not_seen_by_the_published_profiler() -> None:
    graph = recorded(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Hardswish(), nn.Conv2d(8, 2, 1)), 2, 3, 4, 4)
    found = account(graph, "tinytl")
    assert by_path(found, "kept_bytes")["1"] == 4 * MAP
    assert found.notes == ("TinyTL's own profiler does not see layers of type Hardswish and reports 1.0 KB less kept",)


class Residual(nn.Module):
    """``x + f(x)``, ``f(relu(x + f(x)))``, ``f(x) + g(x)``, or ``f(x)``."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.f = nn.Conv2d(8, 8, 1)
        if way == "two":
            self.g = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "x":
            return x + self.f(x)
        if self.way == "x, then more":
            return self.f(torch.relu(x.view_as(x) + self.f(x)))
        return self.f(x) + self.g(x) if self.way == "two" else self.f(x)


class BasicBlock(Residual):
    """A block of the name that TinyTL's profiler knows."""


@pytest.mark.parametrize(
    ("block", "held"),
    [
        (Residual("x"), {"1.f": 4 * MAP}),
        (Residual("two"), {"1.f": 0, "1.g": 0}),
        (Residual(""), {"1.f": 0}),
        (BasicBlock("two"), {"1.f": 4 * MAP, "1.g": 4 * MAP}),
    ],
)
def test_the_input_of_a_block_with_a_shortcut_is_held(block: nn.Module, held: dict[str, int]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), block, nn.Conv2d(8, 1, 1))
    found = account(recorded(model.requires_grad_(False), 2, 3, 4, 4), "tinytl")
    assert by_path(found, "held_bytes") == {"0": 0, **held, "2": 0}
    # The block's input counts as the layer's input and once more as held.
    assert found.peak_bytes == 4 * 2 * MAP + held["1.f"]
    assert found.kept_bytes == 0


def test_an_input_is_held_until_its_sum_or_the_activation_that_ends_the_block() -> None:
    class Ends(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(super().forward(x))

    ends, goes_on = (
        account(recorded(nn.Sequential(nn.Conv2d(3, 8, 1), block), 2, 3, 4, 4), "tinytl")
        for block in (Ends("x"), Residual("x, then more"))
    )
    # The activation that ends the block runs in the block's own forward.
    assert by_path(ends, "held_bytes") == {"0": 0, "1": 4 * MAP, "1.f": 4 * MAP}
    assert by_path(goes_on, "held_bytes") == {"0": 0, "1": 0, "1.f": 4 * MAP}


def test_activations_grow_with_the_batch() -> None:
    one, four = (account(recorded(chain(), samples, 3, 4, 4), "tinytl") for samples in (1, 4))
    assert (four.kept_bytes, four.peak_bytes) == (4 * one.kept_bytes, 4 * one.peak_bytes)
    assert four.parameter_bytes == one.parameter_bytes


def hooked(module: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Return kept bytes and peak of a step by TinyTL's rules, from hooks on modules and not from ops."""
    blocks = {"InvertedResidual", "BasicBlock", "Bottleneck"}
    kept = peak = held = 0.0

    def is_residual(module: nn.Module) -> bool:
        return type(module).__name__ in blocks and getattr(module, "use_res_connect", True)

    def before(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        nonlocal held
        if is_residual(module):
            held = 4 * args[0].numel()

    def after(module: nn.Module, args: tuple[torch.Tensor], y: torch.Tensor) -> None:
        nonlocal kept, peak, held
        if is_residual(module):
            held = 0
        if list(module.children()):
            return
        size = 4 * args[0].numel()
        weighted = isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))
        activated = isinstance(module, (nn.ReLU, nn.ReLU6))
        temp = size if weighted or activated else 0
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            temp += 4 * y.numel() // getattr(module, "groups", 1)
        peak = max(peak, temp + kept + held)
        kept += size * (weighted and module.weight.requires_grad) + size / 32 * activated

    handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    return int(kept), int(peak)


@pytest.mark.parametrize("trains", ["full", "biases"])
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "torchvision:resnext50_32x4d"])
def test_ops_and_hooks_on_modules_agree(name: str, trains: str) -> None:
    built = build(resolve(name, batch_size=8, input_shape=(3, 64, 64)), "meta")
    for path, parameter in built.module.named_parameters():
        parameter.requires_grad_(trains == "full" or path.endswith("bias"))
    found = account(record_step(fake_model(built.module, built.args)).step, "tinytl")
    assert (found.kept_bytes, found.peak_bytes) == hooked(built.module, *built.args)


def test_an_unknown_accounting() -> None:
    with pytest.raises(UsageError) as raised:
        account(recorded(chain(), 2, 3, 4, 4), "tinyt")
    assert str(raised.value) == "no accounting 'tinyt'; did you mean 'tinytl'?; choose one of tinytl, mobiletl"
    assert list(ACCOUNTINGS) == ["tinytl", "mobiletl"]


@pytest.fixture(scope="module")
def papers() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("papers")
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture
def numbers(papers: ModuleType) -> ModuleType:
    return sys.modules["paper_numbers"]


#: Half a unit of the last digit that was published, or for reproduced figures of the digits given.
@pytest.mark.parametrize(
    ("rows", "tolerance"),
    [
        ("rep_net_rows", 0.005),
        ("block_rows", 0.1),
        ("block_item_rows", 1e-9),
        ("fmec_rows", 0.0005),
        ("tune_rows", 0.0005),
    ],
)
def test_published_numbers_come_out(numbers: ModuleType, rows: str, tolerance: float) -> None:
    found = [row for row in getattr(numbers, rows)() if row.published is not None]
    assert found
    assert {row.what: row.computed for row in found} == pytest.approx(
        {row.what: row.published for row in found}, abs=tolerance
    )


@pytest.mark.parametrize(("parts", "megabytes"), [("FT-Last", 30.83), ("TinyTL-L+B", 37.13), ("FT-Full", 390.84)])
def test_tinytls_table(numbers: ModuleType, parts: str, megabytes: float) -> None:
    assert numbers.tinytl_account(parts).total_bytes == pytest.approx(megabytes * 1e6, abs=0.005e6)


def test_mobiletls_top_blocks(numbers: ModuleType) -> None:
    rows = {row.what: row for row in numbers.top_k_rows()}
    assert rows["all blocks, kept activations, MB"].computed == pytest.approx(129.75, abs=0.005)
    assert rows["memory saved by 5 blocks, %"].computed == pytest.approx(69, abs=0.5)


def test_mobiletls_flops(numbers: ModuleType) -> None:
    steps = numbers.small_steps()
    found = {k: numbers.counted_step(steps, k) for k in (5, None)}
    published = 100 * (1 - (975.0 + 902.7) / (1000.6 + 1934.9))
    assert numbers.saved_share(found, "flops") == pytest.approx(published, abs=1)
    # Products alone, which memplan counts, come out lower: elementwise work grows with the blocks too.
    assert numbers.saved_share(found, "products") == pytest.approx(33.3, abs=0.05)


@pytest.mark.parametrize(
    ("way", "k", "megabytes"), [("vanilla", 1, 32.2), ("MobileTL", 1, 32.2), ("MobileTL", 3, 33.7)]
)
def test_mobiletls_plot_where_one_layer_is_the_peak(numbers: ModuleType, way: str, k: int, megabytes: float) -> None:
    found = numbers.proxyless_account(way, k)
    assert found.parameter_bytes + found.peak_bytes == pytest.approx(megabytes * 1e6, abs=0.05e6)


def test_the_page_is_what_the_benchmark_prints(papers: ModuleType) -> None:
    printed = (ROOT / "docs" / "papers.md").read_text()
    assert printed == "\n".join(papers.page()) + "\n", "refresh it: python benchmarks/papers.py > docs/papers.md"
