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
        raise EvaluationError("a model's scores are needed for a summary; found nulls and ceilings only. Use averages(table).")
    per_seed = table.groupby(["kind", "method", "metric", "seed"], sort=False)["value"].mean()
    over = per_seed.groupby(level=["kind", "method", "metric"], sort=False).agg(["mean", "std"])
    rows = []
    for metric in dict.fromkeys(table["metric"]):
        here = over.xs(metric, level="metric")
        nulls = here.loc["null", "mean"].dropna() if "null" in here.index.get_level_values("kind") else pd.Series(dtype=float)
        best = None if nulls.empty else (nulls.idxmax() if higher_is_better(str(metric)) else nulls.idxmin())
        null = np.nan if best is None else float(nulls[best])
        top = float(here.loc[("ceiling", "ceiling"), "mean"]) if ("ceiling", "ceiling") in here.index else np.nan
        gap = top - null
        open_gap = gap > 0 if higher_is_better(str(metric)) else gap < 0
        for method, row in here.loc["model"].iterrows() if "model" in here.index.get_level_values("kind") else ():
            closed = (row["mean"] - null) / gap if open_gap else np.nan
            rows.append((metric, method, row["mean"], row["std"], best, null, top, closed))
    out = pd.DataFrame(rows, columns=["metric", "method", "mean", "sd", "best_null", "null", "ceiling", "gap_closed"])
    return out.set_index(["metric", "method"])


def _check(table: pd.DataFrame) -> None:
    missing = [c for c in NEEDED if c not in table.columns]
    if missing or table.empty:
        found = "no rows" if not missing else f"no {listing(missing)}"
        raise EvaluationError(f"the table of leave_combinations_out is needed; found {found}. Pass its result unchanged.")
