"""The file of a plan that a search found: the plan, what it was made for, and the search's account of it.

What :func:`memplan.methods.plan.plan_from_json` needs is in it, so that such a file is a plan like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, get_type_hints

from memplan.errors import UsageError, did_you_mean
from memplan.memory import Footprint, Peak
from memplan.methods import Plan
from memplan.methods.plan import PLAN_FILE, check_not_newer, plan_from_json, plan_to_json
from memplan.methods.treatments import GROUP, TREATMENTS
from memplan.planner.costs import quantity_of
from memplan.planner.records import Budget, Preference, Upgrade
from memplan.reports.decoding import decoded
from memplan.results import Planned, PlannedSegment, Saving, SearchReport, Setting

PLANNED_SCHEMA: Final = "memplan.planned/1"

#: The file in a directory that ``memplan apply`` wrote.

#: Storages that are named at the peak.
_ALIVE: Final = 5


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for in so many words, ``None`` where a default was taken.

    ``spec``, ``input_shape``, ``classes``, ``dtype``, ``weights`` and ``loss`` build the model again; the rest bounded
    the search.
    """

    spec: str | None = None
    input_shape: tuple[int, ...] | None = None
    classes: int | None = None
    dtype: str | None = None
    weights: str | None = None
    loss: str | None = None
    k: int | None = None
    min_k: int | None = None
    max_flops: str | None = None
    max_prune: float | None = None
    importance: str | None = None
    lossless: bool = False
    allow: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Predicted:
    """What one step needs: ``bytes`` of what the budget is on, and where the peak is."""

    bytes: int
    peak_bytes: int
    first_step_peak_bytes: int
    saved_bytes: int
    temp_bytes: int
    resident_bytes: int
    parameters: int
    trained_parameters: int
    flops_forward: int
    flops_backward: int
    peak: Peak

    @property
    def flops(self) -> int:
        """Floating-point operations of forward and backward."""
        return self.flops_forward + self.flops_backward


@dataclass(frozen=True, slots=True)
class Account:
    """A plan and all that its file says of it.

    ``blocks`` are the paths of the model's blocks. ``predicted`` is the plan's recorded step, ``stock`` full
    fine-tuning by stock PyTorch. ``remarks`` are the search's notes; the plan has its own.
    """

    plan: Plan
    made_for: Setting
    asked: Asked
    budget: Budget
    prefer: Preference
    runner: str
    predicted: Predicted
    stock: Predicted
    blocks: tuple[str, ...]
    segments: tuple[PlannedSegment, ...]
    savings: tuple[Saving, ...]
    search: SearchReport
    next: tuple[Upgrade, ...]
    remarks: tuple[str, ...]

    @property
    def margin_bytes(self) -> int:
        """What the budget leaves."""
        return self.budget.bytes - self.predicted.bytes


def account_of(planned: Planned, asked: Asked | None = None) -> Account:
    """Return what is written of a plan that was found."""
    return Account(
        plan=planned.plan,
        made_for=planned.setting,
        asked=asked or Asked(),
        budget=planned.budget,
        prefer=planned.prefer,
        runner=planned.runner,
        predicted=_predicted(planned.footprint, planned.bytes),
        stock=_predicted(planned.stock, quantity_of(planned.stock, planned.budget.of)),
        blocks=tuple(block.path for block in planned.blocks),
        segments=planned.segments,
        savings=planned.savings,
        search=planned.search,
        next=planned.next,
        remarks=tuple(note for note in planned.notes if note not in planned.plan.notes),
    )


def plan_file(planned: Planned, asked: Asked | None = None) -> str:
    """Return the text of a plan's file: stable, in a fixed order, one entry per line."""
    return account_to_json(account_of(planned, asked))


def account_to_json(account: Account) -> str:
    """Return the text of a plan's file, to be read back by :func:`account_from_json`."""
    plan = json.loads(plan_to_json(account.plan))
    return _text({"schema": plan.pop("schema"), **_finite(_sections(account)), **plan})


def _sections(account: Account) -> dict[str, Any]:
    return {name: value for name, value in asdict(account).items() if name != "plan"}


