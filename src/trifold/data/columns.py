"""Columns of obs as plain data: ``Category`` and ``Number``, made from a column and applied to one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from trifold.data.matrix import Array
from trifold.errors import COPY, FormatError, SchemaError, listing, suggest

Value = str | int | bool | float
PARTIAL = ("invariant", "label")  # roles whose columns may hold values that mean "not known"


@dataclass(frozen=True)
class Category:
    """A column of categories.

    Args:
        name: Of the column.
        values: Known values in the order of their codes; each keeps its Python type (1, 1.0, True and "1" are four values).
        unused: Values that the column allows but no cell has; nothing is trained for them.
    """

    name: str
    values: tuple[Value, ...]
    unused: tuple[Value, ...] = ()

    @property
    def width(self) -> int:
        """Columns of the design: one per value."""
        return len(self.values)

    def positions(self) -> dict[tuple[str, Value], int]:
        """``key`` of each value -> its code."""
        return {key(v): i for i, v in enumerate(self.values)}


@dataclass(frozen=True)
class Number:
    """A column of numbers, standardised: (value - mean) / scale.

    Args:
        name: Of the column.
        mean: In the column's unit.
        scale: Standard deviation, in the column's unit; 1 for a constant column.
    """

    name: str
    mean: float
    scale: float

    width = 1


Column = Category | Number


def describe(series: pd.Series, *, name: str, role: str, unlabelled: Sequence[Value] = ()) -> Column:
    """The column as plain data.

    Args:
        series: [n] values. Numeric dtypes make a :class:`Number`; categorical, boolean, text and object dtypes a :class:`Category`.
        name: Of the column.
        role: For messages.
        unlabelled: Values that mean "not known": no categories, and no part of a mean.

    Raises:
        SchemaError: Missing or infinite values, values of a type that cannot be saved, or none that is known.
    """
    if is_number(series):
        values = _floats(series)
        _refuse_missing(~np.isfinite(values), name, role, "NaN or infinite")
        values = values[~_sentinel(values, unlabelled)]
        if len(series) and not len(values):
            _refuse_unlabelled(series, name, role, unlabelled)
        scale = float(values.std()) if len(values) else 0.0
        return Number(name, float(values.mean()), scale if scale > 0 else 1.0)
    _refuse_missing(np.asarray(series.isna()), name, role, "missing (NaN)", _to_label(name, role, unlabelled))
    known, unused = levels(series, name, unlabelled)
    if len(series) and not known:
        _refuse_unlabelled(series, name, role, unlabelled)
    return Category(name, tuple(known), tuple(unused))


def levels(series: pd.Series, name: str, unlabelled: Sequence[Value] = ()) -> tuple[list[Value], list[Value]]:
    """(values that cells have, values that the column allows but no cell has), without those that mean "not known".

    Ordered as the categories of a categorical column, else sorted by type and value.
    """
    code, values = factorize(series, name)
    used = set(np.unique(code[code >= 0]))
    away = {key(v) for v in unlabelled}
    known = [v for i, v in enumerate(values) if i in used and key(v) not in away]
    if not isinstance(series.dtype, pd.CategoricalDtype):
        known = sorted(known, key=lambda v: (type(v).__name__, v))
    return known, [v for i, v in enumerate(values) if i not in used and key(v) not in away]


def is_number(series: pd.Series) -> bool:
    """Whether the column holds numbers rather than categories: a numeric dtype, not boolean, not categorical."""
    return pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype)


def codes(series: pd.Series, column: Category, *, role: str, unknown: str, unlabelled: Sequence[Value] = ()) -> Array:
    """[n] int64 position of each value among the category's, -1 where unlabelled, unknown or missing.

    Args:
        series: [n] values.
        column: What is known.
        role: For messages.
        unknown: ``"error"``, or ``"zero"`` or ``"marginalise"``, which are the same here.
        unlabelled: Values that mean "not known", whatever the policy.

    Raises:
        SchemaError: A missing or unseen value, if unknown is ``"error"``.
    """
    missing = np.asarray(series.isna())
    if unknown == "error":
        instead = f"{_to_label(column.name, role, unlabelled)} Or pass unknown={{{role!r}: 'zero'}} or 'marginalise'."
        _refuse_missing(missing, column.name, role, "missing (NaN)", instead)
    code, values = factorize(series, column.name)
    known, away = column.positions(), {key(v) for v in unlabelled}
    to = np.array([known.get(key(v), -1) for v in values] + [-1], dtype=np.int64)
    blank = np.array([key(v) in away for v in values] + [True], dtype=bool)
    out = to[code]
    new = (out < 0) & ~blank[code]
    if unknown == "error" and new.any():
        value = values[code[np.flatnonzero(new)[0]]]
        others = len(np.unique(code[new]))
        twin = next((v for v in column.values if str(v) == str(value)), None)
        hint = suggest(value, (*column.values, *unlabelled)) if twin is None else f" The known {twin!r} is of type {type(twin).__name__}."
        blanks = f"; not known: {listing(map(repr, unlabelled))}" if unlabelled else ""
        raise SchemaError(
            f"obs[{column.name!r}] ({role}) holds {value!r}, which training did not have ({int(new.sum())} cells, {others} such values)."
            f"{hint} Known: {listing(map(repr, column.values), 10)}{blanks}. Use one of these, or pass unknown={{{role!r}: 'zero'}}, or "
            "'marginalise' to average over the known ones."
        )
    return out


def numbers(series: pd.Series, column: Number, *, role: str, unknown: str, unlabelled: Sequence[Value] = ()) -> Array:
    """[n] float32 standardised values; 0, the mean, where unlabelled, or where missing and unknown is not ``"error"``.

    Raises:
        SchemaError: A column that is not numeric, or missing or infinite values if unknown is ``"error"``.
    """
    if not (is_number(series) or pd.api.types.is_bool_dtype(series.dtype)):
        raise SchemaError(
            f"obs[{column.name!r}] ({role}) must hold numbers, as in training; found dtype {series.dtype}. "
            f"Convert it: adata.obs[{column.name!r}] = adata.obs[{column.name!r}].astype(float)."
        )
    values = _floats(series)
    bad = ~np.isfinite(values)
    if unknown == "error":
        _refuse_missing(bad, column.name, role, "NaN or infinite", f" Or pass unknown={{{role!r}: 'zero'}} to take them at the mean.")
    bad |= _sentinel(values, unlabelled)
    return np.where(bad, 0.0, (values - column.mean) / column.scale).astype(np.float32)


def missing_number(series: pd.Series, unlabelled: Sequence[Value] = ()) -> Array:
    """[n] whether a value of a numeric column is missing, infinite or unlabelled."""
    values = _floats(series)
    return ~np.isfinite(values) | _sentinel(values, unlabelled)


def factorize(series: pd.Series, name: str) -> tuple[Array, list[Value]]:
    """([n] code of each value, -1 where missing; the values as Python str, int, bool or float); 1, True and "1" stay apart.

    Raises:
        SchemaError: Values of another type.
    """
    if isinstance(series.dtype, pd.CategoricalDtype):
        return np.asarray(series.cat.codes, dtype=np.int64), [_plain(v, name) for v in series.cat.categories]
    kind = pd.api.types.infer_dtype(series, skipna=True)
    if series.dtype != object or kind in ("string", "boolean", "integer"):
        code, values = pd.factorize(series)
        return np.asarray(code, dtype=np.int64), [_plain(v, name) for v in values]
    seen: dict[tuple[str, Value], int] = {}
    missing = np.asarray(series.isna())
    code = np.full(len(series), -1, dtype=np.int64)
    plain: list[Value] = []
    for i in np.flatnonzero(~missing):  # mixed types only: pandas would take 1 for True
        value = _plain(series.iat[i], name)
        j = seen.setdefault(key(value), len(plain))
        if j == len(plain):
            plain.append(value)
        code[i] = j
    return code, plain


def to_spec(column: Column) -> dict[str, Any]:
    """The column as plain data."""
    if isinstance(column, Number):
        return {"type": "number", "name": column.name, "mean": column.mean, "scale": column.scale}
    return {"type": "category", "name": column.name, "values": list(column.values), "unused": list(column.unused)}


def from_spec(spec: Any) -> Column:
    """The column that ``to_spec`` described.

    Raises:
        FormatError: Unknown or missing keys, or values of the wrong type.
    """
    kinds = {"number": {"type", "name", "mean", "scale"}, "category": {"type", "name", "values", "unused"}}
    kind = spec.get("type") if isinstance(spec, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise FormatError(f"A column of a schema has the type 'category' or 'number'; found {kind!r}. {COPY}")
    require_keys(spec, kinds[kind], f"Column {spec.get('name')!r} of a schema")
    if not isinstance(spec["name"], str):
        raise FormatError(f"The name of a column of a schema must be text; found {spec['name']!r}. {COPY}")
    if kind == "number":
        for part in ("mean", "scale"):
            if not _is_float(spec[part]) or (part == "scale" and spec[part] <= 0):
                above = " above 0" * (part == "scale")
                raise FormatError(f"{part} of column {spec['name']!r} must be a finite number{above}; found {spec[part]!r}. {COPY}")
        return Number(spec["name"], float(spec["mean"]), float(spec["scale"]))
    for part in ("values", "unused"):
        if not isinstance(spec[part], list) or not all(is_plain(v) for v in spec[part]):
            raise FormatError(f"{part} of column {spec['name']!r} must be a list of text, finite numbers or booleans. {COPY}")
    if len({key(v) for v in spec["values"]}) != len(spec["values"]):
        raise FormatError(f"values of column {spec['name']!r} must differ from one another. {COPY}")
    return Category(spec["name"], tuple(spec["values"]), tuple(spec["unused"]))


def require_keys(spec: dict[str, Any], known: set[str], what: str, *, later: Sequence[str] = ()) -> None:
    """Refuse a dictionary whose keys are not exactly the known ones; those that came with later versions may be absent."""
    for key in spec:
        if key not in known:
            near = suggest(key, known)
            raise FormatError(f"{what} has the unknown key {key!r}.{near} Known: {', '.join(sorted(known))}. {COPY}")
    for key in sorted(known):
        if key not in spec and key not in later:
            raise FormatError(f"{what} lacks the key {key!r}. The file is incomplete or of another version. {COPY}")


def is_plain(value: Any) -> bool:
    """Whether a value may be a category: text, whole number, boolean or finite number."""
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def key(value: Value) -> tuple[str, Value]:
    """What tells values apart: 1, 1.0 and True are equal in Python, but not here."""
    return type(value).__name__, value


def plain(value: Any) -> Any:
    """The Python value of a numpy one, and text as str itself; another value as it is."""
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, str) else value


def _plain(value: Any, name: str) -> Value:
    value = plain(value)
    if is_plain(value):
        return value
    raise SchemaError(
        f"obs[{name!r}] holds {value!r} of type {type(value).__name__}; categories are text, whole numbers, booleans or finite numbers. "
        f"Convert the column: adata.obs[{name!r}] = adata.obs[{name!r}].astype(str)."
    )


def _floats(series: pd.Series) -> Array:
    return series.to_numpy(dtype=np.float64, na_value=np.nan)


def _sentinel(values: Array, unlabelled: Sequence[Value]) -> Array:
    """[n] whether a number is one of those that mean "not known"; -1 and -1.0 are one number."""
    return np.isin(values, [v for v in unlabelled if isinstance(v, (int, float)) and not isinstance(v, bool)])


def _refuse_missing(bad: Array, name: str, role: str, what: str, instead: str = "") -> None:
    if bad.any():
        rows = np.flatnonzero(bad)
        raise SchemaError(
            f"obs[{name!r}] ({role}) must have a value for every cell; {len(rows)} of {len(bad)} are {what} (rows {listing(rows)}). "
            f"Fill them in, or remove these cells.{instead}"
        )


def _to_label(name: str, role: str, unlabelled: Sequence[Value]) -> str:
    if role not in PARTIAL:
        return ""
    value = unlabelled[0] if unlabelled else "unknown"
    fill = f" If they are not known, adata.obs[{name!r}] = adata.obs[{name!r}].astype(object).fillna({value!r})"
    return f"{fill}, which the schema takes as not known." if unlabelled else f"{fill}, and pass unlabelled={value!r} to Schema.of."


def _refuse_unlabelled(series: pd.Series, name: str, role: str, unlabelled: Sequence[Value]) -> None:
    raise SchemaError(
        f"obs[{name!r}] ({role}) must have a known value in some cell; all {len(series)} hold what unlabelled= takes as not known "
        f"({listing(map(repr, unlabelled))}). Leave the column out, or these values out of unlabelled."
    )


def _is_float(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
