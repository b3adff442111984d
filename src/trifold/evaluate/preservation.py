"""How well latent coordinates keep the geometry of the data: distances, neighbourhoods, centroids and straight lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from scipy.stats import rankdata
from sklearn.metrics.pairwise import euclidean_distances

from trifold.errors import EvaluationError
from trifold.evaluate.genes import labels as as_labels
from trifold.evaluate.response import correlation
from trifold.evaluate.space import Index, Matrix, dense, matrix, mean

Points = NDArray[np.float64]
BLOCK = 4_000_000  # entries of a block of differences or distances: 32 MB
MIDPOINTS = 2_000  # pairs that are decoded at most


def geometry(
    latent: Any,
    data: Any,
    *,
    labels: Any = None,
    decode: Callable[[Points], Any] | None = None,
    k: int = 15,
    pairs: int = 20_000,
    seed: int = 0,
) -> dict[str, float]:
    r"""How well latent coordinates keep the Euclidean geometry of the data. All scores are dimensionless.

    - ``spearman``: rank correlation of the distances between two cells in latent and in data; 1 for an isometry.
    - ``trustworthiness``: 1 where the k nearest cells in latent are the k nearest in data, less by how far off they are there;
      ``continuity``: the same with the roles of latent and data swapped. About 0.5 by chance.
    - ``centroids``, ``centroids_linear``: rank and Pearson correlation, latent against data, of the distances between class
      centroids. With three classes that is three numbers: too few to tell models apart. Absent under three classes.
    - ``midpoint``: how far the decoded middle of two cells lies off the middle of the decoded cells, 0 for an affine decoder,

    .. math:: \frac{E_{ab}\,\| h(\frac{z_a+z_b}{2}) - \frac{h(z_a)+h(z_b)}{2} \|^2}{E_a\,\| h(z_a) - E_b\,h(z_b) \|^2}

    Coordinates that are all alike have correlations of 0, and a constant decoder has a midpoint error of 0: read them together.
    Time grows as n² log n; memory as n, beside the data.

    Args:
        latent: [n, d] coordinates, one row per cell.
        data: [n, g] values of the same cells, dense, sparse or AnnData, in a space where distances mean something
            (log-normalised, not raw counts). Sparse stays sparse.
        labels: [n] classes, for the centroids. Cells without one count in all else.
        decode: [m, d] -> [m, g] numpy arrays, for the midpoint; the decoder in the space of its own output. Never given all
            cells at once; 2,000 pairs at most are decoded.
        k: Neighbours, under half of the cells.
        pairs: Random pairs of cells for the distances; all pairs where there are no more than that.
        seed: Of the pairs.

    Returns:
        Name -> score.

    Raises:
        EvaluationError: Rows differ in number, k or pairs do not fit, values are not finite, or decode gives the wrong shape.

    Source: Venna and Kaski, Neural Networks 19 (2006); equal to :func:`sklearn.manifold.trustworthiness`, in blocks.
    """
    z, x = dense(latent).astype(np.float64), cells(data)
    _check(z, x, k, pairs)
    i, j = draw_pairs(len(z), most=pairs, seed=seed)
    out = {"spearman": rank_correlation(lengths(z, i, j), lengths(x, i, j))}
    out["trustworthiness"], out["continuity"] = neighbourhoods(z, x, k=k)
    if labels is not None:
        groups = as_labels(labels)
        same_cells(len(z), labels=len(groups))
        names = classes(groups)
        if len(names) >= 3:
            near, far = (pdist(centroids(v, groups, names)) for v in (z, x))
            out |= {"centroids": rank_correlation(near, far), "centroids_linear": correlation(near, far)}
    if decode is not None:
        out["midpoint"] = _midpoint(z, decode, *draw_pairs(len(z), most=min(pairs, MIDPOINTS), seed=seed), g=x.shape[1])
    return out


def condition(metric: Any) -> float:
    """Median over cells of the condition number of their metric (largest over smallest eigenvalue). Dimensionless, 1 or more.

    1 where all latent directions move the decoder equally far; infinite where one of them moves nothing.

    Args:
        metric: [n, d, d] symmetric metrics, from a model's decoder.

    Raises:
        EvaluationError: The shape is another, there is no cell, or values are not finite.
    """
    g = np.asarray(metric, dtype=np.float64)
    if g.ndim != 3 or g.shape[1] != g.shape[2] or 0 in g.shape or not np.isfinite(g).all():
        finite = "finite" if np.isfinite(g).all() else "not finite"
        raise EvaluationError(
            f"metric needs finite values [n, d, d] of one cell or more; found shape {g.shape}, {finite}. For one cell pass metric[None]."
        )
    return float(np.median(np.linalg.cond(g)))


def cells(data: Any) -> Matrix:
    """[n, g] floats, checked to be finite: CSR where the data were sparse, else an array; integers become float32.

    Raises:
        EvaluationError: A value is NaN or infinite.
    """
    x = matrix(data)
    if not sp.issparse(x):
        return dense(x)
    if not np.isfinite(x.data).all():
        bad = np.flatnonzero(~np.isfinite(x.data))
        row, gene = int(np.searchsorted(x.indptr, bad[0], side="right")) - 1, x.indices[bad[0]]
        raise EvaluationError(
            f"Finite values are needed; {len(bad)} stored ones are NaN or infinite (first: row {row}, gene {gene}). "
            "Drop these cells or genes."
        )
    return x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32)


def rank_correlation(a: Points, b: Points) -> float:
    """Spearman's correlation of two vectors, ties at their mean rank; 0 where either does not vary."""
    return correlation(rankdata(a), rankdata(b))


