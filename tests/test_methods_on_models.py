"""Methods on real models: real steps need what was predicted, and lossless ones train as stock PyTorch does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import memplan
from memplan.methods import METHODS
from memplan.sources.torchvision_compat import declare_missing_operators
from memplan.subject import Subject, subject_of
from memplan.tracing.step import tensors_in
from memplan.transform.apply import plan_of
from memplan.transform.measure import saved_on_a_real_step
from tests.test_accuracy import CORPUS, OPTIMIZERS, agrees, needs

MEMPLANS = [name for name in METHODS if name != "as-is"]

#: Every method on one model or another in each run of the tests; the corpus has all of them on all.
QUICK: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    (
        "torchvision:mobilenet_v3_small",
        {"input_shape": (3, 64, 64)},
        ("lossless", "mobiletl", "tinytl-lite-bias", "last"),
    ),
    ("torchvision:resnet18", {"input_shape": (3, 64, 64)}, ("lossless", "tune", "top-k", "norm-last")),
    ("torchvision:squeezenet1_1", {"input_shape": (3, 64, 64)}, ("mobiletl", "tinytl-lite")),
    ("timm:test_vit", {}, ("lossless", "tinytl-bias", "full")),
    ("hf:distilbert", {"input_shape": (16,)}, ("lossless", "bias-last")),
)


@pytest.mark.parametrize(
    ("spec", "options", "method"),
    [(spec, options, method) for spec, options, methods in QUICK for method in methods],
)
def test_a_planned_step_needs_what_was_predicted(spec: str, options: dict[str, Any], method: str) -> None:
    needs(spec)
    agrees(memplan.verify(spec, method=method, runner="memplan", batch_size=2, **options))


def test_default_tests_have_every_method() -> None:
    assert {method for _, _, methods in QUICK for method in methods} == set(MEMPLANS)


@pytest.mark.corpus
@pytest.mark.parametrize("method", MEMPLANS)
@pytest.mark.parametrize("spec", CORPUS)
def test_every_method_needs_what_was_predicted_on_every_model(spec: str, method: str) -> None:
    needs(spec)
    how = OPTIMIZERS[(MEMPLANS.index(method) + CORPUS.index(spec)) % len(OPTIMIZERS)]
    agrees(memplan.verify(spec, method=method, runner="memplan", batch_size=2, **how))


# -- lossless: the same training ---------------------------------------------------------------------------------------

#: With batch norms, squeeze-and-excite, dropout, dropped paths, attention, shuffled channels.
TRAINED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("torchvision:mobilenet_v3_small", {"input_shape": (3, 64, 64)}),
    ("torchvision:efficientnet_b0", {"input_shape": (3, 32, 32)}),
    ("torchvision:shufflenet_v2_x0_5", {"input_shape": (3, 64, 64)}),
    ("timm:test_vit", {}),
)


@pytest.mark.parametrize(("spec", "options"), TRAINED, ids=[spec for spec, _ in TRAINED])
def test_lossless_trains_as_stock_does(spec: str, options: dict[str, Any]) -> None:
    needs(spec)
    trains_alike(subject_of(spec, batch_size=2, **options), torch.float64, 1e-10)


def test_lossless_draws_the_same_random_numbers_as_stock() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.5, batch_first=True)
    model = nn.Sequential(nn.Dropout(0.1), layer, copy.deepcopy(layer), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 5))
    trains_alike(subject_of(model, torch.randn(3, 7, 32)), torch.float64, 1e-10)


@pytest.mark.parametrize("spec", ["torchvision:mobilenet_v3_small"])
def test_lossless_trains_as_stock_does_in_single_precision(spec: str) -> None:
    trains_alike(subject_of(spec, batch_size=2, input_shape=(3, 64, 64)), torch.float32, 1e-4)


@pytest.mark.corpus
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("spec", CORPUS)
def test_lossless_trains_every_model_as_stock_does(spec: str, dtype: torch.dtype) -> None:
    needs(spec)
    trains_alike(subject_of(spec, batch_size=2), dtype, 1e-10 if dtype == torch.float64 else 1e-4)


def trains_alike(subject: Subject, dtype: torch.dtype, tolerance: float, *, steps: int = 3) -> dict[str, float]:
    """Train two copies of a model; return the largest differences, each as a share of its tensor's largest number."""
    torch.manual_seed(0)
    plain, args, kwargs = subject.built("cpu")
    plain.to(dtype).train()
    args, kwargs = pytree.tree_map(lambda leaf: _cast(leaf, dtype), (args, kwargs))
    planned = memplan.apply(plain, "lossless", (args, kwargs) if args and kwargs else args or kwargs)
    plan = plan_of(planned)
    assert plan is not None
    assert any(scheduled.recomputed for scheduled in plan.schedule)
    before = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}

    for model in (plain, planned):
        backward(model, args, kwargs, seed=1)
    found = {"gradients": difference(gradients(plain), gradients(planned), tolerance)}
    optimizers = (torch.optim.SGD(plain.parameters(), lr=0.01), memplan.optimizer(planned, "sgd", lr=0.01))
    for model, optimizer in zip((plain, planned), optimizers, strict=True):
        for number in range(steps):
            optimizer.zero_grad()
            backward(model, args, kwargs, seed=number)
            optimizer.step()
    after = dict(plain.named_parameters())
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    found["parameters"] = difference(after, dict(planned.named_parameters()), tolerance)
    found["statistics"] = difference(dict(plain.named_buffers()), dict(planned.named_buffers()), tolerance)
    return found


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def backward(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, seed: int) -> Tensor:
    """Make gradients of a weighted sum of all that the model returns; return all that, as one vector."""
    torch.manual_seed(seed)
    outputs = [tensor for tensor in tensors_in(model(*args, **kwargs)) if tensor.requires_grad]
    result = torch.cat([tensor.flatten() for tensor in outputs])
    (result * torch.linspace(-1, 1, result.numel()).to(result)).mean().backward()
    return result.detach()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float) -> float:
    """The largest difference as a share of its tensor's largest number, where that is not itself a rounding error."""
    assert expected.keys() == found.keys()
    tensors = {name: (tensor.detach().double(), found[name].detach().double()) for name, tensor in expected.items()}
    sizes = {name: float(tensor.abs().max()) for name, (tensor, _) in tensors.items() if tensor.numel()}
    worst = 0.0
    for name, size in sizes.items():
        # The gradient of a bias before a norm is 0 in exact arithmetic.
        scale = max(size, 1e-4 * max(sizes.values()))
        share = float((tensors[name][0] - tensors[name][1]).abs().max()) / scale if scale else 0.0
        assert share <= tolerance, f"{name} differs by {share:.3g} of its largest number"
        worst = max(worst, share)
    return worst


