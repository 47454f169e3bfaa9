"""A plan: what trains in one model, and what is done to its layers so that less is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from memplan.errors import UsageError
from memplan.methods.cut import ScheduledOp
from memplan.methods.treatments.lite_residual import LiteShape

#: Whether the gradients are those of the same network trained by stock PyTorch.
Gradients: TypeAlias = Literal["exact", "approximate"]

SCHEMA: Final = "memplan.plan/1"


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
class Plan:
    """What trains and what is done to each layer, for one model.

    ``trained`` names parameters of the model; the parameters of lite branches train too. ``running`` lists norms that
    use their running statistics and do not update them, ``evaluated`` modules that run in eval mode, ``int8`` layers
    whose weight is stored in 8 bits. ``schedule`` says of each op of the forward what is recomputed. ``notes`` say
    where a treatment does not apply, and why; ``untreated`` names what keeps as much as in stock PyTorch for want of a
    rule.
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
    schedule: tuple[ScheduledOp, ...] = ()
    microbatch: Microbatch | None = None
    fused_update: bool = False
    notes: tuple[str, ...] = ()
    untreated: tuple[str, ...] = ()

    @property
    def treatments(self) -> tuple[str, ...]:
        """The names of all treatments in use, each once."""
        used = [name for layer in self.layers for name in layer.treatments]
        whole = (
            ("tune", self.tuned),
            ("frozen-int8", self.int8),
            ("lite-residual", self.lite),
            ("recompute", any(op.recomputed for op in self.schedule)),
            ("prefix-microbatch", self.microbatch),
            ("fused-update", self.fused_update),
        )
        return tuple(dict.fromkeys([*used, *(name for name, present in whole if present)]))

    @property
    def label(self) -> str:
        """The method with its k, as tables show it."""
        return self.method if self.k is None else f"{self.method} k={self.k}"


def plan_to_json(plan: Plan) -> str:
    """Return the plan as JSON text, stable and one entry per line, to be read back by :func:`plan_from_json`."""
    fields = asdict(plan)
    fields["schedule"] = [[op.name, *op.recomputed] for op in plan.schedule]
    lines = ",\n".join(f'  "{name}": {_entry(value)}' for name, value in {"schema": SCHEMA, **fields}.items())
    return f"{{\n{lines}\n}}\n"


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
    except ValueError as error:
        raise UsageError(f"{source} is not JSON: {error}; give a plan.json that memplan apply wrote") from error
    schema = fields.get("schema") if isinstance(fields, Mapping) else None
    if schema != SCHEMA:
        raise UsageError(f"{source} has the schema {schema!r}, not {SCHEMA!r}; write it again with memplan apply")
    try:
        return Plan(
            method=fields["method"],
            k=fields["k"],
            trained=tuple(fields["trained"]),
            gradients=fields["gradients"],
            layers=tuple(TreatedLayer(entry["path"], tuple(entry["treatments"])) for entry in fields["layers"]),
            running=tuple(fields["running"]),
            evaluated=tuple(fields["evaluated"]),
            tuned=tuple(TunedPair(**entry) for entry in fields["tuned"]),
            int8=tuple(fields["int8"]),
            lite=tuple(LiteBranch(entry["path"], _lite_shape(entry["shape"])) for entry in fields["lite"]),
            schedule=tuple(ScheduledOp(name, tuple(recomputed)) for name, *recomputed in fields["schedule"]),
            microbatch=None if fields["microbatch"] is None else Microbatch(**fields["microbatch"]),
            fused_update=fields["fused_update"],
            notes=tuple(fields["notes"]),
            untreated=tuple(fields["untreated"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{source} is not a complete plan: {error!r}; write it again with memplan apply") from error


def _lite_shape(fields: Mapping[str, Any]) -> LiteShape:
    pooled = fields["pooled_to"]
    return LiteShape(**{**fields, "pooled_to": None if pooled is None else tuple(pooled)})
