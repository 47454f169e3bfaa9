"""A plan: what trains in one model, and what is done to its layers so that less is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from memplan.errors import UsageError
from memplan.methods.cut import ScheduledOp
from memplan.methods.pruning import PrunedAxis, PrunedGroup, from_ranges, pruning_faults, to_ranges
from memplan.methods.treatments.lite_residual import LiteShape, Norm
from memplan.tables import Record, Shown, Table

#: Whether the gradients are those of the same network trained by stock PyTorch.
Gradients: TypeAlias = Literal["exact", "approximate"]

SCHEMA: Final = "memplan.plan/2"
_NAME_AND_NUMBER: Final = re.compile(r"memplan\.plan/([0-9]{1,9})")

#: The file of a directory that ``memplan apply`` writes in which the plan is.
PLAN_FILE: Final = "plan.json"


@dataclass(frozen=True, slots=True)
class TreatedLayer:
    """A module and the treatments of all functions that run in it, or in modules below it without an entry."""

    path: str
    treatments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LiteBranch:
    """A lite residual branch and the block beside which it runs."""

    path: str
    shape: LiteShape


@dataclass(frozen=True, slots=True)
class TunedPair:
    """A convolution and the norm behind it that run as one convolution."""

    convolution: str
    norm: str


@dataclass(frozen=True, slots=True)
class Microbatch:
    """The frozen prefix, up to the output of the module at ``boundary``, runs ``samples`` at a time."""

    boundary: str
    samples: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells models apart: how many parameters, how many numbers in them, and a digest of names and shapes."""

    parameters: int
    numbers: int
    digest: str

    def __str__(self) -> str:
        return f"{self.parameters} parameters of {self.numbers:,} numbers"


