"""Plans of real models: what they promise is what real steps need, and nothing better fits."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memplan
from memplan.errors import BudgetError, UsageError
from memplan.memory import Implementation, price
from memplan.methods import METHODS, Plan
from memplan.planner.instance import Candidate
from memplan.planner.options import PLAIN, Choice
from memplan.planner.records import Budget, least_budget
from memplan.planner.table import Table
from memplan.planner.terms import terms_of
from memplan.planning import Planning, Request, planned_for
from memplan.results import Planned
from memplan.steps import Steps, choose_trained
from memplan.subject import subject_of
from memplan.units import parse_bytes
from tests.applied import images, net, same, state
from tests.test_accuracy import needs
from tests.test_methods_on_models import difference

SMALL: dict[str, Any] = {"batch_size": 4, "input_shape": (3, 96, 96)}
SPECS = ("torchvision:mobilenet_v3_small", "torchvision:mobilenet_v2", "torchvision:resnet18")

#: The first of them in every run, the others when all of the corpus is asked for.
FIRST = (SPECS[0], *(pytest.param(spec, marks=pytest.mark.corpus) for spec in SPECS[1:]))

#: Single segments that are recorded at their next cheaper option.
MOST_UPGRADES = 6

#: Shares of what lies between the least that is needed and stock PyTorch's peak.
BUDGETS = (0.0, 0.02, 0.1, 0.5, 1.0)


@functools.cache
def steps_of(spec: str) -> Steps:
    return Steps(subject_of(spec, **SMALL))


@functools.cache
def stock_peak(spec: str) -> int:
    return price(steps_of(spec).step(METHODS["full"])).peak_bytes


@functools.cache
def floor(spec: str) -> int:
    """The bytes of the smallest recorded step."""
    planning = Planning(steps_of(spec), Request(Budget(1), terms_of()), lambda _: None)
    search, found = planning._searched()
    assert found is None
    return search.smallest()[1]


def budget(spec: str, share: float) -> int:
    low, high = least_budget(floor(spec)), least_budget(stock_peak(spec))
    return low + round((high - low) * share)


@functools.cache
def planning_at(spec: str, size: int) -> tuple[Planning, Planned]:
    planning = Planning(steps_of(spec), Request(Budget(size), terms_of()), lambda _: None)
    return planning, planning.by_memplan()


def planned_at(spec: str, share: float) -> Planned:
    return planning_at(spec, budget(spec, share))[1]


def approximated(plan: Plan) -> list[str]:
    return [layer.path for layer in plan.layers if {"signed-mask", "shift-only"} & {*layer.treatments}]


@pytest.mark.parametrize("share", BUDGETS)
@pytest.mark.parametrize("spec", FIRST)
def test_a_real_step_stays_within_the_budget(spec: str, share: float) -> None:
    planned = planned_at(spec, share)
    limit = budget(spec, share)
    assert planned.bytes == planned.footprint.peak_bytes <= limit
    found = memplan.verify(spec, method=planned.plan, budget=limit, **SMALL)
    assert found.saved_equal  # the hooks of autograd on the applied model
    assert found.fits
    assert max(step.measured_bytes for step in found.steps) <= limit


@pytest.mark.parametrize("spec", FIRST)
def test_more_bytes_never_give_less(spec: str) -> None:
    plans = [planned_at(spec, share) for share in BUDGETS]
    blocks = [planned.plan.k or 0 for planned in plans]
    assert blocks == sorted(blocks)
    assert blocks[-1] == len(plans[-1].blocks)
    assert plans[-1].plan.gradients == "exact"
    assert [*plans[-1].plan.trained] == [parameter.name for parameter in stock_parameters(spec)]


def stock_parameters(spec: str) -> tuple[Any, ...]:
    return steps_of(spec).step(METHODS["full"]).parameters


@pytest.mark.parametrize("share", BUDGETS)
@pytest.mark.parametrize("spec", FIRST)
def test_never_worse_than_mobiletl(spec: str, share: float) -> None:
    steps, planned, limit = steps_of(spec), planned_at(spec, share), budget(spec, share)
    fitting = [k for k in range(len(steps.blocks) + 1) if (made := mobiletl(spec, k)) is not None and made[1] <= limit]
    if not fitting:
        return
    most = max(fitting)
    assert (planned.plan.k or 0) >= most
    if planned.plan.k == most:
        assert planned.plan.gradients == "exact" or len(approximated(planned.plan)) <= made_blocks(spec, most)


@functools.cache
def mobiletl(spec: str, k: int) -> tuple[Plan, int] | None:
    if k > 4 and k % 3:  # a few will do
        return None
    made = steps_of(spec).planned(METHODS["mobiletl"], k)
    return made.plan, price(made.step, implementation=made.implementation).peak_bytes


def made_blocks(spec: str, k: int) -> int:
    made = mobiletl(spec, k)
    return len(approximated(made[0])) if made else 0


# -- nothing better fits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [pytest.param(0.0, marks=pytest.mark.corpus), 0.02, 0.1, 0.5])
@pytest.mark.parametrize("spec", FIRST)
def test_no_single_upgrade_fits(spec: str, share: float) -> None:
    planning, planned = planning_at(spec, budget(spec, share))
    limit = planning.wanted.limit
    choice, table = choice_of(planning, planned), table_of(planning)
    depth = len(choice.options)
    if depth < planning.wanted.most_depth:
        size = planning._search(table)[0].least_at(depth + 1)
        assert size is not None
        assert size > limit
    # Within a hundredth of the least budget the search's model of the head alone may be too cautious to tell.
    for better in list(upgraded(table, choice))[:MOST_UPGRADES] if share else ():
        assert planning.rehearsal.measure(better).bytes > limit, (choice, better)


def table_of(planning: Planning) -> Table:
    """Return all that the search knows, from the recordings it has made."""
    rehearsal = planning.rehearsal
    exact = [option for option in rehearsal._recorded if not option.approximate]
    approximate = [option for option in rehearsal._recorded if option.approximate]
    table = rehearsal.with_options(rehearsal.plain, exact)
    return rehearsal.with_options(table, approximate)


def choice_of(planning: Planning, planned: Planned) -> Choice:
    rehearsed = planning.rehearsal._rehearsed.items()
    return next(choice for choice, one in rehearsed if planning.steps.named(one.plan) == planned.plan)


def upgraded(table: Table, choice: Choice) -> Iterator[Choice]:
    """Yield the choice with one segment exact or at the next cheaper option, for each that has one."""
    depth = len(choice.options)
    how: Implementation = "in-backward" if choice.fused_update else "loop"
    frozen = [(PLAIN, 0)] * (table.count - depth)
    now = table.fixed(depth, how, [*frozen, *((option, 0) for option in choice.options)]).segments[-depth:]
    rows = table.instance(depth, how).segments[-depth:]
    for position, (row, (own,)) in enumerate(zip(rows, now, strict=True)):
        better = [each for each in row if worth(each) < worth(own)]
        if better:
            other = max(better, key=worth).option
            yield replace(choice, options=(*choice.options[:position], other, *choice.options[position + 1 :]))


def worth(candidate: Candidate) -> tuple[int, int]:
    return candidate.approximations, candidate.work


@pytest.mark.parametrize("spec", SPECS[:1])
def test_below_the_floor_there_is_an_error_that_names_it(spec: str) -> None:
    least = least_budget(floor(spec))
    with pytest.raises(BudgetError) as raised:
        planned_for(steps_of(spec), Request(Budget(least - 1), terms_of()))
    text = str(raised.value)
    assert raised.value.exit_code == 1
    assert "\n" not in text
    told = text.split("needs at least ")[1].split(" MB")[0]
    # What is printed is enough, and no more than a tenth above.
    assert least <= parse_bytes(f"{told}MB") < least + 100_000
    for lever in ("--batch-size 1", "--allow frozen-int8", "--dtype bfloat16"):
        assert lever in text
    assert planned_for(steps_of(spec), Request(Budget(least), terms_of())).bytes == floor(spec)


@pytest.mark.parametrize(
    ("request_", "lever"),
    [
        ({"optimizer": "adam", "k": 11}, "--optimizer sgd"),
        ({"min_k": 9}, "fewer trained blocks"),
    ],
)
def test_what_would_lower_the_floor_is_said(request_: dict[str, Any], lever: str) -> None:
    with pytest.raises(BudgetError, match=lever):
        planned_for(steps_of(SPECS[0]), Request(Budget(1_000_000), terms_of(), **request_))


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "share"), [(SPECS[0], 0.02), (SPECS[0], 0.5), (SPECS[2], 0.05)])
def test_an_exact_plan_has_stock_pytorchs_gradients(spec: str, share: float) -> None:
    size = budget(spec, share)
    planned = planned_for(steps_of(spec), Request(Budget(size), terms_of(lossless=True)))
    plan = planned.plan
    assert plan.gradients == "exact"
    assert plan.treatments or plan.schedule
    trains_as_stock(spec, plan)


def test_an_approximate_plan_does_not() -> None:
    plan = next(made.plan for made in map(functools.partial(approximate_plan, SPECS[0]), (0, 1, 2)) if made)
    assert plan.gradients == "approximate"
    with pytest.raises(AssertionError):
        trains_as_stock(SPECS[0], plan)


@functools.cache
def approximate_plan(spec: str, more: int) -> Planned | None:
    """Return a plan that approximates: more blocks than exact ones have room for; recompute is out of the question."""
    terms = terms_of(forbid=["recompute"])
    size = floor(spec) + (1 + more) * (stock_peak(spec) - floor(spec)) // 4
    try:
        made = planned_for(steps_of(spec), Request(Budget(size), terms))
    except BudgetError:
        return None
    return made if made.plan.gradients == "approximate" else None


def trains_as_stock(spec: str, plan: Plan) -> None:
    torch.manual_seed(0)
    plain, args, _ = steps_of(spec).subject.built("cpu")
    plain.double().train()
    (image,) = (value.double() for value in args)
    applied = memplan.apply(plain, plan)
    choose_trained(plain, frozenset(plan.trained))
    for path in plan.evaluated:
        plain.get_submodule(path).eval()
    before = {name: tensor.detach().clone() for name, tensor in plain.named_parameters()}
    for model, optimizer in (
        (plain, torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=1.0)),
        (applied, memplan.optimizer(applied, "sgd", lr=1.0)),
    ):
        torch.manual_seed(1)
        optimizer.zero_grad()
        model(image).square().mean().backward()
        optimizer.step()

    def moved(model: nn.Module) -> dict[str, Tensor]:
        after = dict(model.named_parameters())
        return {name: before[name] - after[name].detach() for name in plan.trained}

    assert all(moved(plain)[name].any() for name in list(plan.trained)[-2:])
    difference(moved(plain), moved(applied), 1e-9)
    frozen = {name: tensor for name, tensor in applied.named_parameters() if name not in plan.trained}
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.items())
    difference(dict(plain.named_buffers()), dict(applied.named_buffers()), 1e-9)


# -- what may be asked -------------------------------------------------------------------------------------------------

SPEC = SPECS[0]


def asked(size: int | None = None, **request: Any) -> Planned:
    terms = {name: request.pop(name) for name in ("lossless", "allow", "forbid", "max_prune") if name in request}
    of = request.pop("of", "peak")
    where = budget(SPEC, 0.05) if size is None else size
    return planned_for(steps_of(SPEC), Request(Budget(where, of), terms_of(**terms), **request))


def test_k_is_exact_and_min_k_a_floor() -> None:
    assert asked(k=3).plan.k == 3
    assert asked(k=0).plan.k == 0
    assert (asked(min_k=3).plan.k or 0) >= 3
    with pytest.raises(UsageError, match="k must be from 0 to 11, the blocks of this model, not 12"):
        asked(k=12)
    with pytest.raises(UsageError, match="min-k 4 is more than k 3"):
        Request(Budget(1), terms_of(), k=3, min_k=4).check()


@pytest.mark.parametrize("treatment", ["recompute", "fused-update", "prefix-microbatch", "bitmask"])
def test_what_is_forbidden_is_not_in_the_plan(treatment: str) -> None:
    plan = asked(budget(SPEC, 0.25), forbid=[treatment]).plan
    assert treatment not in plan.treatments


def test_more_flops_than_allowed_are_not_spent() -> None:
    free = asked(budget(SPEC, 0.1))
    flops = free.footprint.flops_forward + free.footprint.flops_backward
    bounded = asked(budget(SPEC, 0.1), max_flops=flops - 1)
    assert bounded.footprint.flops_forward + bounded.footprint.flops_backward < flops
    with pytest.raises(UsageError, match="cannot read 'few' as FLOPs"):
        asked(max_flops="few")


def test_each_preference_gives_what_it_says() -> None:
    size = budget(SPEC, 0.1)
    by = {prefer: asked(size, prefer=prefer) for prefer in ("k", "accuracy-proxy", "speed", "memory")}
    scores = {prefer: dict(planned.search.score) for prefer, planned in by.items()}
    blocks = {prefer: planned.plan.k or 0 for prefer, planned in by.items()}
    assert blocks["k"] == blocks["memory"] == max(blocks.values())
    assert by["accuracy-proxy"].plan.gradients == "exact"
    assert scores["speed"]["work"] == min(score["work"] for score in scores.values()) <= 0
    assert by["memory"].bytes == min(p.bytes for p in by.values() if p.plan.k == blocks["k"])


def test_a_budget_of_activations_leaves_out_what_stays() -> None:
    whole = asked(budget(SPEC, 1.0)).footprint
    resident = whole.composition.parameter_bytes + whole.composition.buffer_bytes
    size = 4_000_000
    planned = asked(size, of="activations")
    footprint = planned.footprint
    steady = footprint.timeline
    assert planned.bytes == max(map(sum, zip(steady.saved, steady.temp, strict=True))) <= size
    assert footprint.peak_bytes > size
    assert resident > size


def test_a_budget_of_what_is_kept_counts_what_autograd_keeps() -> None:
    size = 3_000_000
    planned = asked(size, of="kept")
    assert planned.bytes == planned.footprint.saved_bytes <= size
    found = memplan.verify(SPEC, method=planned.plan, budget=size, budget_of="kept", **SMALL)
    assert found.saved_equal
    assert found.measured_saved_bytes == planned.bytes
    assert found.fits


def test_stock_pytorch_trains_fewer_blocks_with_the_same_bytes() -> None:
    size = budget(SPEC, 0.4)
    stock, own = asked(size, runner="stock"), asked(size)
    assert stock.plan.treatments == ()
    assert stock.bytes <= size
    assert (stock.plan.k or 0) <= (own.plan.k or 0)
    assert stock.plan.k is not None
    one_more = price(steps_of(SPEC).step(METHODS["top-k"], stock.plan.k + 1)).peak_bytes
    assert one_more > size - size // 50_000
    found = memplan.verify(SPEC, method=stock.plan, budget=size, **SMALL)
    assert found.fits
    assert found.runner == "memplan" or found.runner == "stock"


def test_frozen_weights_in_8_bits_lower_the_floor() -> None:
    below = floor(SPEC) - 1_000_000
    planned = asked(below, allow=["frozen-int8"])
    assert planned.bytes <= below
    assert "frozen-int8" in planned.plan.treatments
    assert memplan.verify(SPEC, method=planned.plan, budget=below, **SMALL).fits


def test_pruning_buys_what_nothing_else_does() -> None:
    below = floor(SPEC) - 100_000
    planned = asked(below, max_prune=0.5)
    assert planned.plan.pruned
    assert planned.bytes <= below
    assert dict(planned.search.score)["importance"] > 0
    found = memplan.verify(SPEC, method=planned.plan, budget=below, **SMALL)
    assert found.saved_equal
    assert found.fits


def test_the_largest_batch_is_found() -> None:
    size, how = 22_000_000, {"runner": "stock", "input_shape": (3, 64, 64)}
    planned = memplan.plan(SPEC, budget=size, batch_size="auto", **how)
    batch = planned.setting.batch_size
    assert batch is not None
    assert batch > 1
    assert planned.bytes <= size
    alone = memplan.plan(SPEC, budget=size, batch_size=1, **how)
    assert planned.plan.k == alone.plan.k
    with pytest.raises(BudgetError):
        memplan.plan(SPEC, budget=size, batch_size=batch + 1, min_k=alone.plan.k, **how)
    with pytest.raises(UsageError, match="batch size auto needs a spec"):
        memplan.plan(net(), images(), budget=size, batch_size="auto")


# -- other models ------------------------------------------------------------------------------------------------------


def test_a_model_without_blocks_trains_its_head_or_all() -> None:
    model = nn.Linear(64, 10)
    image = torch.randn(32, 64)
    stock = memplan.plan(model, image, budget="1GB")
    assert stock.blocks == ()
    assert stock.plan.k is None
    assert stock.plan.trained == tuple(name for name, _ in model.named_parameters())
    found = memplan.verify(model, image, method=stock.plan, budget="1GB")
    assert found.fits
    assert found.saved_equal
    with pytest.raises(BudgetError):
        memplan.plan(model, image, budget=10_000)


def backbone() -> nn.Module:
    """Blocks, and behind them nothing that could train."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def test_a_backbone_without_a_head_trains_its_last_block_at_least() -> None:
    model, inputs = backbone(), torch.randn(2, 6, 16)
    least = memplan.plan(model, inputs, budget=48_000)
    assert least.plan.k == 1
    assert {name.split(".")[1] for name in least.plan.trained} == {"2"}
    found = memplan.verify(model, inputs, method=least.plan, budget=48_000)
    assert found.saved_equal
    assert found.fits
    assert memplan.plan(model, inputs, budget="1MB").plan.k == 3
    assert memplan.pareto(model, inputs).points[0].k == 1
    assert memplan.plan(model, inputs, budget=55_000, runner="stock").plan.k == 1
    with pytest.raises(BudgetError, match="needs at least"):
        memplan.plan(model, inputs, budget=10_000)
    with pytest.raises(UsageError, match="k 0 trains no parameter of this model; use 1 or more"):
        memplan.plan(model, inputs, budget="1MB", k=0)


