import numpy as np
import pandas as pd
import pytest

from trifold.errors import EvaluationError
from trifold.evaluate import averages, higher_is_better, score, summary

ROWS = [
    # group, seed, method, kind, metric, value
    ("A", 0, "m", "model", "pearson_delta", 0.8),
    ("B", 0, "m", "model", "pearson_delta", 0.6),
    ("A", 1, "m", "model", "pearson_delta", 0.9),
    ("B", 1, "m", "model", "pearson_delta", 0.7),
    ("A", 0, "n1", "null model", "pearson_delta", 0.9),
    ("B", 0, "n1", "null model", "pearson_delta", 0.1),
    ("A", 0, "n2", "null model", "pearson_delta", 0.6),
    ("B", 0, "n2", "null model", "pearson_delta", 0.5),
    ("A", 0, "ceiling", "ceiling", "pearson_delta", 1.0),
    ("B", 0, "ceiling", "ceiling", "pearson_delta", 0.9),
    ("A", 0, "m", "model", "e_distance", 3.0),
    ("A", 0, "n1", "null model", "e_distance", 2.0),
    ("A", 0, "n2", "null model", "e_distance", 4.0),
    ("A", 0, "ceiling", "ceiling", "e_distance", 0.0),
    ("A", 0, "m", "model", "mmd2", 0.3),
    ("A", 0, "n1", "null model", "mmd2", 0.1),
    ("A", 0, "ceiling", "ceiling", "mmd2", 0.2),
]
TABLE = pd.DataFrame(ROWS, columns=["group", "seed", "method", "kind", "metric", "value"])


def test_summary_by_hand():
    out = summary(TABLE)
    row = out.loc[("pearson_delta", "m")]
    assert row["mean"] == pytest.approx(0.75)
    assert row["sd"] == pytest.approx(np.std([0.7, 0.8], ddof=1))
    assert row["best_null"] == "n2"  # by its average, though n1 wins a group
    assert row["null"] == pytest.approx(0.55)
    assert row["ceiling"] == pytest.approx(0.95)
    assert row["gap_closed"] == pytest.approx(0.5)


def test_share_of_the_gap_is_negative_below_the_null_also_where_lower_is_better():
    row = summary(TABLE).loc[("e_distance", "m")]
    assert row["best_null"] == "n1"
    assert row["gap_closed"] == pytest.approx(-0.5)
    assert np.isnan(row["sd"])


def test_share_of_the_gap_is_unknown_where_the_ceiling_is_no_better_than_the_null():
    assert np.isnan(summary(TABLE).loc[("mmd2", "m"), "gap_closed"])


def test_averages_have_one_row_per_method_and_the_order_of_the_metrics():
    out = averages(TABLE)
    assert list(out.columns) == ["pearson_delta", "e_distance", "mmd2"]
    assert out.loc[("null model", "n1"), "pearson_delta"] == pytest.approx(0.5)
    assert len(out) == 4


def test_summary_works_without_nulls_and_ceiling_and_refuses_a_table_without_models():
    out = summary(TABLE[TABLE.kind == "model"])
    assert out["gap_closed"].isna().all()
    with pytest.raises(EvaluationError, match="averages"):
        summary(TABLE[TABLE.kind != "model"])
    with pytest.raises(EvaluationError, match="no kind"):
        summary(TABLE.drop(columns="kind"))


def test_every_metric_of_score_has_a_direction():
    x = np.random.default_rng(0).normal(size=(6, 8))
    for metric in score(x, x + 1, x, top={2: [0, 1]}, centroid=x.mean(0) + 1, de=(2,)):
        assert isinstance(higher_is_better(metric), bool)
    with pytest.raises(EvaluationError, match="direction"):
        higher_is_better("speed")
