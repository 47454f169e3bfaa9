"""The storages of results are right when the kernels agree: in the table by its bytes, elsewhere by the fake's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.memory import price
from memplan.tracing.record import trace
from memplan.tracing.storages import STORAGE_BYTES
from memplan.transform.measure import measure

#: Ops whose fake results differ from the real ones in a way that the table does not mend, and what differs.
OTHERWISE = {
    "aten.mkldnn_rnn_layer_backward.default": "the fake returns one tensor for both bias gradients, which are two",
}


class Comparison(TorchDispatchMode):
    """Run every op on fake copies of its arguments too, and keep what differs in the storages of the results.

    Ops that need the values of tensors have no fake results and are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.differences: dict[str, tuple[Any, Any]] = {}
        self.compared: set[str] = set()
        self._seen: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        signature = (func, *(_signature(leaf) for leaf in pytree.tree_leaves((args, kwargs))))
        real = None
        if signature not in self._seen and func.namespace == "aten":
            self._seen.add(signature)
            copied = _fake_copies(args, kwargs)
            result = func(*args, **kwargs)
            real = _storages((args, kwargs), result)
            if (fake := _fake_storages(func, *copied)) is not None:
                self.compared.add(str(func))
                if real != fake:
                    self.differences.setdefault(str(func), (real, fake))
            return result
        return func(*args, **kwargs)


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.untyped_storage().nbytes()
    return str(leaf)


def _fake_copies(args: Any, kwargs: Any) -> tuple[FakeTensorMode, Any, Any]:
    """Return the arguments as fake tensors on storages that are as large as the real ones and shared alike."""
    mode = FakeTensorMode()
    bases: dict[int, torch.UntypedStorage] = {}

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        storage = leaf.untyped_storage()
        with mode:
            if storage._cdata not in bases:
                bases[storage._cdata] = torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()
            view = torch.empty(0, dtype=leaf.dtype)
            return view.set_(bases[storage._cdata], leaf.storage_offset(), leaf.shape, leaf.stride())

    return mode, *pytree.tree_map(copied, (args, kwargs))


def _fake_storages(func: Any, mode: FakeTensorMode, args: Any, kwargs: Any) -> list[Any] | None:
    try:
        with mode:
            result = func(*args, **kwargs)
    except (torch._subclasses.fake_tensor.DataDependentOutputException, RuntimeError):
        return None
    storages = _storages((args, kwargs), result)
    if func in STORAGE_BYTES:
        for index, size in enumerate(STORAGE_BYTES[func](result, *args, **kwargs)):
            if size is not None:
                storages[index] = (f"result {index}", size) if size else None
    return storages


def _storages(given: Any, result: Any) -> list[Any]:
    """Return for each result which argument or result first had its storage, and the bytes of that."""
    owners: dict[int, str] = {}
    for index, leaf in enumerate(pytree.tree_leaves(given)):
        if isinstance(leaf, Tensor):
            owners.setdefault(leaf.untyped_storage()._cdata, f"argument {index}")
    storages: list[Any] = []
    for index, leaf in enumerate(pytree.tree_leaves(result)):
        if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes():
            storage = leaf.untyped_storage()
            storages.append((owners.setdefault(storage._cdata, f"result {index}"), storage.nbytes()))
        else:
            storages.append(None)
    return storages


def compared(calls: Iterator[Callable[[], Any]]) -> Comparison:
    """Run the calls and their backwards, and return what was compared."""
    comparison = Comparison()
    torch.manual_seed(0)
    for call in calls:
        with comparison:
            results = [leaf for leaf in pytree.tree_leaves(call()) if isinstance(leaf, Tensor) and leaf.requires_grad]
            if results:
                torch.autograd.backward(results, [torch.ones_like(result) for result in results])
    return comparison


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, dtype=dtype, requires_grad=True)


# -- what the table holds ----------------------------------------------------------------------------------------------

