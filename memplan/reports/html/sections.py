"""The parts of a page. A page is a list of them, so that each kind of page takes those that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from memplan.memory import Footprint
from memplan.methods import Plan
from memplan.reports.layout import Columns
from memplan.reports.sizes import unit_for
from memplan.results import Setting

#: What every figure of a page means, in the words of ``docs/definitions.md``.
WORDS: Final = (
    ("peak", "the largest sum of resident, saved and temp over the step, as the allocator has it"),
    ("saved", "kept from an operator's forward to its backward; adds up over layers"),
    ("temp", "alive within one pass only, kernel scratch included; of several layers the largest counts"),
    ("resident", "parameters, buffers, gradients and the optimizer's state"),
)

#: What holds for every step that is shown.
ASSUMPTIONS: Final = (
    "Peaks are the allocator's, in the steady state (second step on).",
    "What is predicted was recorded on fake tensors: without data, and without computing anything.",
)


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands at the top of a page: its title, and in a few words what it was made of."""

    title: str
    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a page: its template, which is its anchor too, its heading, and what the template shows."""

    name: str
    title: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of bytes that the eye should meet first, and what it is."""

    label: str
    bytes: int
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts: its caption, its headings, which columns are numbers, and its rows."""

    caption: str
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]


def table_of(caption: str, columns: Columns, heading: str = "", texts: Sequence[str] = ()) -> Table:
    """Return what a terminal shows in columns, with ``texts`` as a last column under ``heading``."""
    shown = [(column.heading, column.right, column.cells) for column in columns.columns]
    if texts:
        shown.append((heading, False, tuple(texts)))
    headings, numeric, cells = zip(*shown, strict=True)
    return Table(caption, headings, numeric, tuple(zip(*cells, strict=True)))


def summary_section(
    headline: str, sentences: Iterable[str], figures: Iterable[Figure], *, good: bool | None = None
) -> Section:
    """Return the answer: ``good`` says whether it is one that was hoped for, ``None`` that nothing was asked."""
    return Section(
        "summary",
        "Summary",
        {"headline": headline, "sentences": tuple(sentences), "figures": tuple(figures), "good": good},
    )


def memory_section(labels: Sequence[str], line: str = "budget") -> Section:
    """Return the memory over the step, of one run or of two on one scale.

    Args:
        labels: all runs there are.
        line: how the size that a peak is held to is called.
    """
    return Section("memory", "Memory over the step", {"labels": tuple(labels), "line": line})


def layers_section() -> Section:
    """Return the bars and the table of layers."""
    return Section("layers", "Layers")


def network_section() -> Section:
    """Return the network as a graph of blocks, and of the layers in one."""
    return Section("network", "The network")


def about_section(
    facts: Iterable[tuple[str, str]],
    *,
    assumptions: Iterable[str] = (),
    remarks: Iterable[tuple[str, str]] = (),
    words: Iterable[tuple[str, str]] = WORDS,
) -> Section:
    """Return what the figures stand on: what was asked, on which machine, which versions, and all remarks."""
    return Section(
        "about",
        "Assumptions and versions",
        {
            "facts": tuple(facts),
            "assumptions": tuple(assumptions),
            "remarks": tuple(dict.fromkeys(remarks)),
            "words": tuple(words),
        },
    )


def remarks_of(
    notes: Iterable[str], plans: Iterable[Plan | None], footprints: Iterable[Footprint]
) -> Iterable[tuple[str, str]]:
    """Yield each remark with the word that says what kind it is, as a terminal has them."""
    yield from (("note", note) for note in notes)
    for plan in plans:
        if plan is not None:
            yield from (("note", note) for note in plan.notes)
            yield from (("as in stock PyTorch, for want of a rule", text) for text in plan.untreated)
    for footprint in footprints:
        yield from (("not priced", text) for text in footprint.unpriced)


def sentence(text: str) -> str:
    """Return words of a terminal's report as a sentence.

    >>> sentence("the optimizer updates during the backward")
    'The optimizer updates during the backward.'
    """
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def page_unit(footprints: Iterable[Footprint]) -> str:
    """Return the unit that a page's tables are in."""
    return unit_for(max((footprint.peak_bytes for footprint in footprints), default=0))


def heading_of(setting: Setting) -> Heading:
    """Return the heading of a page about one model: what was asked, in a line."""
    machine = setting.machine
    batch = () if setting.batch_size is None else (f"batch {setting.batch_size}",)
    facts = (
        *batch,
        ", ".join(setting.inputs),
        f"{setting.optimizer} ({setting.implementation})",
        f"{'train' if setting.training else 'eval'} mode",
        f"torch {machine.torch}, {machine.device}",
    )
    return Heading(setting.model, facts)


def setting_facts(setting: Setting, version: str) -> Iterable[tuple[str, str]]:
    """Yield what was asked, on which machine and with which versions, each with its name."""
    machine = setting.machine
    yield "model", f"{setting.model} ({setting.origin})"
    if setting.batch_size is not None:
        yield "batch size", str(setting.batch_size)
    yield "inputs", ", ".join(setting.inputs)
    if setting.dtype:
        yield "parameters in", setting.dtype
    yield "autocast", setting.amp or "off"
    yield "mode", "train" if setting.training else "eval"
    yield "optimizer", f"{setting.optimizer} ({setting.implementation})"
    yield "device", " ".join(filter(None, (machine.device, machine.instruction_set)))
    yield "threads", str(machine.threads)
    yield "torch", machine.torch
    yield "memplan", version
