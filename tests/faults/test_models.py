"""Reliability items that need a trained model: 8 to 11, 18, 20 to 22, 24, 27, 31, 37 to 39, 42 to 44, 52."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from fault_cases import counts, obs, study, unchanged

import trifold
from trifold.core import VAE, Decoder, Gaussian, Posterior, StandardNormal
from trifold.errors import DataError, DeviceError, SchemaError, TrainingError, TrifoldError, TrifoldWarning
from trifold.nets import MLP
from trifold.terms import KL, NLL, Objective
from trifold.train import Plan

SMALL = {"latent": 3, "hidden": (8,)}
QUICK = {"epochs": 2, "batch": 16, "device": "cpu", "progress": False}


def fitted(a: anndata.AnnData, *, x: str | None = "counts", options: dict | None = None, schema: dict | None = None, **fit: object):
    s = trifold.Schema.of(a, x, condition="condition", **(schema or {}))
    return trifold.trvae(s, **SMALL, **(options or {})).fit(a, **{**QUICK, **fit})


def finite(model) -> bool:
    state = {**model.vae.state_dict(), **model.objective.state_dict()}
    return all(bool(torch.isfinite(t).all()) for t in state.values() if t.is_floating_point())


def all_finite(a: anndata.AnnData, model) -> None:
    assert finite(model)
    assert np.isfinite(model.latent(a)).all()
    assert np.isfinite(model.predict(a, {"condition": "stimulated"}).X).all()
    assert all(np.isfinite(v) for row in model.history.rows for v in row.values())


@pytest.fixture(scope="module")
def model():
    return fitted(study())


@pytest.mark.parametrize("likelihood", ["negative_binomial", "zero_inflated", "poisson", "gaussian"])
def test_items_09_and_10_an_all_zero_gene_and_a_constant_gene_train_finite(likelihood):
    x = counts()
    x[:, 4], x[:, 5] = 0, 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrifoldWarning)
        a = study(sp.csr_matrix(x))
        model = fitted(a, options={"likelihood": likelihood})
    all_finite(a, model)
    assert model.predict(a, {"condition": "stimulated"}).X[:, 4].mean() < 0.5


def test_item_08_an_empty_cell_that_is_kept_gives_no_nan():
    x = counts()
    x[7] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrifoldWarning)
        a = study(sp.csr_matrix(x))
        model = fitted(a, schema={"empty": "keep"})
        all_finite(a, model)
        dropping = fitted(a, schema={"empty": "drop"})
        assert dropping.latent(a).shape[0] == a.n_obs  # who asks for a cell gets an answer


def test_item_11_a_count_of_ten_million_gives_finite_losses_and_predictions():
    x = counts()
    x[11, 6] = 1e7
    a = study(sp.csr_matrix(x))
    all_finite(a, fitted(a))


def as_form(x: np.ndarray, form: str) -> object:
    makers = {
        "csr": lambda: sp.csr_matrix(x),
        "csc": lambda: sp.csc_matrix(x),
        "csr_array": lambda: sp.csr_array(x),
        "dense": lambda: x.copy(),
        "fortran": lambda: np.asfortranarray(x),
        "float64": lambda: x.astype(np.float64),
        "int64": lambda: sp.csr_matrix(x.astype(np.int64)),
        "big_endian": lambda: x.astype(">f4"),
    }
    return makers[form]()


@pytest.mark.parametrize("form", ["csc", "csr_array", "dense", "fortran", "float64", "int64", "big_endian"])
def test_items_18_and_20_every_form_of_the_matrix_gives_bit_equal_latents_and_is_not_changed(model, form):
    a = study(as_form(counts(), form))
    with unchanged(a):
        assert np.array_equal(model.latent(a), model.latent(study()))


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_item_21_backed_files_and_paths_give_the_latents_of_memory_in_the_order_asked_for(model, tmp_path, form):
    a = study()
    stored = anndata.AnnData(as_form(counts(), form), obs=a.obs, var=a.var)
    stored.layers["counts"] = as_form(counts(), form)
    stored.write_h5ad(tmp_path / "a.h5ad")
    truth = model.latent(a)
    with warnings.catch_warnings():
        if form == "csc":
            warnings.filterwarnings("ignore", message=".*is not stored by rows", category=TrifoldWarning)
        assert np.array_equal(model.latent(tmp_path / "a.h5ad"), truth)
    order = np.random.default_rng(0).permutation(a.n_obs)
    assert np.array_equal(model.latent(a[order]), truth[order])
    if form == "csc":
        return
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    try:
        whole = trifold.trvae(trifold.Schema.of(backed, condition="condition"), **SMALL).fit(backed, **QUICK)  # X, which is what is backed
        in_memory = anndata.AnnData(sp.csr_matrix(counts()), obs=a.obs, var=a.var)
        assert np.array_equal(whole.latent(backed), whole.latent(in_memory))
        assert np.array_equal(whole.latent(backed[order]), whole.latent(in_memory)[order])
    finally:
        backed.file.close()


def test_item_22_fit_latent_and_predict_on_a_view_leave_its_parent_unchanged(model):
    a = study()
    with unchanged(a):
        view = a[5:50:3, :]
        fitted(view)
        model.latent(view)
        predicted = model.predict(view, {"condition": "stimulated"})
        assert view.is_view
    predicted.obs["condition"] = "other"
    predicted.X[:] = 0
    assert a.obs["condition"].nunique() == 2


def test_item_24_one_cell_can_be_predicted(model):
    one = study()[17].copy()
    assert model.latent(one).shape == (1, 3)
    assert model.predict(one, {"condition": "stimulated"}, kind="residual").shape == (1, 20)


def test_item_27_genes_permuted_at_predict_give_identical_latents_and_predictions(model):
    a = study()
    order = np.random.default_rng(1).permutation(a.n_vars)
    assert not (order == np.arange(a.n_vars)).all()
    assert np.array_equal(model.latent(a[:, order].copy()), model.latent(a))
    first, second = (model.predict(b, {"condition": "stimulated"}) for b in (a, a[:, order].copy()))
    assert np.array_equal(first.X, second.X)
    assert list(first.var_names) == list(second.var_names) == list(a.var_names)


def test_items_28_and_29_missing_genes_are_refused_or_taken_as_zeros_and_extra_ones_dropped_with_a_notice(model):
    a = study()
    with pytest.raises(DataError, match="GENE19"):
        model.latent(a[:, :19].copy())
    with pytest.warns(TrifoldWarning, match="GENE19"):
        short = model.latent(a[:, :19].copy(), missing="zero")
    zeroed = study(sp.csr_matrix(np.hstack([counts()[:, :19], np.zeros((60, 1), np.float32)])))
    assert np.array_equal(short, model.latent(zeroed))
    wide = sp.csr_matrix(np.hstack([np.ones((60, 1), np.float32), counts()]))
    extra = anndata.AnnData(wide, obs=a.obs, var=pd.DataFrame(index=["EXTRA", *a.var_names]), layers={"counts": wide})
    with pytest.warns(TrifoldWarning, match="EXTRA"):
        assert np.array_equal(model.latent(extra), model.latent(a))


def test_item_31_an_unseen_condition_is_refused_with_the_known_ones(model):
    a = study()
    with pytest.raises(SchemaError, match=r"'stimulatd'.*stimulated.*control") as caught:
        model.predict(a, {"condition": "stimulatd"})
    assert "Did you mean 'stimulated'" in str(caught.value)
    a.obs["condition"] = "other"
    with pytest.raises(SchemaError, match="'other'"):
        model.latent(a)
    assert np.isfinite(model.latent(a, unknown="zero")).all()


def with_conditions(names: list[str]) -> anndata.AnnData:
    a = study()
    a.obs["condition"] = pd.Categorical(names)
    return a


def test_item_37_a_condition_of_one_cell_trains_finite_with_its_mmd_left_out():
    names = ["control", "stimulated"] * 30
    names[9] = "rare"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrifoldWarning)
        a = with_conditions(names)
        all_finite(a, fitted(a))
        all_finite(a, fitted(a, balance=None, validation=0.3))


def test_item_38_a_condition_that_is_held_out_whole_is_never_the_mean_of_nothing():
    a = with_conditions(["control", "stimulated", "third"] * 20)
    model = fitted(a, hold_out={"condition": "third"})
    all_finite(a, model)
    assert model.card["cells"]["held_out"] == 20
    assert not model.predict(a, {"condition": "third"}).obs["seen"].any()


def test_item_39_one_condition_only_gives_an_mmd_of_zero_and_one_notice():
    a = with_conditions(["control"] * 60)
    schema = trifold.Schema.of(a, "counts", condition="condition")
    with pytest.warns(TrifoldWarning, match="nothing to match") as caught:
        model = trifold.trvae(schema, **SMALL)
    assert len(caught) == 1
    model.fit(a, **QUICK)
    assert all(row["train/mmd"] == 0 for row in model.history.rows)
    assert finite(model)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("cells", [33, 17, 18])
def test_item_42_a_last_minibatch_of_one_cell_never_breaks_training(published, cells):
    a = study()[:cells].copy()
    if published:
        a.layers["counts"] = np.log1p(counts()[:cells])
    model = fitted(a, options={"published": published}, validation=0, batch=16, balance=None)
    assert finite(model)


class Poisoned(trifold.Term):
    """The mean of z, and NaN from the k-th call in training on."""

    def __init__(self, *, at: int):
        super().__init__()
        self.at = at
        self.calls = 0

    def forward(self, p):
        value = p.z.mean(1)
        if self.training:
            self.calls += 1
        return value * float("nan") if self.calls > self.at else value


@pytest.mark.parametrize("at", [0, 4, 9])
def test_item_43_a_term_of_ones_own_that_becomes_nan_stops_the_run_by_step_and_name_with_finite_weights(model, at):
    a, plain = study(), model.objective
    objective = Objective({**plain.terms, "mine": Poisoned(at=at)}, {**plain.weights, "mine": 0.1})
    fresh = trifold.trvae(model.schema, **SMALL)
    own = trifold.Model(model.schema, fresh.vae, objective, plan=fresh.plan)
    with pytest.raises(TrainingError, match="'mine'") as caught:
        own.fit(a, **{**QUICK, "epochs": 5}, seed=1)
    assert (caught.value.step, caught.value.term) == (at, "mine")
    assert finite(own)
    assert not own.vae.training
    with pytest.raises(TrifoldError):
        own.predict(a, {"condition": "stimulated"})  # it is still untrained


@pytest.mark.parametrize("kind", ["negative_binomial", "gaussian", "published"])
def test_item_44_a_learning_rate_of_a_thousand_stops_within_ten_steps_with_finite_weights(kind):
    a = study()
    if kind == "published":
        a.layers["counts"] = np.log1p(counts())
    options = {"published": True} if kind == "published" else {"likelihood": kind}
    schema = trifold.Schema.of(a, "counts", condition="condition")
    model = trifold.trvae(schema, **SMALL, **options)
    with pytest.raises(TrainingError) as caught:
        model.fit(a, **{**QUICK, "epochs": 100}, lr=1e3)
    assert caught.value.step <= 10
    assert caught.value.term in {*model.objective.terms, "gradient"}
    assert finite(model)


def test_an_interrupted_fit_leaves_an_untrained_model_that_can_be_fitted_again(model):
    a = study()

    class Impatient(trifold.Term):
        def forward(self, p):
            raise KeyboardInterrupt

    fresh = trifold.trvae(model.schema, **SMALL)
    own = trifold.Model(model.schema, fresh.vae, Objective({**model.objective.terms, "stop": Impatient()}), plan=fresh.plan)
    with pytest.raises(KeyboardInterrupt):
        own.fit(a, **QUICK)
    assert own.card == {}
    own = trifold.Model(model.schema, own.vae, model.objective, plan=fresh.plan).fit(a, **QUICK)
    all_finite(a, own)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_item_52_a_gpu_that_is_not_there_is_refused_by_name_and_never_replaced_silently(model):
    with pytest.raises(DeviceError, match="cuda"):
        fitted(study(), device="cuda")
    with pytest.raises(DeviceError, match="cuda"):
        model.latent(study(), device="cuda")


def test_a_model_made_by_hand_without_covariates_fits_embeds_and_answers():
    a = study()
    schema = trifold.Schema.of(a, "counts", kind="real")
    vae = VAE(Posterior(MLP(20, (8,)), 2), StandardNormal(2), Decoder(MLP(2, (8,))), Gaussian(8, 20))
    own = trifold.Model(schema, vae, Objective({"nll": NLL(), "kl": KL()}), plan=Plan(batch=16, epochs=2))
    with unchanged(a):
        own.fit(a, device="cpu", progress=False)
    assert own.latent(a).shape == (60, 2)
    assert list(own.score(a).index) == list(obs().index)
