"""How well batches mix and labels stay apart: pure functions of points and codes, in numpy and scikit-learn alone."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import chi2
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors

from trifold.evaluate.space import Index

Points = NDArray[np.float64]
Codes = NDArray[np.intp]
BATCH = ("silhouette_batch", "ilisi", "kbet", "graph_connectivity", "pcr_comparison")
BIO = ("isolated_f1", "kmeans_nmi", "kmeans_ari", "silhouette_label", "clisi")
NEIGHBOURS, GRAPH = 50, 15  # cells around a cell for the mixing of groups, and for the graph
BLOCK = 4_000_000  # distances at a time: 32 MB


def measure(z: Points, before: Points, batch: Codes, label: Codes, seed: int) -> dict[str, float]:
    """Five scores of mixing and five of keeping labels apart, each 0 to 1 (ARI: from -0.5), higher is better. All distances Euclidean.

    ======================  =======================================================================================
    ``silhouette_batch``    1 - |silhouette| of batches within labels, 1 where batches lie in the same place
    ``ilisi``               share of pairs of neighbours that are of two batches, over that of all pairs; 1 at most
    ``kbet``                share of cells whose neighbours of the same label have their label's batches
    ``graph_connectivity``  share of a label's cells in its largest connected piece
    ``pcr_comparison``      share of the batch's variance that is gone
    ``isolated_f1``         best F1 of any cluster for the labels that are in the fewest batches
    ``kmeans_nmi``, ``_ari``  agreement of labels and clusters
    ``silhouette_label``    (1 + silhouette) / 2 of the labels; one half by chance
    ``clisi``               1 - share of pairs of neighbours that are of two labels, over that of all pairs; 0 at least
    ======================  =======================================================================================

    Args:
        z: [n, d] latent.
        before: [n, k] before integration.
        batch, label: [n] codes from 0.
        seed: Of k-means.

    Returns:
        Metric -> value. NaN: the cells cannot tell.
    """
    near = neighbours(z, NEIGHBOURS)
    found = clusters(z, int(label.max()) + 1, seed=seed)
    return {
        "silhouette_batch": silhouette_batch(z, batch, label),
        "ilisi": min(1.0, mixing(near, batch)),
        "kbet": acceptance(z, batch, label),
        "graph_connectivity": connectivity(near[:, :GRAPH], label),
        "pcr_comparison": variance_removed(before, z, batch),
        "isolated_f1": isolated_f1(found, batch, label),
        "kmeans_nmi": float(normalized_mutual_info_score(label, found)),
        "kmeans_ari": float(adjusted_rand_score(label, found)),
        "silhouette_label": float((1 + silhouettes(z, label).mean()) / 2),
        "clisi": max(0.0, 1 - mixing(near, label)),
    }


def neighbours(z: Points, k: int) -> Index:
    """[n, k] nearest other cells of each cell, nearest first; n - 1 of them where cells are few."""
    return np.asarray(NearestNeighbors(n_neighbors=min(k, len(z) - 1)).fit(z).kneighbors(return_distance=False))


def mixing(near: Index, groups: Codes) -> float:
    r"""Share of pairs of neighbours that are of two groups, over the share of all pairs of cells that are. Dimensionless.

    .. math:: \frac{1 - \frac1n\sum_i \sum_b c_{ib}(c_{ib}-1)\,/\,k(k-1)}{1 - \sum_b n_b(n_b-1)\,/\,n(n-1)}

    with c_ib the neighbours of cell i in group b. Exactly 1 in expectation where groups are shuffled over cells, whatever their
    sizes; 0 where neighbourhoods are pure. NaN with one neighbour or one group.

    Args:
        near: [n, k] neighbours.
        groups: [n] codes from 0.

    Source: the Simpson index of LISI (Korsunsky et al., Nature Methods 16, 2019), unbiased and with uniform weights. LISI itself
    is the reciprocal over the number of groups, which unequal groups never reach.
    """
    n, k = near.shape
    counts, sizes = _counts(near, groups), np.bincount(groups)
    alike = (counts * (counts - 1)).sum() / n / (k * (k - 1)) if k > 1 else np.nan
    expected = 1 - (sizes * (sizes - 1)).sum() / (n * (n - 1))
    return float((1 - alike) / expected) if expected > 0 else np.nan


def acceptance(z: Points, batch: Codes, label: Codes, *, alpha: float = 0.05) -> float:
    r"""Share of cells whose k nearest cells of the same label pass a chi-square test for the batches of that label, over 1 - alpha.

    .. math:: \frac{n-1}{n-k} \sum_b \frac{(c_{ib} - k\,n_b/n)^2}{k\,n_b/n} \le \chi^2_{1-\alpha}(B-1)

    k is a quarter of the label's mean batch size, from 10 to 70; the first factor is there because neighbours are drawn without
    replacement. Averaged over labels with ten cells and two batches or more; 1 at most; NaN where there is no such label.

    Args:
        z: [n, d] points.
        batch, label: [n] codes from 0.
        alpha: Share of cells that are rejected where batches are mixed.

    Source: kBET, Büttner et al., Nature Methods 16 (2019); per label as in Luecken et al. (2022).
    """
    rates = []
    for rows in _members(label):
        own = np.unique(batch[rows], return_inverse=True)[1]
        n, sizes = len(rows), np.bincount(own)
        if n < 10 or len(sizes) < 2:
            continue
        k = min(int(np.clip(n / len(sizes) // 4, 10, 70)), n - 1)
        expected = k * sizes / n
        counts = _counts(neighbours(z[rows], k), own)
        statistic = (n - 1) / (n - k) * ((counts - expected) ** 2 / expected).sum(1)
        rates.append(min(1.0, float((statistic <= chi2.isf(alpha, len(sizes) - 1)).mean()) / (1 - alpha)))
    return float(np.mean(rates)) if rates else np.nan


def connectivity(near: Index, label: Codes) -> float:
    """Share of a label's cells in the largest piece of its neighbour graph, edges taken both ways, averaged over labels.

    1 where each label hangs together; 1/m where it falls into m equal pieces.

    Source: Luecken et al., Nature Methods 19 (2022).
    """
    n, k = near.shape
    row, column = np.repeat(np.arange(n), k), near.ravel()
    same = label[row] == label[column]
    graph = sp.csr_matrix((np.ones(int(same.sum()), dtype=bool), (row[same], column[same])), shape=(n, n))
    piece = sp.csgraph.connected_components(graph, directed=False)[1]
    return float(np.mean([np.bincount(piece[rows]).max() / len(rows) for rows in _members(label)]))


def silhouettes(z: Points, groups: Codes, *, other: Literal["nearest", "mean"] = "nearest") -> Points:
    """[n] silhouette of each cell, (b - a) / max(a, b): a its mean distance to its own group, b to the nearest other or to all others.

    0 for a cell alone in its group and where all distances are 0. Equal to :func:`sklearn.metrics.silhouette_samples` for
    ``"nearest"``. Needs two groups.
    """
    x = z - z.mean(0)
    sizes = np.bincount(groups)
    member = np.eye(len(sizes))[groups]
    out = np.zeros(len(x))
    step = max(1, BLOCK // len(x))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        d = euclidean_distances(x[part], x)
        d[np.arange(len(d)), np.arange(start, start + len(d))] = 0.0
        total, mine = d @ member, groups[part]
        cells = np.arange(len(d))
        own = total[cells, mine]
        if other == "mean":
            b = (total.sum(1) - own) / (len(x) - sizes[mine])
        else:
            means = total / sizes
            means[cells, mine] = np.inf
            b = means.min(1)
        a = own / np.maximum(sizes[mine] - 1, 1)
        top = np.maximum(a, b)
        out[part] = np.where((sizes[mine] > 1) & (top > 0), (b - a) / np.where(top > 0, top, 1.0), 0.0)
    return out


def silhouette_batch(z: Points, batch: Codes, label: Codes) -> float:
    """1 - |silhouette| of batches against all other batches, within each label, averaged over cells and then over labels.

    Labels of one batch, or of one cell per batch, are left out; NaN where none is left.

    Source: Luecken et al. (2022); against all others, not the nearest, as in BRAS (Rautenstrauch and Ohler 2025), which takes cosines.
    """
    scores = []
    for rows in _members(label):
        own = np.unique(batch[rows], return_inverse=True)[1]
        if 1 < own.max() + 1 < len(rows):
            scores.append(1 - float(np.abs(silhouettes(z[rows], own, other="mean")).mean()))
    return float(np.mean(scores)) if scores else np.nan


def variance_share(x: Points, groups: Codes) -> float:
    """Share of the variance of [n, d] points that lies between groups; the same in every basis. NaN where nothing varies.

    Equal to principal component regression on all components: the R² of each, weighted by its variance.
    """
    x = x - x.mean(0)
    sizes = np.bincount(groups)
    means = np.eye(len(sizes))[groups].T @ x / sizes[:, None]
    total = float((x**2).sum())
    return float((sizes[:, None] * means**2).sum() / total) if total > 0 else np.nan


def variance_removed(before: Points, after: Points, batch: Codes) -> float:
    """Share of the batch's share of variance that is gone after integration: (before - after) / before; 0 where it grew.

    Source: PCR comparison, Büttner et al. (2019), Luecken et al. (2022).
    """
    first = variance_share(before, batch)
    return float(np.maximum(0.0, (first - variance_share(after, batch)) / first)) if first > 0 else np.nan


def clusters(z: Points, k: int, *, seed: int = 0) -> Codes:
    """[n] cluster of each cell: k-means, the tightest of ten starts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters: the score says so
        return np.asarray(KMeans(k, n_init=10, random_state=seed).fit_predict(z))


