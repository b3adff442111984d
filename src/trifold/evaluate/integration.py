"""How well latents mix batches and keep biology, in one table beside controls that show where each scale begins and ends."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trifold.errors import EvaluationError, listing, suggest
from trifold.evaluate import mixing, scib
from trifold.evaluate.genes import labels as as_labels
from trifold.evaluate.mixing import Codes, Points
from trifold.evaluate.preservation import classes, same_cells
from trifold.evaluate.space import Index, dense

WEIGHTS = {"batch": 0.4, "bio": 0.6}
LIGHT_CELLS = 10_000  # of the light set at most: silhouettes take all pairs of cells
CONTROLS = ("no integration", "noise", "label oracle", "shuffled cells", "shuffled within label")


def integration(
    latents: Mapping[str, Any],
    obs: pd.DataFrame,
    *,
    batch: str,
    label: str,
    before: Any,
    metrics: Literal["light", "scib"] = "light",
    controls: bool = True,
    where: Any = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How well each latent mixes batches and keeps labels apart: every metric raw, never scaled over the methods in the table.

    ``total`` is 0.4 ``batch`` + 0.6 ``bio``, which are the means of the five batch and of the five bio metrics. The controls tell
    what a number is worth:

    =========================  ============================================================================
    ``no integration``         ``before`` itself
    ``noise``                  N(0, I), of the width of ``before``: all mixing, no biology
    ``label oracle``           the label one-hot, with little noise: what a method gains that reads the labels
    ``shuffled cells``         ``before`` permuted over all cells
    ``shuffled within label``  ``before`` permuted among cells of a label: all mixing that labels permit
    =========================  ============================================================================

    Args:
        latents: Method -> [n, d] latent, one row per cell.
        obs: [n] cells with their batch and label.
        batch, label: Columns of obs.
        before: [n, k] before integration: the principal components of log-normalised values, in all k components that are used.
        metrics: ``"light"``: :func:`trifold.evaluate.mixing.measure`, ours, quick, on 10,000 random cells at most. ``"scib"``:
            :func:`trifold.evaluate.scib.measure`, the ten that the Benchmarker of scib-metrics averages, and Leiden beside them,
            which is in no mean. The two have scales of their own; do not mix their tables.
        controls: Whether the five rows above come after the latents.
        where: [n] mask of the cells that are scored; None scores all. Neighbours are searched among these only.
        seed: Of the controls, of the cells that are drawn, of k-means (light) and of the search for neighbours (scib).

    Returns:
        One row per method; columns: the batch metrics, the bio metrics, those in no mean, ``batch``, ``bio``, ``total``. NaN: the
        cells cannot tell, and then no mean can. ``attrs`` holds ``metrics``, ``cells`` (their number) and ``versions``.

    Raises:
        EvaluationError: A column is absent or incomplete, rows differ in number, values are not finite, there are too few
            batches or labels or cells, no label is in two batches, or scib-metrics is asked for and absent.

    Source: Luecken et al., Nature Methods 19 (2022).
    """
    if metrics not in ("light", "scib"):
        raise EvaluationError(f"metrics must be 'light' or 'scib'; found {metrics!r}. Pass metrics='light' for the quick set.")
    kind: Any = mixing if metrics == "light" else scib
    rows = _rows(len(obs), where, most=LIGHT_CELLS if metrics == "light" else None, seed=seed)
    batches, types = (_codes(obs, column, rows, role=role) for column, role in ((batch, "batch"), (label, "label")))
    _check_crossed(batches, types, batch=batch, label=label)
    versions = scib.versions() if metrics == "scib" else {name: version(name) for name in ("numpy", "scikit-learn")}
    pre = _points("before", before, len(obs))[rows]
    methods = {str(name): _points(str(name), z, len(obs))[rows] for name, z in latents.items()}
    if controls:
        methods |= _controls(pre, types, taken=list(methods), seed=seed)
    if not methods:
        raise EvaluationError(
            "latents needs one latent or more; found none, and controls=False. Pass latents={'name': model.latent(adata)}."
        )
    table = pd.DataFrame.from_dict({name: kind.measure(z, pre, batches, types, seed) for name, z in methods.items()}, orient="index")
    table = table[[*kind.BATCH, *kind.BIO, *(c for c in table.columns if c not in kind.BATCH + kind.BIO)]]
    table["batch"] = table[list(kind.BATCH)].mean(axis=1, skipna=False)
    table["bio"] = table[list(kind.BIO)].mean(axis=1, skipna=False)
    table["total"] = sum(weight * table[part] for part, weight in WEIGHTS.items())
    table.index.name = "method"
    table.attrs |= {"metrics": metrics, "cells": len(rows), "versions": versions}
    return table