def test_a_difference_is_seen() -> None:
    expected = {"weight": torch.tensor([1.0, 100.0]), "bias": torch.tensor([0.5])}
    assert difference(expected, {**expected, "bias": torch.tensor([0.75])}, 0.5) == 0.5
    with pytest.raises(AssertionError, match=r"bias differs by 0\.5 of its largest number"):
        difference(expected, {**expected, "bias": torch.tensor([0.75])}, 0.49)


# -- exact methods: stock's gradients of what trains -------------------------------------------------------------------

EXACT: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("torchvision:mobilenet_v3_small", {"input_shape": (3, 64, 64)}, ("tune", "top-k", "tinytl-lite-bias", "mobiletl")),
    ("torchvision:resnet18", {"input_shape": (3, 32, 32)}, ("tune", "norm-last")),
    ("timm:test_vit", {}, ("tinytl-bias", "full")),
)


@pytest.mark.parametrize(
    ("spec", "options", "method"),
    [(spec, options, method) for spec, options, methods in EXACT for method in methods],
)
def test_an_exact_method_gives_stocks_gradients(spec: str, options: dict[str, Any], method: str) -> None:
    needs(spec)
    as_stock(subject_of(spec, batch_size=2, **options), method, 1e-9)


@pytest.mark.corpus
@pytest.mark.parametrize("method", MEMPLANS)
@pytest.mark.parametrize("spec", CORPUS)
def test_exact_methods_give_stocks_gradients_on_every_model(spec: str, method: str) -> None:
    needs(spec)
    as_stock(subject_of(spec, batch_size=2), method, 1e-8)