@dataclass(frozen=True, slots=True)
class Plan(Shown):
    """What trains and what is done to each layer, for one model.

    ``trained`` names parameters of the model; the parameters of lite branches train too. ``running`` lists norms that
    use their running statistics and do not update them, ``evaluated`` modules that run in eval mode, ``int8`` layers
    whose weight is stored in 8 bits. ``pruned`` says which channels the model loses before all else: the rest, whether
    gradients are exact too, is about the smaller network. ``schedule`` says of each op of the forward what is
    recomputed; with a ``microbatch``, of each op after its boundary. ``notes`` say where a treatment does not apply,
    and why; ``untreated`` names what keeps as much as in stock PyTorch for want of a rule. ``model`` is the fingerprint
    of the model before it is pruned; a plan without one is for any model that has what it names.
    """

    method: str
    k: int | None
    trained: tuple[str, ...]
    gradients: Gradients = "exact"
    layers: tuple[TreatedLayer, ...] = ()
    running: tuple[str, ...] = ()
    evaluated: tuple[str, ...] = ()
    tuned: tuple[TunedPair, ...] = ()
    int8: tuple[str, ...] = ()
    lite: tuple[LiteBranch, ...] = ()
    pruned: tuple[PrunedGroup, ...] = ()
    schedule: tuple[ScheduledOp, ...] = ()
    microbatch: Microbatch | None = None
    fused_update: bool = False
    notes: tuple[str, ...] = ()
    untreated: tuple[str, ...] = ()
    model: Fingerprint | None = None

    @property
    def treatments(self) -> tuple[str, ...]:
        """The names of all treatments in use, each once."""
        used = [name for layer in self.layers for name in layer.treatments]
        whole = (
            ("tune", self.tuned),
            ("frozen-int8", self.int8),
            ("lite-residual", self.lite),
            ("prune", any(group.dropped for group in self.pruned)),
            ("recompute", any(op.recomputed for op in self.schedule)),
            ("prefix-microbatch", self.microbatch),
            ("fused-update", self.fused_update),
        )
        return tuple(dict.fromkeys([*used, *(name for name, present in whole if present)]))

    @property
    def label(self) -> str:
        """The method with its k, as tables show it."""
        return self.method if self.k is None else f"{self.method} k={self.k}"

    def to_records(self) -> list[Record]:
        """Return one record for each module where something is done: its path, and the treatments there.

        What is done to single ops or to the whole step, as ``recompute`` and ``fused-update``, has no module.
        """
        done: dict[str, dict[str, None]] = {}
        for path, treatments in self._places():
            done.setdefault(path, {}).update(dict.fromkeys(treatments))
        return [{"path": path, "treatments": ", ".join(treatments)} for path, treatments in done.items()]

    def _places(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield from ((layer.path, layer.treatments) for layer in self.layers)
        yield from ((path, ("tune",)) for pair in self.tuned for path in (pair.convolution, pair.norm))
        yield from ((path, ("frozen-int8",)) for path in self.int8)
        yield from ((branch.path, ("lite-residual",)) for branch in self.lite)
        owners = [axis.tensor.rpartition(".")[0] for group in self.pruned for axis in group.axes if axis.dropped]
        yield from ((path, ("prune",)) for path in owners)
        if self.microbatch is not None:
            yield self.microbatch.boundary, ("prefix-microbatch",)

    def _table(self) -> Table:
        tensors = "1 tensor trains" if len(self.trained) == 1 else f"{len(self.trained):,} tensors train"
        heading = (
            f"{self.label}: {tensors}, gradients {self.gradients}; treatments: {', '.join(self.treatments) or 'none'}"
        )
        return Table(heading, [{**record, "path": record["path"] or "(model)"} for record in self.to_records()])


def plan_to_json(plan: Plan) -> str:
    """Return the plan as JSON text, stable and one entry per line, to be read back by :func:`plan_from_json`."""
    fields = asdict(plan)
    fields["pruned"] = [_with_ranges(group) for group in plan.pruned]
    fields["schedule"] = [[op.name, *op.recomputed] for op in plan.schedule]
    lines = ",\n".join(f'  "{name}": {_entry(value)}' for name, value in {"schema": SCHEMA, **fields}.items())
    return f"{{\n{lines}\n}}\n"


def _with_ranges(group: PrunedGroup) -> dict[str, Any]:
    axes = [{**asdict(axis), "dropped": to_ranges(axis.dropped)} for axis in group.axes]
    return {**asdict(group), "dropped": to_ranges(group.dropped), "axes": axes}


def _entry(value: Any) -> str:
    if isinstance(value, (list, tuple)) and value:
        return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
    return json.dumps(value)


def plan_from_json(text: str, source: str = "the plan") -> Plan:
    """Return the plan that :func:`plan_to_json` wrote; ``source`` names where the text is from, for errors.

    Raises:
        UsageError: the text is not a plan.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not JSON: {error}; give a plan.json that memplan apply wrote") from error
    schema = fields.get("schema") if isinstance(fields, Mapping) else None
    check_not_newer(schema, source)
    if schema != SCHEMA:
        raise UsageError(f"{source} has the schema {schema!r}, not {SCHEMA!r}; write it again with memplan apply")
    read = _Fields(fields)
    try:
        return Plan(
            method=read.text("method"),
            k=None if fields["k"] is None else _whole(fields["k"], 0),
            trained=read.texts("trained"),
            gradients=read.gradients(),
            layers=tuple(TreatedLayer(entry.text("path"), entry.texts("treatments")) for entry in read.each("layers")),
            running=read.texts("running"),
            evaluated=read.texts("evaluated"),
            tuned=tuple(TunedPair(entry.text("convolution"), entry.text("norm")) for entry in read.each("tuned")),
            int8=read.texts("int8"),
            lite=tuple(LiteBranch(entry.text("path"), entry.lite_shape()) for entry in read.each("lite")),
            pruned=read.pruned(),
            schedule=tuple(_scheduled(entry) for entry in read.list("schedule")),
            microbatch=read.microbatch(),
            fused_update=read.flag("fused_update"),
            notes=read.texts("notes"),
            untreated=read.texts("untreated"),
            model=read.fingerprint(),
        )
    except KeyError as error:
        raise UsageError(
            f"{source} is not a whole plan: there is no {error}; write it again with memplan apply"
        ) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{source} is not a plan: {error}; write it again with memplan apply") from error


def check_not_newer(schema: Any, source: str) -> None:
    """Raise where a newer memplan wrote a plan.

    Raises:
        UsageError: the schema's number is larger than the present one.
    """
    written, known = (_NAME_AND_NUMBER.fullmatch(str(each)) for each in (schema, SCHEMA))
    if written is not None and known is not None and int(written[1]) > int(known[1]):
        raise UsageError(f"{source} was written by a newer memplan (schema {schema}); upgrade memplan")


class _Fields:
    """Values of a JSON object, each checked for its type."""

    def __init__(self, fields: Any) -> None:
        if not isinstance(fields, Mapping):
            raise TypeError(f"{fields!r} is not an object")
        self._fields = fields

    def list(self, name: str) -> list[Any]:
        value = self._fields[name]
        if not isinstance(value, list):
            raise TypeError(f"{name!r} is {value!r}, not a list")
        return value

    def each(self, name: str) -> Iterator[_Fields]:
        return map(_Fields, self.list(name))

    def text(self, name: str) -> str:
        return _text(self._fields[name])

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(map(_text, self.list(name)))

    def whole(self, name: str, least: int) -> int:
        return _whole(self._fields[name], least)

    def flag(self, name: str) -> bool:
        if not isinstance(self._fields[name], bool):
            raise TypeError(f"{name!r} is {self._fields[name]!r}, neither true nor false")
        return bool(self._fields[name])

    def gradients(self) -> Gradients:
        value = self._fields["gradients"]
        if value not in get_args(Gradients):
            raise ValueError(f"gradients are exact or approximate, not {value!r}")
        return value  # type: ignore[no-any-return]

    def microbatch(self) -> Microbatch | None:
        value = self._fields["microbatch"]
        return None if value is None else Microbatch(_Fields(value).text("boundary"), _whole(value["samples"], 1))

    def fingerprint(self) -> Fingerprint | None:
        value = self._fields["model"]
        if value is None:
            return None
        return Fingerprint(_whole(value["parameters"], 0), _whole(value["numbers"], 0), _text(value["digest"]))

    def pruned(self) -> tuple[PrunedGroup, ...]:
        groups = tuple(
            PrunedGroup(
                entry.text("name"),
                entry.whole("channels", 1),
                from_ranges(entry.text("dropped")),
                tuple(
                    PrunedAxis(
                        axis.text("tensor"),
                        axis.whole("axis", 0),
                        axis.whole("size", 1),
                        from_ranges(axis.text("dropped")),
                    )
                    for axis in entry.each("axes")
                ),
            )
            for entry in self.each("pruned")
        )
        for fault in pruning_faults(groups):
            raise ValueError(fault)
        return groups

    def lite_shape(self) -> LiteShape:
        fields = self._fields["shape"]
        norm, pooled = fields["norm"], fields["pooled_to"]
        if norm not in get_args(Norm):
            raise ValueError(f"a branch's norm is batch or group, not {norm!r}")
        if pooled is not None:
            height, width = pooled
            pooled = _whole(height, 1), _whole(width, 1)
        sizes = {name: _whole(fields[name], 1) for name in _LITE_SIZES}
        return LiteShape(**sizes, pooled_to=pooled, norm=norm)


_LITE_SIZES: Final = ("in_channels", "mid_channels", "out_channels", "kernel", "stride", "groups")


def _scheduled(entry: Any) -> ScheduledOp:
    if not isinstance(entry, list) or not entry:
        raise TypeError(f"{entry!r} in the schedule is not a list of a name and numbers")
    return ScheduledOp(_text(entry[0]), tuple(_whole(number, 0) for number in entry[1:]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _whole(value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise TypeError(f"{value!r} is not a number from {least} on")
    return value
