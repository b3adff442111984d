"""Which genes are scored: the variable ones and the strongest responders, chosen on training cells only."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from trifold.errors import EvaluationError
from trifold.evaluate.space import Index, Kind, Matrix, lognorm, matrix


def variable_genes(data: Any, k: int = 2000, *, kind: Kind = "counts", layer: str | None = None) -> Index:
    """Index of the ``k`` most variable genes of the cells given, ascending; all genes where there are no more.

    Counts: normalised dispersion in bins of the mean (scanpy's flavour ``"seurat"``), on log-normalised counts over all
    genes. Real values: the variance. Pass training cells only.

    Args:
        data: AnnData or [n, g] matrix, counts or real values.
        k: How many genes.
        kind: ``"counts"`` or ``"real"``.
        layer: Layer of the AnnData; None is X.

    Returns:
        [min(k, g)] ascending column indices.

    Raises:
        EvaluationError: k is under one.

    Source: Satija et al., Nature Biotechnology 33 (2015), as in scanpy.
    """
    x = matrix(data, layer=layer)
    if k < 1:
        raise EvaluationError(
            f"The number of variable genes must be at least 1; found {k}. "
            "Pass n_top_genes=2000; to variable_genes, k=2000; on the command line, "
            "--genes 2000."
        )
    if k >= x.shape[1]:
        return np.arange(x.shape[1])
    if kind == "real":
        return np.sort(np.argsort(-_variance(x), kind="stable")[:k])
    return np.sort(np.argsort(-_dispersion(lognorm(x)), kind="stable")[:k])


def top_genes(x: Matrix, groups: Any, *, conditions: Any, source: Any, target: Any, k: int = 20, held: Any = None) -> Index:
    """Index of the ``k`` genes that change most from source to target, averaged over training groups, strongest first.

    The change of a gene in a group is the absolute difference of its two means; groups weigh the same whatever their size.

    Args:
        x: [n, g] cells in score space.
        groups: [n] group of each cell.
        conditions: [n] condition of each cell.
        source, target: The two conditions.
        k: How many genes.
        held: Group that is left out whatever cells are passed; None leaves out none.

    Returns:
        [min(k, g)] column indices.

    Raises:
        EvaluationError: No group but the held one has cells under both conditions.
    """
    means = paired_means(x, groups, conditions=conditions, source=source, target=target, held=held)
    change = np.abs(means[2] - means[1]).mean(0)
    return np.asarray(np.argsort(-change, kind="stable")[:k])


def paired_means(
    x: Matrix, groups: Any, *, conditions: Any, source: Any, target: Any, held: Any = None
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Names [k] and means [k, g] under source and under target of the groups, but the held one, that have both.

    Raises:
        EvaluationError: There is no such group, or lengths differ.
    """
    groups, conditions = labels(groups), labels(conditions)
    if not len(groups) == len(conditions) == x.shape[0]:
        raise EvaluationError(
            f"groups and conditions need one label for each of {x.shape[0]} cells; found {len(groups)} and {len(conditions)}. "
            "Pass the labels of the same cells."
        )
    with_source, with_target = set(groups[conditions == source]), set(groups[conditions == target])
    names = sorted((v for v in with_source & with_target if v is not None and v != held), key=str)
    if not names:
        raise EvaluationError(
            f"Another group with cells under both {source!r} and {target!r} is needed; found none beside {held!r}. "
            "Check source= and target=, or hold out a group of a crossed design."
        )
    return (
        np.asarray(names, dtype=object),
        _means(x, groups, names, conditions == source),
        _means(x, groups, names, conditions == target),
    )


def labels(values: Any) -> NDArray[Any]:
    """[n] object array of labels, None where one is missing: from a column, a list or an array."""
    out = np.array(values, dtype=object)
    out[pd.isna(out)] = None
    return out


def _means(x: Matrix, groups: NDArray[Any], names: list[Any], keep: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[k, g] mean of each group's kept cells: one product with a [k, n] averaging matrix."""
    code = pd.Index(names, dtype=object).get_indexer(groups)  # -1 of another group, or none
    cells = np.flatnonzero(keep & (code >= 0))
    row = code[cells]
    weight = (1.0 / np.bincount(row, minlength=len(names)))[row]
    average = sp.csr_matrix((weight, (row, cells)), shape=(len(names), x.shape[0]))
    out = average @ x
    return np.asarray(out.toarray() if sp.issparse(out) else out, dtype=np.float64)


def _variance(x: Matrix) -> NDArray[np.float64]:
    """[g] variance over cells, population form."""
    if not sp.issparse(x):
        return np.asarray(np.var(x, axis=0, dtype=np.float64))
    first = np.asarray(x.mean(axis=0, dtype=np.float64)).ravel()
    second = np.asarray(x.astype(np.float64).multiply(x).mean(axis=0)).ravel()
    return np.maximum(second - first**2, 0.0)


def _dispersion(x: Matrix) -> NDArray[np.float64]:
    """[g] normalised dispersion of log-normalised cells by scanpy; -inf where it is undefined."""
    import anndata
    import scanpy
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(limits=1, user_api="openmp"):  # numba would leave OpenMP with all cores, torch's too
        warnings.simplefilter("ignore")  # scanpy on its own defaults; nothing of ours is hidden
        table = scanpy.pp.highly_variable_genes(anndata.AnnData(x), flavor="seurat", n_top_genes=1, inplace=False)
    value = np.asarray(table["dispersions_norm"], dtype=np.float64)
    return np.asarray(np.where(np.isfinite(value), value, -np.inf))
