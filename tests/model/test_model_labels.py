"""Classification and its calibration, novelty, and the separation table."""

from __future__ import annotations

import block_cases
import numpy as np
import pandas as pd
import pytest
import torch

import trifold
from trifold.errors import FormatError, SpecError, TrifoldWarning
from trifold.labels import calibrate, softmax, temperature_of
from trifold.novelty import reference, shrunk, table_of


@pytest.fixture(scope="module")
def partly():
    """Half of the labels of type x, and some of the others, are unknown."""
    a = block_cases.study(seed=3)
    kind = a.obs["kind"].astype(object)
    blank = (np.arange(a.n_obs) % 2 == 0) & (kind == "x") | (np.arange(a.n_obs) % 5 == 0)
    a.obs["truth"] = a.obs["kind"].astype(str)
    a.obs["kind"] = pd.Categorical(kind.where(~blank, "unknown"))
    return a, block_cases.fitted(a, given={"unlabelled": "unknown"})


# -- classes ------------------------------------------------------------------------------------------------------------------------------


def test_cells_get_the_label_they_have_also_those_whose_label_was_unknown(partly):
    a, model = partly
    table = model.classify(a, probabilities=True)
    assert list(table.index) == list(a.obs_names)
    assert list(table.columns) == ["label", "probability", "rejected", "p_x", "p_y", "p_z"]
    right = table["label"].astype(str) == a.obs["truth"]
    assert right[a.obs["kind"] == "unknown"].mean() > 0.9
    np.testing.assert_allclose(table.filter(like="p_").sum(axis=1), 1)
    np.testing.assert_allclose(table.filter(like="p_").max(axis=1), table["probability"])
    confident = model.classify(a, reject=0.99)
    assert (confident["rejected"] == (confident["probability"] < 0.99)).all()
    assert not model.classify(a, reject=0).rejected.any()
    with pytest.raises(SpecError, match="reject"):
        model.classify(a, reject=1.5)


def test_the_label_of_a_cell_is_not_looked_at(told, cells):
    wrong = cells.copy()
    wrong.obs["kind"] = pd.Categorical(["y"] * cells.n_obs)
    none = cells.copy()
    del none.obs["kind"]
    found = told.classify(cells, probabilities=True)
    for other in (wrong, none):
        pd.testing.assert_frame_equal(told.classify(other, probabilities=True), found)


def test_a_temperature_is_found_again_and_halves_of_the_cells_say_what_it_gains():
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(6_000, 4)) * 2
    code = (softmax(honest, 1.0).cumsum(1) < rng.random((6_000, 1))).sum(1).clip(max=3)
    assert temperature_of(honest * 3, code) == pytest.approx(3, rel=0.08)
    found = calibrate(honest * 3, np.where(np.arange(6_000) % 3 == 0, -1, code), role="label", seed=0)
    assert found["cells"] == 4_000
    assert found["ece_before"] > 0.1
    assert found["ece_after"] < 0.03
    assert calibrate(honest[:5], code[:5], role="label", seed=0)["temperature"] == 1


def test_calibration_is_kept_with_the_run(partly):
    a, model = partly
    kept = model.card["calibration"]
    watched = model.card["cells"]["watched"]
    assert kept["role"] == "invariant"
    assert 0.5 * watched < kept["cells"] < watched  # those that have a label
    assert kept["accuracy"] > 0.85
    logits = np.log(model.classify(a, probabilities=True).filter(like="p_").to_numpy())
    model.card["calibration"] = {**kept, "temperature": 2 * kept["temperature"]}
    warm = model.classify(a, probabilities=True).filter(like="p_").to_numpy()
    model.card["calibration"] = kept
    np.testing.assert_allclose(warm, softmax(logits, 2.0), atol=1e-6)


def test_without_watched_labels_probabilities_come_with_a_warning(cells):
    model = block_cases.fitted(cells, epochs=1, validation=0)
    assert model.card["calibration"]["temperature"] == 1
    with pytest.warns(TrifoldWarning, match="not calibrated"):
        model.classify(cells)
    with pytest.raises(SpecError, match="validation"):
        model.separation  # noqa: B018


def test_a_model_that_predicts_no_label_says_what_to_type(trained, study, cells):
    unlabelled = block_cases.fitted(cells, epochs=1, given={"invariant": None})
    for model, data in ((trained, study.adata), (unlabelled, cells)):
        with pytest.raises(SpecError, match=r"label=.*invariant="):
            model.classify(data)


