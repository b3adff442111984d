"""What a trained model answers: predictions and their obs, several factors, citations, parts of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import own_parts
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import trifold
from trifold.errors import FormatError, NotFittedError, SchemaError, SpecError
from trifold.provenance import fingerprint, plain, seen_in, versions, was_seen
from trifold.spec import from_spec, to_spec
from trifold.terms import KL, NLL, Objective
from trifold.train import Plan

QUICK = {"epochs": 1, "batch": 64, "device": "cpu", "progress": False}
HELD = {"condition": "stimulated", "cell_type": "type_1"}


def test_predictions_keep_the_sources_obs_and_say_their_target_and_whether_it_was_seen(trained, study):
    a = study.adata
    out = trained.predict(a, {"condition": "stimulated"}, where={"condition": "control"})
    source = a.obs[a.obs["condition"] == "control"]
    assert list(out.obs_names) == list(source.index)
    assert list(out.var_names) == list(a.var_names)
    assert (out.obs["condition"] == "control").all()
    assert (out.obs["target_condition"] == "stimulated").all()
    assert (out.obs["seen"] == (source["cell_type"] != "type_1").to_numpy()).all()
    assert out.uns["trifold"]["kind"] == "mean"
    assert out.uns["trifold"]["to"] == {"condition": "stimulated"}
    assert out.X.dtype == np.float32


def test_where_takes_lists_and_may_match_every_cell_but_not_none(trained, study):
    a = study.adata
    control = a[a.obs["condition"] == "control"].copy()
    assert trained.predict(control, {"condition": "stimulated"}, where={"condition": "control"}).n_obs == control.n_obs
    some = trained.predict(a, {"condition": "stimulated"}, where={"cell_type": ["type_0", "type_2"]})
    assert set(some.obs["cell_type"]) == {"type_0", "type_2"}
    with pytest.raises(SchemaError, match="type_7"):
        trained.predict(a, {"condition": "stimulated"}, where={"cell_type": "type_7"})
    apart = control[control.obs["cell_type"] == "type_0"].copy()
    apart.obs["batch"] = ["a"] + ["b"] * (apart.n_obs - 1)
    apart.obs["plate"] = ["p"] + ["q"] * (apart.n_obs - 1)
    with pytest.raises(SchemaError, match="matches no cell"):
        trained.predict(apart, {"condition": "stimulated"}, where={"batch": "a", "plate": "q"})


def test_kinds_differ_as_they_say_and_the_seed_decides_the_noise(trained, study):
    a, to = study.adata, {"condition": "stimulated"}
    mean, sample, moved = (trained.predict(a, to, kind=k).X for k in ("mean", "sample", "residual"))
    assert not sp.issparse(mean)
    assert sp.issparse(sample)
    assert sp.issparse(moved)
    own = np.corrcoef(moved.toarray().ravel(), a.X.toarray().ravel())[0, 1]
    fresh = np.corrcoef(sample.toarray().ravel(), a.X.toarray().ravel())[0, 1]
    assert own > fresh + 0.1  # a residual prediction keeps each cell's own noise
    draws = np.stack([trained.predict(a[:40], to, kind="sample", seed=s).X.toarray() for s in range(60)])
    summed = draws.sum(1)  # of 40 cells, for each of 40 genes: near enough to normal
    error = summed.std(0, ddof=1) / np.sqrt(60)
    assert (np.abs(summed.mean(0) - mean[:40].sum(0)) < 4.5 * error + 1e-3).all()
    again = trained.predict(a, to, kind="sample").X
    assert (again != sample).nnz == 0
    assert (sample != trained.predict(a, to, kind="sample", seed=1).X).nnz > 0
    with pytest.raises(SpecError, match="'residual'"):
        trained.predict(a, to, kind="residuals")


def test_unknown_columns_and_values_of_a_target_are_refused_with_those_there_are(trained, study):
    with pytest.raises(SchemaError, match="condtion"):
        trained.predict(study.adata, {"condtion": "stimulated"})
    with pytest.raises(SchemaError, match=r"'ctrl'.*'control', 'stimulated'"):
        trained.predict(study.adata, {"condition": "ctrl"})


def test_score_is_the_bound_in_nats_per_cell_in_the_order_of_rows(trained, study):
    table = trained.score(study.adata)
    assert list(table.index) == list(study.adata.obs_names)
    np.testing.assert_allclose(table["elbo"], table["reconstruction"] - table["kl"], rtol=1e-5)
    assert (table["kl"] >= 0).all()
    assert table.equals(trained.score(study.adata))
    assert not table.equals(trained.score(study.adata, seed=1))


def test_expression_is_the_prediction_under_each_cells_own_condition(trained, study):
    a = study.adata
    own = trained.expression(a)
    for value in ("control", "stimulated"):
        rows = (a.obs["condition"] == value).to_numpy()
        np.testing.assert_allclose(own[rows], trained.predict(a, {"condition": value}, where={"condition": value}).X, rtol=1e-5, atol=1e-6)


def test_an_untrained_model_says_so(schema, study):
    fresh = trifold.trvae(schema, latent=2, hidden=(4,))
    for call in (
        lambda: fresh.predict(study.adata, {"condition": "stimulated"}),
        lambda: fresh.expression(study.adata),
        lambda: fresh.score(study.adata),
    ):
        with pytest.raises(NotFittedError, match="fit"):
            call()


def test_cite_names_the_preset_and_the_parts_in_use(trained, schema):
    text = trained.cite()
    for key in ("lotfollahi2020trvae", "gretton2012kernel", "lopez2018deep", "trifold"):
        assert text.count(f"{{{key},") == 1
    own = trifold.Model(schema, own_parts.own_vae(40), Objective({"nll": NLL()}))
    assert "lotfollahi" not in own.cite()


def test_balance_and_hold_out_are_refused_by_name_when_they_fit_nothing(schema, study):
    model = trifold.trvae(schema, latent=2, hidden=(4,))
    with pytest.raises(SpecError, match="balance"):
        model.fit(study.adata, balance="conditions", progress=False)
    with pytest.raises(SchemaError, match="type_9"):
        model.fit(study.adata, hold_out={"cell_type": "type_9"}, progress=False)


def test_cells_that_are_held_out_leave_no_trace_in_the_weights(schema, study):
    """Their counts and their type may be anything: the same weights, bit for bit."""
    a, other = study.adata, study.adata.copy()
    held = ((a.obs["condition"] == "stimulated") & (a.obs["cell_type"] == "type_1")).to_numpy()
    x = other.X.toarray()
    x[held] = x[held][:, ::-1] + 7
    other.X = sp.csr_matrix(x)
    first, second = (trifold.trvae(schema, latent=2, hidden=(4,)).fit(d, **QUICK, hold_out=HELD) for d in (a, other))
    assert all(torch.equal(v, second.vae.state_dict()[k]) for k, v in first.vae.state_dict().items())
    assert first.card["data"] != second.card["data"]


# -- several factors ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def factors(study):
    a = study.adata.copy()
    i = np.arange(a.n_obs)
    a.obs["drug"] = pd.Categorical(np.array(["none", "A", "B"])[i % 3])
    a.obs["time"] = pd.Categorical(np.array(["6h", "24h"])[(i // 3) % 2])
    a.obs["dose"] = np.where(a.obs["drug"] == "none", 0.0, 1.0 + (i // 6) % 4)
    a = a[~((a.obs["drug"] == "B") & (a.obs["time"] == "24h"))].copy()
    schema = trifold.Schema.of(a, condition=["drug", "time", "dose"])
    return trifold.trvae(schema, latent=2, hidden=(6,)).fit(a, **QUICK), a


def test_a_target_of_several_factors_names_any_combination_and_flags_one_that_was_never_seen(factors):
    model, a = factors
    seen = model.predict(a, {"drug": "A", "time": "24h", "dose": 2.0})
    unseen = model.predict(a, {"drug": "B", "time": "24h"})
    assert seen.obs["seen"].all()
    assert not unseen.obs["seen"].any()
    assert list(unseen.obs.filter(like="target_").columns) == ["target_drug", "target_time"]
    assert np.isfinite(unseen.X).all()
    assert (seen.obs["target_dose"] == 2.0).all()


def test_a_continuous_factor_moves_the_prediction_continuously_and_takes_numbers_only(factors):
    model, a = factors
    with torch.no_grad():
        doses = [model.predict(a, {"drug": "A", "dose": d}).X for d in (1.0, 1.001, 2.0, 4.0)]
    near, far, farther = (np.abs(d - doses[0]).mean() for d in doses[1:])
    assert 0 < near < 0.01 * far
    assert far < farther
    for wrong in ("high", float("nan")):
        with pytest.raises(SchemaError, match="dose"):
            model.predict(a, {"dose": wrong})


def test_a_condition_that_is_only_a_number_can_be_predicted(study):
    a = study.adata.copy()
    a.obs["dose"] = np.linspace(0, 1, a.n_obs)
    with pytest.warns(trifold.TrifoldWarning, match="nothing to match"):
        model = trifold.trvae(trifold.Schema.of(a, condition="dose"), latent=2, hidden=(4,))
    out = model.fit(a, **QUICK).predict(a, {"dose": 0.5})
    assert np.isfinite(out.X).all()
    assert out.obs["seen"].all()


def test_several_factors_survive_save_and_load(factors, tmp_path):
    model, a = factors
    again = trifold.load(model.save(tmp_path / "run"))
    first, second = (m.predict(a, {"drug": "B", "time": "24h", "dose": 3.0}) for m in (model, again))
    assert np.array_equal(first.X, second.X)
    assert first.obs.equals(second.obs)


# -- parts of one's own --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(study):
    a = study.adata.copy()
    a.X = np.log1p(a.X.toarray())
    schema = trifold.Schema.of(a, condition="condition", kind="real")
    objective = Objective({"nll": NLL(), "kl": KL(), "calm": own_parts.Calm(radius=0.5)}, {"calm": 0.1})
    model = trifold.Model(schema, own_parts.own_vae(40), objective, plan=Plan(batch=64, epochs=2))
    return model.fit(a, device="cpu", progress=False), a


def test_a_term_and_a_likelihood_of_ones_own_fit_and_their_parameters_are_trained(own):
    model, _ = own
    assert "train/calm" in model.history.columns
    assert model.objective.terms["calm"].scale.item() != 1.0


def test_foreign_parts_are_refused_without_trust_and_loaded_bit_for_bit_with_it(own, tmp_path):
    model, a = own
    path = model.save(tmp_path / "run")
    with pytest.raises(FormatError, match=r"trust=\['own_parts:"):
        trifold.load(path)
    with pytest.raises(FormatError, match="own_parts:Doubled"):
        trifold.load(path, trust=["own_parts:Calm"])
    for trust in (["own_parts"], ["own_parts:Calm", "own_parts:Doubled"]):
        again = trifold.load(path, trust=trust)
        assert np.array_equal(again.latent(a), model.latent(a))
        assert torch.equal(again.objective.terms["calm"].scale, model.objective.terms["calm"].scale)
        assert np.array_equal(again.expression(a), model.expression(a))


def test_a_foreign_module_is_not_even_imported_without_trust(own, tmp_path):
    path = own[0].save(tmp_path / "run")
    code = (
        "import sys, trifold\n"
        f"sys.path.insert(0, {str(Path(own_parts.__file__).parent)!r})\n"
        "try:\n    trifold.load(sys.argv[1])\n"
        "except trifold.TrifoldError:\n    print('own_parts' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


def test_a_component_that_does_not_keep_its_argument_is_refused_when_it_is_saved(own, tmp_path):
    model, _ = own
    bad = trifold.Model(model.schema, model.vae, Objective({"nll": NLL(), "bad": own_parts.Forgetful(strength=1.0)}))
    with pytest.raises(SpecError, match=r"self\.strength = strength"):
        bad.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_that_is_ours_is_not_taken_from_elsewhere():
    spec = to_spec(own_parts.Shadow(2, 3))
    assert spec["class"] == "own_parts:Shadow"
    with pytest.raises(FormatError, match="trust"):
        from_spec(spec)
    assert type(from_spec(spec, trust=["own_parts:Shadow"])) is own_parts.Shadow


# -- provenance ----------------------------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_genes_names_and_sums_and_with_nothing_else():
    base = (["g1", "g2"], ["c1", "c2"], np.array([3.0, 4.0]))
    same = fingerprint(*base)
    assert fingerprint(tuple(base[0]), np.array(base[1]), base[2][:, None]) == same
    for other in ((["g2", "g1"], *base[1:]), (base[0], ["c1", "c3"], base[2]), (*base[:2], np.array([3.0, 5.0]))):
        assert fingerprint(*other) != same


def test_combinations_are_seen_as_far_as_the_table_has_the_columns():
    obs = pd.DataFrame(
        {
            "a": pd.Categorical(["x", "y"]),
            "b": [1, 2],
        }
    )
    seen = plain(seen_in(obs, ["a", "b", "absent"]))
    assert seen["columns"] == ["a", "b"]
    new = pd.DataFrame({"a": ["x", "x", "y"], "b": [1, 2, 2]})
    assert was_seen(new, seen).tolist() == [True, False, True]
    assert was_seen(new[["a"]], seen).tolist() == [True, True, True]
    assert was_seen(pd.DataFrame({"b": [2, 3]}), seen).tolist() == [True, False]
    assert was_seen(pd.DataFrame(index=range(2)), seen).tolist() == [True, True]


def test_a_number_was_seen_if_it_is_one_of_few_or_within_the_range_of_many():
    few = plain(seen_in(pd.DataFrame({"dose": [0.0, 0.5, 1.0]}), ["dose"]))
    assert was_seen(pd.DataFrame({"dose": [0.5, 0.7, 1000.0]}), few).tolist() == [True, False, False]
    many = plain(seen_in(pd.DataFrame({"age": np.linspace(20, 80, 200)}), ["age"]))
    assert was_seen(pd.DataFrame({"age": [33.3, 90.0]}), many).tolist() == [True, False]


def test_an_untrained_model_gives_no_latents(schema, study):
    with pytest.raises(NotFittedError, match="latent needs a trained model"):
        trifold.trvae(schema, latent=2, hidden=(4,)).latent(study.adata)


def test_plain_makes_json_of_numpy_and_of_what_json_lacks():
    given = {"a": np.int64(3), 2: (np.float32(0.5), float("nan")), "s": np.array(["x"]), "o": Path("p"), "b": np.True_}
    assert plain(given) == {"a": 3, "2": [0.5, None], "s": ["x"], "o": "p", "b": True}
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]


# -- records of the run ----------------------------------------------------------------------------------------------------------------


def test_training_in_bfloat16_keeps_likelihood_kl_and_weights_in_float32_and_ends_near_the_same_loss(schema, study):
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        model = trifold.trvae(schema, latent=2, hidden=(8,)).fit(study.adata, **{**QUICK, "epochs": 3}, precision=precision)
        assert all(t.dtype == torch.float32 for t in model.vae.state_dict().values() if t.is_floating_point())
        losses.append(model.history.rows[-1]["train/nll"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_fit_returns_the_model_and_records_one_row_per_epoch_with_every_term(trained):
    assert len(trained.history) == 2
    for part in ("train", "validation"):
        assert {f"{part}/{n}" for n in [*trained.objective.terms, "loss"]} <= set(trained.history.columns)
    assert "trained for 2 epochs" in repr(trained)


def test_fit_writes_its_run_folder_and_a_second_fit_goes_on_from_the_first(schema, study, tmp_path):
    model = trifold.trvae(schema, latent=2, hidden=(4,)).fit(study.adata, **QUICK, out=tmp_path / "run")
    first = {k: v.clone() for k, v in model.vae.state_dict().items()}
    assert np.array_equal(trifold.load(tmp_path / "run").latent(study.adata), model.latent(study.adata))
    model.fit(study.adata, **QUICK, lr=1e-6)
    close = [torch.allclose(v, first[k], atol=1e-3) for k, v in model.vae.state_dict().items()]
    assert all(close)  # it did not start again


def test_without_validation_nothing_is_watched(schema, study):
    model = trifold.trvae(schema, latent=2, hidden=(4,)).fit(study.adata, **QUICK, validation=0)
    assert model.card["cells"] == {"trained": 240, "watched": 0, "held_out": 0}
    assert not [c for c in model.history.columns if c.startswith("validation")]


def test_training_improves_the_bound_and_learns_the_direction_of_the_response(study):
    """The truth is known: the predicted change of a gene must go the way of the true one, on cells whose type was held out."""
    a = study.adata
    schema = trifold.Schema.of(a, condition="condition")
    model = trifold.trvae(schema, latent=4, hidden=(32,))
    start = model.fit(a, **QUICK, hold_out=HELD).score(a)["elbo"].mean()
    model.fit(a, **{**QUICK, "epochs": 40, "batch": 32}, hold_out=HELD)
    assert model.score(a)["elbo"].mean() > start + 1
    rows = np.flatnonzero((a.obs["condition"] == "control") & (a.obs["cell_type"] == "type_1"))
    true = study.mean(rows, "stimulated").mean(0) - study.mean(rows, "control").mean(0)
    out = model.predict(a[rows].copy(), {"condition": "stimulated"}).X.mean(0) - model.expression(a[rows].copy()).mean(0)
    assert np.corrcoef(true, out)[0, 1] > 0.5


def test_progress_shows_a_bar_to_people_only(capsys):
    from trifold.train import progress_bar

    with progress_bar(2, show=True) as report:
        if report is not None:
            report({"epoch": 0, "train/loss": 1.0})
    with progress_bar(2, show=False) as report:
        assert report is None
    assert "nan" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_held_out_type_of_real_cells_is_predicted_better_than_by_the_control_as_it_is(real_data):
    import anndata

    a = anndata.read_h5ad(real_data("kang_scgen_valid.h5ad"))
    a = a[:, np.argsort(-np.asarray(a.X.sum(0)).ravel())[:1000]].copy()
    a = a[np.asarray(a.X.sum(1)).ravel() > 0].copy()
    model = trifold.trvae(trifold.Schema.of(a, condition="condition"))
    model.fit(a, hold_out={"condition": "stimulated", "cell_type": "NK"}, device="cpu", progress=False)
    out = model.predict(a, {"condition": "stimulated"}, where={"condition": "control", "cell_type": "NK"})
    assert not out.obs["seen"].any()

    def profile(x: object) -> np.ndarray:
        x = x.toarray() if sp.issparse(x) else np.asarray(x)
        return np.log1p((1e4 * x / x.sum(1, keepdims=True)).mean(0))  # of the mean, so that noise plays no part

    nk = a.obs["cell_type"] == "NK"
    real, control = (profile(a[(nk & (a.obs["condition"] == c)).to_numpy()].X) for c in ("stimulated", "control"))
    assert np.corrcoef(profile(out.X) - control, real - control)[0, 1] > 0.6
    assert np.linalg.norm(profile(out.X) - real) < np.linalg.norm(control - real)
