"""Errors of a prediction where the truth is known: simulated studies give the true mean and true draws of every cell."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from trifold.errors import EvaluationError
from trifold.evaluate.distance import e_distance, mmd2
from trifold.evaluate.response import correlation, variance_concordance, zero_concordance
from trifold.evaluate.space import Kind, dense, to_score


def log_change(mean: Any, base: Any, *, pseudocount: float = 0.01) -> NDArray[np.float64]:
    """Change of the log mean from base, in nats: log(mean + pseudocount) - log(base + pseudocount), entry by entry.

    Args:
        mean: [g] or [n, g] expected counts; zero or more.
        base: [g] or [n, g] expected counts of the same cells, or genes, under the source.
        pseudocount: In counts; genes whose means lie far below it count as unchanged.

    Raises:
        EvaluationError: The shapes differ, or a mean is negative or not finite.
    """
    a, b = np.asarray(mean, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if a.shape != b.shape:
        raise EvaluationError(
            f"mean and base need the same shape; found {a.shape} and {b.shape}. Average cells first, or pass the same cells."
        )
    for side in (a, b):
        if not np.isfinite(side).all() or side.min(initial=0) < 0:
            raise EvaluationError(
                f"mean and base need expected counts of zero or more; found {np.nanmin(side):.3g} at least, or values that are not finite. "
                "Pass means before any logarithm."
            )
    if not pseudocount > 0:
        raise EvaluationError(f"pseudocount must be above zero; found {pseudocount}. Pass pseudocount=0.01.")
    return np.asarray(np.log(a + pseudocount) - np.log(b + pseudocount))


def mean_error(predicted: Any, true: Any, base: Any, *, kind: Kind = "counts", pseudocount: float = 0.01) -> dict[str, float]:
    """Error of a predicted mean change against the true one.

    Counts: of the change of the log mean, in nats. Real values: of the change of the mean, in their unit.

    Args:
        predicted: [g] predicted mean, or [n, g] one per cell.
        true: The true mean under the target, same shape: of the same cells and library sizes where one per cell.
        base: The true mean under the source, same shape.
        kind: ``"counts"`` or ``"real"``.
        pseudocount: As in :func:`log_change`.

    Returns:
        ``rmse_change`` over all entries; ``pearson_change`` over genes, averaged over cells (0 for a cell in which one side does not
        change); ``rmse_no_change``, the error of predicting base, to compare the first with.

    Raises:
        EvaluationError: The shapes differ, or a mean is negative (counts) or not finite.
    """
    if kind == "counts":
        p, t = log_change(predicted, base, pseudocount=pseudocount), log_change(true, base, pseudocount=pseudocount)
    elif np.shape(predicted) == np.shape(true) == np.shape(base):
        p, t = (np.asarray(v, dtype=np.float64) - np.asarray(base, dtype=np.float64) for v in (predicted, true))
    else:
        raise EvaluationError(
            f"predicted, true and base need the same shape; found {np.shape(predicted)}, {np.shape(true)} and {np.shape(base)}. "
            "Pass the same cells or genes."
        )
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        raise EvaluationError(
            "predicted, true and base need finite means; found NaN or infinity. Drop these cells, or repair the prediction."
        )
    per_cell = [correlation(a, b) for a, b in zip(np.atleast_2d(p), np.atleast_2d(t), strict=True)]
    return {
        "rmse_change": float(np.sqrt(np.mean((p - t) ** 2))),
        "pearson_change": float(np.mean(per_cell)),
        "rmse_no_change": float(np.sqrt(np.mean(t**2))),
    }


def draws_error(predicted: Any, true: Any, *, kind: Kind = "counts", pca: PCA | None = None) -> dict[str, float]:
    """Distance of predicted cells from true draws of the same cells under the target: the distribution, not the mean.

    Args:
        predicted: [n, g] predicted cells, in the data's own units.
        true: [m, g] draws of the simulator.
        kind: ``"counts"`` (log-normalised here) or ``"real"``.
        pca: From :func:`fit_pca` on simulated cells in score space; None takes distances over all genes.

    Returns:
        ``e_distance``, ``mmd2``, ``variance_concordance``, ``zero_concordance``.

    Raises:
        EvaluationError: A sample has under two cells, the genes differ in number, or values are not finite.
    """
    p, t = dense(to_score(predicted, kind=kind)), dense(to_score(true, kind=kind))
    return {
        "e_distance": e_distance(p, t, pca=pca),
        "mmd2": mmd2(p, t, pca=pca),
        "variance_concordance": variance_concordance(p, t),
        "zero_concordance": zero_concordance(p, t),
    }
