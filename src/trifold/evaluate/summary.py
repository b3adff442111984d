"""The benchmark's table in short: each model beside the best null and the ceiling, and the share of the gap that it closes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from trifold.errors import EvaluationError, listing
from trifold.evaluate.score import higher_is_better

NEEDED = ("group", "seed", "method", "kind", "metric", "value")


def averages(table: pd.DataFrame) -> pd.DataFrame:
    """Every method's mean of every metric over groups, targets and seeds, which all weigh the same.

    Args:
        table: From :func:`leave_combinations_out`.

    Returns:
        One row per (kind, method), one column per metric. NaN scores are left out of the mean.

    Raises:
        EvaluationError: A column is absent.
    """
    _check(table)
    wide = table.pivot_table(index=["kind", "method"], columns="metric", values="value", aggfunc="mean", sort=False, dropna=False)
    return wide.loc[:, list(dict.fromkeys(table["metric"]))].dropna(how="all")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Each model beside the best null and the ceiling, averaged over groups and seeds.

    The best null is chosen per metric, after averaging over groups: it is one method, not the best of each group. The share of
    the gap is (model - null) / (ceiling - null): 1 at the ceiling, 0 at the null, negative below it. It is NaN where the ceiling
    is no better than the null: the data then cannot tell.

    Args:
        table: From :func:`leave_combinations_out`.

    Returns:
        One row per (metric, method) with columns ``mean``, ``sd`` (standard deviation over seeds of the mean over groups; NaN for one
        seed), ``best_null`` (its name), ``null``, ``ceiling``, ``gap_closed``. Units are those of the metric.

    Raises:
        EvaluationError: A column is absent, or there is no model.
    """
    _check(table)
    if not (table["kind"] == "model").any():
        raise EvaluationError("summary needs the scores of a model; found nulls and ceilings only. Use averages(table).")
    rows = []
    for metric in dict.fromkeys(table["metric"].tolist()):
        here = table[table["metric"] == metric]
        sign = 1.0 if higher_is_better(str(metric)) else -1.0
        nulls = {m: v for m, (v, _) in _by_method(here, "null model").items() if np.isfinite(v)}
        best = max(nulls, key=lambda m: sign * nulls[m]) if nulls else None
        null = np.nan if best is None else nulls[best]
        top = next(iter(_by_method(here, "ceiling").values()), (np.nan, np.nan))[0]
        for method, (value, spread) in _by_method(here, "model").items():
            closed = (value - null) / (top - null) if sign * (top - null) > 0 else np.nan
            rows.append((metric, method, value, spread, best, null, top, closed))
    out = pd.DataFrame(rows, columns=["metric", "method", "mean", "sd", "best_null", "null", "ceiling", "gap_closed"])
    return out.set_index(["metric", "method"])


def _by_method(table: pd.DataFrame, kind: str) -> dict[str, tuple[float, float]]:
    """Method -> mean over groups and seeds, and standard deviation over seeds of the mean over groups, of one metric."""
    out = {}
    own = table[table["kind"] == kind]
    for method in dict.fromkeys(own["method"].tolist()):
        rows = own[own["method"] == method]
        per_seed = [float(rows.loc[rows["seed"] == seed, "value"].mean()) for seed in dict.fromkeys(rows["seed"].tolist())]
        out[str(method)] = float(np.mean(per_seed)), float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else np.nan
    return out


def _check(table: pd.DataFrame) -> None:
    missing = [c for c in NEEDED if c not in table.columns]
    if missing or table.empty:
        found = "no rows" if not missing else f"no {listing(missing)}"
        raise EvaluationError(f"table must be what leave_combinations_out gives; found {found}. Pass its result unchanged.")
