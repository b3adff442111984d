"""How well real cells predict real cells: one half of them against the other, never against a set that contains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from trifold.errors import EvaluationError
from trifold.evaluate.score import score
from trifold.evaluate.space import Index, dense


def halves(n: int, *, splits: int = 10, seed: int = 0) -> Iterator[tuple[Index, Index]]:
    """``splits`` random pairs of disjoint index arrays that together hold all ``n`` cells; sizes differ by one at most.

    Raises:
        EvaluationError: There are fewer than four cells (each half needs two), or no split is asked for.
    """
    if n < 4:
        raise EvaluationError(f"A ceiling needs four real cells or more; found {n}. Leave this group out, or score it without a ceiling.")
    if splits < 1:
        raise EvaluationError(f"splits must be at least 1; found {splits}. Pass splits=10.")
    rng = np.random.default_rng(seed)
    for _ in range(splits):
        order = rng.permutation(n)
        yield order[: n // 2], order[n // 2 :]


def ceiling(
    real: Any,
    control: Any,
    *,
    splits: int = 10,
    seed: int = 0,
    top: Mapping[int, Any] | None = None,
    pca: PCA | None = None,
    centroid: Any = None,
    de: Sequence[int] = (100,),
) -> pd.DataFrame:
    """Every score of one half of the real cells as a prediction of the other half, for a number of seeded splits.

    Each side has half of the cells, while a model's prediction meets all of them: for noisy metrics (Pearson, R², RMSE,
    overlap) the ceiling is therefore a little too low and a very good model of a small group can exceed it. It is given
    plain, without a Spearman-Brown or like correction, which would assume that noise is of one size over genes. Energy
    distance and MMD are unbiased: their ceiling is 0 up to noise at every sample size. Control cells are the same on both
    sides, as they are for a model.

    Args:
        real: [m, g] real cells of the group under the target in score space; four at least.
        control: [l, g] real cells of the group under the source.
        splits: How many random splits.
        seed: Of the splits; the global generator is left as found.
        top, pca, centroid, de: As in :func:`score`.

    Returns:
        One row per split, one column per metric; take its mean.

    Raises:
        EvaluationError: There are fewer than four real cells, or as :func:`score`.
    """
    r, c = dense(real), dense(control)
    rows = [score(r[a], r[b], c, top=top, pca=pca, centroid=centroid, de=de) for a, b in halves(len(r), splits=splits, seed=seed)]
    return pd.DataFrame(rows).rename_axis("split")