def _controls(before: Points, label: Codes, *, taken: list[str], seed: int) -> dict[str, Points]:
    """Control -> [n, d] points, in the order of CONTROLS."""
    both = [name for name in CONTROLS if name in taken]
    if both:
        raise EvaluationError(f"latents must not be named like a control; found {listing(both)}. Rename them, or pass controls=False.")
    rng = np.random.default_rng(seed)
    n = len(before)
    within, by_label = np.empty(n, dtype=np.intp), np.argsort(label, kind="stable")
    within[by_label] = by_label[np.lexsort((rng.random(n), label[by_label]))]
    oracle = np.eye(int(label.max()) + 1)[label]
    points = (
        before,
        rng.normal(size=before.shape),
        oracle + 0.05 * rng.normal(size=oracle.shape),
        before[rng.permutation(n)],
        before[within],
    )
    return dict(zip(CONTROLS, points, strict=True))


def _rows(n: int, where: Any, *, most: int | None, seed: int) -> Index:
    """Ascending index of the cells that are scored."""
    mask = np.ones(n, dtype=bool) if where is None else np.asarray(where)
    if mask.dtype != bool or mask.shape != (n,):
        raise EvaluationError(
            f"where must be a boolean mask of {n} cells; found {mask.dtype} of shape {mask.shape}. Pass where=(obs[column] == value)."
        )
    rows = np.flatnonzero(mask)
    if most is not None and len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    return rows


def _codes(obs: pd.DataFrame, column: str, rows: Index, *, role: str) -> Codes:
    """[m] codes from 0 of a column's values among the scored cells."""
    if column not in obs.columns:
        raise EvaluationError(
            f"{role}= must be a column of obs; it has no {column!r}.{suggest(column, obs.columns)} It has: {listing(obs.columns)}."
        )
    values = as_labels(obs[column])[rows]
    names = classes(values)
    missing = int(sum(v is None for v in values))
    if missing:
        raise EvaluationError(
            f"{role}= needs a value for every scored cell; {column!r} is missing for {missing} of {len(rows)}. "
            f"Pass where=obs[{column!r}].notna()."
        )
    if len(names) < 2:
        raise EvaluationError(
            f"{role}= needs a column of two values or more; {column!r} has {listing(names) or 'none'} in {len(rows)} scored cells. "
            f"Pass another {role}=, or widen where=."
        )
    return np.asarray(pd.Categorical(values, categories=names).codes, dtype=np.intp)


def _check_crossed(batches: Codes, types: Codes, *, batch: str, label: str) -> None:
    crossed: NDArray[Any] = np.unique(np.column_stack([types, batches]), axis=0)
    if len(crossed) == types.max() + 1:
        raise EvaluationError(
            f"label= needs a {label!r} with cells in two of {batch!r} or more; found each in one only, so that mixing would destroy it. "
            "Pass a coarser label=, or batches that share labels."
        )


def _points(name: str, values: Any, n: int) -> Points:
    """[n, d] finite float64 points, checked."""
    x = dense(values).astype(np.float64)
    same_cells(n, **{name: len(x)})
    return x
