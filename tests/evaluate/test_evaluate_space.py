import numpy as np
import pytest
import scanpy
import scipy.sparse as sp
from evaluate_cases import crossed

from trifold.errors import EvaluationError
from trifold.evaluate import fit_pca, kind_of, lognorm, project, top_genes, variable_genes


def test_lognorm_equals_normalize_total_and_log1p():
    data = crossed()
    theirs = data.copy()
    scanpy.pp.normalize_total(theirs, target_sum=1e4)
    scanpy.pp.log1p(theirs)
    np.testing.assert_allclose(lognorm(data).toarray(), theirs.X.toarray(), rtol=1e-5)


@pytest.mark.parametrize("of", [sp.csr_matrix, sp.csr_array, sp.csc_matrix])
def test_lognorm_of_sparse_equals_dense_and_stays_sparse(of):
    x = crossed().X.toarray()
    out = lognorm(of(x))
    assert sp.issparse(out)
    np.testing.assert_array_equal(out.toarray(), lognorm(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_lognorm_leaves_its_input_and_an_empty_cell_is_zero(dtype):
    x = np.array([[1, 3], [0, 0]], dtype=dtype)
    for given in (x, sp.csr_matrix(x)):
        before = given.copy()
        out = lognorm(given)
        assert np.array_equal(out.toarray() if sp.issparse(out) else out, lognorm(x))
        assert (given != before).sum() == 0
    np.testing.assert_allclose(lognorm(x), [[np.log1p(2500), np.log1p(7500)], [0, 0]], rtol=1e-6)


def test_negative_counts_are_refused_by_name():
    with pytest.raises(EvaluationError, match="InScoreSpace"):
        lognorm(np.array([[1.0, -1.0]]))


def test_kind_is_counts_only_for_whole_values_of_zero_or_more():
    assert kind_of(np.array([[0.0, 2.0]])) == "counts"
    assert kind_of(sp.csr_matrix([[0.0, 2.5]])) == "real"
    assert kind_of(np.array([[0.0, -2.0]])) == "real"


def test_projection_of_sparse_and_dense_cells_keeps_the_same_distances():
    x = lognorm(crossed())
    a, b = project(x, pca=fit_pca(x, 5)), project(x, pca=fit_pca(x.toarray(), 5))
    np.testing.assert_allclose(np.linalg.norm(a - a[0], axis=1), np.linalg.norm(b - b[0], axis=1), atol=1e-3)


def test_fitting_a_pca_leaves_the_global_generator():
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    fit_pca(lognorm(crossed()), 5)
    assert np.array_equal(state, np.random.get_state()[1])


def test_variable_genes_are_scanpys_and_the_same_for_sparse_and_dense():
    data = crossed(genes=200)
    log = data.copy()
    log.X = lognorm(data)
    scanpy.pp.highly_variable_genes(log, flavor="seurat", n_top_genes=30)
    found = variable_genes(data, 30)
    assert set(found) == set(np.flatnonzero(log.var["highly_variable"]))
    assert np.array_equal(found, variable_genes(data.X.toarray(), 30))


def test_variable_genes_of_real_values_are_those_of_largest_variance():
    x = np.random.default_rng(0).normal(size=(50, 10)) * np.arange(10)
    assert variable_genes(x, 3, kind="real").tolist() == sorted(np.argsort(-x.var(0))[:3])
    assert variable_genes(sp.csr_matrix(x), 3, kind="real").tolist() == variable_genes(x, 3, kind="real").tolist()


def test_top_genes_weigh_groups_and_not_cells():
    x = np.zeros((13, 3))
    groups, conditions = ["big"] * 10 + ["small"] * 3, ["s"] * 5 + ["t"] * 5 + ["s", "t", "t"]
    x[5:10, 0] = 1.0  # change 1 in the big group: 0.5 on average over groups
    x[11:, 1] = -3.0  # change 3 in the small one: 1.5
    x[5:10, 2], x[11:, 2] = 1.0, -1.0  # opposite signs do not cancel: 1.0
    assert top_genes(x, groups, conditions=conditions, source="s", target="t", k=3).tolist() == [1, 2, 0]


def test_top_genes_ignore_the_cells_of_the_held_group():
    data = crossed()
    x, groups, conditions = lognorm(data).toarray(), data.obs["type"], data.obs["stim"]
    kept = {"conditions": conditions, "source": "control", "target": "drug", "k": 5, "held": "A"}
    before = top_genes(x, groups, **kept)
    x[(groups == "A").to_numpy()] = np.random.default_rng(1).normal(size=(60, 40)) * 100
    assert np.array_equal(before, top_genes(x, groups, **kept))
