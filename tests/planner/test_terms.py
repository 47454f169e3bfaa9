"""What may be asked for, and the one line that answers each contradiction."""

from __future__ import annotations

import re
from typing import Any

import pytest

from memplan.errors import UsageError
from memplan.planner.options import APPROXIMATE_PRICES, PRICES, Option
from memplan.planner.terms import CHOSEN, flops_limit, terms_of

USUAL = {"bitmask", "recompute", "prefix-microbatch", "fused-update", "signed-mask", "shift-only"}


def test_by_default_nothing_is_pruned_and_no_weight_is_in_8_bits() -> None:
    terms = terms_of()
    assert terms.treatments == USUAL
    assert terms.max_prune == 0
    assert set(CHOSEN) == USUAL | {"prune", "frozen-int8"}


def test_lossless_leaves_out_all_that_changes_gradients() -> None:
    terms = terms_of(lossless=True)
    assert terms.treatments == USUAL - {"signed-mask", "shift-only"}
    assert terms.approximate_options() == ()


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        ({"allow": ["prune"]}, 0.3),
        ({"max_prune": 0.5}, 0.5),
        ({"allow": ["prune"], "max_prune": 0.125}, 0.125),
        ({"max_prune": 0}, 0),
        ({"allow": ["prune"], "max_prune": 0}, 0),
        ({"lossless": True, "max_prune": 0}, 0),
        ({"forbid": ["prune"], "max_prune": 0}, 0),
    ],
)
def test_pruning_is_allowed_by_name_or_by_its_share(asked: dict[str, Any], most: float) -> None:
    terms = terms_of(**asked)
    assert terms.max_prune == most
    assert terms.allows("prune") == bool(most)


def test_what_is_forbidden_is_in_no_option() -> None:
    terms = terms_of(forbid=["recompute", "shift-only"])
    assert terms.exact_options() == (Option(masked=True),)
    assert terms.approximate_options() == (Option(None, True, ("signed-mask",)),)
    assert terms_of(forbid=["signed-mask", "shift-only"]).approximate_options() == ()
    assert terms_of(forbid=["recompute", "bitmask"]).exact_options() == ()
    assert terms_of().exact_options() == tuple(Option(price) for price in PRICES)
    approximate = terms_of(forbid=["bitmask"]).approximate_options()
    assert [option.price for option in approximate] == [None, *APPROXIMATE_PRICES]
    assert not any(option.masked for option in approximate)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"allow": ["recomput"]}, "the planner has no treatment 'recomput'; did you mean 'recompute'?"),
        (
            {"forbid": ["zzz"]},
            f"the planner has no treatment 'zzz'; choose from {', '.join(CHOSEN)}",
        ),
        (
            {"allow": ["prune"], "forbid": ["prune"]},
            "prune is both allowed and forbidden; say one of them",
        ),
        (
            {"lossless": True, "allow": ["shift-only"]},
            "lossless leaves out shift-only, which is allowed too; say one of them",
        ),
        (
            {"lossless": True, "allow": ["frozen-int8"]},
            "lossless leaves out frozen-int8, which is allowed too; say one of them",
        ),
        ({"lossless": True, "max_prune": 0.25}, "lossless leaves out pruning, and max-prune is 0.25; say one of them"),
        ({"forbid": ["prune"], "max_prune": 0.25}, "prune is forbidden, and max-prune is 0.25; say one of them"),
        ({"max_prune": 1}, "max-prune is a share of a group's channels from 0 to less than 1, not 1"),
        ({"max_prune": -0.1}, "max-prune is a share of a group's channels from 0 to less than 1, not -0.1"),
        ({"max_prune": float("nan")}, "max-prune is a share of a group's channels from 0 to less than 1, not nan"),
        ({"max_prune": True}, "max-prune is a share of a group's channels from 0 to less than 1, not True"),
    ],
)
def test_a_contradiction_is_named(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        terms_of(**asked)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (None, None),
        ("1.1x", 1_100),
        ("2 x", 2_000),
        (".5x", 500),
        ("30G", 30_000_000_000),
        ("1.5k", 1_500),
        ("7", 7),
        (7, 7),
        (2.5e3, 2_500),
        (1e17, 10**17),
        ("2T", 2 * 10**12),
    ],
)
def test_flops_are_a_number_or_a_multiple_of_full_fine_tuning(text: Any, limit: int | None) -> None:
    assert flops_limit(text, 1_000) == limit


@pytest.mark.parametrize("text", ["", "many", "0", "-3G", "x", "0x", "1.1y", "1e9x", "nan", float("inf"), "1..2G"])
def test_other_flops_are_refused_with_the_user_s_own_text(text: Any) -> None:
    message = f"cannot read {text!r} as FLOPs; write a number such as 30G, or 1.1x of full fine-tuning"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        flops_limit(text, 1_000)
