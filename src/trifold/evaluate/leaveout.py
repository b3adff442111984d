"""A class that a model never saw: where it puts its cells, beside the model that saw them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from sklearn.neighbors import NearestNeighbors

from trifold.errors import EvaluationError, TrifoldWarning, listing, suggest
from trifold.evaluate.folds import column as column_of
from trifold.evaluate.folds import needs
from trifold.evaluate.genes import labels as as_labels
from trifold.evaluate.preservation import cells, centroids, classes, rank_correlation, same_cells
from trifold.evaluate.space import Matrix, dense, fit_pca, matrix, project

Points = NDArray[np.float64]
COMPONENTS = 50  # of the data's principal components in which its neighbours are sought


class Embedding(Protocol):
    """A fitted method, as :func:`leave_classes_out` needs it. Neither method changes the AnnData that it is given."""

    def latent(self, adata: Any) -> Any:
        """[n, d] coordinates of the cells."""

    def reconstruct(self, adata: Any) -> Any | None:
        """[n, g] reconstructed values in the units of X, or None where the method has none."""


def unseen(
    seen: Any,
    left: Any,
    labels: Any,
    target: Any,
    *,
    data: Any = None,
    k: int = 15,
    error: tuple[float, float] | None = None,
) -> dict[str, float]:
    """How a class is embedded by a model that never saw it, against the model that saw everything. All are dimensionless.

    - ``displacement``: the left-out model's coordinates are aligned to the seen ones on the cells of the *other* classes
      (Procrustes: rotation or reflection, one scale, translation); mean Euclidean distance of the target's cells to where the
      seen model has them, over the class diameter. 0 is best. The diameter is the mean distance between two different cells of
      the class in ``seen``. Two fits of one model differ too: compare with a second seed of the model that saw everything.
    - ``displacement_spread``: the same distance over the spread of all cells in ``seen``, their root mean squared distance to their
      centroid: a model that draws a class together does not look worse for it.
    - ``centroid_displacement``: as ``displacement``, for the class centroid only.
    - ``neighbours``: overlap in [0, 1], 1 less the total variation distance, of the label histograms of the k nearest cells of
      other classes in ``left`` and in ``seen``; mean over the target's cells.
    - ``centroid_rank``: Spearman's correlation, left against seen, of the distances from the target's centroid to those of the
      other classes. Absent under three other classes.
    - ``neighbours_data``, ``centroid_rank_data``: the same two with the data in place of ``seen``, where ``data`` are given.
    - ``error_ratio``: error of the left-out model over that of the seen one; 1 where not seeing the class costs nothing.

    Args:
        seen: [n, d] coordinates of all cells by the model that saw all of them.
        left: [n, d] coordinates of the same cells, in order, by the model that was trained without the target's.
        labels: [n] classes. Cells without one are ignored.
        target: The class that was left out; two of its cells at least.
        data: [n, g] values of the same cells, dense or sparse. Neighbours are sought in 50 principal components of all cells
            if there are more genes than that, and centroids in the genes themselves.
        k: Neighbours.
        error: (of left, of seen), both in the same unit, on the target's cells.

    Returns:
        Name -> score.

    Raises:
        EvaluationError: Shapes differ, the class is absent, has one cell or no extent, the other classes have under k cells or
            no more than d, or a model has put them all in one place.

    Source: Procrustes with a scale, Schönemann and Carroll, Psychometrika 35 (1970); the scores are ours.
    """
    s, z, groups = dense(seen).astype(np.float64), dense(left).astype(np.float64), as_labels(labels)
    own, other = _split(s, z, groups, target, k)
    diameter = float(pdist(s[own]).mean())
    if not diameter > 0:
        raise EvaluationError(f"seen needs cells of {target!r} that differ; found all in one place. Leave out another class.")
    moved = align(z, s, on=other)
    away_by = float(np.linalg.norm(moved[own] - s[own], axis=1).mean())
    used = s[own | other]
    out = {
        "displacement": away_by / diameter,
        "displacement_spread": away_by / float(np.sqrt(((used - used.mean(0)) ** 2).sum(1).mean())),
        "centroid_displacement": float(np.linalg.norm(moved[own].mean(0) - s[own].mean(0))) / diameter,
    }
    names = [name for name in classes(groups) if name != target]
    votes, away = _votes(z, groups, names, own, other, k), _away(z, groups, names, own)
    out["neighbours"] = _overlap(votes, _votes(s, groups, names, own, other, k))
    if len(names) >= 3:
        out["centroid_rank"] = rank_correlation(away, _away(s, groups, names, own))
    if data is not None:
        x = cells(data)
        same_cells(len(s), data=x.shape[0])
        near = project(x, pca=fit_pca(x, COMPONENTS) if x.shape[1] > COMPONENTS else None)
        out["neighbours_data"] = _overlap(votes, _votes(near, groups, names, own, other, k))
        if len(names) >= 3:
            out["centroid_rank_data"] = rank_correlation(away, _away(x, groups, names, own))
    if error is not None:
        out["error_ratio"] = _ratio(error)
    return out


def leave_classes_out(
    method: Callable[[Any, int], Embedding],
    data: Any,
    column: str,
    *,
    classes: Sequence[Any] | None = None,
    seeds: Sequence[int] = (0,),
    k: int = 15,
) -> pd.DataFrame:
    """Fit once on all cells and once without each class, and score where the class lands: :func:`unseen`.

    Args:
        method: ``method(train, seed) -> Embedding``; ``train`` is a copy, an AnnData of the cells to learn from.
        data: AnnData with X dense or sparse, in the space that the method reconstructs; never changed.
        column: Column of obs with the classes. Cells without one are learned from in every fit, and not scored.
        classes: Which to leave out, one at a time; None takes all of two cells or more.
        seeds: Seeds given to the method.
        k: Neighbours.

    Returns:
        One row per seed and class: ``seed``, ``class``, ``n`` (its cells), the scores of :func:`unseen` (``data`` being X), and
        where the method reconstructs, ``error_left`` and ``error_seen`` (mean squared error per value on the class's cells, in
        squared units of X) and ``error_ratio``.

    Raises:
        EvaluationError: The column or a class is absent or too small, there are no seeds, or an embedding has the wrong shape.

    Warns:
        TrifoldWarning: Classes of one cell are left alone.
    """
    groups, x = column_of(data, column), cells(data)
    if not len(seeds):
        raise EvaluationError("seeds needs one seed or more; found none. Pass seeds=(0, 1, 2).")
    rows, chosen = [], _chosen(groups, column, classes)
    for seed in seeds:
        whole = method(data.copy(), seed)
        s = _latent(whole, data)
        for name in chosen:
            own = groups == name
            without = method(data[~own].copy(), seed)
            errors = _errors(without, whole, data[own])
            scores = unseen(s, _latent(without, data), groups, name, data=x, k=k, error=errors)
            found = {} if errors is None else {"error_left": errors[0], "error_seen": errors[1]}
            rows.append({"seed": seed, "class": name, "n": int(own.sum()), **scores, **found})
    return pd.DataFrame(rows)


def align(left: Points, seen: Points, *, on: NDArray[np.bool_]) -> Points:
    """[n, d] left, brought nearest to seen on the rows ``on`` by rotation or reflection, one scale and a translation.

    Raises:
        EvaluationError: The rows ``on`` lie all in one place in either.
    """
    from_, to = left[on].mean(0), seen[on].mean(0)
    a, b = left[on] - from_, seen[on] - to
    size = float((a * a).sum())
    u, values, vt = np.linalg.svd(a.T @ b)
    if not size > 0 or not values.sum() > 0:
        raise EvaluationError(
            "left and seen need coordinates of the other classes that vary; found all in one place. "
            "The model has collapsed: train it again with another seed or a weaker prior."
        )
    return (left - from_) @ (u @ vt) * (values.sum() / size) + to


def _split(s: Points, z: Points, groups: NDArray[Any], target: Any, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the target's cells and of the other classes' cells, checked."""
    same_cells(len(s), left=len(z), labels=len(groups))
    if s.shape != z.shape:
        raise EvaluationError(f"seen and left need the same number of coordinates; found {s.shape[1]} and {z.shape[1]}. Fit both alike.")
    own = groups == target
    other = ~own & np.asarray([v is not None for v in groups], dtype=bool)
    if own.sum() < 2:
        names = classes(groups)
        raise EvaluationError(
            f"target={target!r} needs two cells or more; found {int(own.sum())}.{suggest(target, names)} The labels are: {listing(names)}."
        )
    least, found = max(k, s.shape[1] + 1), int(other.sum())
    if k < 1 or found < least:
        fix = "Pass k=15." if k < 1 else "Lower k=, or pass more cells of other classes."
        raise EvaluationError(f"k must be at least 1, with {least} cells of other classes or more; found k={k} and {found} cells. {fix}")
    return own, other