def test_the_user_s_module_stays_as_it_is() -> None:
    model = net()
    model.stem.requires_grad_(False)
    model.blocks[0].eval()
    before, modes = state(model), [module.training for module in model.modules()]
    asks = [parameter.requires_grad for parameter in model.parameters()]
    image = images(8)
    copied = copy.deepcopy(image)
    planned = memplan.plan(model, image, budget="90KB")
    assert planned.bytes <= 90_000
    assert same(before, model)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == asks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(image, copied)
    assert not any(hasattr(module, "_forward_hooks") and module._forward_hooks for module in model.modules())
    assert memplan.verify(model, image, method=planned.plan, budget=90_000).fits


@pytest.mark.parametrize(
    ("spec", "options", "share"),
    [
        ("hf:distilbert", {"batch_size": 2, "input_shape": (16,)}, 0.6),
        ("timm:test_vit", {"batch_size": 4}, 0.6),
    ],
)
def test_transformers_are_planned_too(spec: str, options: dict[str, Any], share: float) -> None:
    needs(spec)
    peak = memplan.analyze(spec, methods=("full",), **options)["full"].peak_bytes
    size = round(peak * share)
    planned = memplan.plan(spec, budget=size, **options)
    assert planned.bytes <= size
    assert 0 < (planned.plan.k or 0) <= len(planned.blocks)
    found = memplan.verify(spec, method=planned.plan, budget=size, **options)
    assert found.saved_equal
    assert found.fits
