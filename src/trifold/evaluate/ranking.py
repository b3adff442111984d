"""Scores that compare orders: overlap of differentially expressed genes, and telling the right target from the others."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from trifold.errors import EvaluationError
from trifold.evaluate.response import pair
from trifold.evaluate.space import Index, dense, mean


def de_genes(cells: Any, control: Any, *, k: int = 100, test: str = "t-test") -> Index:
    """Index of the ``k`` genes most differentially expressed between cells and control, either direction, strongest first.

    Args:
        cells: [n, g] cells in score space; two at least.
        control: [m, g] cells; two at least.
        k: How many genes.
        test: Method of :func:`scanpy.tl.rank_genes_groups`; genes are ranked by its absolute score.

    Raises:
        EvaluationError: A sample has under two cells, or the genes differ in number.
    """
    import anndata
    import scanpy

    a, b = pair(cells, control)
    if min(len(a), len(b)) < 2:
        raise EvaluationError(f"A test needs two cells or more on both sides; found {len(a)} and {len(b)}. Predict more cells.")
    x = np.concatenate([a, b]).astype(np.float32)
    names = [str(i) for i in range(len(x))]
    obs = pd.DataFrame({"side": pd.Categorical(["cells"] * len(a) + ["control"] * len(b))}, index=names)
    data = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[str(i) for i in range(x.shape[1])]))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # scanpy's fold changes of real values and of genes without variance; only ranks are read
        scanpy.tl.rank_genes_groups(
            data, "side", groups=["cells"], reference="control", method=test, rankby_abs=True, n_genes=min(k, x.shape[1])
        )
    return np.asarray(data.uns["rank_genes_groups"]["names"]["cells"]).astype(int)


def de_overlap(
    predicted: Any,
    real: Any,
    control: Any,
    *,
    k: int = 100,
    by: Literal["test", "change"] = "test",
    test: str = "t-test",
    truth: Index | None = None,
) -> float:
    """Share of the ``k`` genes that differ most between real and control cells that also differ most in the prediction, in [0, 1].

    By chance k / g. With ``by="test"`` both lists come from the library's test. It is hard on predictions that move every
    cell of a gene that is silent in control by a hair: such a gene has next to no variance and a huge t statistic (control
    plus a shift scores about 0). ``by="change"`` ranks the predicted genes by the absolute change of their mean instead.

    Args:
        predicted: [n, g] predicted cells in score space.
        real: [m, g] real cells under the target.
        control: [l, g] real cells under the source.
        k: How many genes; never more than half of them are taken, or the overlap would be high by chance.
        by: How predicted genes are ranked.
        test: Method of :func:`scanpy.tl.rank_genes_groups`.
        truth: What ``de_genes(real, control)`` says, k genes or more, where it is known already.

    Raises:
        EvaluationError: A sample has under two cells, the genes differ in number, or ``by`` is neither.
    """
    p, r = pair(predicted, real)
    k = max(1, min(k, p.shape[1] // 2))
    right = de_genes(r, control, k=k, test=test) if truth is None else truth[:k]
    if by == "test":
        found = de_genes(p, control, k=k, test=test)
    elif by == "change":
        found = np.argsort(-np.abs(mean(p) - mean(dense(control))), kind="stable")[:k]
    else:
        raise EvaluationError(f"by must be 'test' or 'change'; found {by!r}. Pass by='test'.")
    return len(set(found.tolist()) & set(right.tolist())) / k


def discrimination(predicted: Any, real: Any, *, metric: str = "euclidean") -> NDArray[np.float64]:
    """Share of the other targets whose real mean is further from a prediction than the right one's, in [0, 1].

    1: the right target is the nearest; 0.5: chance, and what one prediction for all targets gets on average. A tie counts
    half. Says whether effects are told apart, not whether they are right in size; meant for five targets or more.

    Args:
        predicted: [t, g] predicted mean (or change) of each target.
        real: [t, g] real mean (or change) of each target, in the same order.
        metric: Name of a distance of :func:`scipy.spatial.distance.cdist`: ``"euclidean"``, ``"cityblock"``, ``"cosine"``.

    Returns:
        [t] one score per target.

    Raises:
        EvaluationError: The shapes differ, or there are fewer than two targets.

    Source: one minus the normalised rank of Wu et al. 2024 (PerturBench, arXiv 2408.10609).
    """
    p, r = pair(predicted, real)
    if len(p) != len(r) or len(p) < 2:
        raise EvaluationError(
            f"discrimination needs one predicted and one real mean for each of two targets or more; found {len(p)} and {len(r)}. "
            "Pass one row per target."
        )
    d = cdist(p.astype(np.float64), r.astype(np.float64), metric)
    right = np.diag(d)[:, None]
    wins = (d > right) + 0.5 * (d == right)
    return np.asarray((wins.sum(1) - 0.5) / (len(p) - 1))
