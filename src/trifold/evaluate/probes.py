"""What can be read from a latent: probes that predict columns of obs on cells that they never saw, beside chance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trifold.errors import EvaluationError, listing, suggest
from trifold.evaluate.genes import labels as as_labels
from trifold.evaluate.preservation import classes, same_cells
from trifold.evaluate.space import Index, dense

Points = NDArray[np.float64]
Split = tuple[Index, Index]  # training and test cells
CELLS, NEIGHBOURS = 10_000, 15
PROBES = {"category": ("linear", "nearest", "network"), "number": ("linear", "nearest")}


def probes(
    latents: Mapping[str, Any],
    obs: pd.DataFrame,
    columns: Sequence[str],
    *,
    within: str | None = None,
    train: Any = None,
    test: Any = None,
    folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How well each column of obs is predicted from each latent, on cells that the probe has not seen, beside chance.

    Categories are predicted by ``linear`` (logistic regression), ``nearest`` (15 nearest cells) and ``network`` (one hidden layer of
    64); numbers by ``linear`` (ridge) and ``nearest``. Linear and network see standardised coordinates, nearest the latent's own
    distances. From a probe's p(category | z), ``accuracy`` takes the most probable category, and ``balanced_accuracy`` the one of
    largest p(category | z) / p(category): the rule that maximises it. Neither is held back by the other.

    Where a batch holds other cell types than the next, it is told from the type alone, without any leak. ``within`` names that type:
    ``chance_within`` and ``balanced_chance_within`` are what the same two rules reach from p(category | within) of the training cells.

    Args:
        latents: Name -> [n, d] latent, one row per cell.
        obs: [n] cells.
        columns: Columns of obs to predict. Numeric columns are numbers: cast codes that are names to str. Cells without a value
            are left out for that column.
        within: Column of obs whose composition is no leak; None leaves its chance out.
        train, test: [n] masks of the cells that are learned from and scored; one alone takes the other cells. Give whole batches or
            studies here to ask whether a probe transfers. None for both is cross-validation.
        folds: Of the cross-validation, stratified by the column. All latents have the same.
        seed: Of the folds, of the network's start, and of the 10,000 cells that are drawn where there are more.

    Returns:
        One row per (latent, column, probe): ``latent``, ``column``, ``probe``, ``measure`` (``"accuracy"``, or ``"r2"`` for numbers),
        ``accuracy`` (share of test cells that are right; of numbers, R² with the test cells' variance), ``balanced_accuracy`` (mean
        over categories; NaN for numbers), ``chance`` (share of the largest category among test cells; 0 for R²),
        ``balanced_chance`` (one over the number of categories), ``chance_within`` and ``balanced_chance_within`` where asked for,
        ``cells`` (test cells). Folds are pooled.

    Raises:
        EvaluationError: A column is absent or does not vary, rows differ in number, values are not finite, masks overlap or
            are empty, or a training set holds one category.
    """
    _check(latents, obs, columns, within, folds)
    rows, tested = _cells(len(obs), train, test, seed=seed)
    points = {}
    for name, z in latents.items():
        x = dense(z).astype(np.float64)
        same_cells(len(obs), **{str(name): len(x)})
        points[str(name)] = x[rows]
    out = []
    for column in columns:
        kind, y = _target(obs[column].iloc[rows], column)
        known = np.flatnonzero(y >= 0 if kind == "category" else np.isfinite(y))
        y = y[known]
        splits = _splits(y if kind == "category" else np.zeros(len(y), dtype=np.intp), tested, known, folds=folds, seed=seed)
        for fit, _ in splits:
            if not len(fit) or (kind == "category" and len(np.unique(y[fit])) < 2):
                raise EvaluationError(
                    f"Training cells need two values of {column!r} or more; found "
                    f"{len(np.unique(y[fit]))} in {len(fit)} cells. Pass train= that holds more of them, or neither mask."
                )
        chance = _chance(kind, y, splits, None if within is None else _codes(obs[within].iloc[rows[known]]))
        for name, x in points.items():
            for probe in PROBES[kind]:
                found = _score(kind, y, splits, _probe(kind, probe, x[known], y, seed=seed))
                out.append({"latent": name, "column": column, "probe": probe, **found, **chance})
    return pd.DataFrame(out)


