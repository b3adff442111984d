"""Says which effects cannot be told apart, because two columns of obs split the cells into blocks that share no value."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from trifold.errors import TrifoldWarning, listing

_PAIRS = (("condition", "label"), ("condition", "spurious"), ("invariant", "spurious"))
_ROWS, _COLUMNS = 12, 8


def warn_confounded(obs: pd.DataFrame, roles: Mapping[str, Sequence[str]]) -> None:
    """Warn of pairs of columns whose effects cannot be told apart.

    Two columns are the two sides of a graph, joined by an edge where a cell has both values. Effects of both can be estimated
    (as sums) only between values that the graph connects.

    Args:
        obs: [n, columns].
        roles: role -> its categorical columns. Looked at: condition against label and spurious, invariant against spurious.
    """
    for a, b in _PAIRS:
        for first in roles.get(a, ()):
            for second in roles.get(b, ()):
                blocks = separate(obs[first], obs[second]) if first != second else []
                if len(blocks) > 1:
                    warnings.warn(_message(obs, first, a, second, b, blocks), TrifoldWarning, stacklevel=3)


def separate(first: pd.Series, second: pd.Series) -> list[list[object]]:
    """Values of the first column, in groups that no value of the second connects; one group if all are connected.

    Args:
        first, second: [n] categories.
    """
    i, left = pd.factorize(first.astype(object))
    j, right = pd.factorize(second.astype(object))
    n = len(left) + len(right)
    graph = sp.coo_matrix((np.ones(len(i)), (i, j + len(left))), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    return [[left[k] for k in np.flatnonzero(group[: len(left)] == c)] for c in np.unique(group[: len(left)])]


def _message(obs: pd.DataFrame, first: str, a: str, second: str, b: str, blocks: list[list[object]]) -> str:
    table = pd.crosstab(obs[first].astype(object), obs[second].astype(object))
    cut = table.iloc[:_ROWS, :_COLUMNS]
    left_out = "" if cut.shape == table.shape else f"\n(the first {cut.shape[0]} x {cut.shape[1]} of {table.shape[0]} x {table.shape[1]})"
    groups = " | ".join("{" + listing(block) + "}" for block in blocks[:5])
    return (
        f"{first!r} ({a}) is confounded with {second!r} ({b}): differences between the groups {groups} of {first!r} cannot be told from "
        f"differences between values of {second!r}. Such results are guesses; cells that cross the groups would settle them. "
        f"Cells:\n{cut.to_string()}{left_out}"
    )
