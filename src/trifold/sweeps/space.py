"""What a sweep may choose: arguments of a model's builder and of ``Model.fit``, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from trifold.errors import SpecError, listing, suggest
from trifold.model import Model
from trifold.sweeps.ranges import Options, Range, range_of
from trifold.train import Plan

Space = dict[str, Range | Options]


def space_of(space: Mapping[str, str | Sequence[Any]], build: Callable[..., Any]) -> Space:
    """``model.NAME`` or ``fit.NAME`` -> range, every name known.

    Raises:
        SpecError: A name that is unknown, in both tables, twice there, or not to be chosen, or a range of another form.
    """
    signature = inspect.signature(build)
    anything = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    names = [n for n, p in signature.parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes = {"model": names, "fit": trainable()}
    hints = {"model": _hints(build), "fit": _hints(Model.fit)}
    out: Space = {}
    for name, given in space.items():
        table, dot, key = name.rpartition(".")
        if dot and table not in takes:
            why = " Trials are compared on the same cells and genes." if table == "data" else suggest(table, takes)
            raise SpecError(f"A sweep chooses arguments of [model] and [fit]; found {name!r}.{why}")
        if key == "seed" or (table, key) in (("fit", "validation"), ("fit", "hold_out")) or (not dot and key in ("validation", "hold_out")):
            raise SpecError(
                f"{name} is not to be chosen: trials are compared on the same cells, and a lucky seed says nothing of new ones. "
                "Leave it out."
            )
        owners = [table] if dot else [t for t in takes if key in takes[t]]
        if len(owners) > 1:
            raise SpecError(f"{name!r} is an argument of [model] and of [fit]. Write model.{key} or fit.{key}.")
        owner = owners[0] if owners else "model"
        if key not in takes[owner] and not (owner == "model" and anything):
            known = [*takes[owner], *(() if dot else takes["fit"])]
            raise SpecError(f"A sweep cannot choose {name!r}.{suggest(key, known)} It can choose: {listing(dict.fromkeys(known), 40)}.")
        if f"{owner}.{key}" in out:
            raise SpecError(f"The space names {owner}.{key} twice: once as {key}. Leave one out.")
        found = range_of(name, given)
        kinds = get_args(hints[owner].get(key)) or (hints[owner].get(key),)
        if isinstance(found, Range) and found.whole and float in kinds and int not in kinds:
            log = ":log" * found.log
            raise SpecError(
                f"{name} is a number, and {found} are whole ones only. Write {name}={float(found.low)}..{float(found.high)}{log}, "
                f"or {name}={found.low}|{found.high}."
            )
        out[f"{owner}.{key}"] = found
    if not out:
        raise SpecError("A sweep needs something to choose: space={'latent': '8..40'}; found none.")
    return out


def trainable() -> list[str]:
    """Arguments of ``Model.fit`` that a sweep may choose: those of the plan, but for the cells that are watched."""
    plan = {field.name for field in fields(Plan)} - {"validation"}
    return [name for name in inspect.signature(Model.fit).parameters if name in plan]


def _hints(f: Any) -> dict[str, Any]:
    f = getattr(f, "func", f)
    try:
        return get_type_hints(f)
    except (NameError, TypeError):  # of someone else's function
        return {}