LAYERS: list[tuple[tuple[int, int], tuple[int, int], dict[str, Any]]] = [
    # (input and hidden size, moments and batch, of the module)
    ((16, 32), (6, 8), {}),
    ((16, 33), (6, 8), {"num_layers": 3}),
    ((7, 17), (5, 3), {"bias": False}),
    ((64, 64), (1, 1), {"bidirectional": True}),  # gates of 256 elements, which are padded
    ((256, 64), (3, 2), {"num_layers": 2, "bidirectional": True}),
    ((300, 12), (2, 130), {"batch_first": True}),
    ((5, 256), (4, 3), {"num_layers": 2, "dropout": 0.5}),
    ((1, 1), (1, 1), {}),
    ((24, 20), (9, 2), {"proj_size": 6}),  # falls back to ops of its own
]


def _lstm(widths: tuple[int, int], lengths: tuple[int, int], options: dict[str, Any]) -> Callable[[], Any]:
    moments, batch = reversed(lengths) if options.get("batch_first") else lengths
    return lambda: nn.LSTM(*widths, **options)(_random(moments, batch, widths[0]))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("widths", "lengths", "options"), LAYERS)
def test_an_lstm_layer_returns_the_workspace_of_its_kernel(
    widths: tuple[int, int], lengths: tuple[int, int], options: dict[str, Any]
) -> None:
    differences = compared(iter([_lstm(widths, lengths, options)])).differences
    assert {op: what for op, what in differences.items() if op not in OTHERWISE} == {}


def test_the_workspace_is_the_sum_of_its_parts() -> None:
    value, weight, recurrent = torch.empty(6, 8, 16), torch.empty(128, 16), torch.empty(128, 32)
    # gates 6 * 8 * 128 * 4 = 24576, outputs 6 * 8 * 32 * 4 = 6144 -> 8192,
    # and five times the states 2 * 7 * 8 * 32 * 4 = 14336 -> 16384
    layer_bytes = STORAGE_BYTES[torch.ops.aten.mkldnn_rnn_layer.default]
    assert layer_bytes((), value, weight, recurrent)[3] == 24576 + 8192 + 5 * 16384


def test_a_layer_without_gradients_has_no_workspace() -> None:
    with torch.no_grad():
        assert compared(iter([_lstm((16, 32), (6, 8), {})])).differences == {}


def _losses() -> Iterator[Callable[[], Any]]:
    for reduction in ("mean", "sum", "none"):
        for loss in (F.mse_loss, F.smooth_l1_loss, F.soft_margin_loss, F.binary_cross_entropy):
            yield lambda loss=loss, how=reduction: loss(_random(64, 100), torch.rand(64, 100), reduction=how)
            yield lambda loss=loss, how=reduction: loss(
                _random(8, 10, dtype=torch.bfloat16), torch.rand(8, 10).bfloat16(), reduction=how
            )
            yield lambda loss=loss, how=reduction: loss(_random(8, 10)[:, ::2], torch.rand(8, 5), reduction=how)
            yield lambda loss=loss, how=reduction: loss(_random(8, 1).expand(8, 5), torch.rand(8, 5), reduction=how)
            yield lambda loss=loss, how=reduction: loss(_random(1), torch.rand(1), reduction=how)
    yield lambda: F.smooth_l1_loss(_random(64, 10).t(), torch.rand(10, 64), beta=0.5)
    yield lambda: F.binary_cross_entropy(_random(64, 10), torch.rand(64, 10), torch.rand(10))


def _spread_losses() -> Iterator[Callable[[], Any]]:
    for loss in (F.mse_loss, F.smooth_l1_loss):
        yield lambda loss=loss: loss(_random(64, 1), torch.rand(1, 100))


def test_reduced_losses_keep_the_storage_of_the_unreduced() -> None:
    assert compared(_losses()).differences == {}


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_reduced_losses_of_broadcast_targets_keep_the_broadcast_storage() -> None:
    assert compared(_spread_losses()).differences == {}


def _windows() -> Iterator[Callable[[], Any]]:
    for stride in (1, 2, 5):
        yield lambda stride=stride: F.unfold(_random(4, 3, 16, 16), 2, stride=stride)
    yield lambda: F.unfold(_random(3, 16, 16), 2)
    yield lambda: F.fold(_random(2, 27, 36), (8, 8), 3)
    yield lambda: F.fold(_random(27, 36), (8, 8), 3)