def as_stock(subject: Subject, method: str, tolerance: float) -> float:
    """Compare one step of a planned model and of the plain one in whose norms and prefix the plan's modes are set.

    Branches add nothing before they are trained. Where the method's gradients are approximate, results are compared.
    """
    torch.manual_seed(0)
    plain, args, kwargs = subject.built("cpu")
    plain.double().train()
    for name, buffer in plain.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand_like(buffer))
    args, kwargs = pytree.tree_map(lambda leaf: _cast(leaf, torch.float64), (args, kwargs))
    planned = memplan.apply(plain, method, (args, kwargs) if args and kwargs else args or kwargs)
    plan = plan_of(planned)
    assert plan is not None
    for path in (*plan.running, *plan.evaluated):
        plain.get_submodule(path).eval()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name in plan.trained)
    results = [backward(model, args, kwargs, seed=1) for model in (plain, planned)]
    worst = difference({"results": results[0]}, {"results": results[1]}, tolerance)
    if plan.gradients == "exact":
        found = {name: grad for name, grad in gradients(planned).items() if ".lite_residual." not in name}
        worst = max(worst, difference(gradients(plain), found, tolerance))
    own = {name: buffer for name, buffer in planned.named_buffers() if ".lite_residual." not in name}
    return max(worst, difference(dict(plain.named_buffers()), own, tolerance))


# -- what full fine-tuning needs ---------------------------------------------------------------------------------------

#: The largest share of stock PyTorch's peak that lossless may need: SGD, 8 images of 224 by 224.
SHARES = {"mobilenet_v2": 0.45, "mobilenet_v3_large": 0.50, "resnet50": 0.55, "efficientnet_b0": 0.55}


@pytest.mark.parametrize(("model", "share"), SHARES.items())
def test_lossless_is_predicted_to_need_a_share_of_stocks_peak(model: str, share: float) -> None:
    peaks = [
        memplan.analyze(f"torchvision:{model}", methods=(method,), runner=runner).methods[0].footprint.peak_bytes
        for method, runner in (("full", "stock"), ("lossless", "memplan"))
    ]
    assert peaks[1] <= share * peaks[0]


@pytest.mark.corpus
@pytest.mark.parametrize(("model", "share"), SHARES.items())
def test_lossless_needs_a_share_of_stocks_peak(model: str, share: float) -> None:
    stock, lossless = (
        memplan.verify(f"torchvision:{model}", method=method, runner=runner).steps[-1].measured_bytes
        for method, runner in (("full", "stock"), ("lossless", "memplan"))
    )
    assert lossless <= share * stock


# -- MobileTL's own blocks: 96 to 576 to 96 channels, maps of 7 by 7, batch 8 ------------------------------------------

SAMPLES, POSITIONS, WIDE, NARROW, SQUEEZED = 8, 7 * 7, 576, 96, 144
#: Bytes of one channel of a map, and of one number for each sample.
CHANNEL, NUMBER = 4 * SAMPLES * POSITIONS, 4 * SAMPLES

#: What autograd keeps of one block. Stock: the input, what both in-place activations overwrite, the inputs of the other
#: two convolutions and of three norms, and the norms' means and deviations.
STOCK_BLOCK = CHANNEL * (NARROW + 6 * WIDE + NARROW) + 4 * 2 * (2 * WIDE + NARROW)
#: MobileTL: of the norms only the last one's, of the activations one bit for each element.
TRANSFER_BLOCK = CHANNEL * (NARROW + 2 * WIDE + NARROW) + 4 * 2 * NARROW + CHANNEL * 2 * WIDE // 32
#: Squeeze-and-excite adds its product, which the last convolution reads, the pooled map, what ReLU gives, and the
#: scale; stock also what hard-sigmoid is given, MobileTL a bit for each element of both activations.
SQUEEZE = CHANNEL * WIDE + NUMBER * (WIDE + SQUEEZED + WIDE)
STOCK_SQUEEZE = SQUEEZE + NUMBER * WIDE
TRANSFER_SQUEEZE = SQUEEZE + NUMBER * (SQUEEZED + WIDE) // 32

