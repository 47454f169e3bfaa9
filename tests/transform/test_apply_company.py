"""An applied model beside others, inside others, in threads, and made from modules that share."""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch
from torch import Tensor, nn

import memplan
from memplan.transform.measure import saved_on_a_real_step
from tests.applied import images, left_behind, net, planned, same, trained


def test_two_applied_models_in_one_loop() -> None:
    models = [planned("lossless"), planned("mobiletl")]
    alone = [trained(planned("lossless")), trained(planned("mobiletl"))]
    optimizers = [torch.optim.SGD(memplan.trained_parameters(model), lr=0.01, momentum=0.9) for model in models]
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(model(images()).square().mean() for model in models).backward()  # type: ignore[union-attr]
        for optimizer in optimizers:
            optimizer.step()
    assert all(same(model, expected) for model, expected in zip(models, alone, strict=True))


def test_an_applied_model_inside_a_larger_one(name: str) -> None:
    inner = planned(name)
    larger = nn.Sequential(nn.Conv2d(3, 3, 1), inner, nn.ReLU(), nn.Linear(4, 2))
    larger(images()).sum().backward()
    assert larger[0].weight.grad is not None
    assert all(parameter.grad is not None for parameter in memplan.trained_parameters(inner))
    alone = planned(name)
    out = larger[1](larger[0](images()))
    assert torch.allclose(out, alone(larger[0](images())), atol=1e-5)


def test_a_part_that_is_called_alone_is_treated_too() -> None:
    model: Any = planned("mobiletl")
    x = torch.randn(4, 8, 8, 8)
    whole = saved_on_a_real_step(model.blocks[1], (x,), {})
    stock = saved_on_a_real_step(net().blocks[1], (x,), {})
    assert whole < 0.7 * stock
    assert torch.equal(model.blocks[0].bn1.num_batches_tracked, net().blocks[0].bn1.num_batches_tracked)


def test_threads_train_apart() -> None:
    names = ["lossless", "mobiletl", "tune", "tinytl-lite-bias"]
    expected = [trained(planned(name), 8) for name in names]
    models = [planned(name) for name in names]
    failed: list[BaseException] = []
    start = threading.Barrier(len(models))

    def train(model: nn.Module) -> None:
        try:
            start.wait()
            trained(model, 8)
            assert left_behind() == []
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=train, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert all(same(model, other) for model, other in zip(models, expected, strict=True))


def test_threads_that_share_a_model_leave_its_modes_alone() -> None:
    model = planned("mobiletl")
    failed: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(8):
                model(images()).sum().backward()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert all(module.training for module in model.modules())
    before = net().state_dict()
    assert torch.equal(model.state_dict()["blocks.1.bn1.running_mean"], before["blocks.1.bn1.running_mean"])


def test_tied_weights_and_shared_modules() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(16, 8)
            self.layer = nn.Sequential(nn.Linear(8, 8), nn.GELU())
            self.again = self.layer
            self.out = nn.Linear(8, 16, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(self.again(self.layer(self.words(x))))
            return y

    x = torch.arange(8).reshape(2, 4)
    stock = Shared().double()
    for method in ("lossless", "last", "tinytl-bias"):
        model: Any = memplan.apply(stock, method, x, treatments=("frozen-int8",) if method == "tinytl-bias" else ())
        assert model.out.weight is model.words.weight
        assert model.again is model.layer
        other = copy.deepcopy(stock)
        for (key, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=False):
            theirs.requires_grad_(mine.requires_grad or key not in dict(other.named_parameters()))
        model(x).square().mean().backward()
        plain = memplan.restore(model)
        assert plain.out.weight is plain.words.weight  # type: ignore[union-attr]


def test_a_transformer_layer() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    x = torch.randn(2, 5, 16)
    for method in ("lossless", "tinytl-bias"):
        model = memplan.apply(layer, method, x)
        for training in (True, False):
            found = []
            for each in (layer, model):
                torch.manual_seed(4)
                each.train(training)
                with torch.set_grad_enabled(training):
                    found.append(each(x))
            assert torch.equal(found[0], found[1])
        layer.train()
        trained_twice = memplan.optimizer(model, "adam", lr=0.01)
        model.train()(x).square().mean().backward()
        trained_twice.step()