def isolated_f1(found: Codes, batch: Codes, label: Codes) -> float:
    """Best F1 of any cluster for each label that is in the fewest batches, averaged over these labels.

    F1 of a cluster for a label is 2 |both| / (|cluster| + |label|). Where all labels are in all batches, it is over all labels.

    Args:
        found: [n] clusters.
        batch, label: [n] codes from 0.

    Source: isolated label score, Luecken et al. (2022), with the clusters that are given.
    """
    in_batches = (_table(label, batch) > 0).sum(1)
    both = _table(label, found)
    f1 = 2 * both / (both.sum(1, keepdims=True) + both.sum(0, keepdims=True))
    return float(f1.max(1)[in_batches == in_batches.min()].mean())


def _counts(near: Index, groups: Codes) -> NDArray[np.intp]:
    """[n, c] how many neighbours of each cell are of each group."""
    n, c = len(near), int(groups.max()) + 1
    flat = np.arange(n)[:, None] * c + groups[near]
    return np.bincount(flat.ravel(), minlength=n * c).reshape(n, c)


def _table(a: Codes, b: Codes) -> NDArray[Any]:
    """[codes of a, codes of b] numbers of cells."""
    width = int(b.max()) + 1
    return np.bincount(a * width + b, minlength=(int(a.max()) + 1) * width).reshape(-1, width)


def _members(groups: Codes) -> list[Index]:
    """Cells of each group."""
    return np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
