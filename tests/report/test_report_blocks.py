"""Pictures of integration show each cell in its class's colour, and the numbers of the separation table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import trifold
from trifold import report
from trifold.errors import SchemaError, ShapeError


@pytest.fixture(scope="module")
def obs():
    kind = np.array(["a", "b", "c"], dtype=object)[np.arange(90) % 3]
    kind[:4] = None
    return pd.DataFrame({"kind": pd.Categorical(kind), "batch": np.arange(90) // 45}, index=[f"c{i}" for i in range(90)])


@pytest.fixture(scope="module")
def latent(obs):
    """Three groups far apart in five dimensions."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(90, 5)) + 20 * np.eye(5)[np.arange(90) % 3]


def legend(ax) -> dict[str, str]:
    """Name -> colour."""
    box = ax.get_legend()
    return {t.get_text().split(" (")[0]: to_hex(h.get_facecolor()[0]) for t, h in zip(box.get_texts(), box.legend_handles, strict=True)}


def test_each_cell_is_drawn_once_in_the_colour_of_its_class(obs):
    xy = np.random.default_rng(1).normal(size=(90, 2))
    figure = report.plot_embedding({"here": xy, "there": 2 * xy}, obs, ["kind", "batch"])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["here: kind", "there: kind", "here: batch", "there: batch"]
    ax, colours = figure.axes[0], legend(figure.axes[1])
    assert list(colours) == ["a", "b", "c", "not known"]
    assert len(set(colours.values())) == 4
    drawn = ax.collections[0]
    at, shades = np.asarray(drawn.get_offsets()), [to_hex(c) for c in drawn.get_facecolors()]
    truth = {tuple(p): colours["not known" if k is None or k != k else k] for p, k in zip(xy, obs["kind"].astype(object), strict=True)}
    assert len(at) == 90
    assert {tuple(p): s for p, s in zip(at, shades, strict=True)} == truth
    assert set(shades[:4]) == {colours["not known"]}


def test_a_umap_keeps_groups_apart_and_is_the_same_twice(latent):
    one, two = (report.umap_of(latent, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    group = np.arange(90) % 3
    centres = np.stack([one[group == k].mean(0) for k in range(3)])
    nearest = np.linalg.norm(one[:, None] - centres, axis=2).argmin(1)
    assert (nearest == group).all()


def test_legends_lie_beside_the_cells(obs):
    figure = report.plot_embedding({"here": np.random.default_rng(1).normal(size=(90, 2))}, obs, ["kind"])
    figure.draw_without_rendering()
    ax = figure.axes[0]
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1
    assert ax.get_legend().get_window_extent().x1 <= figure.bbox.x1


def test_what_does_not_fit_is_refused_by_name(obs, latent):
    with pytest.raises(SchemaError, match="Did you mean 'kind'"):
        report.plot_embedding({"z": latent[:, :2]}, obs, ["knid"])
    with pytest.raises(ShapeError, match="'z' needs one row for each of the 90 cells"):
        report.plot_embedding({"z": latent[:80, :2]}, obs, ["kind"])


def test_the_strongest_probe_and_the_chance_of_biology_are_drawn(obs, latent):
    cells = obs.dropna().astype(str)
    z = latent[obs["kind"].notna().to_numpy()]
    table = trifold.evaluate.probes({"invariant": z, "spurious": np.roll(z, 7, 0)}, cells, ["batch"], within="kind", folds=3)
    ax = report.plot_separation(table).axes[0]
    shown = {c.get_label(): c.get_offsets()[0][0] for c in ax.collections}
    for name in ("invariant", "spurious"):
        assert shown[name] == pytest.approx(table.loc[table["latent"] == name, "accuracy"].max())
    assert ax.lines[0].get_xdata()[0] == pytest.approx(table["chance_within"].iloc[0])