def planned_to_json(planned: Planned, asked: Asked, version: str) -> dict[str, Any]:
    """Return all that a plan's file says and what only one run knows, as JSON's own types.

    ``version`` is memplan's.
    """
    recording, search = planned.seconds
    account = account_of(planned, asked)
    return {
        "schema": PLANNED_SCHEMA,
        "memplan": version,
        "fits": account.margin_bytes >= 0,
        "margin_bytes": account.margin_bytes,
        "optimizer_implementation": planned.implementation,
        "recording_seconds": round(recording, 3),
        "search_seconds": round(search, 3),
        **_finite(_sections(account)),
        "plan": json.loads(plan_to_json(planned.plan)),
    }


def account_from_json(text: str, source: str = "the plan") -> Account:
    """Return what :func:`plan_file` wrote; ``source`` names where the text is from, for errors.

    Raises:
        UsageError: the text is no plan, or one without the account of a search.
    """
    plan, account = contents(text, source)
    if account is None:
        raise UsageError(
            f"{source} is a plan of {plan.method} without the account of a search; "
            "give a file that memplan plan --out wrote"
        )
    return account


def contents(text: str, source: str) -> tuple[Plan, Account | None]:
    """Return the plan in a file's text and, where a search found it, the account of that.

    Raises:
        UsageError: the text is no plan.
    """
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise UsageError(
            f"{source} is no plan but JSON without an end; give one that memplan plan --out wrote"
        ) from error
    except ValueError:
        values = None
    if not isinstance(values, dict):
        return plan_from_json(text, source), None
    check_not_newer(values.get("schema"), source)
    plan = plan_from_json(text, source)
    if "made_for" not in values:
        _check_treatments(plan.treatments, source)
        return plan, None
    hints = get_type_hints(Account)
    sections = {}
    try:
        for entry in fields(Account):
            if entry.name == "plan":
                continue
            if entry.name not in values:
                raise ValueError(f"there is no {entry.name}")
            sections[entry.name] = decoded(hints[entry.name], values[entry.name], entry.name)
    except ValueError as error:
        raise UsageError(f"{source} is not a plan: {error}; write it again with memplan plan --out") from error
    account = Account(plan, **sections)
    _check_treatments((*plan.treatments, *(name for each in account.segments for name in each.treatments)), source)
    return plan, account


def read_plan(path: str | Path) -> tuple[Plan, Account | None, str]:
    """Return the plan in a file, its account if it has one, and the file's text.

    Raises:
        UsageError: there is no such file, or it holds no plan.
    """
    file = Path(path)
    file = file / PLAN_FILE if file.is_dir() else file
    advice = "give a plan.json that memplan plan --out or memplan apply wrote"
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{str(file)!r} is not text; {advice}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read {str(file)!r}: {reason}; {advice}") from error
    return (*contents(text, repr(str(file))), text)


def read_account(path: str | Path) -> Account:
    """Return what a file says of a plan that a search found.

    Raises:
        UsageError: there is no such file, or it holds no such plan.
    """
    _, _, text = read_plan(path)
    return account_from_json(text, repr(str(path)))


def _check_treatments(names: Iterable[str], source: str) -> None:
    for name in names:
        # Those of others are looked up by name alone: importing them may need torch.
        if name not in TREATMENTS and ":" not in name and name not in entry_points(group=GROUP).names:
            hint = did_you_mean(name, TREATMENTS) or f"; choose from {', '.join(TREATMENTS)}"
            raise UsageError(f"{source} is not a plan: no treatment {name!r}{hint}")


def _predicted(footprint: Footprint, size: int) -> Predicted:
    peak = footprint.peak
    return Predicted(
        bytes=size,
        peak_bytes=footprint.peak_bytes,
        first_step_peak_bytes=footprint.first_step_peak_bytes,
        saved_bytes=footprint.saved_bytes,
        temp_bytes=footprint.temp_bytes,
        resident_bytes=footprint.resident_bytes,
        parameters=footprint.parameters,
        trained_parameters=footprint.trained_parameters,
        flops_forward=footprint.flops_forward,
        flops_backward=footprint.flops_backward,
        peak=replace(peak, alive=peak.alive[:_ALIVE]),
    )


def _finite(value: Any) -> Any:
    """Return a value with ``None`` for infinity, for which JSON has no word."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(values: dict[str, Any]) -> str:
    entries = ",\n".join(f'  "{name}": {_entry(value)}' for name, value in values.items())
    return f"{{\n{entries}\n}}\n"


def _entry(value: Any) -> str:
    if isinstance(value, dict) and value:
        return (
            "{\n" + ",\n".join(f"    {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items()) + "\n  }"
        )
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
    return json.dumps(value)
