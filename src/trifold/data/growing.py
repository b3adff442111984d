"""A schema that takes in the categories of new cells, after its own, so that what a model learned keeps its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trifold.data import columns as cols
from trifold.data.check import require_option
from trifold.data.columns import Category, Column, Value
from trifold.data.covariates import ROLES, observed, require_column
from trifold.data.matrix import Array
from trifold.data.unlabelled import warn_alike
from trifold.errors import SchemaError, suggest

if TYPE_CHECKING:
    from trifold.data.schema import Schema


def grown(schema: Schema, obs: pd.DataFrame, roles: str | Sequence[str]) -> dict[str, Any]:
    """``roles`` and ``observed`` of the schema with the categories of obs in some roles appended.

    Args:
        schema: Of the training data.
        obs: [n, columns] of the new cells.
        roles: Those that grow.

    Raises:
        SchemaError: A role that the schema lacks, a missing column or value, or a value that a known one equals but for its type.
    """
    columns, combinations = dict(schema.roles), dict(schema.observed)
    for role in [roles] if isinstance(roles, str) else roles:
        require_option("a role of roles", role, ROLES)
        if role not in columns:
            raise SchemaError(
                f"roles needs roles of the schema; it has no {role!r}.{suggest(role, columns)} It has: {', '.join(columns) or 'none'}."
            )
        away = schema.unlabelled_in(role)
        columns[role] = tuple(_longer(obs, c, role, away) if isinstance(c, Category) else c for c in columns[role])
        old = {_key(o) for o in combinations[role]}
        new = observed(obs, columns[role], role, away)
        combinations[role] = (*combinations[role], *(o for o in new if _key(o) not in old))
    return {"roles": columns, "observed": combinations}


def placed(old: Schema, new: Schema, role: str) -> Array:
    """[c] int64 column of the new schema's design for each column of the old one's.

    Raises:
        SchemaError: The new schema did not grow out of the old one.
    """
    require_option("role", role, ROLES)
    have, want = new.roles.get(role, ()), old.roles.get(role, ())
    kept = [_key(o) for o in new.categories(role)][: len(old.categories(role))]
    if (
        len(have) != len(want)
        or not all(_begins(n, o) for n, o in zip(have, want, strict=True))
        or kept != [_key(o) for o in old.categories(role)]
    ):
        raise SchemaError(
            f"placed needs a schema that grew out of this one; its role {role!r} does not begin with the same columns, values and "
            "combinations. Make it with schema.grown(obs)."
        )
    start = np.cumsum([0, *(c.width for c in have)])
    return np.concatenate([np.zeros(0, dtype=np.int64), *(s + np.arange(c.width) for s, c in zip(start, want, strict=False))])


def _longer(obs: pd.DataFrame, column: Category, role: str, unlabelled: Sequence[Value]) -> Category:
    require_column(obs, column.name, role=role)
    known = column.positions()
    values, _ = cols.levels(obs[column.name], column.name, unlabelled)
    new = [v for v in values if cols.key(v) not in known]
    for value in new:
        twin = next((k for k in column.values if str(k) == str(value)), None)
        if twin is not None:
            raise SchemaError(
                f"obs[{column.name!r}] ({role}) holds {value!r} of type {type(value).__name__}; the known {twin!r} is of type "
                f"{type(twin).__name__}. Convert the column with .astype({type(twin).__name__}), so that equal names are one category."
            )
    warn_alike(new, unlabelled, column.name, stacklevel=6)
    here = {cols.key(v) for v in new}
    return Category(column.name, (*column.values, *new), tuple(v for v in column.unused if cols.key(v) not in here))


def _begins(new: Column, old: Column) -> bool:
    if not (isinstance(new, Category) and isinstance(old, Category)):
        return new == old
    return new.name == old.name and _key(new.values)[: len(old.values)] == _key(old.values)


def _key(values: Sequence[Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(map(cols.key, values))