def test_windows_keep_the_larger_of_image_and_columns() -> None:
    assert compared(_windows()).differences == {}


def _bags() -> Iterator[Callable[[], Any]]:
    for mode in ("sum", "mean", "max"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for padding in (None, 1):
                yield lambda mode=mode, dtype=dtype, padding=padding: F.embedding_bag(
                    torch.randint(50, (4, 10)), _random(50, 8, dtype=dtype), mode=mode, padding_idx=padding
                )
        for last in (True, False):
            yield lambda mode=mode, last=last: F.embedding_bag(
                torch.randint(50, (40,), dtype=torch.int32),
                _random(50, 8),
                torch.tensor([0, 10, 25, 40], dtype=torch.int32),
                mode=mode,
                include_last_offset=last,
            )
        yield lambda mode=mode: F.embedding_bag(torch.randint(50, (4, 10)), torch.rand(50, 8), mode=mode)
    yield lambda: F.embedding_bag(
        torch.randint(50, (4, 10)), _random(50, 8), mode="sum", per_sample_weights=_random(4, 10)
    )


def test_bags_of_embeddings_keep_one_more_index() -> None:
    assert compared(_bags()).differences == {}


# -- what it need not hold ---------------------------------------------------------------------------------------------

IMAGES: dict[str, Callable[[Tensor], Any]] = {
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "adaptive pools": lambda x: (F.adaptive_max_pool2d(x, 3), F.adaptive_avg_pool2d(x, 3), F.adaptive_avg_pool2d(x, 1)),
    "power pool": lambda x: F.lp_pool2d(x, 2, 2),
    "unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "convolution": lambda x: F.conv2d(x, _random(8, 8, 3, 3), _random(8)),
    "grouped convolution": lambda x: F.conv2d(x, _random(8, 1, 3, 3), groups=8),
    "transposed convolution": lambda x: F.conv_transpose2d(x, _random(8, 8, 3, 3), stride=2),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "group and instance norms": lambda x: (F.group_norm(x, 4), F.instance_norm(x)),
    "response norm": lambda x: F.local_response_norm(x, 3),
    "interpolations": lambda x: [
        F.interpolate(x, scale_factor=2, mode=mode) for mode in ("nearest", "bilinear", "bicubic")
    ],
    "antialiased": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True),
    "shuffles": lambda x: (F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2), F.channel_shuffle(x, 4)),
    "paddings": lambda x: [F.pad(x, (1, 1, 1, 1), mode) for mode in ("constant", "reflect", "replicate", "circular")],
    "grid sample": lambda x: F.grid_sample(x, _random(2, 5, 5, 2), align_corners=False),
    "random rectifier": lambda x: F.rrelu(x, training=True),
    "learned rectifier": lambda x: F.prelu(x, _random(8)),
    "gates": lambda x: (F.glu(x, 1), F.logsigmoid(x), F.softplus(x), F.mish(x), F.celu(x), F.hardshrink(x)),
    "dropouts": lambda x: (F.dropout(x), F.dropout2d(x), F.alpha_dropout(x, 0.2, True)),
    "gumbel": lambda x: F.gumbel_softmax(x, hard=True),
    "orders": lambda x: (x.sort(-1)[0], x.topk(3)[0], x.kthvalue(3)[0], x.median(-1)[0], x.median(), x.mode()[0]),
    "cumulative": lambda x: (x.cummax(-1)[0], x.cumprod(-1), x.cumsum(1), x.logcumsumexp(-1)),
    "moments": lambda x: (x.std(), *torch.var_mean(x, (0, 2)), x.norm(), x.norm(3, 1), x.logsumexp(1)),
    "extremes": lambda x: (x.amax(1), x.max(), x.max(1)[0], x.prod(), x.prod(1), x.aminmax(dim=0)[0]),
    "moves": lambda x: (x.roll(3, 1), x.flip(1), x.repeat(1, 2, 1, 1), x.repeat_interleave(2, 1), x.split(3, 1)[0] * 2),
    "gather": lambda x: x.gather(1, torch.randint(8, (2, 3, 5, 5))),
    "scatter": lambda x: x.scatter_add(1, torch.randint(8, (2, 3, 5, 5)), _random(2, 3, 5, 5)),
    "scatter reduce": lambda x: x.scatter_reduce(1, torch.randint(8, (2, 3, 5, 5)), _random(2, 3, 5, 5), "amax"),
    "index": lambda x: (x[:, torch.tensor([1, 2])], x.index_fill(1, torch.tensor([1]), 0.0), x.take(torch.tensor([3]))),
    "index put": lambda x: x.index_put((torch.tensor([1]),), _random(8, 8, 8)),
    "masks": lambda x: (x.masked_fill(x > 0.5, 0), torch.where(x > 0.5, x, x * 2), x.tril(), x.nan_to_num()),
    "softmax": lambda x: (x.softmax(1), x.log_softmax(-1), x.lerp(x * 2, 0.3), x**1.5),
    "fourier": lambda x: (torch.fft.fft2(x).real, torch.fft.irfft2(torch.fft.rfft2(x))),
    "histogram": lambda x: (x.detach().histc(10), torch.bucketize(x.detach().flatten(), torch.arange(5.0))),
    "einsum": lambda x: torch.einsum("nchw,mchw->nm", x, x),
    "renorm": lambda x: x.renorm(2, 1, 3.0),
}

