import functools

import numpy as np
import pytest
import scipy.sparse as sp

from trifold.errors import EvaluationError
from trifold.evaluate import NULLS, fit_pca

# three groups on two genes; the held one, H, is at the origin, A near it and B far away
X = np.array(
    [[-1.0, 0], [1, 0], [0, 1], [2, 1], [4, 1], [0, 31], [0, 29], [0, 41]],
    dtype=np.float64,
)
GROUPS = ["H", "H", "A", "A", "A", "B", "B", "B"]
CONDITIONS = ["s", "s", "s", "t", "t", "s", "s", "t"]
NAMES = {"conditions": CONDITIONS, "held": "H", "source": "s", "target": "t"}
SHIFT = {"A": np.array([3.0, 0]), "B": np.array([0.0, 11])}


@pytest.mark.parametrize("name", list(NULLS))
@pytest.mark.parametrize("of", [np.array, sp.csr_matrix, sp.csr_array])
def test_every_null_gives_one_row_per_control_cell_and_changes_nothing(name, of):
    x = of(X)
    out = NULLS[name](x, GROUPS, **NAMES)
    assert out.shape == (2, 2)
    assert abs(x - of(X)).max() == 0
    np.testing.assert_allclose(out, NULLS[name](X, GROUPS, **NAMES), atol=1e-6)


def test_control_null_is_the_control_cells():
    assert np.array_equal(NULLS["control"](X, GROUPS, **NAMES), X[:2])


def test_mean_shift_weighs_groups_and_not_cells():
    np.testing.assert_allclose(NULLS["mean shift"](X, GROUPS, **NAMES), X[:2] + np.array([1.5, 5.5]))


def test_pca_shift_in_all_components_is_the_mean_shift():
    np.testing.assert_allclose(NULLS["pca shift"](X, GROUPS, **NAMES), X[:2] + np.array([1.5, 5.5]))


def test_pca_shift_in_one_component_stays_on_a_line():
    out = functools.partial(NULLS["pca shift"], components=1)(X, GROUPS, **NAMES)
    pca = fit_pca(X, 1)
    np.testing.assert_allclose(pca.inverse_transform(pca.transform(out)), out, atol=1e-9)
    np.testing.assert_allclose(pca.transform(out), pca.transform(X[:2]) + pca.components_ @ [1.5, 5.5])


def test_similar_shift_has_the_weights_of_the_distances_of_the_control_means():
    weight = np.exp([-1.0, -30.0])  # control means: H (0, 0), A (0, 1), B (0, 30); two components keep all distances
    weight /= weight.sum()
    np.testing.assert_allclose(NULLS["similar shift"](X, GROUPS, **NAMES), X[:2] + weight[0] * SHIFT["A"] + weight[1] * SHIFT["B"])


def test_similar_shift_survives_groups_that_are_all_far_away():
    far = X.copy()
    far[2:] += 1e4
    np.testing.assert_allclose(NULLS["similar shift"](far, GROUPS, **NAMES), X[:2] + SHIFT["A"], atol=1e-6)


def test_other_groups_are_drawn_equally_often_from_target_cells():
    x = np.concatenate([X, np.zeros((38, 2))])
    names = {**NAMES, "conditions": [*CONDITIONS, *["s"] * 38]}
    out = NULLS["other groups"](x, [*GROUPS, *["H"] * 38], seed=0, **names)
    from_b = (out == [0, 41]).all(1)
    assert from_b.sum() == 20
    assert {tuple(v) for v in out[~from_b]} == {(2.0, 1.0), (4.0, 1.0)}
    assert np.array_equal(out, NULLS["other groups"](x, [*GROUPS, *["H"] * 38], seed=0, **names))


@pytest.mark.parametrize("name", ["mean shift", "pca shift", "similar shift"])
def test_clipping_puts_negative_values_to_zero_and_leaves_others(name):
    plain, clipped = NULLS[name](X, GROUPS, **NAMES), NULLS[name](X - [0, 50], GROUPS, clip=True, **NAMES)
    np.testing.assert_allclose(clipped[:, 1], 0)
    np.testing.assert_allclose(clipped[:, 0], np.maximum(plain[:, 0], 0), atol=1e-9)


@pytest.mark.parametrize("name", list(NULLS))
def test_every_null_refuses_to_see_the_cells_that_it_predicts(name):
    leaky = {**NAMES, "conditions": ["s", "t", *CONDITIONS[2:]]}
    with pytest.raises(EvaluationError, match="found 1 such"):
        NULLS[name](X, GROUPS, **leaky)


@pytest.mark.parametrize("name", list(NULLS))
def test_groups_with_one_condition_and_cells_without_a_label_do_not_count(name):
    groups = [*GROUPS, "D", None]
    conditions = [*CONDITIONS, "t", "t"]
    x = np.concatenate([X, [[9.0, 9.0], [7.0, 7.0]]])
    got = NULLS[name](x, groups, **{**NAMES, "conditions": conditions})
    np.testing.assert_allclose(got, NULLS[name](X, GROUPS, **NAMES), atol=1e-9)


def test_nulls_say_when_no_other_group_is_crossed():
    with pytest.raises(EvaluationError, match="found none beside 'H'"):
        NULLS["mean shift"](X[:4], GROUPS[:4], **{**NAMES, "conditions": ["s", "s", "s", "s"]})
