"""Methods on real models: real steps need what was predicted, and lossless ones train as stock PyTorch does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import memplan
from memplan.application import plan_for
from memplan.methods import METHODS
from memplan.subject import Subject, subject_of
from memplan.tracing.step import tensors_in
from memplan.transform.apply import plan_of
from tests.corpus import CORPUS
from tests.test_accuracy import OPTIMIZERS, agrees, needs

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
    for parameter in plain.parameters():
        if not parameter.any():  # as in the last norm of a residual branch, behind which nothing would be tried
            nn.init.normal_(parameter, std=0.1)
    for name, buffer in plain.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(torch.randn_like(buffer), alpha=0.1)
        elif name.endswith("running_var"):
            buffer.mul_(0.5 + torch.rand_like(buffer))
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
        assert sum(bool(grad.any()) for grad in found.values()) > 0.5 * len(found)
    own = {name: buffer for name, buffer in planned.named_buffers() if ".lite_residual." not in name}
    return max(worst, difference(dict(plain.named_buffers()), own, tolerance))


class NormByAnotherName(nn.BatchNorm2d):
    """Runs the function that torch's own batch norm runs in the end."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        return torch.batch_norm(
            x, self.weight, self.bias, self.running_mean, self.running_var, self.training, 0.1, self.eps, False
        )


class NormByItself(nn.BatchNorm2d):
    """Norms by its running statistics without torch's help."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return (x - self.running_mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


def sequences(norm: type[nn.Module]) -> nn.Module:
    """Three blocks, each a sequence, with residual connections around them."""
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), norm(8), nn.Hardswish(inplace=True), nn.Conv2d(8, 8, 1))
                for _ in range(3)
            )
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x.mean((2, 3)))

    return Residual()


@pytest.mark.parametrize(
    ("norm", "left_out"),
    [(nn.BatchNorm2d, ()), (NormByAnotherName, ()), (NormByItself, ("blocks.0.1", "blocks.1.1", "blocks.2.1"))],
)
def test_tune_folds_the_norms_that_run_by_torchs_functions(norm: type[nn.Module], left_out: tuple[str, ...]) -> None:
    subject = subject_of(sequences(norm), torch.randn(2, 3, 8, 8))
    plan = plan_for(subject, "tune")
    assert {pair.norm for pair in plan.tuned} == {"blocks.0.1", "blocks.1.1", "blocks.2.1"} - set(left_out)
    note = f"tune leaves out {', '.join(left_out)}: not run by torch's own batch norm"
    assert plan.notes == ((note,) if left_out else ())
    as_stock(subject, "tune", 1e-12)


def test_a_branch_beside_a_sequence_is_no_member_of_it() -> None:
    subject = subject_of(sequences(nn.BatchNorm2d), torch.randn(2, 3, 8, 8))
    as_stock(subject, "tinytl-lite-bias", 1e-12)
    model, (x,), _ = subject.built("cpu")
    planned = memplan.apply(model, "tinytl-lite-bias", x)
    assert [len(block) for block in planned.blocks] == [4, 4, 4]
    named = [name for name, _ in planned.named_modules() if name.endswith("lite_residual")]
    assert named == ["blocks.1.3.lite_residual", "blocks.2.3.lite_residual"]
    agrees(memplan.verify(model, x, method="tinytl-lite-bias"))


@pytest.mark.parametrize(
    ("method", "note"),
    [
        ("lossless", "recompute does not apply: nothing kept is worth its price"),
        ("mobiletl", "the model has no blocks: the head alone trains"),
        ("top-k", "the model has no blocks: the head alone trains"),
        ("tune", "tune does not apply: no convolution is followed by a batch norm alone"),
        ("tinytl-lite", "lite-residual does not apply: no block maps images to images"),
    ],
)
def test_a_model_in_which_nothing_matches_is_told(method: str, note: str) -> None:
    result = memplan.verify(nn.Sequential(nn.Linear(4, 2)), torch.randn(3, 4), method=method, runner="memplan")
    agrees(result)
    assert note in result.notes


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


def test_recomputation_passes_over_what_only_real_data_is_asked() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Any:
            if not torch.compiler.is_compiling() and type(x) is Tensor and not bool((x == x).all()):
                raise ValueError("not a number")
            for layer in self.layers:
                x = torch.tanh(layer(x)).sin()
            return x

    model, x = Asking(), torch.randn(8, 16)
    result = memplan.verify(model, x, method="lossless", runner="memplan")
    agrees(result)
    stock = memplan.verify(model, x, method="full", runner="stock")
    # Of each of three layers stock keeps the input, and what tanh gives and sin is given.
    assert stock.measured_saved_bytes == 4 * 8 * 16 * 3 * 2
    assert result.measured_saved_bytes < stock.measured_saved_bytes