OTHERS: dict[str, Callable[[], Any]] = {
    "other losses": lambda: [
        loss(_random(8, 10), torch.rand(8, 10))
        for loss in (F.huber_loss, F.l1_loss, F.binary_cross_entropy_with_logits, F.poisson_nll_loss)
    ],
    "divergence": lambda: F.kl_div(_random(8, 10), torch.rand(8, 10), reduction="batchmean"),
    "class losses": lambda: [
        loss(_random(8, 10), torch.randint(10, (8,))) for loss in (F.cross_entropy, F.nll_loss, F.multi_margin_loss)
    ],
    "dense classes": lambda: F.cross_entropy(_random(2, 5, 4, 4), torch.randint(5, (2, 4, 4)), label_smoothing=0.1),
    "many labels": lambda: F.multilabel_margin_loss(_random(8, 10), torch.randint(10, (8, 10))),
    "triplets": lambda: F.triplet_margin_loss(_random(8, 10), _random(8, 10), _random(8, 10)),
    "similarity": lambda: F.cosine_embedding_loss(_random(8, 10), _random(8, 10), torch.ones(8)),
    "other recurrent layers": lambda: [layer(4, 5)(_random(3, 2, 4)) for layer in (nn.GRU, nn.RNN)],
    "cells": lambda: (nn.LSTMCell(4, 5)(_random(3, 4)), nn.GRUCell(4, 5)(_random(3, 4))),
    "double precision LSTM": lambda: nn.LSTM(4, 5).double()(_random(3, 2, 4, dtype=torch.float64)),
    "low precision LSTM": lambda: nn.LSTM(4, 5).bfloat16()(_random(3, 2, 4, dtype=torch.bfloat16)),
    "volumes": lambda: (
        F.conv3d(_random(1, 4, 5, 5, 5), _random(4, 4, 3, 3, 3)),
        F.max_pool3d(_random(1, 4, 6, 6, 6), 2),
    ),
    "sequences": lambda: (F.conv1d(_random(1, 4, 15), _random(4, 4, 3)), F.max_pool1d(_random(1, 4, 6), 2)),
    "distances": lambda: (torch.cdist(_random(40, 8), _random(30, 8)), F.pdist(_random(9, 8))),
    "solutions": lambda: (torch.linalg.solve(_square(), _random(3, 6, 2)), torch.linalg.inv(_square())),
    "determinants": lambda: (torch.linalg.det(_square()), torch.linalg.slogdet(_square())),
    "factors": lambda: (torch.linalg.cholesky(_square()), torch.linalg.qr(_square()), torch.linalg.eigh(_square())),
    "singular values": lambda: (torch.linalg.svdvals(_square()), torch.linalg.svd(_square())[1]),
    "attention": lambda: F.scaled_dot_product_attention(*(_random(1, 2, 10, 8) for _ in range(3))),
    "attention layer": lambda: nn.MultiheadAttention(8, 2)(_random(5, 2, 8), _random(5, 2, 8), _random(5, 2, 8))[0],
    "layer norms": lambda: (F.layer_norm(_random(4, 8), (8,), _random(8)), F.rms_norm(_random(4, 8), (8,), _random(8))),
    "embedding": lambda: F.embedding(torch.randint(50, (4, 10)), _random(50, 8), 1),
    "bilinear": lambda: F.bilinear(_random(6, 5), _random(6, 4), _random(3, 5, 4), _random(3)),
    "linear": lambda: (
        F.linear(_random(4, 3, 8), _random(5, 8), _random(5)),
        torch.bmm(_random(2, 3, 4), _random(2, 4, 5)),
    ),
    "draws": lambda: (torch.multinomial(torch.rand(4, 10), 3), torch.bernoulli(torch.rand(4)), torch.randperm(9)),
    "spectrogram": lambda: torch.stft(_random(2, 200), 64, return_complex=True, window=torch.ones(64)).abs(),
    "combinations": lambda: (torch.kron(_random(3, 4), _random(2, 2)), torch.block_diag(_random(3, 4), _random(4, 2))),
}


