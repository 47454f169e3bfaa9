"""Records out of JSON's own types: every value is checked against the annotation of its field."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

#: Records whose numbers may be below zero, by class and field.
_SIGNED = {
    ("SearchReport", "error"),
    ("SearchReport", "bound"),
    ("SearchReport", "gap"),
    ("SearchReport", "score"),
    ("Reading", "rest_bytes"),
}


def decoded(kind: Any, value: Any, where: str) -> Any:
    """Return the value of annotation ``kind`` that ``dataclasses.asdict`` made ``value`` of; ``where`` names its place.

    Numbers are at least 0, except those of ``_SIGNED``. What a record does not know is left out.

    Raises:
        ValueError: a field is missing or of another type; the message names its place.
    """
    return _decoded(kind, value, where, signed=False)


def _decoded(kind: Any, value: Any, where: str, *, signed: bool) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return None if value is None else _decoded(options[0], value, where, signed=signed)
    if origin is Literal:
        if value not in get_args(kind) or isinstance(value, bool):
            raise ValueError(f"{where} is {value!r}, not {' or '.join(map(str, get_args(kind)))}")
        return value
    if origin is tuple:
        return tuple(_items(get_args(kind), value, where, signed=signed))
    if is_dataclass(kind):
        return _record(kind, value, where)
    return _plain(kind, value, where, signed=signed)


def _items(kinds: tuple[Any, ...], value: Any, where: str, *, signed: bool) -> Iterator[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {value!r}, not a list")
    if kinds[-1:] == (Ellipsis,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where} has {len(value)} entries, not {len(kinds)}")
    for place, (kind, item) in enumerate(zip(kinds, value, strict=True)):
        yield _decoded(kind, item, f"{where}[{place}]", signed=signed)


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}, not an object")
    hints = get_type_hints(kind)
    found = {}
    for entry in fields(kind):
        place = f"{where}.{entry.name}"
        if entry.name not in value:
            raise ValueError(f"there is no {place}")
        signed = (kind.__name__, entry.name) in _SIGNED
        found[entry.name] = _decoded(hints[entry.name], value[entry.name], place, signed=signed)
    return kind(**found)


def _plain(kind: Any, value: Any, where: str, *, signed: bool) -> Any:
    if kind is bool or kind is str:
        if not isinstance(value, kind):
            raise ValueError(f"{where} is {value!r}, not {'a text' if kind is str else 'true or false'}")
        return value
    if kind is float and value is None:
        return math.inf  # JSON has no word for it
    number = isinstance(value, int) or (kind is float and isinstance(value, float))
    if not number or isinstance(value, bool) or (not signed and not value >= 0):
        raise ValueError(f"{where} is {value!r}, not a {'number' if kind is float else 'whole number'} from 0 on")
    return kind(value)
