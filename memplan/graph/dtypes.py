"""What an element of a tensor takes in memory, by the name of its dtype."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

#: Bytes of one element. Source: ``torch.dtype.itemsize``.
ITEM_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "bool": 1, "uint8": 1, "int8": 1, "quint8": 1, "qint8": 1,
        "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
        "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2,
        "int32": 4, "uint32": 4, "float32": 4, "qint32": 4, "complex32": 4,
        "int64": 8, "uint64": 8, "float64": 8, "complex64": 8,
        "complex128": 16,
    }
)  # fmt: skip

_UNKNOWN_BYTES: Final = 8


def item_bytes(dtype: str) -> int:
    """Bytes of one element; a dtype that is not in the table counts 8, so that it is not under-priced.

    >>> item_bytes("bfloat16")
    2
    """
    return ITEM_BYTES.get(dtype, _UNKNOWN_BYTES)
