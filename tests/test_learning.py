"""A small network learns new digits under every method: a short version of benchmarks/digits.py."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator

import pytest
import torch

import memplan
from benchmarks.digits import (
    FULL,
    HEAD,
    K,
    LOSSLESS,
    MOBILETL,
    TOP,
    WAYS,
    Images,
    Network,
    Way,
    accuracy,
    parts,
    prepared,
    pretrained,
    train,
)

RATE = 1e-2
EPOCHS = 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    return {version: pretrained(version, 0, epochs=3) for version in ("v2", "v3")}


def curve(network: Network, way: Way, steps: int) -> list[float]:
    learner = prepared(network, way, seed=0)
    return train(learner, memplan.optimizer(learner, "adam", lr=RATE), parts(0)[0], EPOCHS, seed=0, steps=steps)


def reached(network: Network, way: Way, seed: int) -> float:
    """The share of the images of 5 to 9 recognised that were not trained on, in percent."""
    training, validation, test = parts(seed)
    learner = prepared(network, way, seed)
    train(learner, memplan.optimizer(learner, "adam", lr=RATE), training, EPOCHS, seed)
    others = Images(*(torch.cat([getattr(part, name) for part in (validation, test)]) for name in ("pixels", "classes")))
    return 100 * accuracy(learner, others)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_lossless_follows_the_loss_of_stock_pytorch(networks: dict[str, Network], version: str) -> None:
    network = copy.deepcopy(networks[version]).double()
    stock, lossless = (curve(network, way, steps=12) for way in (FULL, LOSSLESS))
    assert lossless == pytest.approx(stock, rel=1e-10, abs=0)
    assert stock[-1] < 0.8 * stock[0]


def test_lossless_follows_the_loss_of_stock_pytorch_to_rounding_in_float32(networks: dict[str, Network]) -> None:
    stock, lossless = (curve(networks["v3"], way, steps=6) for way in (FULL, LOSSLESS))
    assert lossless == pytest.approx(stock, rel=1e-5, abs=0)
    plan = memplan.plan_of(prepared(networks["v3"], LOSSLESS, seed=0))
    assert plan is not None
    assert {"bitmask", "recompute"} <= set(plan.treatments)


def test_mobiletl_learns_like_full_fine_tuning_of_the_same_blocks(networks: dict[str, Network]) -> None:
    assert len(networks["v3"].blocks) > K
    stock, mobiletl = (
        statistics.fmean(reached(networks["v3"], way, seed) for seed in range(3)) for way in (TOP, MOBILETL)
    )
    assert stock > 90
    assert mobiletl > stock - 1


def test_every_method_beats_the_head_alone(networks: dict[str, Network]) -> None:
    network = networks["v3"]
    head = reached(network, HEAD, seed=0)
    assert head > 20  # better than a guess among five
    others = {way.label: reached(network, way, seed=0) for way in WAYS if way not in (HEAD, LOSSLESS)}
    assert others == {label: share for label, share in others.items() if share > head + 5}
