"""Says which effects cannot be told apart, because two columns of obs split the cells into blocks that share no value."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from trifold.data import columns as cols
from trifold.data.columns import PARTIAL, Value
from trifold.data.matrix import Array
from trifold.errors import TrifoldWarning, listing

_PAIRS = (("condition", "label"), ("condition", "spurious"), ("invariant", "spurious"))
_ROWS, _COLUMNS = 12, 8


def warn_confounded(obs: pd.DataFrame, roles: Mapping[str, Sequence[str]], unlabelled: Sequence[Value] = ()) -> None:
    """Warn of pairs of columns whose effects cannot be told apart.

    Two columns are the two sides of a graph, joined by an edge where a cell has both values. Effects of both can be estimated
    (as sums) only between values that the graph connects. A column nested in another is the plain case: donors, each with one disease.

    Args:
        obs: [n, columns].
        roles: role -> its categorical columns. Looked at: condition against label and spurious, invariant against spurious.
        unlabelled: Values of invariant and label that mean "not known": cells that have one join nothing.
    """
    for a, b in _PAIRS:
        for first in roles.get(a, ()):
            for second in roles.get(b, ()):
                if first == second:
                    continue
                one, two = (_known(obs[n], n, unlabelled if r in PARTIAL else ()) for n, r in ((first, a), (second, b)))
                blocks = separate(one, two)
                if len(blocks) > 1:
                    warnings.warn(_message(one, two, first, a, second, b, blocks), TrifoldWarning, stacklevel=3)


def confounded_roles(code: Mapping[str, Array], columns: Mapping[str, Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """Pairs of roles whose joint categories are :func:`disconnected`; those that share a column are left out.

    Every pair of columns that is confounded makes its roles so, if all cells are labelled. Roles of several columns can be so without
    any pair of columns: donors and batches that each cross diseases, while each donor's batch has one disease.

    Args:
        code: role -> [n] int64 joint category, -1 unknown.
        columns: role -> names of its columns.
    """
    pairs = [(a, b) for a, b in _PAIRS if a in code and b in code and not set(columns[a]) & set(columns[b])]
    return tuple((a, b) for a, b in pairs if disconnected(code[a], code[b]))


def disconnected(code_a: Array, code_b: Array) -> bool:
    """Whether two groupings split the cells into blocks that share no category of either: confounded, or nested in more than one.

    Args:
        code_a, code_b: [n] int categories; cells with a code below 0 in either are left out.
    """
    code_a, code_b = np.asarray(code_a), np.asarray(code_b)
    known = (code_a >= 0) & (code_b >= 0)
    if not known.any():
        return False
    left, i = np.unique(code_a[known], return_inverse=True)
    _, j = np.unique(code_b[known], return_inverse=True)
    return len(np.unique(_blocks(i, j)[: len(left)])) > 1


def separate(first: pd.Series, second: pd.Series) -> list[list[object]]:
    """Values of the first column, in groups that no value of the second connects; one group if all are connected.

    Args:
        first, second: [n] categories; cells with a missing value in either are left out.
    """
    known = np.asarray(first.notna() & second.notna())
    i, left = pd.factorize(first[known].astype(object))
    j, _ = pd.factorize(second[known].astype(object))
    if not len(left):
        return []
    group = _blocks(i, j)[: len(left)]
    return [[left[k] for k in np.flatnonzero(group == c)] for c in np.unique(group)]


def _blocks(i: Array, j: Array) -> Array:
    """[a + b] connected part of each value of two groupings, coded from 0 without gaps; a cell joins its two."""
    rows, columns = int(i.max()) + 1, int(j.max()) + 1
    edge = np.unique(i.astype(np.int64) * columns + j)
    n = rows + columns
    graph = sp.coo_matrix((np.ones(len(edge)), (edge // columns, rows + edge % columns)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def _known(series: pd.Series, name: str, unlabelled: Sequence[Value]) -> pd.Series:
    """The column as objects, missing where a cell is unlabelled."""
    out = series.astype(object)
    if not unlabelled:
        return out
    code, values = cols.factorize(series, name)
    away = {cols.key(v) for v in unlabelled}
    return out.where(~np.array([cols.key(v) in away for v in values] + [True], dtype=bool)[code])


def _message(one: pd.Series, two: pd.Series, first: str, a: str, second: str, b: str, blocks: list[list[object]]) -> str:
    table = pd.crosstab(one, two)
    cut = table.iloc[:_ROWS, :_COLUMNS]
    left_out = "" if cut.shape == table.shape else f"\n(the first {cut.shape[0]} x {cut.shape[1]} of {table.shape[0]} x {table.shape[1]})"
    groups = " | ".join("{" + listing(block) + "}" for block in blocks[:5])
    return (
        f"{first!r} ({a}) is confounded with {second!r} ({b}): differences between the groups {groups} of {first!r} cannot be told from "
        f"differences between values of {second!r}. Such results are guesses; cells that cross the groups would settle them. "
        f"Cells:\n{cut.to_string()}{left_out}"
    )
