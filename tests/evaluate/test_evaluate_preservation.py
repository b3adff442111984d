import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist, pdist
from scipy.stats import ortho_group, spearmanr
from sklearn.manifold import trustworthiness

from trifold.errors import EvaluationError
from trifold.evaluate import condition, fit_pca, geometry, lognorm, preservation


def blobs(n=120, d=3, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    code = np.arange(n) % classes
    return rng.normal(size=(classes, d))[code] * 4 + rng.normal(size=(n, d)), np.array(list("abcdefgh"))[code]


def test_an_isometry_with_a_scale_keeps_everything():
    z, labels = blobs()
    basis = ortho_group.rvs(7, random_state=0)[:3]
    out = geometry(z, 5 * z @ basis + 2, labels=labels, decode=lambda p: 5 * p @ basis + 2)
    for name in ("spearman", "trustworthiness", "continuity", "centroids", "centroids_linear"):
        assert out[name] == pytest.approx(1, abs=1e-9), name
    assert out["midpoint"] < 1e-25


def test_unrelated_coordinates_score_at_chance():
    z, _ = blobs(600, 2, seed=1)
    out = geometry(z, np.random.default_rng(2).normal(size=(600, 10)))
    assert abs(out["spearman"]) < 0.1
    assert out["trustworthiness"] == pytest.approx(0.5, abs=0.03)
    assert out["continuity"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("block", [4_000_000, 1000])
def test_neighbourhood_scores_equal_those_of_scikit_learn_whatever_the_block(block, monkeypatch):
    monkeypatch.setattr(preservation, "BLOCK", block)
    x = np.random.default_rng(3).normal(size=(90, 6))
    z = x[:, :2] + 0.1 * np.random.default_rng(4).normal(size=(90, 2))
    out = geometry(z, x, k=7)
    assert out["trustworthiness"] == pytest.approx(trustworthiness(x, z, n_neighbors=7), abs=1e-12)
    assert out["continuity"] == pytest.approx(trustworthiness(z, x, n_neighbors=7), abs=1e-12)
    assert out["trustworthiness"] != pytest.approx(out["continuity"], abs=1e-3)
    assert out["spearman"] == pytest.approx(spearmanr(pdist(z), pdist(x))[0], abs=1e-12)


def test_random_pairs_are_of_different_cells_and_estimate_the_score_of_all_pairs():
    i, j = preservation.draw_pairs(50, most=1000, seed=0)
    assert len(i) == 1000
    assert (i != j).all()
    assert set(i) == set(j) == set(range(50))
    x = np.random.default_rng(5).normal(size=(200, 5))
    every, some, again = (geometry(x[:, :2], x, pairs=p, seed=1)["spearman"] for p in (20_000, 5_000, 5_000))
    assert some != every
    assert some == again
    assert some == pytest.approx(every, abs=4 / np.sqrt(5_000))  # four standard errors of a correlation


def test_sparse_data_score_like_dense_ones_and_are_not_changed():
    counts = np.random.default_rng(6).poisson(0.5, size=(80, 30)).astype(np.uint8)
    z, labels = blobs(80)
    sparse = sp.csr_matrix(counts)
    want = geometry(z, counts.astype(float), labels=labels, k=5)
    for data in (sparse, anndata.AnnData(sparse.astype(np.float32)), sparse.astype(np.float64)):
        got = geometry(z, data, labels=labels, k=5)
        assert got == pytest.approx(want, abs=1e-6)
    assert (sparse.toarray() == counts).all()


def test_centroid_scores_are_the_correlations_of_the_class_means_and_absent_under_three_classes():
    z, labels = blobs(classes=5)
    x = np.tanh(z / 4)
    means = [np.stack([v[labels == c].mean(0) for c in "abcde"]) for v in (z, x)]
    out = geometry(z, x, labels=labels)
    assert out["centroids"] == pytest.approx(spearmanr(pdist(means[0]), pdist(means[1]))[0])
    assert out["centroids_linear"] == pytest.approx(np.corrcoef(pdist(means[0]), pdist(means[1]))[0, 1])
    assert out["centroids"] < 1
    some = [c if c in "abc" else None for c in labels]
    three = [pdist(v[:3]) for v in means]
    assert geometry(z, x, labels=some)["centroids_linear"] == pytest.approx(np.corrcoef(*three)[0, 1])  # no label is no class
    assert "centroids" not in geometry(z, x, labels=np.where(labels == "a", "a", "b"))
    assert "centroids" not in geometry(z, x)


def test_the_midpoint_error_of_an_arc_is_the_squared_tangent_of_a_quarter_of_its_angle():
    angle, m = 1.3, 20
    z = np.repeat([[0.0], [angle]], m, axis=0)
    out = geometry(z, z, k=5, decode=lambda p: 7 * np.column_stack([np.cos(p[:, 0]), np.sin(p[:, 0])]) + 3)
    unequal = m / (2 * m - 1)  # share of the pairs that are of two points, not one
    assert out["midpoint"] == pytest.approx(unequal * np.tan(angle / 4) ** 2, rel=1e-9)


def test_the_midpoint_error_does_not_depend_on_blocks_nor_on_a_far_origin(monkeypatch):
    z, _ = blobs()

    def decode(p):
        return np.tanh(p / 3) + 1e6

    want = geometry(z, z, decode=decode)["midpoint"]
    ends = decode(z) - 1e6
    i, j = np.triu_indices(len(z), 1)
    whole = ((np.tanh((z[i] + z[j]) / 6) - (ends[i] + ends[j]) / 2) ** 2).sum(1).mean() / ends.var(0).sum()
    assert want == pytest.approx(whole, rel=0.15)  # 2,000 of 7,140 pairs
    monkeypatch.setattr(preservation, "BLOCK", 500)
    assert geometry(z, z, decode=decode)["midpoint"] == pytest.approx(want, rel=1e-6)


def test_a_constant_decoder_and_collapsed_coordinates_give_finite_scores():
    z, labels = blobs()
    out = geometry(np.zeros_like(z), z, labels=labels, decode=np.zeros_like)
    assert out["midpoint"] == out["spearman"] == out["centroids"] == out["centroids_linear"] == 0
    assert np.isfinite(list(out.values())).all()


def test_the_condition_number_is_the_median_ratio_of_eigenvalues():
    turn = ortho_group.rvs(3, random_state=1)
    metrics = np.stack([turn @ np.diag(v) @ turn.T for v in ([1, 2, 4], [1, 1, 1], [0.5, 5, 50])])
    assert condition(metrics) == pytest.approx(4)
    assert condition(np.eye(2)[None]) == 1
    assert condition(np.diag([1.0, 0.0])[None]) == np.inf


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": np.zeros((119, 3))}, "data needs one row for each of 120 cells"),
        ({"labels": ["a"] * 7}, "labels needs one row"),
        ({"k": 60}, "under half of the 120 cells"),
        ({"k": 0}, "found 0"),
        ({"pairs": 0}, "pairs must be at least 1"),
        ({"data": sp.csr_matrix(np.full((120, 3), np.nan))}, "360 stored ones are NaN"),
        ({"latent": np.full((120, 3), np.inf)}, "Finite values are needed"),
        ({"decode": lambda p: p[0]}, "one row of finite values per point"),
        ({"decode": lambda p: p * np.nan}, "not all finite"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(changed, message):
    z, labels = blobs()
    given = {"latent": z, "data": z, "labels": labels, **changed}
    with pytest.raises(EvaluationError, match=message):
        geometry(given.pop("latent"), given.pop("data"), **given)


@pytest.mark.parametrize("metric", [np.eye(3), np.zeros((4, 2, 3)), np.zeros((0, 2, 2)), np.full((1, 2, 2), np.nan)])
def test_a_metric_of_another_shape_is_refused(metric):
    with pytest.raises(EvaluationError, match=r"\[n, d, d\]"):
        condition(metric)


def test_more_principal_components_keep_more_of_the_geometry_of_real_cells(real_data):
    adata = anndata.read_h5ad(real_data("larry_subset.h5ad"))
    x = lognorm(adata)
    few, many = (geometry(fit_pca(x, c).transform(x), x, labels=adata.obs["cell_type"]) for c in (2, 30))
    assert all(many[name] > few[name] + 0.05 for name in ("spearman", "trustworthiness", "continuity"))
    assert many["centroids_linear"] > few["centroids_linear"]
    near = cdist(x[:5].toarray(), x[5:9].toarray())
    rows = np.repeat(np.arange(5), 4), np.tile(np.arange(5, 9), 5)
    np.testing.assert_allclose(preservation.lengths(x, *rows), near.ravel(), rtol=1e-5)
