"""A small network learns new digits under every method: a short version of benchmarks/digits.py."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest
import torch

import memplan
from benchmarks.digit_transfer import (
    FULL,
    HEAD,
    LOSSLESS,
    MOBILETL,
    TOP,
    WAYS,
    Images,
    K,
    Network,
    Way,
    accuracy,
    parts,
    prepared,
    pretrained,
    train,
)
from tests.threads import torch_threads

EPOCHS = 6


def rate(way: Way) -> float:
    """A smaller learning rate where every weight trains."""
    return 1e-2 if way.method in ("full", "lossless", "tune") else 3e-2


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """So small tensors are slower on several threads, and far slower on a busy machine."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def network(one_thread: None) -> Network:
    return pretrained("v3", 0, epochs=2)


def curve(network: Network, way: Way, steps: int) -> list[float]:
    learner = prepared(network, way, seed=0)
    return train(learner, memplan.optimizer(learner, "adam", lr=rate(way)), parts(0)[0], EPOCHS, seed=0, steps=steps)


def reached(network: Network, way: Way, seed: int) -> float:
    """The share of the images of 5 to 9 recognised that were not trained on, in percent."""
    training, validation, test = parts(seed)
    learner = prepared(network, way, seed)
    train(learner, memplan.optimizer(learner, "adam", lr=rate(way)), training, EPOCHS, seed)
    pixels, classes = (
        torch.cat([getattr(part, name) for part in (validation, test)]) for name in ("pixels", "classes")
    )
    return 100 * accuracy(learner, Images(pixels, classes))


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_lossless_follows_the_loss_of_stock_pytorch(version: str) -> None:
    torch.manual_seed(0)
    network = Network(version).double()
    stock, lossless = (curve(network, way, steps=12) for way in (FULL, LOSSLESS))
    assert lossless == pytest.approx(stock, rel=1e-10, abs=0)
    assert stock[-1] < 0.8 * stock[0]


def test_lossless_follows_the_loss_of_stock_pytorch_to_rounding_in_float32(network: Network) -> None:
    stock, lossless = (curve(network, way, steps=6) for way in (FULL, LOSSLESS))
    assert lossless == pytest.approx(stock, rel=1e-5, abs=0)
    plan = memplan.plan_of(prepared(network, LOSSLESS, seed=0))
    assert plan is not None
    assert {"recompute", "fused-update"} <= set(plan.treatments)


def test_mobiletl_learns_like_full_fine_tuning_of_the_same_blocks(network: Network) -> None:
    assert len(network.blocks) > K
    stock, mobiletl = (statistics.fmean(reached(network, way, seed) for seed in range(3)) for way in (TOP, MOBILETL))
    assert stock > 90
    assert mobiletl > stock - 1


def test_every_method_beats_the_head_alone(network: Network) -> None:
    head = reached(network, HEAD, seed=0)
    assert head > 20  # a guess among five
    # What lossless learns is what full does; mobiletl and top-k are compared above.
    others = [way for way in WAYS if way not in (HEAD, LOSSLESS, TOP, MOBILETL)]
    shares = {way.label: reached(network, way, seed=0) for way in others}
    assert {label: share for label, share in shares.items() if share <= head + 5} == {}
