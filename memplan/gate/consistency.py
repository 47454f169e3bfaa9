"""Whether what is asked of a check contradicts itself."""

from __future__ import annotations

from collections.abc import Collection

from memplan.errors import UsageError
from memplan.gate.records import Check
from memplan.methods import METHODS
from memplan.methods.method import runners_of
from memplan.methods.treatments import treatment_named
from memplan.reports.sizes import size


def check_consistent(check: Check, own: Collection[str]) -> None:
    """Raise where the settings of a check contradict each other.

    Args:
        check: what is asked.
        own: the keys that are the check's own, and no shared defaults, which need not suit every check.

    Raises:
        UsageError: they do.
    """
    _check_limits(check, own)
    method = METHODS[check.method]
    if check.plan is not None:
        for key in ("method", "k", "treatments"):
            if key in own:
                raise UsageError(f"{key} is given with a plan, which says it already; leave one of them out")
        if check.runner == "stock":
            raise UsageError("stock PyTorch cannot run a plan; leave out the runner, or the plan")
        return
    if "k" in own and not method.needs_k:
        takers = " or ".join(name for name, each in METHODS.items() if each.needs_k)
        raise UsageError(f"k needs a method that trains k blocks, not {method.name}; write method = {takers}")
    runners_of(method, check.runner, check.treatments)
    for name in check.treatments:
        if ":" not in name:  # one of somebody's own is looked up when it is used
            treatment_named(name)


def _check_limits(check: Check, own: Collection[str]) -> None:
    limits = check.limits
    growth, least = limits.max_growth, limits.min_growth_bytes
    if growth is None:
        if least and "min-growth" in own:
            raise UsageError('min-growth without max-growth says nothing; add max-growth, such as "2%"')
        return
    # With no growth at all allowed, min-growth says from where on it counts.
    if growth.bytes is not None and least > growth.bytes > 0:
        raise UsageError(
            f"max-growth {growth.text} never decides, for growth up to min-growth is let pass, which is more; "
            "leave one of them out"
        )
    budget = limits.budget_bytes
    for key, told, allowed in (("max-growth", growth.text, growth.bytes or 0), ("min-growth", size(least), least)):
        if budget is not None and allowed >= budget:
            raise UsageError(f"{key} {told} is as much as the whole budget, so that growth can never fail; lower it")
