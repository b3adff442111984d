import anndata
import numpy as np
import pandas as pd
import pytest
from evaluate_cases import NAMES, crossed

from trifold.errors import EvaluationError, TrifoldWarning
from trifold.evaluate import NULLS, InScoreSpace, leave_combinations_out, lognorm, make_fold

QUICK = {**NAMES, "seeds": (0,), "n_top_genes": 30, "top": (5,), "de": (), "splits": 2, "components": 5}


def run(data, predict, **changed):
    return leave_combinations_out(data, predict, **{**QUICK, "target": "drug", **changed})


def value(table, metric, method="model"):
    return table[(table.metric == metric) & (table.method == method)]["value"]


def test_a_prediction_by_the_true_cells_is_perfect_and_control_cells_equal_the_control_null():
    data = crossed()

    def oracle(train, controls, seed):
        own = (data.obs["type"] == controls.obs["type"].iloc[0]) & (data.obs["stim"] == "drug")
        return data[own.to_numpy(), train.var_names]

    table = run(data, {"oracle": oracle, "same": lambda train, controls, seed: controls})
    assert list(table.columns) == ["group", "target", "seed", "method", "kind", "metric", "value"]
    assert np.allclose(value(table, "rmse_delta", "oracle"), 0)
    assert np.allclose(value(table, "pearson_delta", "oracle"), 1)
    for metric in table.metric.unique():
        np.testing.assert_array_equal(value(table, metric, "same"), value(table, metric, "control"))
    assert set(table.method[table.kind == "null model"]) == set(NULLS)
    assert set(table.group) == {"A", "B", "C"}


def test_predict_never_sees_a_held_out_cell_and_sees_all_others():
    data = crossed()

    def look(train, controls, seed):
        held = controls.obs["type"].iloc[0]
        assert set(controls.obs["stim"]) == {"control"}
        out = set(data.obs_names[(data.obs["type"] == held) & (data.obs["stim"] == "drug")])
        assert set(train.obs_names) == set(data.obs_names) - out
        assert set(controls.obs_names) <= set(train.obs_names)
        assert list(train.var_names) == list(controls.var_names)
        assert train.X.sum() > 0
        train.X = train.X * 0  # what a method does to its copy must not reach the next one
        return controls

    run(data, {"first": look, "second": look})


@pytest.mark.parametrize("kind", ["counts", "real"])
def test_the_users_data_are_not_changed(kind):
    data = crossed(kind=kind)
    before = data.copy()
    run(data, lambda train, controls, seed: controls)
    assert abs(data.X - before.X).max() == 0
    pd.testing.assert_frame_equal(data.obs, before.obs)
    assert not data.uns
    assert not data.obsm
    assert list(data.var) == []


def test_chosen_genes_do_not_depend_on_the_held_out_cells():
    data = crossed()
    names = {**NAMES, "target": "drug", "held": "A", "n_top_genes": 12, "top": (5,)}
    fold = make_fold(data, **names)
    x = data.X.toarray()
    held = ((data.obs["type"] == "A") & (data.obs["stim"] == "drug")).to_numpy()
    x[held] = np.random.default_rng(5).poisson(50, size=x[held].shape)
    other = make_fold(anndata.AnnData(x, obs=data.obs, var=data.var), **names)
    assert list(fold.train.var_names) == list(other.train.var_names)
    assert np.array_equal(fold.top[5], other.top[5])
    np.testing.assert_allclose(fold.centroid, other.centroid, rtol=1e-5)
    assert abs(fold.real - other.real).max() > 1


def test_counts_are_normalised_over_the_chosen_genes():
    fold = make_fold(crossed(), **NAMES, target="drug", held="A", n_top_genes=12)
    np.testing.assert_allclose(np.expm1(fold.real).sum(1), 1e4, rtol=1e-4)


