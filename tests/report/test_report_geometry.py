"""Plots of a surface show the numbers that the model gives, where it gives them, and names that do not lie on each other."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import trifold
from trifold import report
from trifold.errors import SchemaError, SpecError
from trifold.geometry import metric
from trifold.report.labels import label, settle
from trifold.report.plane import colours, grid_of, plane_of, round_down, squared_radius


def sheet(cells: int = 160, genes: int = 9) -> AnnData:
    """Real values on a bent sheet: four classes around it, a number, and one cell without a class."""
    rng = np.random.default_rng(0)
    at = rng.uniform(-1, 1, (cells, 2))
    x = np.concatenate([at, at**2, at[:, :1] * at[:, 1:], rng.normal(size=(cells, genes - 5)) * 0.1], 1)
    quarter = np.array(["SW", "NW", "SE", "NE"], dtype=object)[2 * (at[:, 0] > 0) + (at[:, 1] > 0)]
    quarter[0] = None
    obs = pd.DataFrame({"quarter": pd.Categorical(quarter), "age": at[:, 0] * 10 + 30}, index=[f"c{i}" for i in range(cells)])
    return AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(genes)]))


def fitted(latent: int):
    adata = sheet()
    model = trifold.gamma_vae(trifold.Schema.of(adata), latent=latent, hidden=(16,), seed=0)
    return model.fit(adata, epochs=3, seed=0, device="cpu", progress=False)


@pytest.fixture(scope="module")
def model():
    return fitted(2)


@pytest.fixture(scope="module")
def adata():
    return sheet()


@pytest.fixture(scope="module")
def path(model, adata):
    return model.path({"quarter": "SW"}, {"quarter": "NE"}, data=adata, kind="geodesic", steps=20)


def cells_of(ax) -> tuple[np.ndarray, np.ndarray]:
    """Where cells are drawn, and the numbers that colour them."""
    drawn = next(c for c in ax.collections if c.get_array() is not None)
    return np.asarray(drawn.get_offsets()), np.asarray(drawn.get_array())


def boxes(figure, texts) -> list:
    from matplotlib.text import Text

    figure.draw_without_rendering()
    return [Text.get_window_extent(t) for t in texts]  # of the words, without the line that leads to their point


@pytest.mark.parametrize("which", ["extrinsic", "parameter"])
def test_each_cell_has_the_place_and_colour_that_the_model_gives_it(model, adata, which):
    at, values = cells_of(report.plot_plane(model, adata, color=which).axes[0])
    z = model.latent(adata, rectified=True)
    x = model.surface()(torch.as_tensor(model.latent(adata))).detach().double().numpy()
    square = ((x - x.mean(0)) ** 2).sum(1).mean()
    expected = model.curvature(adata)[which].to_numpy() * square
    order = np.argsort(expected, kind="stable")
    np.testing.assert_allclose(values, expected[order], rtol=1e-4)
    np.testing.assert_allclose(at, z[order], atol=1e-4)


def test_the_squared_radius_is_that_of_the_decoded_cells(model, adata):
    z = model.latent(adata)
    x = model.surface()(torch.as_tensor(z)).detach().double().numpy()
    assert squared_radius(model, z) == pytest.approx(((x - x.mean(0)) ** 2).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("rectified", [True, False])
def test_ellipses_are_circles_of_the_radius_that_is_named(model, adata, rectified):
    ax = report.plot_plane(model, adata, rectified=rectified).axes[0]
    outlines = next(c for c in ax.collections if type(c).__name__ == "PolyCollection").get_paths()
    radius = float(ax.get_xlabel().split("radius ")[1].split(" ")[0])
    plane = plane_of(model, adata, rectified=rectified)
    back = np.linalg.inv(plane.frame)
    for outline in outlines:
        rim = outline.vertices[:48]
        centre = rim.mean(0)
        g = metric(model.surface(), torch.as_tensor((centre @ back)[None], dtype=torch.float32)).detach().double().numpy()[0]
        step = (rim - centre) @ back
        np.testing.assert_allclose(np.sqrt(np.einsum("ki,ij,kj->k", step, g, step)), radius, rtol=1e-3)
    assert len(outlines) > 20


def test_three_dimensions_are_drawn_on_principal_axes_without_ellipses(adata):
    deep = fitted(3)
    figure = report.plot_plane(deep, adata)
    at, _ = cells_of(figure.axes[0])
    assert not [c for c in figure.axes[0].collections if type(c).__name__ == "PolyCollection"]
    assert "principal axis 1" in figure.axes[0].get_xlabel()
    z = deep.latent(adata, rectified=True).astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(z.T, bias=True))[::-1]
    np.testing.assert_allclose(at.var(0), values[:2], rtol=1e-3)
    np.testing.assert_allclose(at.mean(0), 0, atol=1e-4)


def test_one_dimension_is_no_plane(adata):
    with pytest.raises(SpecError, match="at least 2 dimensions; the model has 1"):
        report.plot_plane(fitted(1), adata)


def test_classes_are_named_once_each_at_their_cells(model, adata):
    ax = report.plot_plane(model, adata, color="quarter", ellipses=False).axes[0]
    assert sorted(t.get_text() for t in ax.texts) == ["NE", "NW", "SE", "SW"]
    z = model.latent(adata, rectified=True)
    for text in ax.texts:
        np.testing.assert_allclose(text.xy, np.median(z[(adata.obs["quarter"] == text.get_text()).to_numpy()], 0), rtol=1e-4, atol=1e-4)
    looks = {(c.get_facecolor()[0].tobytes(), c.get_paths()[0].vertices.tobytes()) for c in ax.collections[1:]}
    assert len(looks) == 4
    assert len(ax.collections[0].get_offsets()) == 1  # the cell without a class, hollow


def test_a_column_of_numbers_is_coloured_by_its_values(model, adata):
    figure = report.plot_plane(model, adata, color="age", labels="quarter")
    _, values = cells_of(figure.axes[0])
    np.testing.assert_allclose(values, np.sort(adata.obs["age"]), rtol=1e-6)
    assert figure.axes[1].get_ylabel() == "age"
    assert len(figure.axes[0].texts) == 4


def test_limits_make_two_planes_comparable(model, adata):
    figure = report.plot_plane(model, adata, limits=(0.5, 2.0))
    assert next(c for c in figure.axes[0].collections if c.get_array() is not None).get_clim() == (0.5, 2.0)


def test_the_colours_darken_steadily_so_that_grey_prints_read_the_same():
    grey = colours()(np.linspace(0, 1, 64))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey) < 0).all()


def test_a_column_that_is_absent_is_named_with_a_suggestion(model, adata):
    with pytest.raises(SchemaError, match=r"'quater'.*Did you mean 'quarter'"):
        report.plot_plane(model, adata, color="quater")


def test_names_never_overlap_and_stay_in_the_axes():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    ax = figure.subplots()
    rng = np.random.default_rng(1)
    at = rng.normal(size=(26, 2)) * 0.3
    ax.scatter(*rng.normal(size=(300, 2)).T)
    settle(ax)
    label(ax, at, [f"Tissue number {j}" for j in range(26)], cells=at)
    found, frame = boxes(figure, ax.texts), ax.get_window_extent()
    for j, a in enumerate(found):
        assert frame.x0 <= a.x0 <= a.x1 <= frame.x1
        assert frame.y0 - 2 <= a.y0 <= a.y1 <= frame.y1 + 2
        for b in found[:j]:
            wide, tall = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert wide <= 1 or tall <= 1


def test_a_path_is_drawn_where_the_model_puts_it_with_its_lengths(model, adata, path):
    figure = report.plot_paths(model, adata, [("SW", "NE"), ({"quarter": "NW"}, {"quarter": ["SE", "NE"]})], column="quarter")
    ax = figure.axes[0]
    z = model.latent(adata, rectified=True)
    straight, shortest = ax.lines[0].get_xydata(), ax.lines[1].get_xydata()
    ends = [z[(adata.obs["quarter"] == name).to_numpy()].mean(0) for name in ("SW", "NE")]
    np.testing.assert_allclose(straight, ends, atol=1e-4)
    np.testing.assert_allclose(shortest[[0, -1]], ends, atol=1e-4)
    r = np.asarray(model.card["rectifier"])
    mid = path.obsm["latent"][[5, 10, 15]] @ r
    assert max(np.min(np.linalg.norm(shortest - m, axis=1)) for m in mid) < 0.02 * np.linalg.norm(np.subtract(*ends))
    said = figure.get_supxlabel()
    assert "1  SW → NE: straight in the latent" in said
    assert "2  NW → SE or NE" in said
    assert f"shortest on the surface {path.uns['trifold']['length']['geodesic']:.4g}" in said


def test_pairs_of_values_need_a_column(model, adata):
    with pytest.raises(SpecError, match="which column"):
        report.plot_paths(model, adata, [("SW", "NE")])
    with pytest.raises(SpecError, match="one to 9 pairs"):
        report.plot_paths(model, adata, [], column="quarter")
    with pytest.raises(SchemaError, match="'SX'"):
        report.plot_paths(model, adata, [("SW", "SX")], column="quarter")


def test_the_genes_that_change_most_are_drawn_over_length_with_their_linearity(path):
    figure = report.plot_genes(path, top=5)
    order = path.var["change"].abs().sort_values(ascending=False).index[:5]
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(order)
    for ax, gene in zip(figure.axes, order, strict=True):
        course = ax.lines[1].get_xydata()
        np.testing.assert_allclose(course[:, 0], path.obs["length"])
        np.testing.assert_allclose(course[:, 1], np.asarray(path[:, gene].X).ravel(), rtol=1e-6)
        shown = ax.get_title(loc="right").removeprefix("R² ")
        value = path.var.loc[gene, "linearity"]
        assert 0.995 <= value < 0.9995 if shown == "> 0.99" else float(shown) == pytest.approx(value, abs=0.0051)
    spans = {round(float(np.ptp(ax.get_ylim())), 5) for ax in figure.axes}
    assert len(spans) == 1
    assert "data space" in figure.get_supxlabel()


def test_counts_are_drawn_as_the_logarithm_in_which_linearity_is_measured(path):
    counts = path.copy()
    counts.X = np.exp(path.X)
    counts.uns["trifold"] = {**path.uns["trifold"], "x": "counts"}
    figure = report.plot_genes(counts, genes=["g1"])
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), path[:, "g1"].X.ravel(), atol=1e-5)
    assert "log" in figure.get_supylabel()


def test_genes_are_asked_for_by_name(path):
    assert [ax.get_title(loc="left") for ax in report.plot_genes(path, genes=["g3", "g0"]).axes] == ["g3", "g0"]
    with pytest.raises(SchemaError, match="no gene 'g33'"):
        report.plot_genes(path, genes=["g33"])
    with pytest.raises(SpecError, match="at least one gene"):
        report.plot_genes(path, top=0)


def test_a_page_holds_everything_and_changes_nothing(model, adata, tmp_path):
    import matplotlib as mpl

    before, given = dict(mpl.rcParams), adata.copy()
    weights = {k: v.clone() for k, v in model.vae.state_dict().items()}
    figure = report.plot_geometry(model, adata, column="quarter", a="SW", b="NE", top=7, title="A sheet")
    figure.savefig(tmp_path / "page.png")
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[:3] == ["Classes and a path", "How the surface bends", "By class"]
    assert sum(t.startswith("g") for t in titles) == 7
    assert dict(mpl.rcParams) == before
    assert (adata.X == given.X).all()
    assert adata.obs.equals(given.obs)
    assert set(adata.obsm) == set(given.obsm)
    assert all(torch.equal(v, weights[k]) for k, v in model.vae.state_dict().items())
    pyplot = __import__("sys").modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_the_classes_of_a_page_are_ordered_by_their_median_curvature(model, adata):
    ax = report.plot_geometry(model, adata, column="quarter", a="SW", b="NE", top=2).axes[2]
    square = squared_radius(model, model.latent(adata))
    medians = model.curvature(adata)["extrinsic"].groupby(adata.obs["quarter"].to_numpy(), observed=True).median() * square
    dots = np.asarray(ax.collections[-1].get_offsets())
    np.testing.assert_allclose(dots[:, 0], np.sort(medians), rtol=1e-4)
    assert [t.get_text().split(" ")[0] for t in ax.get_yticklabels()] == list(medians.sort_values().index)


def test_more_cells_than_can_be_seen_are_thinned_evenly(model, adata):
    plane = plane_of(model, adata, most=40)
    assert len(plane.xy) == 40
    assert list(plane.source.obs.index[[0, -1]]) == ["c0", "c159"]


def test_a_grid_covers_only_where_cells_are():
    xy = np.concatenate([np.random.default_rng(0).uniform(0, 1, (500, 2)), np.random.default_rng(1).uniform(5, 6, (500, 2))])
    spots, spacing = grid_of(xy)
    nearest = np.linalg.norm(spots[:, None] - xy[None], axis=2).min(1)
    assert nearest.max() <= 0.6 * spacing
    assert len(grid_of(np.zeros((5, 2)))[0]) == 1


def test_radii_are_round_numbers():
    assert [round_down(v) for v in (0.99, 1.0, 4.9, 5.0, 73.0, 0.021)] == [0.5, 1.0, 2.0, 5.0, 50.0, 0.02]
