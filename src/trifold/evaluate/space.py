"""The space in which all is scored: log-normalised counts or the values as they are, and the PCA of real cells."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from trifold.errors import EvaluationError, listing, suggest

Matrix = Any  # [n, g] numpy array or scipy sparse matrix
Kind = Literal["counts", "real"]
Values = NDArray[np.floating[Any]]
Index = NDArray[np.intp]


def matrix(data: Any, *, layer: str | None = None) -> Matrix:
    """[n, g] values of an AnnData (X, or a layer) or of a matrix: CSR where it was sparse, else an array.

    Args:
        data: AnnData, array, data frame or sparse matrix.
        layer: Layer of the AnnData; None is X.

    Raises:
        EvaluationError: There is no such layer, or the values have not two axes.
    """
    if hasattr(data, "obs") and hasattr(data, "layers"):
        if layer is not None and layer not in data.layers:
            raise EvaluationError(
                f"The AnnData has no layer {layer!r}.{suggest(layer, data.layers)} It has: {listing(data.layers) or 'none'}. "
                "Pass layer=None for X."
            )
        data = data.X if layer is None else data.layers[layer]
    if sp.issparse(data):
        return data.tocsr()
    values = np.asarray(data)
    if values.ndim != 2:
        raise EvaluationError(f"A matrix of cells x genes is needed; found shape {values.shape}. For one cell pass x[None, :].")
    return values


def dense(data: Any) -> Values:
    """[n, g] float array of a matrix or AnnData, checked to be finite; integers become float32.

    Raises:
        EvaluationError: A value is NaN or infinite.
    """
    x = matrix(data)
    x = x.toarray() if sp.issparse(x) else x
    x = np.asarray(x, dtype=x.dtype if np.issubdtype(x.dtype, np.floating) else np.float32)
    if not np.isfinite(x).all():
        row, gene = np.argwhere(~np.isfinite(x))[0]
        count = int((~np.isfinite(x)).sum())
        raise EvaluationError(
            f"Finite values are needed; {count} are NaN or infinite (first: row {row}, gene {gene}). "
            "Drop these cells, or repair the prediction."
        )
    return np.asarray(x)


def mean(x: Matrix) -> NDArray[np.float64]:
    """[g] mean over cells, in float64, of a sparse or dense [n, g] matrix."""
    return np.asarray(x.mean(axis=0, dtype=np.float64), dtype=np.float64).ravel()


def lognorm(data: Any, target_sum: float = 1e4, *, layer: str | None = None) -> Matrix:
    """log(1 + counts scaled to ``target_sum`` per cell), over the genes that are given. Natural logarithm.

    Cells without counts stay zero. Sparse stays sparse; the input is not changed.

    Args:
        data: AnnData or [n, g] matrix of non-negative counts (expected counts too).
        target_sum: Total of each cell after scaling.
        layer: Layer of the AnnData; None is X.

    Returns:
        [n, g] float matrix (float32 unless the input is float64), CSR or array as the input.

    Raises:
        EvaluationError: A count is negative or not finite.
    """
    x = matrix(data, layer=layer)
    stored = x.data if sp.issparse(x) else x
    if stored.size and not (np.isfinite(stored).all() and stored.min() >= 0):
        raise EvaluationError(
            f"Counts of zero or more are needed; found a smallest value of {stored.min():.3g}. "
            "Pass kind='real' for real-valued data, or wrap a log-normalised prediction in InScoreSpace(...)."
        )
    total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    factor = np.divide(target_sum, total, out=np.zeros_like(total), where=total > 0)
    if sp.issparse(x):
        out = x.astype(dtype)  # a copy where the dtype differs; made one below where it does not
        out = out.copy() if out.data is x.data else out
        out.data = np.log1p(out.data * np.repeat(factor, np.diff(out.indptr)).astype(dtype))
        return out
    return np.log1p(x.astype(dtype) * factor[:, None].astype(dtype))


def kind_of(data: Any) -> Kind:
    """``"counts"`` where all values are whole and not negative, else ``"real"``."""
    x = matrix(data)
    stored = x.data if sp.issparse(x) else x
    whole = stored.size == 0 or (np.isfinite(stored).all() and stored.min() >= 0 and bool((stored == np.rint(stored)).all()))
    return "counts" if whole else "real"


def to_score(data: Any, *, kind: Kind, layer: str | None = None) -> Matrix:
    """[n, g] matrix in score space: :func:`lognorm` for counts, the values themselves for real data.

    Raises:
        EvaluationError: ``kind`` is neither, or a count is negative.
    """
    if kind not in ("counts", "real"):
        raise EvaluationError(f"kind must be 'counts' or 'real'; found {kind!r}. Pass kind='counts' for raw counts.")
    return lognorm(data, layer=layer) if kind == "counts" else matrix(data, layer=layer)


def fit_pca(x: Matrix, components: int = 30, *, seed: int = 0) -> PCA:
    """Principal components of real cells in score space, fewer where cells or genes are few. Sparse stays sparse.

    Args:
        x: [n, g] cells in score space; two at least.
        components: How many; 30 is the convention of the response benchmark.
        seed: Of the solver's start; the global generator is left as found.

    Returns:
        A fitted :class:`sklearn.decomposition.PCA`; use :func:`project`.

    Raises:
        EvaluationError: There are fewer than two cells.
    """
    n, g = x.shape
    if n < 2:
        raise EvaluationError(f"A PCA needs two cells or more; found {n}. Pass the real cells of all groups.")
    if sp.issparse(x) and components >= min(n - 1, g):  # ARPACK finds no full set, and this matrix has a short side
        x = x.toarray()
    components = max(1, min(components, n - 1, g))
    solver = "arpack" if sp.issparse(x) else ("full" if min(n, g) <= 500 else "randomized")
    return PCA(components, svd_solver=solver, random_state=seed).fit(x)


def project(x: Any, *, pca: PCA | None) -> NDArray[np.float64]:
    """[n, k] float64 coordinates in the principal components, or the values themselves where ``pca`` is None."""
    values = dense(x)
    return np.asarray(values if pca is None else pca.transform(values), dtype=np.float64)
