"""A plan that prunes: applied before all else, kept by restore, undone on a model without data."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import memplan
from memplan.errors import AnalysisError, UsageError
from memplan.methods import METHODS, Plan
from memplan.methods.pruning import PrunedGroup, pruned_group
from memplan.steps import Steps
from memplan.subject import subject_of
from memplan.transform.apply import apply_, fingerprint, restore_
from memplan.transform.surgery import prune_
from tests.applied import Net, images, net, planned, same, state, trained
from tests.transform.channels import group, kept_of, member, norm, silenced

#: Half of what is between the convolutions of each block, and 2 of the 8 channels to which the blocks add.
HIDDEN = tuple(
    pruned_group(
        group(
            f"{block}.conv1",
            member(f"{block}.conv1.weight", 0, 16),
            *norm(f"{block}.bn1", 16),
            member(f"{block}.conv2.weight", 1, 16),
        ),
        range(0, 16, 2),
    )
    for block in ("blocks.0", "blocks.1")
)
PATH = pruned_group(
    group(
        "stem.0",
        member("stem.0.weight", 0, 8),
        member("stem.0.bias", 0, 8),
        *norm("stem.1", 8),
        *(
            each
            for block in ("blocks.0", "blocks.1")
            for each in (
                member(f"{block}.conv1.weight", 1, 8),
                member(f"{block}.conv2.weight", 0, 8),
                *norm(f"{block}.bn2", 8),
            )
        ),
        member("head.weight", 1, 8),
    ),
    (1, 6),
)
PRUNED = (*HIDDEN, PATH)


def plan_of(name: str, pruned: tuple[PrunedGroup, ...] = PRUNED) -> Plan:
    """A plan that was made for the whole net, with channels to prune."""
    found = memplan.plan_of(planned(name))
    assert found is not None
    # The branches beside blocks are made for the channels that are left.
    lite = tuple(replace(branch, shape=replace(branch.shape, in_channels=6, out_channels=6)) for branch in found.lite)
    return replace(found, pruned=pruned, lite=lite)


def smaller(name: str) -> nn.Module:
    return memplan.apply(net(), plan_of(name))


def test_the_applied_model_computes_what_the_whole_one_does_without_the_channels(name: str) -> None:
    model = smaller(name).double().eval()
    assert model.head.in_features == 6  # type: ignore[union-attr]
    assert "prune" in memplan.plan_of(model).treatments  # type: ignore[union-attr]
    whole = silenced(net().double().eval(), PRUNED)
    x = images(dtype=torch.float64)
    expected = whole(x)
    tolerance = 0.1 if "8 bits" in name else 1e-10
    assert (model(x) - expected).abs().max() < tolerance * expected.abs().max()


def test_a_lossless_plan_trains_the_smaller_model_as_stock_does() -> None:
    stock = net().double()
    prune_(stock, PRUNED)
    model = smaller("lossless").double()
    trained(stock), trained(model)
    for key, tensor in stock.state_dict().items():
        assert torch.allclose(model.state_dict()[key].double(), tensor.double(), rtol=1e-10, atol=1e-12), key


def test_restore_leaves_the_users_model_pruned(name: str) -> None:
    model = trained(smaller(name))
    plain = memplan.restore(model)
    assert memplan.plan_of(plain) is None
    assert type(plain) is Net
    assert tuple(plain.head.weight.shape) == (4, 6)  # type: ignore[union-attr]
    assert torch.allclose(plain.eval()(images()), model.eval()(images()), atol=1e-5)


def test_a_pruned_model_is_copied_pickled_and_loaded(name: str) -> None:
    model = smaller(name)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(model, other)
        trained(other)
    other = smaller(name)
    trained(other)
    other.load_state_dict(model.state_dict())
    assert same(model, other)


def test_the_users_model_is_not_touched() -> None:
    model = net()
    before = state(model)
    memplan.apply(model, plan_of("lossless"))
    assert same(before, model)


def test_the_plan_is_for_the_whole_model_and_not_for_the_pruned_one() -> None:
    plan = replace(plan_of("lossless"), model=fingerprint(net()))
    model = memplan.restore(memplan.apply(net(), plan))
    with pytest.raises(
        AnalysisError, match=r"^the plan is for another model than this Net with 18 parameters of 1,224"
    ):
        memplan.apply(model, plan)


def test_a_model_with_data_does_not_get_its_channels_back() -> None:
    model = smaller("lossless")
    with pytest.raises(UsageError, match=r"^this Net has lost channels for good; build the model anew$"):
        restore_(model, keep_branches=False)
    assert memplan.plan_of(model) is not None


def test_a_plan_that_fails_leaves_the_channels() -> None:
    model = net()
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    broken = replace(plan_of("lossless"), int8=("stem.2",))
    with pytest.raises(AnalysisError, match=r"^'stem\.2' cannot be stored in 8 bits"):
        apply_(model, broken)
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
    assert model.head.in_features == 8
    missing = replace(PATH, axes=tuple(axis for axis in PATH.axes if axis.tensor != "stem.0.bias"))
    with pytest.raises(AnalysisError, match=r"^layer 'stem\.0' \(Conv2d\) cannot be pruned so: 8 of its bias are left"):
        apply_(model, replace(broken, pruned=(missing,)))
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before


def bytes_of_parameters(step: Any) -> int:
    return sum(4 * parameter.elements for parameter in step.parameters)


def test_the_step_of_a_pruned_model_is_recorded_and_the_next_is_of_the_whole_one(name: str) -> None:
    steps = Steps(subject_of(net(), images()))
    full = steps.step(METHODS["full"])
    whole = fingerprint(steps.model.module)
    tensors = {key: id(tensor) for key, tensor in steps.model.module.named_parameters()}
    stated = str(steps.model.module)
    plan = plan_of(name)
    for _ in range(2):
        step = steps.run(plan)
        sizes = {parameter.name: parameter.elements for parameter in step.parameters}
        expected = {
            key: kept_of(tensor, key, PRUNED).numel()
            for key, tensor in net().named_parameters()
            if key.rpartition(".")[2] == "bias" or not plan.int8
        }
        assert {key: sizes.get(key) for key in expected} == expected
        assert step.saved_bytes < full.saved_bytes
        assert fingerprint(steps.model.module) == whole
        assert str(steps.model.module) == stated
        if not plan.int8:
            assert {key: id(tensor) for key, tensor in steps.model.module.named_parameters()} == tensors
    unpruned = replace(plan, pruned=(), lite=())
    assert steps.run(unpruned) == Steps(subject_of(net(), images())).run(unpruned)


def test_a_failure_on_the_shared_model_leaves_it_whole() -> None:
    steps = Steps(subject_of(net(), images()))
    whole = fingerprint(steps.model.module)
    # The head still takes 8 channels.
    half = replace(PATH, axes=tuple(axis for axis in PATH.axes if axis.tensor != "head.weight"))
    with pytest.raises(AnalysisError, match=r"^the model fails in its forward: ran up to layer 'head'"):
        steps.run(plan_of("lossless", (half,)))
    assert fingerprint(steps.model.module) == whole
