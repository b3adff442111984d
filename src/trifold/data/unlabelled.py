"""Values that mean "not known" in the columns of the roles invariant and label: what may be one, and which look mistyped."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from trifold.data import columns as cols
from trifold.data.columns import PARTIAL, Value
from trifold.errors import SchemaError, TrifoldWarning, listing, suggest


def as_values(given: Any) -> tuple[Value, ...]:
    """What ``unlabelled=`` names: none for None, a value, or several, each once.

    Raises:
        SchemaError: Something that no category can be, such as NaN.
    """
    if given is None:
        return ()
    several = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))
    values = [cols.plain(v) for v in (given if several else [given])]
    if isinstance(given, (set, frozenset)):
        values.sort(key=lambda v: (type(v).__name__, str(v)))
    for value in values:
        if not cols.is_plain(value):
            raise SchemaError(
                f"unlabelled must be text, a whole number, a boolean or a finite number, or several; found {value!r}. "
                "Where labels are missing, fill them first: .astype(object).fillna('unknown'), and pass unlabelled='unknown'."
            )
    return tuple({cols.key(v): v for v in values}.values())


def warn_mistyped(obs: pd.DataFrame, roles: Mapping[str, Sequence[str]], unlabelled: Sequence[Value]) -> None:
    """Warn of categories that look unlabelled but count as known, and of unlabelled values none of which occurs.

    Args:
        obs: [n, columns].
        roles: role -> its columns. Looked at: invariant and label.
        unlabelled: Values that mean "not known".
    """
    if not unlabelled:
        return
    columns = list(dict.fromkeys(name for role in PARTIAL for name in roles.get(role, ())))
    found: list[Value] = []
    occurs = False
    for name in columns:
        if cols.is_number(obs[name]):
            occurs |= bool(cols.missing_number(obs[name], unlabelled).any())
            continue
        occurs |= any(cols.key(v) in map(cols.key, unlabelled) for v in cols.factorize(obs[name], name)[1])
        known, _ = cols.levels(obs[name], name, unlabelled)
        warn_alike(known, unlabelled, name, stacklevel=4)
        found += known
    if not occurs:
        near = next((hint for v in unlabelled if (hint := suggest(v, found))), "")
        warnings.warn(
            f"unlabelled={listing(map(repr, unlabelled))} occurs in no column of invariant and label ({listing(columns)}).{near} "
            f"They hold: {listing(map(repr, found)) or 'numbers'}. Leave it as it is if all of these cells are labelled and later ones may "
            "not be.",
            TrifoldWarning,
            stacklevel=3,
        )


def warn_alike(values: Iterable[Value], unlabelled: Sequence[Value], name: str, *, stacklevel: int = 2) -> None:
    """Warn of values of a column that differ from an unlabelled one by case, blanks or type only, and so count as categories."""
    exact = {cols.key(v) for v in unlabelled}
    loose = {_loose(v): v for v in unlabelled}
    for value in values:
        if cols.key(value) not in exact and _loose(value) in loose:
            twin = loose[_loose(value)]
            warnings.warn(
                f"obs[{name!r}] holds {value!r} ({type(value).__name__}), which counts as a category: unlabelled has {twin!r} "
                f"({type(twin).__name__}). Did you mean {value!r}? Pass unlabelled={[*unlabelled, value]!r} if it means 'not known' too.",
                TrifoldWarning,
                stacklevel=stacklevel,
            )


def _loose(value: Value) -> str:
    number = isinstance(value, float) and value.is_integer()
    return str(int(value) if number else value).strip().casefold()
