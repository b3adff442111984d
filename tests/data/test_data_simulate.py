"""The simulated study: draws have the moments that its truth states, and a mean shift is wrong where the truth is local."""

from __future__ import annotations

import time

import numpy as np
import pytest

from trifold.data import Schema, simulate
from trifold.errors import SpecError


@pytest.fixture(scope="module")
def study():
    return simulate(1500, 300, types=4, conditions=["control", "ifn", "drug"], seed=3)


def test_draws_have_the_mean_and_variance_of_the_negative_binomial(study):
    cell = np.full(20_000, 7)
    x = study.sample(cell, "ifn", seed=1).toarray().astype(float)
    mean = study.mean([7], "ifn")[0]
    var = mean + mean**2 / study.truth.theta
    z = (x.mean(0) - mean) / np.sqrt(var / len(cell))
    assert np.abs(z).max() < 5
    assert 0.8 < z.std() < 1.2
    busy = mean > 0.5
    np.testing.assert_allclose(x.var(0)[busy] / var[busy], 1, atol=0.35)
    assert abs((x.var(0)[busy] / var[busy]).mean() - 1) < 0.03


def test_means_sum_to_the_library_size_under_every_condition(study):
    index = np.array([5, 1, 1, 900])
    for condition in (None, *study.conditions):
        np.testing.assert_allclose(study.mean(index, condition).sum(1), study.truth.library[index])
    own = study.conditions[study.truth.condition[5]]
    np.testing.assert_array_equal(study.mean([5]), study.mean([5], own))
    assert study.adata.obs["condition"].iloc[5] == own


def test_the_control_has_no_effect_and_few_genes_respond(study):
    assert (study.truth.effects[0] == 0).all()
    for k in (1, 2):
        shift = study.truth.shift(np.arange(1500), k)
        responding = (shift != 0).any(0)
        assert 0.1 < responding.mean() < 0.2
        assert (shift[:, responding].mean(0) > 0).any()
        assert (shift[:, responding].mean(0) < 0).any()
        assert np.abs(shift).max() > 1.5


def test_counts_are_as_sparse_as_single_cells(study):
    x = study.adata.X
    assert 0.08 < x.nnz / np.prod(x.shape) < 0.25
    assert x.dtype == np.float32
    assert Schema.of(study.adata, condition="condition", label="cell_type", empty="keep").kind == "counts"


def test_a_mean_shift_is_wrong_where_a_local_one_is_right():
    study = simulate(3000, 300, types=6, seed=0)
    types = study.adata.obs["cell_type"].to_numpy()
    index = np.arange(3000)
    log = {c: np.log(study.mean(index, c) / study.truth.library[:, None]) for c in study.conditions}
    shift = log["condition_1"] - log["control"]
    moved = np.abs(shift).mean(0) > 0.2
    left = []
    for t in np.unique(types):
        others = shift[types != t].mean(0)
        left.append(((shift[types == t] - others)[:, moved] ** 2).mean() / (shift[types == t][:, moved] ** 2).mean())
    assert np.mean(left) > 0.1  # share of a type's response that the other types' mean shift misses
    z = study.truth.latent
    near = np.array([np.argsort(((z - z[i]) ** 2).sum(1))[1:6] for i in range(0, 3000, 10)])
    local = shift[near].mean(1)
    assert ((shift[::10] - local)[:, moved] ** 2).mean() < 0.1 * ((shift[::10] - shift.mean(0))[:, moved] ** 2).mean()


def test_the_seed_decides_everything_and_global_generators_are_left_alone():
    state = np.random.get_state()[1].copy()
    a, b, c = simulate(50, 20, seed=1), simulate(50, 20, seed=1), simulate(50, 20, seed=2)
    assert (a.adata.X != b.adata.X).nnz == 0
    assert (a.adata.X != c.adata.X).nnz > 0
    assert (a.sample([1, 2], "control", 5) != a.sample([1, 2], "control", 5)).nnz == 0
    assert (a.sample([1] * 9, "control", 5) != a.sample([1] * 9, "control", 6)).nnz > 0
    assert (np.random.get_state()[1] == state).all()


def test_conditions_are_spread_evenly_over_types(study):
    table = study.adata.obs.groupby(["cell_type", "condition"], observed=False).size().unstack()
    assert (table.max(axis=1) - table.min(axis=1)).max() <= 1


def test_wrong_arguments_are_refused_by_name(study):
    with pytest.raises(SpecError, match="conditions must be at least 2; found 1"):
        simulate(conditions=1)
    with pytest.raises(SpecError, match="cells must be"):
        simulate(0)
    with pytest.raises(SpecError, match=r"no condition 'inf'. Did you mean 'ifn'"):
        study.mean([0], "inf")


def test_four_million_values_take_under_four_seconds():
    start = time.perf_counter()
    simulate(2000, 2000)
    assert time.perf_counter() - start < 4
