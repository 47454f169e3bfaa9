"""What reports have beside tables: headings, sentences, and what was asked of which model on which machine."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.text import Text

from memplan.reports.layout import Paragraph
from memplan.results import Setting


def title(text: str, style: str = "bold") -> Paragraph:
    """Return a heading."""
    return paragraph(text, style=style)


def paragraph(text: str, *, indent: int = 0, style: str = "") -> Paragraph:
    """Return text that wraps."""
    return Paragraph(Text(text, style=style), indent)


def remarks(word: str, sentences: Iterable[str]) -> list[RenderableType]:
    """Return sentences under an empty line, each behind a word; nothing where there is none."""
    style = "yellow" if word == "not priced" else ""
    lines: list[RenderableType] = [paragraph(f"{word}: {sentence}", style=style) for sentence in sentences]
    return [Text(), *lines] if lines else []


def facts(setting: Setting) -> Paragraph:
    """Return the line that says which model, which inputs and which mode."""
    words = [] if setting.batch_size is None else [f"batch {setting.batch_size}"]
    words += [", ".join(setting.inputs), "train mode" if setting.training else "eval mode"]
    words += [] if setting.amp is None else [f"autocast {setting.amp}"]
    text = Text(setting.model, style="bold").append(f" ({setting.origin})", style="not bold")
    return Paragraph(text.append("".join(f"  {word}" for word in words if word), style="not bold"))


def machine(setting: Setting) -> str:
    """Return where the step runs, in words."""
    where = setting.machine
    kind = f" {where.instruction_set}" if where.instruction_set else ""
    return f"torch {where.torch}, {where.device}{kind}, threads {where.threads}"