def test_the_label_goes_before_the_invariant_role_and_names_of_several_columns_are_joined(cells):
    a = cells.copy()
    a.obs["side"] = pd.Categorical(np.where(np.arange(a.n_obs) % 2, "left", "right"))
    model = block_cases.fitted(a, epochs=1, given={"label": ["kind", "side"], "invariant": "kind"})
    assert model.card["calibration"]["role"] == "label"
    assert list(model.classify(a)["label"].cat.categories)[:2] == ["x / left", "x / right"]


def test_a_cell_without_a_label_is_moved_from_the_type_that_it_is_likeliest_of_and_stays_where_nothing_moves_it(partly):
    a, model = partly
    some = a[((a.obs["kind"] == "unknown") & (a.obs["truth"] == "x")).to_numpy()].copy()
    known = some.copy()
    known.obs["kind"] = pd.Categorical(["x"] * some.n_obs)
    moved, told = (model.predict(part, {"kind": "y"}).X for part in (some, known))
    assert np.median(np.abs(np.log(moved / told))) < 0.02
    assert np.log(moved / model.expression(some))[:, :5].mean() < -0.2
    still = model.predict(some, {"batch": "a"}, where={"batch": "a"}).X
    np.testing.assert_allclose(still, model.expression(some[(some.obs["batch"] == "a").to_numpy()].copy()), rtol=1e-4)


# -- novelty ----------------------------------------------------------------------------------------------------------------------------


def test_cells_of_a_type_that_was_never_seen_score_higher(cells):
    model = block_cases.fitted(cells, hold_out={"kind": "z"})
    new = cells[(cells.obs["kind"] == "z").to_numpy()].copy()
    old = cells[(cells.obs["kind"] != "z").to_numpy()].copy()
    there, here = model.novelty(new), model.novelty(old)
    assert list(there.columns) == ["distance", "misfit", "score"]
    assert there["score"].median() > 0.95
    assert here["score"].median() < 0.8
    assert there["misfit"].mean() > here["misfit"].mean() + 1
    assert (here["score"].between(0, 1)).all()


def test_distances_are_those_of_mahalanobis_to_the_nearest_mean_and_scores_are_shares_of_the_reference():
    rng = np.random.default_rng(1)
    code = np.arange(3_000) % 2
    z = rng.normal(size=(3_000, 2)) @ np.array([[1.0, 0.5], [0.0, 2.0]]) + np.array([[0.0, 0.0], [9.0, 0.0]])[code]
    size = rng.normal(5, 1, 3_000)
    cells = np.column_stack([z, 10 + 3 * size + 2 * rng.normal(size=3_000), size])
    about = reference(cells, code, cells[:0])
    cov = np.cov((z - np.stack([z[code == c].mean(0) for c in (0, 1)])[code]).T)
    point = np.array([[1.0, -1.0, 10 + 15 + 4, 5.0], [9.0, 0.0, 25.0, 5.0]])
    table = table_of(point, about, ["a", "b"])
    delta = point[0, :2] - z[code == 0].mean(0)
    assert table["distance"].iloc[0] == pytest.approx(np.sqrt(delta @ np.linalg.solve(cov, delta)), rel=0.02)
    assert table["misfit"].tolist() == pytest.approx([2, 0], abs=0.15)
    beyond = (np.sort(table_of(cells, about, range(3_000))["misfit"]) >= table["misfit"].iloc[0]).mean()
    assert table["score"].iloc[0] == pytest.approx(1 - beyond, abs=0.01)
    assert table["score"].iloc[1] < 0.6
    own = table_of(cells, about, range(3_000))["score"]
    assert 0.05 < (own > 0.95).mean() < 0.105  # the smaller of two shares
    assert not about["watched"]
    assert reference(cells, code, cells[:60])["watched"]


def test_the_shrunk_covariance_is_invertible_where_cells_are_few_and_the_plain_one_where_they_are_many():
    rng = np.random.default_rng(2)
    root = rng.normal(size=(6, 6))
    many = rng.normal(size=(20_000, 6)) @ root
    np.testing.assert_allclose(shrunk(many), root.T @ root, rtol=0.1, atol=0.15)
    few = shrunk(many[:3])
    assert np.linalg.eigvalsh(few)[0] > 1e-3


def test_without_classes_the_components_of_a_mixture_prior_are_the_classes(cells):
    model = block_cases.fitted(cells, epochs=10, given={"invariant": None}, components=5)
    about = model.card["novelty"]
    assert 1 <= len(about["means"]) <= 5
    assert len(about["means"][0]) == 4  # of the invariant block
    assert model.novelty(cells).shape == (cells.n_obs, 3)


