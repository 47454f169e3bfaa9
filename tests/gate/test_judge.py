"""Verdicts on readings made by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from memplan.gate.growth import parse_growth
from memplan.gate.judge import growth_text, judged, limit_of, unanalysed
from memplan.gate.records import Check, GateResult, LayerPart, Limits, Place, Reading, Verdict
from memplan.graph.records import Machine

MACHINE = Machine("cpu", "AVX2", 2, "2.13.0")


def part(layer: str, size: int, kind: str = "Conv2d", output: str = "2x8x8x8", held: int = 100) -> LayerPart:
    return LayerPart(layer, kind, output, True, size, size, 0, held)


def reading(*parts: LayerPart, rest: int = 0, inputs: str = "2x3x8x8 float32") -> Reading:
    size = sum(each.bytes for each in parts) + rest
    return Reading(
        "peak",
        size,
        size,
        size,
        "loss",
        "Net",
        (inputs,),
        "float32",
        "full",
        "stock",
        "sgd (loop)",
        MACHINE,
        rest,
        parts,
    )


def check(budget: int | None = None, growth: str | None = None, least: int = 0, **more: object) -> Check:
    limits = Limits(budget, None if growth is None else parse_growth(growth), least)
    return Check("net", "Net", limits=limits, **more)  # type: ignore[arg-type]


BEFORE = reading(part("a", 600_000), part("b", 400_000))


@pytest.mark.parametrize(
    ("now", "growth", "least", "holds"),
    [
        (1_020_000, "2%", 0, True),
        (1_020_001, "2%", 0, False),
        (1_020_001, "2%", 20_001, True),  # beyond the percentage, not beyond the bytes
        (1_020_002, "2%", 20_001, False),
        (1_500_000, "500KB", 0, True),
        (1_500_001, "500KB", 0, False),
        (1_000_000, "0", 0, True),
        (1_000_001, "0", 0, False),
        (900_000, "0", 0, True),
    ],
)
def test_growth_fails_beyond_the_share_and_the_bytes(now: int, growth: str, least: int, holds: bool) -> None:
    after = reading(part("a", 600_000), part("b", now - 600_000))
    verdict = judged(check(growth=growth, least=least), after, BEFORE)
    assert verdict.holds is holds
    assert verdict.growth_bytes == now - 1_000_000
    assert verdict.limit_bytes == 1_000_000 + max(parse_growth(growth).of(1_000_000), least)
    assert after.bytes <= verdict.limit_bytes if holds else after.bytes > verdict.limit_bytes


def test_a_failure_is_a_sentence_with_the_layer() -> None:
    after = reading(part("a", 600_000), part("b", 700_000, output="2x14x8x8"))
    (failure,) = judged(check(growth="2%"), after, BEFORE).failures
    assert failure.sentence == (
        "the peak of net grew from 1.0 MB to 1.3 MB: +300.0 KB (+30.00 %), where 2% is allowed; "
        "b grew most: +300.0 KB (output 2x8x8x8 -> 2x14x8x8, keeps more)"
    ) or failure.sentence.endswith("b grew most: +300.0 KB (output 2x8x8x8 -> 2x14x8x8)")


def test_a_budget_and_growth_fail_together() -> None:
    after = reading(part("a", 900_000), part("b", 400_000))
    verdict = judged(check(budget=1_100_000, growth="10%"), after, BEFORE)
    assert [failure.kind for failure in verdict.failures] == ["budget", "growth"]
    assert verdict.failures[0].sentence == (
        "the peak of net is 1.3 MB, 200.0 KB above the budget of 1.1 MB; the largest part, 900.0 KB, is of a"
    )
    assert verdict.limit_bytes == 1_100_000


def test_without_a_baseline_the_budget_counts_and_it_is_said() -> None:
    verdict = judged(check(budget=2_000_000, growth="2%"), BEFORE)
    assert verdict.holds
    assert verdict.notes == ("net: no baseline, so that its growth is not checked; write it with --update-baseline",)
    missing = judged(check(budget=2_000_000, growth="2%"), BEFORE, require_baseline=True)
    assert [failure.kind for failure in missing.failures] == ["baseline"]


def test_a_check_without_limits_says_so() -> None:
    assert judged(check(), BEFORE).notes == ("net: no limit is given; add a budget or max-growth",)


def test_what_is_unpriced_fails_a_strict_check_only() -> None:
    odd = replace(BEFORE, unpriced=("tensors of layout sparse_csr",))
    (failure,) = judged(check(budget=10**9, strict=True), odd).failures
    assert failure.kind == "unpriced"
    assert "sparse_csr" in failure.sentence
    loose = judged(check(budget=10**9), odd)
    assert loose.holds
    assert loose.notes == ("net: not priced: tensors of layout sparse_csr",)


def test_settings_that_differ_are_named() -> None:
    after = reading(part("a", 700_000), part("b", 500_000), inputs="4x3x8x8 float32")
    verdict = judged(check(growth="1%"), after, BEFORE)
    assert verdict.differences == ("inputs 2x3x8x8 float32 -> 4x3x8x8 float32",)
    assert verdict.failures[0].sentence.endswith("what is asked differs: inputs 2x3x8x8 float32 -> 4x3x8x8 float32")


def test_a_layer_put_in_between_does_not_rename_all_others() -> None:
    kinds = ("Conv2d", "ReLU", "Linear", "ReLU", "Linear")
    before = reading(*(part(str(place), 100_000 * (place + 1), kind) for place, kind in enumerate(kinds)))
    parts = [part(str(place), 100_000 * (place + 1), kind) for place, kind in enumerate(kinds[:2])]
    parts.append(part("2", 50_000, "Dropout"))
    parts += [part(str(place + 1), 100_000 * (place + 1), kind) for place, kind in enumerate(kinds) if place >= 2]
    verdict = judged(check(growth="0"), reading(*parts), before)
    (grown,) = [change for change in verdict.changes if change.growth_bytes]
    assert (grown.layer, grown.before_bytes, grown.after_bytes, grown.words) == ("2", None, 50_000, ("new",))
    assert {change.words for change in verdict.changes} == {("new",), ("was 2",), ("was 3",), ("was 4",)}


def test_what_is_gone_and_what_trains_is_told() -> None:
    frozen = replace(part("b", 400_000), trains=False)
    verdict = judged(check(), reading(replace(frozen, trains=True, bytes=500_000)), reading(part("a", 600_000), frozen))
    assert {(change.layer, change.growth_bytes, change.words) for change in verdict.changes} == {
        ("a", -600_000, ("gone",)),
        ("b", 100_000, ("trains now",)),
    }


def test_a_change_of_what_is_no_layers_is_told_too() -> None:
    verdict = judged(check(), reading(part("a", 600_000), part("b", 400_000), rest=7), BEFORE)
    (change,) = verdict.changes
    assert (change.layer, change.growth_bytes) == ("(batch and optimizer)", 7)


def test_growth_in_words() -> None:
    assert growth_text(2_000_000, 50_000_000) == "+2.0 MB (+4.00 %)"
    assert growth_text(5, 0) == "+5 B"


def test_the_limit_is_the_smaller_of_the_two() -> None:
    limits = Limits(1_010_000, parse_growth("2%"))
    assert limit_of(limits, BEFORE) == 1_010_000
    assert limit_of(replace(limits, budget_bytes=None), BEFORE) == 1_000_000 + int(1_000_000 * Decimal("0.02"))
    assert limit_of(replace(limits, max_growth=None, budget_bytes=None), BEFORE) is None


def test_the_exit_code() -> None:
    holds = judged(check(budget=10**9), BEFORE)
    fails = judged(check(budget=1), BEFORE)
    broken = unanalysed(check(), "no file 'x.py'")

    def code(*verdicts: Verdict, **how: bool) -> int:
        return GateResult(verdicts, "pyproject.toml", **how).exit_code  # type: ignore[arg-type]

    assert code(holds) == code() == 0
    assert code(holds, fails) == 1
    assert code(fails, broken) == code(broken) == 3
    assert code(fails, warn_only=True) == 0
    assert code(broken, warn_only=True) == 3
    assert code(fails, broken, exit_zero=True) == 0


def test_what_cannot_be_analysed_names_its_place() -> None:
    verdict = unanalysed(replace(check(), place=Place("pyproject.toml", 7)), "net: no file 'x.py'")
    assert not verdict.holds
    assert not verdict.analysed
    assert verdict.failures[0].sentence == "pyproject.toml:7: net: no file 'x.py'"


def test_a_baseline_of_another_setting_is_said_where_the_check_holds_too() -> None:
    now = replace(BEFORE, model="Other", machine=replace(MACHINE, torch="2.14.0"))
    told = ("net: the baseline is of another setting: model Net -> Other; accept it with --update-baseline",)
    assert judged(check(growth="2%"), now, BEFORE).notes == told
    assert judged(check(budget=10**6), now, BEFORE).notes == told
    assert judged(check(budget=1), now, BEFORE).notes == ()  # its details have it
    assert judged(check(growth="2%"), now, BEFORE, accept_growth=True).notes == ()
    assert judged(check(growth="2%"), replace(now, model="Net"), BEFORE).notes == ()  # a note for all checks has it
