"""A schema to and from plain data: what ``json`` writes, and what is refused when it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trifold.data import columns as cols
from trifold.data.columns import Category
from trifold.errors import COPY, FormatError

if TYPE_CHECKING:
    from trifold.data.schema import Schema

LATER = ("unlabelled", "confounded")  # keys that schemas of the first versions lack
_KEYS = {"genes", "x", "kind", "roles", "observed", "size", "fractional", "empty", "density", *LATER}


def to_spec(schema: Schema) -> dict[str, Any]:
    """The schema as plain data."""
    return {
        "genes": list(schema.genes),
        "x": schema.x,
        "kind": schema.kind,
        "roles": {r: [cols.to_spec(c) for c in cs] for r, cs in schema.roles.items()},
        "observed": {r: [list(o) for o in os] for r, os in schema.observed.items()},
        "size": schema.size,
        "fractional": schema.fractional,
        "empty": schema.empty,
        "density": schema.density,
        "unlabelled": list(schema.unlabelled),
        "confounded": [list(pair) for pair in schema.confounded],
    }


def from_spec(spec: Any) -> dict[str, Any]:
    """Arguments of the schema that ``to_spec`` described.

    Raises:
        FormatError: Unknown or missing keys, or values of the wrong type.
    """
    if not isinstance(spec, dict):
        raise FormatError(f"A schema must be an object; found {type(spec).__name__}. {COPY}")
    cols.require_keys(spec, _KEYS, "The schema", later=LATER)
    texts = [("genes", spec["genes"])] + [(k, [spec[k]]) for k in ("kind", "fractional", "empty")]
    texts += [(k, [spec[k]]) for k in ("x", "size") if spec[k] is not None]
    for key, values in texts:
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise FormatError(f"{key} of a schema must be text; found {spec[key]!r:.80}. {COPY}")
    density = spec["density"]
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 <= density <= 1:
        raise FormatError(f"density of a schema must lie in 0 to 1; found {density!r}. {COPY}")
    unlabelled = _list(spec.get("unlabelled") or [], "unlabelled")
    if not all(cols.is_plain(v) for v in unlabelled):
        found = f"found {unlabelled!r:.80}"
        raise FormatError(f"unlabelled of a schema must be a list of text, finite numbers or booleans; {found}. {COPY}")
    confounded = _list(spec.get("confounded") or [], "confounded")
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(r, str) for r in p) for p in confounded):
        raise FormatError(f"confounded of a schema must be a list of pairs of roles; found {confounded!r:.80}. {COPY}")
    roles = {r: tuple(cols.from_spec(c) for c in _list(cs, f"role {r!r}")) for r, cs in _dict(spec["roles"], "roles").items()}
    observed = {}
    for role, found in _dict(spec["observed"], "observed").items():
        known = [c for c in roles.get(role, ()) if isinstance(c, Category)]
        places = [c.positions() for c in known]
        observed[role] = tuple(tuple(_list(o, "a combination")) for o in _list(found, f"observed[{role!r}]"))
        for o in observed[role]:
            if len(o) != len(known) or not all(cols.is_plain(v) and cols.key(v) in at for v, at in zip(o, places, strict=True)):
                raise FormatError(f"observed[{role!r}] of a schema holds {o!r}, which is not made of the role's categories. {COPY}")
    plain = {k: spec[k] for k in ("kind", "x", "size", "fractional", "empty")}
    return {
        **plain,
        "genes": tuple(spec["genes"]),
        "roles": roles,
        "observed": observed,
        "density": float(density),
        "unlabelled": tuple(unlabelled),
        "confounded": tuple(tuple(p) for p in confounded),
    }


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"{what} of a schema must be a list; found {type(value).__name__}. {COPY}")
    return value


def _dict(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{what} of a schema must be an object; found {type(value).__name__}. {COPY}")
    return value