def test_a_prediction_in_score_space_scores_like_its_counts_and_gene_order_does_not_matter():
    def counts(train, controls, seed):
        return controls.X.toarray() * 1.5 + 1

    table = run(
        crossed(),
        {
            "counts": counts,
            "logs": lambda t, c, s: InScoreSpace(lognorm(counts(t, c, s))),
            "shuffled": lambda t, c, s: anndata.AnnData(counts(t, c, s), obs=c.obs, var=c.var)[:, t.var_names[::-1]],
        },
    )
    wide = table[table.kind == "model"].pivot_table(index=["group", "metric"], columns="method", values="value")
    np.testing.assert_allclose(wide["logs"], wide["counts"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(wide["shuffled"], wide["counts"], rtol=1e-5, atol=1e-6)


def test_real_values_are_scored_as_they_are():
    data = crossed(kind="real")
    fold = make_fold(data, **NAMES, target="drug", held="B", n_top_genes=40)
    held = ((data.obs["type"] == "B") & (data.obs["stim"] == "drug")).to_numpy()
    np.testing.assert_array_equal(fold.real, data.X[held])
    table = run(data, lambda train, controls, seed: controls.X - 1.0)
    expected = value(table, "rmse_delta", "control")
    assert (value(table, "rmse_delta").to_numpy() != expected.to_numpy()).all()
    assert value(table, "zero_concordance").isna().all()


def test_untrusted_cells_are_trained_on_but_neither_scored_nor_shown_to_nulls():
    data = crossed()
    trusted = np.random.default_rng(0).random(data.n_obs) < 0.7
    fold = make_fold(data, **NAMES, target="drug", held="A", score_mask=trusted)
    held = ((data.obs["type"] == "A") & (data.obs["stim"] == "drug")).to_numpy()
    assert fold.train.n_obs == (~held).sum()
    assert len(fold.real) == (held & trusted).sum()
    assert fold.x.shape[0] == (~held & trusted).sum()
    with pytest.raises(EvaluationError, match="one boolean for each"):
        make_fold(data, **NAMES, target="drug", held="A", score_mask=trusted.astype(float))


def test_the_same_seeds_give_the_same_table_and_groups_do_not_disturb_each_other():
    data = crossed()

    def noisy(train, controls, seed):
        return np.random.default_rng(seed).poisson(2.0, size=(20, train.n_vars))

    whole = run(data, noisy, seeds=(0, 1))
    pd.testing.assert_frame_equal(whole, run(data, noisy, seeds=(0, 1)))
    alone = run(data, noisy, seeds=(0, 1), groups=["B"])
    pd.testing.assert_frame_equal(whole[whole.group == "B"].reset_index(drop=True), alone)
    spread = whole[whole.metric == "e_distance"].groupby(["method", "group"])["value"].std()
    assert (spread["model"] > 0).all()
    assert (spread["other groups"] > 0).all()
    assert (spread["ceiling"] > 0).all()
    assert (spread["similar shift"] == 0).all()


def test_five_targets_are_told_apart_by_an_oracle_and_not_by_the_control_null():
    names = tuple(["control"] + [f"drug{i}" for i in range(5)])
    data = crossed(conditions=names, cells=15)

    def oracle(train, controls, seed, target):
        own = (data.obs["type"] == controls.obs["type"].iloc[0]) & (data.obs["stim"] == target)
        return data[own.to_numpy(), train.var_names]

    table = run(data, oracle, target=list(names[1:]), groups=["A", "B"])
    assert (value(table, "discrimination") == 1).all()
    assert value(table, "discrimination", "control").mean() == pytest.approx(0.5)
    assert value(table, "discrimination", "ceiling").mean() > 0.8
    assert len(value(table, "discrimination")) == 10


def test_thin_groups_are_left_out_with_a_warning_and_refused_when_named():
    data = crossed()
    keep = np.ones(data.n_obs, dtype=bool)
    keep[np.flatnonzero((data.obs["type"] == "C") & (data.obs["stim"] == "drug"))[3:]] = False
    data = data[keep].copy()
    with pytest.warns(TrifoldWarning, match=r"C \(30 and 3\)"):
        table = run(data, {})
    assert set(table.group) == {"A", "B"}
    with pytest.raises(EvaluationError, match="min_cells"):
        run(data, {}, groups=["A", "C"])


def test_untrusted_cells_do_not_count_towards_a_group():
    data = crossed()
    trusted = np.ones(data.n_obs, dtype=bool)
    trusted[np.flatnonzero((data.obs["type"] == "B") & (data.obs["stim"] == "control"))[4:]] = False
    with pytest.warns(TrifoldWarning, match=r"B \(4 and 30\)"):
        table = run(data, {}, score_mask=trusted)
    assert set(table.group) == {"A", "C"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda t, c, s: c.X.toarray()[:, :4], "30 genes"),
        (lambda t, c, s: c.X.toarray()[:1], "two cells"),
        (lambda t, c, s: c.X.toarray() * np.nan, "'model' for 'A'"),
        (lambda t, c, s: lognorm(c.X) * -1, "InScoreSpace"),
        (lambda t, c, s: c[:, 3:], "it lacks"),
    ],
)
def test_predictions_of_the_wrong_form_are_refused_by_name(answer, message):
    with pytest.raises(EvaluationError, match=message):
        run(crossed(), answer)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group": "tpye"}, "Did you mean 'type'"),
        ({"target": "drugs"}, "Did you mean 'drug'"),
        ({"target": "control"}, "source and target must differ"),
        ({"groups": ["Z"]}, "has no 'Z'"),
        ({"seeds": ()}, "seeds and target need one value"),
        ({"layer": "counts"}, "layer 'counts'"),
        ({"n_top_genes": 0}, "must be at least 1; found 0. Pass n_top_genes=2000"),
        ({"kind": "count"}, "kind must be"),
    ],
)
def test_wrong_arguments_are_refused_by_name(changed, message):
    with pytest.raises(EvaluationError, match=message):
        run(crossed(), {}, **changed)


def test_a_method_cannot_take_the_name_of_a_null():
    with pytest.raises(EvaluationError, match="mean shift"):
        run(crossed(), {"mean shift": lambda t, c, s: c})