def classes(groups: NDArray[Any]) -> list[Any]:
    """Sorted classes of [n] labels, without the missing ones."""
    return sorted({v for v in groups if v is not None}, key=str)


def centroids(x: Matrix, groups: NDArray[Any], names: list[Any]) -> Points:
    """[c, g] mean of each class."""
    return np.stack([mean(x[np.flatnonzero(groups == name)]) for name in names])


def draw_pairs(n: int, *, most: int, seed: int) -> tuple[Index, Index]:
    """Indices of two different cells: every pair once if they are ``most`` or fewer, else ``most`` random ones."""
    if n * (n - 1) // 2 <= most:
        first, second = np.triu_indices(n, 1)
        return first, second
    rng = np.random.default_rng(seed)
    i, step = rng.integers(n, size=most), rng.integers(1, n, size=most)
    return i, (i + step) % n


def lengths(x: Matrix, i: Index, j: Index) -> Points:
    """[m] Euclidean distances between rows i and rows j of a dense or sparse matrix, block by block."""
    step = max(1, BLOCK // x.shape[1])
    out = np.empty(len(i))
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        d = (x[i[part]] - x[j[part]]).astype(np.float64)
        squares = d.multiply(d).sum(axis=1) if sp.issparse(d) else (d * d).sum(axis=1)
        out[part] = np.sqrt(np.asarray(squares).ravel())
    return out


def neighbourhoods(z: Points, x: Matrix, *, k: int) -> tuple[float, float]:
    """Trustworthiness and continuity of latent z [n, d] for data x [n, g]: 1 less the mean excess rank of false neighbours."""
    n = len(z)
    step = max(1, BLOCK // n)
    excess = np.zeros(2)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        (near_z, rank_z), (near_x, rank_x) = (_ranks(v, rows, k) for v in (z, x))
        for side, rank, near in ((0, rank_x, near_z), (1, rank_z, near_x)):
            excess[side] += np.maximum(np.take_along_axis(rank, near, axis=1) - k, 0).sum()
    trust, continuity = 1 - excess * 2 / (n * k * (2 * n - 3 * k - 1))
    return float(trust), float(continuity)


def same_cells(n: int, **sizes: int) -> None:
    """Check that everything has one row for each of the n cells.

    Raises:
        EvaluationError: Something has not; it is named.
    """
    for name, size in sizes.items():
        if size != n:
            raise EvaluationError(f"{name} needs one row for each of {n} cells, in their order; found {size}. Pass that of the same cells.")


def _ranks(x: Matrix, rows: Index, k: int) -> tuple[Index, Index]:
    """[b, k] nearest cells of the rows, and [b, n] rank of every cell by distance from them: 1 the nearest, n the cell itself."""
    d = euclidean_distances(x[rows], x, squared=True)
    d[np.arange(len(rows)), rows] = np.inf
    order = np.argsort(d, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(1, x.shape[0] + 1)[None, :], axis=1)
    return order[:, :k], rank


def _midpoint(z: Points, decode: Callable[[Points], Any], i: Index, j: Index, *, g: int) -> float:
    def decoded(points: Points) -> Points:
        out = np.asarray(decode(points), dtype=np.float64)
        if out.ndim != 2 or len(out) != len(points) or not np.isfinite(out).all():
            finite = "" if np.isfinite(out).all() else ", not all finite"
            raise EvaluationError(
                f"decode must give one row of finite values per point; for {len(points)} points it gave shape {out.shape}{finite}. "
                "Pass decode= a function of [m, d] that returns a numpy array [m, g]."
            )
        return out

    step = max(1, BLOCK // (4 * g))
    off = squares = 0.0
    total: Any = 0.0
    origin: Any = None  # near the centroid, so that the difference of squares below does not cancel
    for start in range(0, len(i), step):
        a, b = z[i[start : start + step]], z[j[start : start + step]]
        ends, middle = decoded(np.concatenate([a, b])), decoded((a + b) / 2)
        origin = ends.mean(0) if origin is None else origin
        off += float(((middle - (ends[: len(a)] + ends[len(a) :]) / 2) ** 2).sum())
        squares += float(((ends - origin) ** 2).sum())
        total = total + (ends - origin).sum(0)
    m = len(i)
    spread = squares / (2 * m) - float(((total / (2 * m)) ** 2).sum())
    return off / m / spread if spread > 0 else 0.0


def _check(z: Points, x: Matrix, k: int, pairs: int) -> None:
    same_cells(len(z), data=x.shape[0])
    if not 1 <= k < len(z) / 2:
        raise EvaluationError(
            f"k must lie in 1 to under half of the {len(z)} cells; found {k}. Pass k={max(1, min(15, (len(z) - 1) // 2))}."
        )
    if pairs < 1 or not z.shape[1] or not x.shape[1]:
        raise EvaluationError(
            f"pairs must be at least 1, and latent and data have a column or more; found pairs={pairs}, latent {z.shape} and data "
            f"{x.shape}. "
            "Pass pairs=20_000 and matrices [n, d] and [n, g]."
        )
