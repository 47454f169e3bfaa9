"""The treatments by name: each a rule here and a layer of the same name in :mod:`memplan.layers`."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from typing import Final

from memplan.errors import UsageError, did_you_mean
from memplan.methods.treatments import (
    bias_only,
    bitmask,
    frozen_int8,
    fused_update,
    lean_frozen,
    lite_residual,
    prefix_microbatch,
    prune,
    recompute,
    shift_only,
    signed_mask,
    top_k,
    tune,
)
from memplan.methods.treatments.record import Treatment

#: Third parties register a :class:`Treatment` under this entry-point group.
GROUP: Final = "memplan.treatments"

TREATMENTS: Final[dict[str, Treatment]] = {
    module.TREATMENT.name: module.TREATMENT
    for module in (
        lean_frozen,
        bitmask,
        recompute,
        tune,
        prefix_microbatch,
        fused_update,
        top_k,
        shift_only,
        signed_mask,
        bias_only,
        lite_residual,
        prune,
        frozen_int8,
    )
}


def treatment_named(name: str) -> Treatment:
    """Return a treatment: a built-in one, one that is installed, or ``package.module:attribute``.

    Raises:
        UsageError: there is no such treatment.
    """
    if name in TREATMENTS:
        return TREATMENTS[name]
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return _loaded(entry.load(), name)
    if ":" in name:
        from importlib import import_module

        module, _, attribute = name.partition(":")
        try:
            return _loaded(getattr(import_module(module), attribute), name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"no treatment {name!r}: {error}; name an importable Treatment") from error
    hint = did_you_mean(name, TREATMENTS) or f"; choose from {', '.join(TREATMENTS)}"
    raise UsageError(f"no treatment {name!r}{hint}")


def _loaded(found: object, name: str) -> Treatment:
    if not isinstance(found, Treatment):
        raise UsageError(
            f"{name!r} is a {type(found).__name__}, not a Treatment; see memplan.methods.treatments.record"
        )
    # A plan has names only: by this one it finds the treatment again.
    return found if found.name == name else replace(found, name=name)
