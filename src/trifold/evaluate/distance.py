"""Distances between two samples of cells: energy distance and maximum mean discrepancy, both unbiased."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist
from sklearn.decomposition import PCA

from trifold.errors import EvaluationError
from trifold.evaluate.response import pair
from trifold.evaluate.space import project

Points = NDArray[np.float64]
BLOCK = 4_000_000  # entries of a block of pairwise distances: 32 MB


def e_distance(predicted: Any, real: Any, *, pca: PCA | None = None, squared: bool = False) -> float:
    r"""Energy distance between two samples, unbiased, in units of the space (of its square where ``squared``).

    .. math:: 2\,E\|x-y\| - E\|x-x'\| - E\|y-y'\|

    with pairs of a cell with itself left out, so that two samples of one distribution give 0 on average (and below zero
    half of the time). Convention of the response benchmark: Euclidean, 30 principal components of real cells.

    Args:
        predicted: [n, g] cells in score space; two at least.
        real: [m, g] cells; two at least.
        pca: From :func:`fit_pca` on real cells; None takes the values as they are.
        squared: Squared Euclidean distances, as in scPerturb. That is twice the squared distance of the means and no
            more: blind to the distribution's shape.

    Returns:
        The estimate.

    Raises:
        EvaluationError: A sample has under two cells, the genes differ in number, or values are not finite.

    Source: Székely and Rizzo, Journal of Statistical Planning and Inference 143 (2013), U-statistic.
    """
    x, y = _points(predicted, real, pca)
    name = "sqeuclidean" if squared else "euclidean"
    cross = _total(x, y, name) / (len(x) * len(y))
    within = sum(_total(a, a, name) / (len(a) * (len(a) - 1)) for a in (x, y))
    return float(2 * cross - within)


def mmd2(predicted: Any, real: Any, *, pca: PCA | None = None, bandwidth: float | None = None) -> float:
    r"""Unbiased squared maximum mean discrepancy with a Gaussian kernel. Dimensionless.

    .. math:: \frac{1}{n(n-1)}\sum_{i\ne j} k(x_i,x_j) + \frac{1}{m(m-1)}\sum_{i\ne j} k(y_i,y_j) - \frac{2}{nm}\sum_{ij} k(x_i,y_j),
        \quad k(a,b) = \exp(-\|a-b\|^2 / 2\sigma)

    Args:
        predicted: [n, g] cells in score space; two at least.
        real: [m, g] cells; two at least.
        pca: From :func:`fit_pca` on real cells; None takes the values as they are.
        bandwidth: σ, a variance; None takes :func:`median_bandwidth` of the real cells.

    Returns:
        The estimate; below zero when the samples are closer than chance.

    Raises:
        EvaluationError: A sample has under two cells, the genes differ in number, or the real cells are all equal.

    Source: Gretton et al., JMLR 13 (2012), eq. 3.
    """
    x, y = _points(predicted, real, pca)
    sigma = median_bandwidth(y) if bandwidth is None else bandwidth
    if not sigma > 0:
        raise EvaluationError(f"bandwidth needs a variance above zero; found {sigma:.3g}. Pass bandwidth=1.0, or real cells that vary.")

    def kernel(d2: Points) -> Points:
        return np.asarray(np.exp(d2 / (-2 * sigma)))

    cross = _total(x, y, "sqeuclidean", kernel) / (len(x) * len(y))
    within = sum((_total(a, a, "sqeuclidean", kernel) - len(a)) / (len(a) * (len(a) - 1)) for a in (x, y))
    return float(within - 2 * cross)


def median_bandwidth(points: Points, *, most: int = 1000) -> float:
    """Median squared distance between two different points, at most ``most`` evenly spaced rows of [n, k]; a variance."""
    rows = np.unique(np.linspace(0, len(points) - 1, min(most, len(points))).astype(int))
    return float(np.median(pdist(points[rows], "sqeuclidean")))


def _points(predicted: Any, real: Any, pca: PCA | None) -> tuple[Points, Points]:
    x, y = pair(predicted, real)
    if len(x) < 2 or len(y) < 2:
        raise EvaluationError(
            f"A distance between samples needs two cells or more on both sides; found {len(x)} predicted and {len(y)} real. "
            "Predict more cells, or score this group by its mean only."
        )
    return project(x, pca=pca), project(y, pca=pca)


def _total(x: Points, y: Points, metric: str, f: Callable[[Points], Points] | None = None) -> float:
    """Sum over all pairs of f(distance), block by block; a point's distance to itself is exactly zero."""
    step = max(1, BLOCK // len(y))
    blocks = (cdist(x[i : i + step], y, metric) for i in range(0, len(x), step))
    return float(sum((d if f is None else f(d)).sum() for d in blocks))
