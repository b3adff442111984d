"""Plots show what they are given, change nothing global and refuse what does not fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from trifold import report
from trifold.errors import EvaluationError, ShapeError


def cells(seed: int = 0, genes: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Control, real and predicted cells; gene 2 rises by three in the real ones."""
    rng = np.random.default_rng(seed)
    control, real, predicted = (rng.normal(size=(n, genes)) for n in (20, 30, 25))
    real[:, 2] += 3
    predicted[:, 2] += 2
    return control, real, predicted


def table() -> pd.DataFrame:
    rows = [
        ("A", "drug", 0, m, k, "rmse_delta", v)
        for m, k, v in (("trvae", "model", 0.2), ("control", "null model", 0.5), ("ceiling", "ceiling", 0.1))
    ]
    rows += [("A", "drug", 0, m, k, "pearson_delta", 1 - v) for _, _, _, m, k, _, v in rows]
    return pd.DataFrame(rows, columns=["group", "target", "seed", "method", "kind", "metric", "value"])


HISTORY = [{"epoch": i, "train/loss": 9.0 / (i + 1), "validation/loss": 10.0 / (i + 1)} for i in range(6)]


def test_a_page_is_drawn_without_pyplot_and_leaves_settings_alone(tmp_path):
    import matplotlib as mpl

    control, real, predicted = cells()
    before = dict(mpl.rcParams)
    figure = report.response(predicted, real, control, null=control, table=table(), history=HISTORY, title="A")
    figure.savefig(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before
    pyplot = __import__("sys").modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_the_change_of_each_gene_is_that_of_the_means():
    control, real, predicted = cells()
    ax = report.response(predicted, real, control).axes[0]
    points = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(points[:, 0], real.mean(0) - control.mean(0))
    np.testing.assert_allclose(points[:, 1], predicted.mean(0) - control.mean(0))


def test_the_gene_that_changes_most_is_named():
    control, real, predicted = cells()
    ax = report.response(predicted, real, control, genes=[f"G{j}" for j in range(12)]).axes[0]
    assert "G2" in [t.get_text() for t in ax.texts]


def test_panels_whose_data_are_absent_are_left_out():
    control, real, predicted = cells()
    assert len(report.response(predicted, real, control).axes) == 2
    assert len(report.response(predicted, real, control, history=HISTORY).axes) == 3
    assert len(report.response(predicted, real, control, history=HISTORY, table=table()).axes) == 5


def test_every_axis_has_a_label_but_the_names_of_methods():
    control, real, predicted = cells()
    figure = report.response(predicted, real, control, history=HISTORY, table=table(), unit="ink")
    assert all(ax.get_xlabel() for ax in figure.axes)
    assert all(ax.get_ylabel() for ax in figure.axes[:3])
    assert "ink" in figure.axes[0].get_xlabel()


def test_scores_are_drawn_where_they_are_with_the_better_side_named():
    control, real, predicted = cells()
    figure = report.response(predicted, real, control, table=table())
    pearson, rmse = figure.axes[2:]
    assert pearson.get_title(loc="left") == "Pearson of change"
    assert "higher is better" in pearson.get_xlabel()
    assert "lower is better" in rmse.get_xlabel()
    drawn = sorted(float(x) for c in rmse.collections for x, _ in np.asarray(c.get_offsets()))
    assert drawn == [0.1, 0.2, 0.5]


def test_cells_of_other_genes_are_refused():
    control, real, predicted = cells()
    with pytest.raises(EvaluationError, match="same genes"):
        report.response(predicted[:, :5], real, control)


def test_images_are_drawn_on_one_grey_scale_in_the_order_of_the_rows():
    stack = np.random.default_rng(0).random((4, 8, 8))
    figure = report.images({"as scanned": stack, "predicted": stack / 2}, highest=2.0)
    assert len(figure.axes) == 8
    assert [figure.axes[i].get_ylabel() for i in (0, 4)] == ["as scanned", "predicted"]
    assert {ax.images[0].get_clim() for ax in figure.axes} == {(0.0, 2.0)}
    np.testing.assert_array_equal(figure.axes[5].images[0].get_array(), stack[1] / 2)


def test_images_of_two_shapes_are_refused():
    with pytest.raises(ShapeError, match="one shape"):
        report.images({"a": np.zeros((3, 8, 8)), "b": np.zeros((3, 8, 7))})
