"""What is not as it was in the baseline: settings, and layers, those that explain the growth first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final

from memplan.gate.records import Change, LayerPart, Reading, layer_name

#: What may be said of a layer only because another one changed.
_FOLLOWING: Final = frozenset({"keeps more", "keeps less"})

_Pair = tuple[LayerPart | None, LayerPart | None]


def differences_between(before: Reading, after: Reading) -> Iterator[str]:
    """Yield what differs in the setting, one phrase each: ``inputs 8x3x224x224 float32 -> 8x3x256x256 float32``."""
    pairs = {
        "quantity": (before.of, after.of),
        "model": (before.model, after.model),
        "inputs": (", ".join(before.inputs), ", ".join(after.inputs)),
        "dtype": (before.dtype, after.dtype),
        "method": (before.method, after.method),
        "runner": (before.runner, after.runner),
        "optimizer": (before.optimizer, after.optimizer),
        "torch": (before.machine.torch, after.machine.torch),
        "device": (before.machine.device, after.machine.device),
        "instruction set": (before.machine.instruction_set, after.machine.instruction_set),
        "threads": (str(before.machine.threads), str(after.machine.threads)),
    }
    for name, (then, now) in pairs.items():
        if then != now:
            yield f"{name} {then or '(none)'} -> {now or '(none)'}"


def changes_between(before: Reading, after: Reading) -> tuple[Change, ...]:
    """Return the layers whose part of the quantity, or whose own bytes or shape changed, the largest growth first.

    Layers are matched by name. Where a layer that is put in between renames those behind it, they are matched by type
    and shape, in order, if that leaves less than half to explain.
    """
    alignments = (_by_name(before.layers, after.layers), _by_likeness(before.layers, after.layers))
    named, alike = ([_change(*pair) for pair in pairs if _differs(*pair)] for pairs in alignments)
    best = alike if 2 * _moved(alike) < _moved(named) else named
    rest = after.rest_bytes - before.rest_bytes
    if rest:
        best = [*best, Change("(batch and optimizer)", "", before.rest_bytes, after.rest_bytes)]
    return tuple(sorted(best, key=lambda change: -change.growth_bytes))


def _moved(changes: Sequence[Change]) -> int:
    return sum(abs(change.growth_bytes) for change in changes)


def first_change(changes: Sequence[Change], before: Reading, after: Reading) -> Change | None:
    """Return the first layer of the model that is not as it was: what is behind it may differ for its sake alone.

    A module that holds others is passed over, and so are layers that only keep more or less than they did.
    """
    order = {part.layer: place for parts in (before.layers, after.layers) for place, part in enumerate(parts)}
    own = [
        change
        for change in changes
        if change.layer in order
        and any(word not in _FOLLOWING for word in change.words)
        and not any(name.startswith(f"{change.layer}.") or not change.layer for name in order)
    ]
    # What is gone stood before what has its place now.
    return min(own, key=lambda change: (order[change.layer], change.after_bytes is not None), default=None)


def _by_name(before: Sequence[LayerPart], after: Sequence[LayerPart]) -> list[_Pair]:
    then, now = ({part.layer: part for part in parts} for parts in (before, after))
    return [(then.get(name), now.get(name)) for name in dict.fromkeys((*then, *now))]


def _by_likeness(before: Sequence[LayerPart], after: Sequence[LayerPart]) -> list[_Pair]:
    matcher = SequenceMatcher(None, [_kind(part) for part in before], [_kind(part) for part in after], autojunk=False)
    pairs: list[_Pair] = []
    for tag, low, high, first, last in matcher.get_opcodes():
        if tag == "equal":
            pairs.extend(zip(before[low:high], after[first:last], strict=True))
        else:
            pairs.extend(_by_type(before[low:high], after[first:last]))
    return pairs


def _by_type(before: Sequence[LayerPart], after: Sequence[LayerPart]) -> Iterator[_Pair]:
    """Yield pairs of one stretch that differs: in order, those of one type together."""
    left = list(after)
    for part in before:
        found = next((other for other in left if other.type == part.type), None)
        if found is not None:
            left.remove(found)
        yield part, found
    for part in left:
        yield None, part


def _kind(part: LayerPart) -> tuple[str, str, int]:
    return part.type, part.output, part.held_bytes


def _differs(before: LayerPart | None, after: LayerPart | None) -> bool:
    if before is None or after is None:
        return any(_weight(part) for part in (before, after) if part is not None)
    return before.bytes != after.bytes or any(True for _ in _words(before, after))


def _weight(part: LayerPart) -> int:
    return part.bytes + part.saved_bytes + part.temp_bytes + part.held_bytes


def _change(before: LayerPart | None, after: LayerPart | None) -> Change:
    told = after or before
    assert told is not None
    return Change(
        layer=told.layer,
        type=told.type,
        before_bytes=None if before is None else before.bytes,
        after_bytes=None if after is None else after.bytes,
        words=tuple(_words(before, after)),
    )


def _words(before: LayerPart | None, after: LayerPart | None) -> Iterator[str]:
    if before is None:
        yield "new"
    elif after is None:
        yield "gone"
    else:
        if before.layer != after.layer:
            yield f"was {layer_name(before.layer)}"
        if before.type != after.type:
            yield f"{before.type} -> {after.type}"
        if before.output != after.output:
            yield f"output {before.output or '(none)'} -> {after.output or '(none)'}"
        if before.trains != after.trains:
            yield "trains now" if after.trains else "is frozen now"
        if before.held_bytes != after.held_bytes and before.trains == after.trains:
            yield "other parameters"
        if before.saved_bytes != after.saved_bytes and before.output == after.output:
            yield "keeps more" if after.saved_bytes > before.saved_bytes else "keeps less"
