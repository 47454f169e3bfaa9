"""Whatever the layers of a model are called, a terminal shows it on one line, and none of it acts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import RenderableType

from memplan.reports.console import analysis_report, verification_report
from memplan.reports.explain import explain_report
from memplan.reports.front import front_report
from memplan.reports.plan import plan_report, suggestion_report
from memplan.reports.plan_file import Asked, account_of
from memplan.tables import plain
from tests.gate.toy import HOSTILE
from tests.reports.plans import front, planned
from tests.reports.toy import analysis, shown, verification

REPORTS: dict[str, tuple[Callable[[], Any], Callable[[Any], RenderableType]]] = {
    "analysis": (analysis, lambda record: analysis_report(record, top=9, bars=True)),
    "suggestion": (lambda: replace(analysis(), suggestion=planned()), lambda record: suggestion_report(record, "net")),
    "plan": (planned, lambda record: plan_report(record, bars=True)),
    "account": (lambda: account_of(planned(), Asked(spec="chain")), explain_report),
    "front": (front, front_report),
    "verification": (verification, verification_report),
}


def renamed(record: Any, name: str) -> Any:
    """Return records whose every layer, model and sentence has ``name`` in it."""
    if isinstance(record, str):
        return re.sub(r"layers\.(\d)|chain|toy", lambda found: f"{name}{found[1] or ''}", record)
    if isinstance(record, tuple) and not hasattr(record, "_fields"):
        return tuple(renamed(item, name) for item in record)
    if is_dataclass(record) and not isinstance(record, type):
        named = {field.name: renamed(getattr(record, field.name), name) for field in fields(record) if field.init}
        return replace(record, **named)
    return record


@pytest.mark.parametrize("width", [60, 200])
@pytest.mark.parametrize("name", tuple(filter(None, HOSTILE)), ids=ascii)
@pytest.mark.parametrize("report", REPORTS)
def test_a_name_is_text_on_one_line(report: str, name: str, width: int) -> None:
    make, report_of = REPORTS[report]
    text = shown(report_of(renamed(make(), name)), width)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    assert max(map(cell_len, text.splitlines())) <= width
    assert plain(name).split()[0][:8] in text