def _votes(x: Points, groups: NDArray[Any], names: list[Any], own: NDArray[np.bool_], other: NDArray[np.bool_], k: int) -> Points:
    """[m, c] label histogram, summing to 1, of each target cell's k nearest cells of other classes."""
    code = pd.Categorical(groups[other], categories=names).codes
    near = NearestNeighbors(n_neighbors=k).fit(x[other]).kneighbors(x[own], return_distance=False)
    return np.eye(len(names))[code[near]].mean(axis=1)


def _away(x: Matrix, groups: NDArray[Any], names: list[Any], own: NDArray[np.bool_]) -> Points:
    """[c] distances from the target's centroid to those of the other classes."""
    target = groups[own][0]
    return np.linalg.norm(centroids(x, groups, names) - centroids(x, groups, [target]), axis=1)


def _overlap(a: Points, b: Points) -> float:
    return float(np.minimum(a, b).sum(axis=1).mean())


def _ratio(error: tuple[float, float]) -> float:
    left, seen = (float(v) for v in error)
    if not (np.isfinite([left, seen]).all() and left >= 0 and seen > 0):
        raise EvaluationError(f"error needs (left, seen) of zero or more, seen above zero; found ({left:.3g}, {seen:.3g}). Check error=.")
    return left / seen


def _chosen(groups: NDArray[Any], name: str, wanted: Sequence[Any] | None) -> list[Any]:
    """Classes to leave out."""
    found = classes(groups)
    for value in wanted or ():
        needs(name, groups, value)
    thin = [v for v in found if (groups == v).sum() < 2]
    if wanted is None and thin:
        warnings.warn(f"Not left out, with one cell only: {listing(thin)}. Name classes= to choose.", TrifoldWarning, stacklevel=3)
    chosen = [v for v in found if v not in thin] if wanted is None else list(wanted)
    if not chosen or len(found) < 2:
        raise EvaluationError(
            f"column={name!r} needs two classes, and one to leave out; found {listing(found) or 'none'}. Pass another column=, or classes=."
        )
    return chosen


def _latent(embedding: Embedding, data: Any) -> Points:
    z = dense(embedding.latent(data.copy()))
    same_cells(data.n_obs, latent=len(z))
    return z.astype(np.float64)


def _errors(without: Embedding, whole: Embedding, data: Any) -> tuple[float, float] | None:
    """Mean squared error per value of the two models on the class's cells; None where they do not reconstruct."""
    truth, out = dense(data).astype(np.float64), []
    for embedding in (without, whole):
        reconstruct = getattr(embedding, "reconstruct", None)
        answer = None if reconstruct is None else reconstruct(data.copy())
        if answer is None:
            return None
        values = dense(matrix(answer))
        if values.shape != truth.shape:
            raise EvaluationError(
                f"reconstruct must give shape {truth.shape}, as the cells that it gets; found {values.shape}. Return [n, g]."
            )
        out.append(float(((values - truth) ** 2).mean()))
    return out[0], out[1]
