"""The records of channel groups: what has to be dropped together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of a parameter or buffer that loses elements with the channels of a group.

    ``positions`` has for each channel of the group the indices of its elements along the axis, which is ``size`` long.
    """

    tensor: str
    axis: int
    size: int
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels of which any number may be dropped, each with all of its elements in ``members``.

    ``name`` is the path of the first layer that makes them; where it makes several groups, ``path#2`` and so on.
    Counts that are kept must be multiples of ``divisor``. ``layers`` and ``storages`` shrink with the group. A group
    that is ``pinned`` may not lose channels; the text says why.
    """

    name: str
    channels: int
    divisor: int
    members: tuple[Member, ...]
    layers: tuple[int, ...]
    storages: tuple[int, ...]
    pinned: str | None
