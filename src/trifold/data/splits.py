"""Which cells train, which validate, and which are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from trifold.data.columns import factorize, is_number
from trifold.data.covariates import require_column
from trifold.data.matrix import Array
from trifold.errors import DataError, SchemaError, listing, suggest


def by_fraction(n: int | Array, fraction: float, *, seed: int = 0, stratify: Array | None = None) -> tuple[Array, Array]:
    """A random split, with the same share of every stratum.

    Args:
        n: Number of cells, or [n] codes of the strata.
        fraction: Share of cells for validation, in [0, 1).
        seed: Of the generator.
        stratify: [n] codes of the strata; None: one stratum.

    Returns:
        ([m] train, [n - m] validation): sorted positions. A stratum of one cell trains.

    Raises:
        DataError: A fraction outside [0, 1), or too few cells to have one of each.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"validation must be a share of the cells in [0, 1); found {fraction!r}. Use 0 for none.")
    if not isinstance(n, (int, np.integer)):
        stratify, n = np.asarray(n), len(n)
    codes = np.zeros(n, dtype=np.int64) if stratify is None else np.asarray(stratify)
    if len(codes) != n:
        raise DataError(f"stratify must have one code for each of the {n} cells; found {len(codes)}. Leave it out for none.")
    if fraction == 0:
        return np.arange(n), np.zeros(0, dtype=np.int64)
    if n < 2:
        raise DataError(f"A validation set needs at least 2 cells; found {n}. Pass validation=0.")
    order = np.random.default_rng([seed, 101]).permutation(n)
    order = order[np.argsort(codes[order], kind="stable")]
    _, start, size = np.unique(codes[order], return_index=True, return_counts=True)
    rank = np.arange(n) - np.repeat(start, size)  # of each cell in its stratum, in random order
    share = np.repeat(np.minimum(np.rint(fraction * size), size - 1), size)
    chosen = rank < share
    if not chosen.any():
        chosen[np.argmax(np.repeat(size, size))] = True
    validation = np.sort(order[chosen])
    return np.setdiff1d(np.arange(n), validation), validation


def held_out(obs: pd.DataFrame, where: Mapping[str, Any]) -> Array:
    """Which cells match all entries: ``held_out(obs, {"condition": "stimulated", "cell_type": ["NK", "B"]})``.

    Args:
        obs: [n, columns].
        where: column -> value, or list of values of which a cell must have one.

    Returns:
        [n] bool mask.

    Raises:
        SchemaError: No such column or value.
        DataError: No cell matches, or all do.
    """
    if not where:
        raise SchemaError("hold_out needs at least one column: {'cell_type': 'NK'}; found none. Use None to hold nothing out.")
    mask = matching(obs, where)
    if not mask.any():
        raise DataError(f"hold_out={dict(where)!r} matches no cell: each value occurs, but never together. Name fewer columns.")
    if mask.all():
        raise DataError(f"hold_out={dict(where)!r} matches all {len(mask)} cells, so none is left for training. Name fewer values.")
    return mask


def matching(obs: pd.DataFrame, where: Mapping[str, Any]) -> Array:
    """[n] bool: cells that match all entries of column -> value or list of values; a value must occur in its column.

    Raises:
        SchemaError: No such column or value.
    """
    mask = np.ones(len(obs), dtype=bool)
    for name, wanted in where.items():
        require_column(obs, name, role="selection")
        options = list(wanted) if isinstance(wanted, (Sequence, set, np.ndarray)) and not isinstance(wanted, str) else [wanted]
        mask &= _one_of(obs[name], options, name)
    return mask


def some(obs: pd.DataFrame, where: Mapping[str, Any], *, named: str = "The selection ") -> Array:
    """[n] bool as :func:`matching`, of one cell at least.

    Args:
        obs: [n, columns].
        where: column -> value, or list of values of which a cell must have one.
        named: What the selection is called in the message: ``"where="``.

    Raises:
        SchemaError: No such column or value, or no cell that matches all entries.
    """
    mask = matching(obs, where)
    if not mask.any():
        raise SchemaError(f"{named}{dict(where)!r} matches no cell: each value occurs, but never together. Name fewer columns.")
    return mask


def _one_of(series: pd.Series, options: list[Any], name: str) -> Array:
    if is_number(series):
        code, known = pd.factorize(series)
        values: list[Any] = list(known)
    else:
        code, values = factorize(series, name)
    present = np.unique(code)
    at = []
    for option in options:
        option = option.item() if isinstance(option, np.generic) else option
        found = [j for j, v in enumerate(values) if v == option and isinstance(v, bool) == isinstance(option, bool) and j in present]
        if not found:
            shown = [v for j, v in enumerate(values) if j in present]
            raise SchemaError(
                f"obs[{name!r}] has no cell with {option!r}.{suggest(option, shown)} It has: {listing(map(repr, shown), 10)}."
            )
        at += found
    return np.isin(code, at)