def leakage(table: pd.DataFrame) -> pd.DataFrame:
    """By how much the strongest probe beats chance, for each latent and column. In points of accuracy, or of R² for numbers.

    The strongest is chosen on the cells that it is scored on, separately for each column of the result: with three probes and
    hundreds of cells, some thousandths above zero say nothing.

    Args:
        table: From :func:`probes`.

    Returns:
        Indexed by (latent, column): ``leakage`` = accuracy - chance, ``balanced_leakage`` the same balanced, and with
        ``within`` also ``leakage_within``, ``balanced_leakage_within``: above what composition gives away.

    Raises:
        EvaluationError: A column is absent.
    """
    needed = ("latent", "column", "probe", "accuracy", "balanced_accuracy", "chance", "balanced_chance")
    missing = [c for c in needed if c not in table.columns]
    if missing:
        raise EvaluationError(f"table must be what probes gives; found no column {listing(missing)}. Pass leakage(probes(...)).")
    pairs = [(f"{b}leakage{w}", f"{b}accuracy", f"{b}chance{w}") for w in ("", "_within") for b in ("", "balanced_")]
    above = {name: table[score] - table[chance] for name, score, chance in pairs if chance in table.columns}
    return table[["latent", "column"]].assign(**above).groupby(["latent", "column"], sort=False).max()


def _probe(kind: str, probe: str, x: Points, y: NDArray[Any], *, seed: int) -> Callable[[Index, Index], Points]:
    """(train, test) -> predictions of a probe: [m, k] probabilities of categories 0 to k - 1, or [m] numbers."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def predict(fit: Index, on: Index) -> Points:
        k = min(NEIGHBOURS, len(fit))
        learner: Any = {
            ("category", "linear"): lambda: LogisticRegression(max_iter=200),
            ("category", "nearest"): lambda: KNeighborsClassifier(k),
            ("category", "network"): lambda: MLPClassifier(
                (64,), alpha=1e-3, batch_size=min(128, len(fit)), learning_rate_init=3e-3, max_iter=30, random_state=seed
            ),
            ("number", "linear"): lambda: Ridge(1.0),
            ("number", "nearest"): lambda: KNeighborsRegressor(k),
        }[kind, probe]()
        model = learner if probe == "nearest" else make_pipeline(StandardScaler(), learner)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # steps are capped on purpose: a probe is compared, not published
            model.fit(x[fit], y[fit])
        if kind == "number":
            return np.asarray(model.predict(x[on]))
        p = np.zeros((len(on), int(y.max()) + 1))
        p[:, model.classes_] = model.predict_proba(x[on])
        return p

    return predict


def _score(kind: str, y: NDArray[Any], splits: list[Split], predict: Callable[[Index, Index], Points]) -> dict[str, Any]:
    """Scores of a probe over all test cells, each predicted without having been seen."""
    on = np.concatenate([on for _, on in splits])
    if kind == "number":
        off = y[on] - np.concatenate([predict(fit, part) for fit, part in splits])
        return {"measure": "r2", "accuracy": _r2(y[on], off), "balanced_accuracy": np.nan}
    plain, balanced = [], []
    for fit, part in splits:
        p, share = predict(fit, part), np.bincount(y[fit], minlength=int(y.max()) + 1)
        plain.append(p.argmax(1))
        balanced.append((p / np.maximum(share, 1)).argmax(1))
    right = np.concatenate(plain) == y[on]
    return {"measure": "accuracy", "accuracy": float(right.mean()), "balanced_accuracy": _balanced(y[on], np.concatenate(balanced))}


def _chance(kind: str, y: NDArray[Any], splits: list[Split], within: NDArray[np.intp] | None) -> dict[str, Any]:
    """Scores without the latent: of the largest category, and of the composition."""
    on = np.concatenate([on for _, on in splits])
    counts = np.bincount(y[on]) if kind == "category" else None
    out: dict[str, Any] = {
        "chance": 0.0 if counts is None else float(counts.max() / len(on)),
        "balanced_chance": np.nan if counts is None else 1 / int((counts > 0).sum()),
    }
    if within is not None:
        found = _score(kind, y, splits, _composition(kind, y, within))
        out |= {"chance_within": found["accuracy"], "balanced_chance_within": found["balanced_accuracy"]}
    return out | {"cells": len(on)}


def _composition(kind: str, y: NDArray[Any], within: NDArray[np.intp]) -> Callable[[Index, Index], Points]:
    """(train, test) -> p(category | within), or the mean within, of the training cells; that of all where a value is new."""
    groups = int(within.max()) + 1

    def predict(fit: Index, on: Index) -> Points:
        each = np.eye(int(y.max()) + 1)[y[fit]] if kind == "category" else y[fit][:, None]
        total = np.zeros((groups, each.shape[1]))
        np.add.at(total, within[fit], each)
        size = np.bincount(within[fit], minlength=groups)[:, None]
        p = np.where(size > 0, total / np.maximum(size, 1), each.mean(0))[within[on]]
        return p if kind == "category" else p[:, 0]

    return predict


def _balanced(truth: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Share that is right, averaged over the categories of the truth."""
    size = np.bincount(truth)
    right = np.bincount(truth[truth == predicted], minlength=len(size))
    return float((right[size > 0] / size[size > 0]).mean())


