"""Which columns of obs are asked for in which role, refused where they cannot play it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trifold.data.check import repeated
from trifold.data.columns import PARTIAL, Column, Number, Value
from trifold.errors import SchemaError, listing


def names_of(given: str | Sequence[str], role: str) -> list[str]:
    """Names of the role's columns, one or several.

    Raises:
        SchemaError: None, something else than text, or one twice.
    """
    names = [given] if isinstance(given, str) else list(given)
    if not names or not all(isinstance(n, str) for n in names):
        raise SchemaError(f"{role} must name a column of obs, or several; found {given!r}. Leave it out to have none.")
    if repeated(names):
        raise SchemaError(f"{role} names the column {repeated(names)[0]!r} twice. Name it once.")
    return names


def refuse_shared(asked: Mapping[str, Sequence[str]]) -> None:
    """Refuse a column with two roles; a label may be one of another role's columns, since it is only read by a predictor."""
    owner: dict[str, str] = {}
    for role in ("condition", "invariant", "spurious"):
        for name in asked.get(role, ()):
            if name in owner:
                raise SchemaError(
                    f"obs[{name!r}] is asked for as {owner[name]} and as {role}; a column plays one role. "
                    f"Asked for: {'; '.join(f'{r}: {listing(ns)}' for r, ns in asked.items())}. Leave it out of one."
                )
            owner[name] = role


def refuse_numeric_label(roles: Mapping[str, Sequence[Column]]) -> None:
    """Refuse a label of numbers: a predictor tells categories apart."""
    for column in roles.get("label", ()):
        if isinstance(column, Number):
            raise SchemaError(
                f"obs[{column.name!r}] (label) must hold categories; found numbers. "
                f"Make it categorical: adata.obs[{column.name!r}] = adata.obs[{column.name!r}].astype('category')."
            )


def refuse_idle(unlabelled: Sequence[Value], asked: Mapping[str, Sequence[str]]) -> None:
    """Refuse unlabelled values where no role is asked for that may hold them."""
    if unlabelled and not any(role in asked for role in PARTIAL):
        raise SchemaError(
            f"unlabelled={listing(map(repr, unlabelled))} is for the columns of invariant and label; neither is asked for. "
            f"Asked for: {'; '.join(f'{r}: {listing(ns)}' for r, ns in asked.items()) or 'no role'}. "
            "Leave it out, or pass label=<column of obs>."
        )


def refuse_unlabelled(roles: Mapping[str, Sequence[Column]], observed: Mapping[str, Sequence[object]]) -> None:
    """Refuse a role of several columns that no cell knows all of: it has no joint category."""
    for role, columns in roles.items():
        if not observed[role]:
            raise SchemaError(
                f"{role} needs a cell in which all of its columns are known; found none in {listing(repr(c.name) for c in columns)}: "
                "each cell has a value that unlabelled= takes as not known. Leave out one of the columns."
            )
