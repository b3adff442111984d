"""All scores of one predicted group of cells at once, and which way each of them is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sklearn.decomposition import PCA

from trifold.errors import EvaluationError
from trifold.evaluate.distance import e_distance, mmd2
from trifold.evaluate.ranking import de_genes, de_overlap
from trifold.evaluate.response import pair, pearson_delta, r2_mean, r2_var, rmse_delta, variance_concordance, zero_concordance

HIGHER = ("pearson", "r2", "variance_concordance", "zero_concordance", "de_overlap", "discrimination")
LOWER = ("rmse", "e_distance", "mmd2")


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of the metric is the better one: ``higher_is_better("pearson_delta_top20")`` is True.

    Raises:
        EvaluationError: The name begins like none of ours.
    """
    if metric.startswith(HIGHER):
        return True
    if metric.startswith(LOWER):
        return False
    raise EvaluationError(
        f"metric needs a name whose direction is known; found {metric!r}. Begin it with one of {', '.join(HIGHER + LOWER)}."
    )


def score(
    predicted: Any,
    real: Any,
    control: Any,
    *,
    top: Mapping[int, Any] | None = None,
    pca: PCA | None = None,
    centroid: Any = None,
    de: Sequence[int] = (100,),
) -> dict[str, float]:
    """Every score of predicted cells against real ones, all in score space.

    ===================================  ==================================================================
    ``r2_mean``, ``r2_var``              squared Pearson of means, of variances, as published
    ``pearson_delta``, ``rmse_delta``    the change of the mean against control, all genes
    ``pearson_delta_top20``, ...         the same on the top genes
    ``pearson_centroid``                 the change of the mean against the centroid of other groups' target
    ``e_distance``, ``mmd2``             between the samples, unbiased, in the principal components
    ``variance_concordance``             of log variances over genes
    ``zero_concordance``                 of the shares of zeros over genes
    ``de_overlap_100``, ...              of the top differentially expressed genes, by a test
    ``de_overlap_change_100``, ...       of the same with the genes of largest predicted change
    ===================================  ==================================================================

    Args:
        predicted: [n, g] predicted cells; two at least.
        real: [m, g] real cells of the group under the target; two at least.
        control: [l, g] real cells of the group under the source; two at least.
        top: Size -> index of top genes, from :func:`top_genes` on training groups.
        pca: From :func:`fit_pca` on real cells; None takes distances over all genes.
        centroid: [g] mean over the other groups of their target means; None leaves its score out.
        de: Sizes of the gene lists whose overlap is scored; empty for none (it is the slow one).

    Returns:
        Metric -> value, always with the same keys for the same arguments. NaN: the metric says nothing of these cells.

    Raises:
        EvaluationError: The genes differ in number, cells are too few, or values are not finite.
    """
    p, r = pair(predicted, real)
    c, _ = pair(control, r)
    out = {"r2_mean": r2_mean(p, r), "r2_var": r2_var(p, r), "pearson_delta": pearson_delta(p, r, c), "rmse_delta": rmse_delta(p, r, c)}
    for size, genes in (top or {}).items():
        out[f"pearson_delta_top{size}"] = pearson_delta(p, r, c, genes=genes)
        out[f"rmse_delta_top{size}"] = rmse_delta(p, r, c, genes=genes)
    if centroid is not None:
        out["pearson_centroid"] = pearson_delta(p, r, centroid)
    out["e_distance"] = e_distance(p, r, pca=pca)
    out["mmd2"] = mmd2(p, r, pca=pca)
    out["variance_concordance"] = variance_concordance(p, r)
    out["zero_concordance"] = zero_concordance(p, r)
    known = de_genes(r, c, k=max(de)) if de else None
    for size in de:
        out[f"de_overlap_{size}"] = de_overlap(p, r, c, k=size, truth=known)
        out[f"de_overlap_change_{size}"] = de_overlap(p, r, c, k=size, by="change", truth=known)
    return out
