"""Columns of obs as arrays: designs, joint categories and library sizes, refused where they do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from trifold.data import columns as cols
from trifold.data.check import require_option
from trifold.data.columns import Category, Column, Number, Value
from trifold.data.matrix import Array
from trifold.errors import SchemaError, listing, suggest

ROLES = ("condition", "invariant", "spurious", "label")
UNKNOWN = ("error", "zero")


def policies(unknown: str | Mapping[str, str]) -> dict[str, str]:
    """Role -> what becomes of unseen and missing values, ``"error"`` or ``"zero"``, for every role."""
    if isinstance(unknown, str):
        require_option("unknown", unknown, UNKNOWN)
        return dict.fromkeys(ROLES, unknown)
    for role, policy in unknown.items():
        require_option("a role of unknown", role, ROLES)
        require_option(f"unknown[{role!r}]", policy, UNKNOWN)
    return {r: unknown.get(r, "error") for r in ROLES}


def require_column(obs: pd.DataFrame, name: str, *, role: str, other: Mapping[str, Sequence[str]] | None = None) -> None:
    """Refuse a column that obs lacks or has twice; the message says where else the name occurs and what obs has."""
    have = [str(c) for c in obs.columns]
    if have.count(name) == 1:
        return
    if name in have:
        raise SchemaError(f"obs has {have.count(name)} columns {name!r} ({role}); needed: one. Rename the others.")
    if not have:
        raise SchemaError(
            f"{role}={name!r} needs a column of obs, but these data have none. Pass obs=<DataFrame with {name!r}>, or AnnData."
        )
    place = next((k for k, keys in (other or {}).items() if name in keys), None)
    hint = f" There is one in {place}: copy a column of it to obs." if place else suggest(name, have)
    raise SchemaError(f"obs has no column {name!r} ({role}).{hint} It has: {listing(have, 10)}.")


def sizes(obs: pd.DataFrame, name: str, *, other: Mapping[str, Sequence[str]] | None = None) -> Array:
    """[n] float64 library sizes from a column of obs, in counts.

    Raises:
        SchemaError: No such column, or values that are not finite and above 0.
    """
    require_column(obs, name, role="size", other=other)
    if not cols.is_number(obs[name]):
        raise SchemaError(f"obs[{name!r}] (size) must hold numbers; found dtype {obs[name].dtype}.")
    values = obs[name].to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise SchemaError(
            f"obs[{name!r}] (size) must hold finite library sizes above 0; "
            f"{len(bad)} cells do not (first: row {bad[0]}, {values[bad[0]]:.6g}). Correct them, or leave size out to sum over genes."
        )
    return values


def encoded(obs: pd.DataFrame, columns: Sequence[Column], role: str, unknown: str) -> tuple[Array, list[Array], Array]:
    """([n, c] design, [n] codes of each categorical column, [n] whether any column is unknown)."""
    blocks, parts, bad = [], [], np.zeros(len(obs), dtype=bool)
    for column in columns:
        if isinstance(column, Number):
            values = cols.numbers(obs[column.name], column, role=role, unknown=unknown)
            blocks.append(values[:, None])
            bad |= cols.missing_number(obs[column.name])
            continue
        part = cols.codes(obs[column.name], column, role=role, unknown=unknown)
        hot = np.zeros((len(obs), len(column.values)), dtype=np.float32)
        at = np.flatnonzero(part >= 0)
        hot[at, part[at]] = 1.0
        blocks.append(hot)
        parts.append(part)
        bad |= part < 0
    return np.concatenate(blocks, axis=1), parts, bad


def joint(parts: Sequence[Array], bad: Array, columns: Sequence[Column], observed: Sequence[tuple[Value, ...]]) -> Array:
    """[n] position of each cell's combination among those observed, -1 if unknown or not observed."""
    known = [c for c in columns if isinstance(c, Category)]
    cell = np.zeros(len(bad), dtype=np.int64)
    combination = np.zeros(len(observed), dtype=np.int64)
    for k, (part, column) in enumerate(zip(parts, known, strict=True)):
        place = np.array([next(i for i, v in enumerate(column.values) if cols.same([v], [o[k]])) for o in observed], dtype=np.int64)
        cell, combination = cell * len(column.values) + np.maximum(part, 0), combination * len(column.values) + place
    order = np.argsort(combination)
    at = order[np.searchsorted(combination, cell, sorter=order).clip(max=len(order) - 1)]
    return np.where(bad | (combination[at] != cell), -1, at)


def observed(obs: pd.DataFrame, columns: Sequence[Column], role: str) -> tuple[tuple[Value, ...], ...]:
    """Joint combinations of the categorical columns that occur, in the order of the columns' values; ``()`` for numbers only."""
    known = [c for c in columns if isinstance(c, Category)]
    if not known:
        return ((),)
    parts = [cols.codes(obs[c.name], c, role=role, unknown="error") for c in known]
    both = np.unique(np.stack(parts, 1), axis=0)
    return tuple(tuple(c.values[i] for c, i in zip(known, row, strict=True)) for row in both)
