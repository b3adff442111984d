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
UNKNOWN = ("error", "zero", "marginalise")


def policies(unknown: str | Mapping[str, str]) -> dict[str, str]:
    """Role -> what becomes of unseen and missing values, one of ``UNKNOWN``, for every role.

    Arrays are the same under ``"zero"`` and ``"marginalise"``; the latter asks the model to average over the known categories.
    """
    if isinstance(unknown, str):
        require_option("unknown", unknown, UNKNOWN)
        return dict.fromkeys(ROLES, unknown)
    for role, policy in unknown.items():
        require_option("a role of unknown", role, ROLES)
        require_option(f"unknown[{role!r}]", policy, UNKNOWN)
    return {r: unknown.get(r, "error") for r in ROLES}


def require_column(obs: pd.DataFrame, name: str, *, role: str, other: Mapping[str, Sequence[str]] | None = None, instead: str = "") -> None:
    """Refuse a column that obs lacks or has twice; the message says where else the name occurs and what obs has."""
    have = list(obs.columns)
    if have.count(name) == 1:
        return
    if name in have:
        raise SchemaError(f"obs has {have.count(name)} columns {name!r} ({role}); needed: one. Rename the others.")
    if not have:
        raise SchemaError(
            f"{role}={name!r} needs a column of obs, but these data have none. Pass obs=<DataFrame with {name!r}>, or AnnData."
        )
    place = next((k for k, keys in (other or {}).items() if name in keys), None)
    hint = f" There is one in {place}: copy it, or a column of it, to obs." if place else suggest(name, have)
    raise SchemaError(f"obs has no column {name!r} ({role}).{hint} It has: {listing(have, 10)}.{instead}")


def sizes(obs: pd.DataFrame, name: str, *, other: Mapping[str, Sequence[str]] | None = None) -> Array:
    """[n] float64 library sizes from a column of obs, in counts.

    Raises:
        SchemaError: No such column, or values that are not finite and above 0.
    """
    require_column(obs, name, role="size", other=other)
    if not cols.is_number(obs[name]):
        raise SchemaError(
            f"obs[{name!r}] (size) must hold numbers; found dtype {obs[name].dtype}. "
            "Convert it with .astype(float), or leave size out to sum over genes."
        )
    values = obs[name].to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise SchemaError(
            f"obs[{name!r}] (size) must hold finite library sizes above 0; "
            f"{len(bad)} cells do not (first: row {bad[0]}, {values[bad[0]]:.6g}). Correct them, or leave size out to sum over genes."
        )
    return values


def parts_of(
    obs: pd.DataFrame, columns: Sequence[Column], role: str, unknown: str, unlabelled: Sequence[Value] = ()
) -> tuple[list[Array], Array]:
    """Each column of a role as one array.

    Args:
        obs: [n, columns].
        columns: Of the role. One that obs lacks is unknown if it is a label or the policy allows it, else it must be there.
        role: For messages.
        unknown: One of ``UNKNOWN``.
        unlabelled: Values that mean "not known" in these columns.

    Returns:
        ([n] of each column: int32 position of its category, -1 unknown, or float32 standardised number; [n] whether any is unknown).
    """
    parts, bad = [], np.zeros(len(obs), dtype=bool)
    lacking = absent(obs, columns, role, unknown)
    for column in columns:
        if column.name in lacking:
            parts.append(np.zeros(len(obs), dtype=np.float32) if isinstance(column, Number) else np.full(len(obs), -1, dtype=np.int32))
            bad[:] = True
            continue
        require_column(obs, column.name, role=role, instead=f" Or pass unknown={{{role!r}: 'marginalise'}} or 'zero' to do without.")
        if isinstance(column, Number):
            parts.append(cols.numbers(obs[column.name], column, role=role, unknown=unknown, unlabelled=unlabelled))
            bad |= cols.missing_number(obs[column.name], unlabelled)
        else:
            parts.append(cols.codes(obs[column.name], column, role=role, unknown=unknown, unlabelled=unlabelled).astype(np.int32))
            bad |= parts[-1] < 0
    return parts, bad


def absent(obs: pd.DataFrame, columns: Sequence[Column], role: str, unknown: str) -> list[str]:
    """Names of the role's columns that obs lacks and that may be taken as unknown: those of a label, or all if the policy allows it."""
    lacking = [c.name for c in columns if c.name not in obs]
    return lacking if unknown != "error" or (role == "label" and len(lacking) == len(columns)) else []


def design_of(parts: Sequence[Array], columns: Sequence[Column], index: Array | slice = slice(None)) -> Array:
    """[n, c] float32 design of some cells: one-hot categories (zeros where unknown) and standardised numbers, side by side."""
    n = len(parts[0][index])
    out = np.zeros((n, sum(c.width for c in columns)), dtype=np.float32)
    start = 0
    for part, column in zip(parts, columns, strict=True):
        value = part[index]
        if isinstance(column, Number):
            out[:, start] = value
        else:
            at = np.flatnonzero(value >= 0)
            out[at, start + value[at]] = 1.0
        start += column.width
    return out


def joint(parts: Sequence[Array], bad: Array, columns: Sequence[Column], combinations: Sequence[tuple[Value, ...]]) -> Array:
    """[n] int64 position of each cell's combination of categories among those that occurred, -1 if unknown or not among them."""
    if not combinations:
        return np.full(len(bad), -1, dtype=np.int64)
    cell = np.zeros(len(bad), dtype=np.int64)
    known = np.zeros(len(combinations), dtype=np.int64)
    categories = [(p, c) for p, c in zip(parts, columns, strict=True) if isinstance(c, Category)]
    for k, (part, column) in enumerate(categories):
        at = column.positions()
        place = np.array([at[cols.key(o[k])] for o in combinations], dtype=np.int64)
        cell, known = cell * len(column.values) + np.maximum(part, 0), known * len(column.values) + place
    order = np.argsort(known)
    nearest = order[np.searchsorted(known, cell, sorter=order).clip(max=len(order) - 1)]
    return np.where(bad | (known[nearest] != cell), -1, nearest)


def observed(obs: pd.DataFrame, columns: Sequence[Column], role: str, unlabelled: Sequence[Value] = ()) -> tuple[tuple[Value, ...], ...]:
    """Joint combinations of the categorical columns that occur, in the order of the columns' values; ``()`` for numbers only.

    Cells with an unlabelled category make none.
    """
    known = [c for c in columns if isinstance(c, Category)]
    if not known:
        return ((),)
    parts = np.stack([cols.codes(obs[c.name], c, role=role, unknown="error", unlabelled=unlabelled) for c in known], 1)
    both = np.unique(parts[(parts >= 0).all(1)], axis=0)
    return tuple(tuple(c.values[i] for c, i in zip(known, row, strict=True)) for row in both)


def design_of_combinations(columns: Sequence[Column], combinations: Sequence[tuple[Value, ...]]) -> Array:
    """[k, c] float32 design of each joint combination; numbers at their mean, 0."""
    if not columns:
        return np.zeros((len(combinations), 0), dtype=np.float32)
    parts: list[Array] = []
    taken = 0
    for column in columns:
        if isinstance(column, Number):
            parts.append(np.zeros(len(combinations), dtype=np.float32))
        else:
            at = column.positions()
            parts.append(np.array([at[cols.key(o[taken])] for o in combinations], dtype=np.int32))
            taken += 1
    return design_of(parts, columns)
