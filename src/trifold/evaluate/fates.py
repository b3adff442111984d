"""Fate of undifferentiated cells, told by their nearest neighbours from other clones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from trifold.errors import EvaluationError, listing
from trifold.evaluate.genes import labels
from trifold.evaluate.preservation import classes, same_cells
from trifold.evaluate.space import dense

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]
NOT_A_FATE = frozenset({"", "na", "nan", "none", "unknown", "unassigned"})  # words by which tables say that they do not know


def fate(
    latent: Any,
    fates: Any,
    clones: Any,
    *,
    query: Any,
    reference: Any = None,
    k: int = 15,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """How well the fate of cells is told by their k nearest neighbours in latent space, split by clone. Dimensionless.

    Clones are dealt at random into folds with as many of each fate, and a cell is predicted from voting cells of the other folds
    only: never by its own clone, whose cells resemble it and share its fate. Fates in floats are shares, all others classes.
    Every clone weighs the same in every score, however many query cells it has: their fate is one observation. ``auroc`` and
    ``spearman`` compare cells of one fold only, which have the same voters, and average over folds. So both are at chance on
    average where fates are shuffled between clones. Over all cells at once they are not: a clone that is held out takes its own
    fate's votes along, and the plain AUROC of shuffled fates is 0.41 on early undifferentiated cells of the LARRY subset.

    On LARRY (Weinreb et al. 2020), where a fate is that of the clone on day 6 and each query cell was taken earlier::

        obs = adata.obs
        early = (obs["day"] < 6) & (obs["cell_type"] == "undiff")
        fate(z, obs["neu_vs_mono_fate_d6"], obs["clone"], query=early)  # a share, NaN for clones without either fate
        two = obs["clone_fate_d6"].where(obs["clone_fate_d6"].isin(["Neutrophil", "Monocyte"]))  # drops 'unknown' too
        fate(z, two, obs["clone"], query=early)

    There ``reference=obs["day"] < 6`` has early cells vote only: late ones have a type that says what became of them. With so
    few clones the deal of the folds matters: report the mean over several seeds.

    Args:
        latent: [n, d] coordinates.
        fates: [n] fates; None or NaN where unknown. Floats in [0, 1], say the share of one of two fates, or labels of any
            other type.
        clones: [n] clones.
        query: [n] booleans: cells to predict. Those of unknown fate are left out.
        reference: [n] booleans: cells that may vote; those of unknown fate do not. None takes all with a known fate and clone.
        k: Neighbours that vote, with equal weight.
        folds: Folds of clones. One clone to a fold leaves nothing to compare within it: no AUROC, and a Spearman of 0.
        seed: Of the folds.

    Returns:
        ``n`` and ``clones``, the cells and clones that are scored, and for classes:

        - ``auroc``: area under the ROC curve of the neighbours' share of votes, 0.5 by chance; with more than two classes the
          plain mean over the classes among the query cells, each against the rest, however rare. A class without a fold that
          holds it and another is left out, and the key is absent where all are.
        - ``accuracy`` and ``balanced_accuracy`` (mean over classes of their recall) of the class with most votes, the more
          common one among the voters where votes are equal. Over all folds: somewhat below chance where nothing can be told.
        - ``chance``: share of the most common class, which is the accuracy of always naming it.

        For shares: ``spearman`` of the neighbours' mean with the truth, ``r2`` (1 less the squared error over the variance of
        the truth; below 0 where the overall mean is better), and ``auroc`` of the neighbours' mean for a truth above 0.5, absent
        where no fold has both sides.

    Raises:
        EvaluationError: Sizes differ, a mask is not of booleans, a cell has no clone, a label says 'unknown', a share is outside
            [0, 1], the query cells have one fate only, there are fewer clones than folds, or fewer than k voters.

    Source: ours; the data and the question are those of Weinreb et al., Science 367 (2020).
    """
    z, truth, clone = dense(latent).astype(np.float64), labels(fates), labels(clones)
    n = len(z)
    same_cells(n, fates=len(truth), clones=len(clone))
    known = np.asarray([v is not None for v in truth], dtype=bool)
    has_clone = np.asarray([v is not None for v in clone], dtype=bool)
    asked = known & _mask(query, n, "query")
    voters = known & (has_clone if reference is None else _mask(reference, n, "reference"))
    _check(truth, has_clone, asked, voters)
    numbers = all(isinstance(v, (float, np.floating)) for v in truth[asked | voters])
    fold = _deal(clone, truth if numbers else truth.astype(str), asked, voters, folds, seed)
    size = {"n": float(asked.sum()), "clones": float(len(set(clone[asked])))}
    weight = _weights(clone[asked])
    if numbers:
        share = np.where(known, truth, np.nan).astype(np.float64)
        _check_shares(share, asked | voters)
        return _shares(_vote(z, share[:, None], fold, asked, voters, k)[0][:, 0], share[asked], fold[asked], weight) | size
    names = classes(truth[asked | voters])
    ballot = np.stack([truth == name for name in names], axis=1)
    return _classes(*_vote(z, ballot.astype(np.float64), fold, asked, voters, k), ballot[asked], fold[asked], weight) | size


def _deal(clone: NDArray[Any], truth: NDArray[Any], asked: Mask, voters: Mask, folds: int, seed: int) -> NDArray[np.intp]:
    """[n] fold of each used cell's clone, -1 for the others. Clones with query cells, and clones of one fate, are spread evenly."""
    used = asked | voters
    names = classes(clone[used])
    if not 2 <= folds <= len(names):
        raise EvaluationError(f"folds must lie in 2 to the number of clones ({len(names)}); found {folds}. Lower folds=, or widen query=.")
    of = {clone[i]: (not asked[i], truth[i]) for i in (*np.flatnonzero(voters), *np.flatnonzero(asked))}
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    code = {name: i % folds for i, name in enumerate(sorted(shuffled, key=lambda name: of[name]))}
    return np.asarray([code[c] if u else -1 for c, u in zip(clone, used, strict=True)], dtype=np.intp)