BLOCKS = {
    # kind: stock's bytes, mobiletl's bytes, the share that the paper saves
    "v2": (STOCK_BLOCK, TRANSFER_BLOCK, 0.46),
    "v3": (STOCK_BLOCK, TRANSFER_BLOCK, 0.53),
    "v3 with squeeze-and-excite": (STOCK_BLOCK + STOCK_SQUEEZE, TRANSFER_BLOCK + TRANSFER_SQUEEZE, 0.53),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_of_mobiletl_keeps_less_by_the_papers_share_and_lossless_at_least_that(kind: str) -> None:
    stock, transfer, share = BLOCKS[kind]
    assert kept_by_one_block(kind, None) == stock
    assert kept_by_one_block(kind, "mobiletl") == transfer
    assert transfer <= (1 - share) * stock
    assert kept_by_one_block(kind, "lossless") <= transfer
    trains_alike(subject_of(inverted_residuals(kind, 3), images()), torch.float64, 1e-10)


def kept_by_one_block(kind: str, method: str | None) -> int:
    """Bytes that autograd keeps more for a network of three blocks than for one of two."""
    kept = []
    for blocks in (2, 3):
        model = inverted_residuals(kind, blocks)
        if method is not None:
            model = memplan.apply(model, method, images(), k=blocks if method == "mobiletl" else None)
        kept.append(saved_on_a_real_step(model, (images(),), {}))
    return kept[1] - kept[0]


def images() -> Tensor:
    return torch.randn(SAMPLES, 3, 7, 7)


def inverted_residuals(kind: str, blocks: int) -> nn.Sequential:
    """A stem, torchvision's blocks, and a classifier."""
    declare_missing_operators()
    from torchvision.models import mobilenetv2, mobilenetv3

    def block() -> nn.Module:
        if kind == "v2":
            return mobilenetv2.InvertedResidual(NARROW, NARROW, stride=1, expand_ratio=WIDE // NARROW)
        squeeze = kind == "v3 with squeeze-and-excite"
        config = mobilenetv3.InvertedResidualConfig(NARROW, 5, WIDE, NARROW, squeeze, "HS", 1, 1, 1.0)
        return mobilenetv3.InvertedResidual(config, nn.BatchNorm2d)

    torch.manual_seed(blocks)
    stem = nn.Sequential(nn.Conv2d(3, NARROW, 3, padding=1, bias=False), nn.BatchNorm2d(NARROW), nn.Hardswish())
    top = (nn.Flatten(), nn.Linear(NARROW * POSITIONS, 10))
    return nn.Sequential(stem, *(block() for _ in range(blocks)), *top)


# -- the signed mask in a whole model ----------------------------------------------------------------------------------


def test_a_signed_mask_passes_gradients_where_the_input_is_not_negative_in_a_whole_model() -> None:
    model = inverted_residuals("v3", 2)
    x = images()
    planned = memplan.apply(model, "mobiletl", x, k=2)
    plan = plan_of(planned)
    assert plan is not None
    reference = copy.deepcopy(model)
    for path in (*plan.running, *plan.evaluated):
        reference.get_submodule(path).eval()

    given: dict[str, Tensor] = {}
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}

    def seen(path: str, module: nn.Module) -> None:
        def entering(module: nn.Module, args: tuple[Tensor]) -> None:
            given[path] = args[0].detach().clone()
            args[0].register_hook(lambda grad: before.update({path: grad.clone()}))

        def leaving(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            output.register_hook(lambda grad: after.update({path: grad.clone()}))

        module.register_forward_pre_hook(entering)
        module.register_forward_hook(leaving)

    trained = {path: module for path, module in planned.named_modules() if isinstance(module, nn.Hardswish)}
    trained.pop("0.2")
    for path, module in trained.items():
        seen(path, module)
    output = backward(planned, (x,), {}, seed=0)
    assert torch.equal(output, reference(x).flatten())
    assert set(before) == set(after) == {"1.block.0.2", "1.block.1.2", "2.block.0.2", "2.block.1.2"}
    for path, x_given in given.items():
        assert torch.equal(before[path], after[path] * (x_given >= 0))
        assert 0 < int((x_given < 0).sum()) < x_given.numel()
        # Hard-swish itself gives another gradient: its slope is not 1 between -3 and 3.
        slope = torch.autograd.grad(F.hardswish(leaf := x_given.clone().requires_grad_()), leaf, after[path])[0]
        assert not torch.allclose(before[path], slope)