def _square() -> Tensor:
    return _random(3, 6, 6) + 6 * torch.eye(6)


def _calls() -> Iterator[Callable[[], Any]]:
    for call in IMAGES.values():
        yield lambda call=call: call(_random(2, 8, 8, 8))
        yield lambda call=call: call(torch.rand(2, 8, 8, 8).to(memory_format=torch.channels_last).requires_grad_())
    yield from OTHERS.values()


def test_all_other_ops_have_the_storages_of_their_fakes() -> None:
    comparison = compared(_calls())
    assert comparison.differences == {}
    assert len(comparison.compared) > 200


def test_the_comparison_sees_a_result_on_a_larger_storage() -> None:
    bytes_of = STORAGE_BYTES.pop(torch.ops.aten.mse_loss.default)
    try:
        differences = compared(iter([lambda: F.mse_loss(_random(8, 10), torch.rand(8, 10))])).differences
    finally:
        STORAGE_BYTES[torch.ops.aten.mse_loss.default] = bytes_of
    assert differences == {"aten.mse_loss.default": ([("result 0", 320)], [("result 0", 4)])}


def test_every_entry_says_what_it_gives_and_names_its_source() -> None:
    for function in STORAGE_BYTES.values():
        assert "Source:" in (function.__doc__ or "")


# -- whole steps -------------------------------------------------------------------------------------------------------


class _Outputs(nn.Module):
    def __init__(self, layer: nn.LSTM) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


STEPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[Any], Tensor] | None]] = {
    "one layer": (lambda: _Outputs(nn.LSTM(20, 64)), (12, 8, 20), None),
    "two layers": (lambda: _Outputs(nn.LSTM(16, 32, 2, batch_first=True)), (8, 24, 16), None),
    "both directions": (lambda: _Outputs(nn.LSTM(16, 48, bidirectional=True)), (12, 8, 16), None),
    "no bias": (lambda: _Outputs(nn.LSTM(32, 32, bias=False)), (12, 8, 32), None),
    "squared loss": (
        lambda: nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 128)),
        (128, 32),
        lambda output: F.mse_loss(output, torch.ones_like(output)),
    ),
    "smooth loss": (
        lambda: nn.Linear(16, 512),
        (256, 16),
        lambda output: F.smooth_l1_loss(output, torch.ones_like(output)),
    ),
    "cross-entropy of probabilities": (
        lambda: nn.Sequential(nn.Linear(16, 512), nn.Sigmoid()),
        (256, 16),
        lambda output: F.binary_cross_entropy(output, torch.ones_like(output)),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_saves_the_same_bytes_and_peaks_within_one_percent(name: str) -> None:
    make, shape, loss = STEPS[name]
    torch.manual_seed(0)
    model, value = make(), torch.randn(shape)
    predicted = price(trace(model, value, loss=loss).step, "sgd")
    measured = measure(model, (value,), {}, optimizer="sgd", implementation="loop", steps=3, loss=loss)
    assert predicted.saved_bytes == measured.saved_bytes
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes[1], rel=0.01, abs=512)