def _vote(z: Points, ballot: Points, fold: NDArray[np.intp], asked: Mask, voters: Mask, k: int) -> tuple[Points, Points]:
    """[m, c] mean ballot of each asked cell's k nearest voters of other folds, and [m, c] mean ballot of all of these folds."""
    votes, prior = np.zeros_like(ballot), np.zeros_like(ballot)
    for f in np.unique(fold[asked]):
        ask, vote = np.flatnonzero(asked & (fold == f)), np.flatnonzero(voters & (fold != f))
        if not 1 <= k <= len(vote):
            raise EvaluationError(
                f"k must lie in 1 to the number of voters in the other folds ({len(vote)}); found {k}. Change k=, or widen reference=."
            )
        near = NearestNeighbors(n_neighbors=k).fit(z[vote]).kneighbors(z[ask], return_distance=False)
        votes[ask], prior[ask] = ballot[vote][near].mean(axis=1), ballot[vote].mean(axis=0)
    return votes[asked], prior[asked]


def _classes(votes: Points, prior: Points, truth: Mask, fold: NDArray[np.intp], weight: Points) -> dict[str, float]:
    """Scores of votes [m, c] against the true class, one-hot [m, c]."""
    present = np.flatnonzero(truth.any(axis=0))
    named = (votes + 1e-9 * prior).argmax(axis=1)
    right = truth[np.arange(len(truth)), named]
    areas = [a for c in present for a in _auroc(votes[:, c], truth[:, c], fold, weight)]
    recalls = [np.average(right[truth[:, c]], weights=weight[truth[:, c]]) for c in present]
    return ({"auroc": float(np.mean(areas))} if areas else {}) | {
        "accuracy": float(np.average(right, weights=weight)),
        "balanced_accuracy": float(np.mean(recalls)),
        "chance": float(np.average(truth, axis=0, weights=weight).max()),
    }


