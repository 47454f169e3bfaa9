"""MobileTL's own blocks, 96 to 576 to 96 channels on maps of 7 by 7, batch 8: what they keep, and their gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import memplan
from memplan.sources.torchvision_compat import declare_missing_operators
from memplan.subject import subject_of
from memplan.transform.apply import plan_of
from memplan.transform.measure import saved_on_a_real_step
from tests.test_methods_on_models import backward, trains_alike

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