def test_models_without_blocks_measure_novelty_in_all_of_the_latent(trained, study):
    assert np.shape(trained.card["novelty"]["means"])[1] == 4
    table = trained.novelty(study.adata)
    assert np.isfinite(table.to_numpy()).all()
    old = trifold.Model(trained.schema, trained.vae, trained.objective)
    old.card = {**trained.card}
    del old.card["novelty"]
    with pytest.raises(FormatError, match="Train it again"):
        old.novelty(study.adata)


# -- separation ---------------------------------------------------------------------------------------------------------------------------


def test_the_separation_table_tells_biology_from_technique(blocks):
    table = blocks.separation
    assert set(table["latent"]) == {"invariant", "spurious", "pca"}
    assert dict(zip(table["column"], table["role"], strict=True)) == {"batch": "technique", "kind": "biology"}
    best = table.groupby(["latent", "column"])["accuracy"].max()
    assert best["spurious", "batch"] > 0.9
    assert best["invariant", "batch"] < best["spurious", "batch"] - 0.2
    assert best["invariant", "kind"] > 0.9
    assert best["spurious", "kind"] < best["invariant", "kind"] - 0.2
    assert (table["cells"] == blocks.card["cells"]["watched"]).all()
    technique = table[table["role"] == "technique"]
    assert technique["chance_within"].notna().all()
    assert table[table["role"] == "biology"]["chance"].iloc[0] < 0.5


def test_the_separation_table_is_scored_with_biology_and_technique_hidden_from_the_encoder(told, cells):
    """Told the batch, the encoder of the published model would give it away."""
    from trifold.data import Cells
    from trifold.separation import separation_of

    every = np.arange(cells.n_obs)
    shuffled = cells.copy()
    shuffled.obs["batch"] = pd.Categorical(np.random.default_rng(0).permutation(cells.obs["batch"]))
    with torch.no_grad():
        rows, again = (
            separation_of(told.vae, Cells(trifold.open(a), told.schema), every[::2], every[1::2], seed=0) for a in (cells, shuffled)
        )
    kinds = [[r["accuracy"] for r in part if r["column"] == "kind"] for part in (rows, again)]
    assert kinds[0] == kinds[1]  # what the encoder made of the cells is the same
    batches = [r["accuracy"] for r in again if r["column"] == "batch" and r["latent"] != "pca"]
    assert max(batches) < 0.65


def test_unlabelled_cells_are_left_out_of_the_biology_that_is_scored(partly):
    _, model = partly
    table = model.separation
    kind, batch = (table[table["column"] == c]["cells"].iloc[0] for c in ("kind", "batch"))
    assert kind == model.card["calibration"]["cells"] < batch == model.card["cells"]["watched"]


# -- what is watched --------------------------------------------------------------------------------------------------------------


def test_with_a_prior_known_up_to_a_constant_the_terms_without_it_are_watched(cells):
    schema = block_cases.schema_of(cells)
    model = trifold.invae(schema, invariant=3, spurious=2, hidden=(8,), prior="energy")
    model.fit(cells, epochs=3, batch=64, validation=0.2, patience=2, **block_cases.QUICK)
    weights = model.objective.weights
    for row in model.history.rows:
        terms = {n: row[f"validation/{n}"] for n in model.objective.terms if n not in ("kl_invariant", "score_matching")}
        last = {n: w if isinstance(w, float | int) else w.end_value if hasattr(w, "end_value") else w.value for n, w in weights.items()}
        assert row["validation/watched"] == pytest.approx(sum(last[n] * v for n, v in terms.items()), rel=1e-5)
    normalised = trifold.invae(schema, invariant=3, spurious=2, hidden=(8,)).fit(cells, epochs=1, batch=64, **block_cases.QUICK)
    assert "validation/watched" not in normalised.history.columns


def test_everything_is_answered_with_a_prior_that_is_known_up_to_a_constant(cells):
    model = trifold.invae(block_cases.schema_of(cells), invariant=3, spurious=2, hidden=(8,), prior="energy")
    model.fit(cells, epochs=2, batch=64, validation=0.2, **block_cases.QUICK)
    assert np.isfinite(model.sample({"kind": "x"}, n=20).X.toarray()).all()
    assert np.isfinite(model.novelty(cells).to_numpy()).all()
    assert model.predict(cells, {"kind": "x"}).n_obs == cells.n_obs