def _shares(predicted: Points, truth: Points, fold: NDArray[np.intp], weight: Points) -> dict[str, float]:
    """Scores of predicted shares [m] against the true ones."""
    spread = np.average((truth - np.average(truth, weights=weight)) ** 2, weights=weight)
    area = _auroc(predicted, truth > 0.5, fold, weight)
    parts = [fold == f for f in np.unique(fold)]
    ranked = [_rank_correlation(predicted[p], truth[p], weight[p]) for p in parts]
    return {
        "spearman": float(np.average(ranked, weights=[weight[p].sum() for p in parts])),
        "r2": float(1 - np.average((predicted - truth) ** 2, weights=weight) / spread),
    } | ({"auroc": area[0]} if area else {})


def _auroc(value: Points, positive: Mask, fold: NDArray[np.intp], weight: Points) -> list[float]:
    """Weighted share of the pairs of a positive and a negative of one fold that are in order, ties half; empty without a pair."""
    area = total = 0.0
    for f in np.unique(fold):
        p, sign = weight[fold == f], positive[fold == f]
        above = float(p[sign].sum())
        area += float((p * _rank(value[fold == f], p))[sign].sum()) - above**2 / 2  # less the pairs of two positives
        total += above * float(p[~sign].sum())
    return [area / total] if total > 0 else []


def _rank_correlation(a: Points, b: Points, weight: Points) -> float:
    """Spearman's correlation of weighted cells, ties at their mean rank; 0 where either does not vary."""
    x, y = ((r - np.average(r, weights=weight)) * np.sqrt(weight) for r in (_rank(a, weight), _rank(b, weight)))
    size = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / size) if size > 1e-9 else 0.0


def _rank(value: Points, weight: Points) -> Points:
    """Weight of all that is less, and half of what is equal."""
    _, code = np.unique(value, return_inverse=True)
    mass = np.bincount(code, weights=weight)
    return np.asarray((np.cumsum(mass) - mass / 2)[code])


def _weights(clone: NDArray[Any]) -> Points:
    """[m] weights of the cells, one over the size of their clone."""
    _, code, size = np.unique(clone.astype(str), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / size[code])


def _mask(values: Any, n: int, name: str) -> Mask:
    mask = np.asarray(values)
    if mask.shape != (n,) or mask.dtype != bool:
        raise EvaluationError(
            f"{name} needs one boolean for each of {n} cells; found {mask.dtype} of shape {mask.shape}. Pass {name}=(obs['day'] < 6)."
        )
    return mask


def _check(truth: NDArray[Any], has_clone: Mask, asked: Mask, voters: Mask) -> None:
    orphans = int(((asked | voters) & ~has_clone).sum())
    if orphans:
        raise EvaluationError(
            f"clones needs a clone for every cell that is predicted or votes; {orphans} have none. "
            "Take them out of query= and reference=: query & obs['clone'].notna()."
        )
    words = sorted({v for v in truth[asked | voters] if isinstance(v, str) and v.strip().lower() in NOT_A_FATE})
    if words:
        raise EvaluationError(
            f"fates needs None or NaN where a fate is unknown; found the label {words[0]!r}. Pass fates.where(fates != {words[0]!r})."
        )
    found = classes(truth[asked])
    if len(found) < 2:
        raise EvaluationError(
            f"query needs cells of two known fates or more; found {int(asked.sum())} cells with {listing(found) or 'none'}. Widen query=."
        )


def _check_shares(share: Points, used: Mask) -> None:
    low, high = share[used].min(), share[used].max()
    if low < 0 or high > 1:
        raise EvaluationError(
            f"fates in floats are shares from 0 to 1; found {low:.3g} to {high:.3g}. For classes pass labels: fates.astype('Int64')."
        )