def _r2(truth: Points, off: Points) -> float:
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float((off**2).sum()) / spread if spread > 0 else np.nan


def _splits(y: NDArray[Any], tested: NDArray[np.bool_] | None, known: Index, *, folds: int, seed: int) -> list[Split]:
    """Training and test cells among the known ones: the masks, or folds that each hold their share of every category."""
    if tested is not None:
        return [(np.flatnonzero(~tested[known]), np.flatnonzero(tested[known]))]
    fold = np.empty(len(y), dtype=np.intp)
    fold[np.lexsort((np.random.default_rng(seed).random(len(y)), y))] = np.arange(len(y)) % folds
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(folds)]


def _cells(n: int, train: Any, test: Any, *, seed: int) -> tuple[Index, NDArray[np.bool_] | None]:
    """Ascending index of the cells in use, 10,000 at most, and which of them are tested; None for cross-validation."""
    given: dict[str, NDArray[np.bool_]] = {}
    for name, values in (("train", train), ("test", test)):
        if values is not None:
            mask = np.asarray(values)
            if mask.dtype != bool or mask.shape != (n,):
                found = f"{mask.dtype} of shape {mask.shape}"
                raise EvaluationError(f"{name} must be a boolean mask of {n} cells; found {found}. Pass {name}=(obs[column] == value).")
            given[name] = mask
    learned = given["train"] if "train" in given else ~given["test"] if given else np.ones(n, dtype=bool)
    scored = given.get("test", ~learned)
    overlap = int((learned & scored).sum())
    if given and (overlap or not learned.any() or not scored.any()):
        raise EvaluationError(
            f"train= and test= need cells each, and none in common; found {int(learned.sum())} and {int(scored.sum())}, "
            f"{overlap} in both. Pass test=~train."
        )
    rows = np.flatnonzero(learned | scored)
    if len(rows) > CELLS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, CELLS, replace=False))
    return rows, scored[rows] if given else None


def _target(values: pd.Series, column: str) -> tuple[str, NDArray[Any]]:
    """Kind and [m] values of a column: codes of categories, -1 where missing; or numbers, not finite where missing."""
    number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    y: NDArray[Any] = values.to_numpy(dtype=np.float64, na_value=np.nan) if number else _codes(values)
    different = len(np.unique(y[np.isfinite(y)] if number else y[y >= 0]))
    if different < 2:
        raise EvaluationError(
            f"columns needs columns of two values or more; {column!r} has {different} in these cells. Leave it out of columns=."
        )
    return ("number" if number else "category"), y


def _codes(values: pd.Series) -> NDArray[np.intp]:
    """[m] codes from 0 of categories, -1 where missing."""
    found = as_labels(values)
    return np.asarray(pd.Categorical(found, categories=classes(found)).codes, dtype=np.intp)


def _check(latents: Mapping[str, Any], obs: pd.DataFrame, columns: Sequence[str], within: str | None, folds: int) -> None:
    if isinstance(columns, str) or not len(columns) or not latents:
        fix = f"columns=[{columns!r}]" if isinstance(columns, str) else "latents={'name': z} and columns=['batch']"
        raise EvaluationError(
            f"latents needs one latent or more, and columns a list of one or more; found {len(latents)} and columns={columns!r}. "
            f"Pass {fix}."
        )
    for column in (*columns, *(() if within is None else (within,))):
        if column not in obs.columns:
            raise EvaluationError(f"obs has no column {column!r}.{suggest(column, obs.columns)} It has: {listing(obs.columns)}.")
    if not 2 <= folds <= len(obs):
        raise EvaluationError(f"folds must lie in 2 to the {len(obs)} cells; found {folds}. Pass folds=5.")
