"""Γ-VAE as a user holds it: curvature and paths of a model, rectified coordinates, classes never seen."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import pdist

import trifold
from trifold.core import VAE, Decoder, Gaussian, Posterior, StandardNormal
from trifold.errors import FormatError, NotFittedError, SchemaError, ShapeError, SpecError, TrifoldWarning
from trifold.nets import MLP
from trifold.schedule import weight_now
from trifold.terms import KL, NLL, Objective
from trifold.train import Plan

QUICK = {"device": "cpu", "progress": False}


def curved(n: int = 300, genes: int = 20, seed: int = 0) -> ad.AnnData:
    """Values on a noisy paraboloid, three classes along it."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(-1, 1, (n, 2))
    bent = np.stack([2 * t[:, 0], 2 * t[:, 1], 1.5 * (t**2).sum(1)], 1) @ rng.normal(size=(3, genes)) * 2
    x = (bent + 0.5 * rng.normal(size=bent.shape)).astype(np.float32)
    kind = np.select([t[:, 0] < -0.3, t[:, 0] < 0.3], ["low", "middle"], "high")
    return ad.AnnData(x, obs=pd.DataFrame({"kind": pd.Categorical(kind)}, index=[f"c{i}" for i in range(n)]))


@pytest.fixture(scope="module")
def data():
    return curved()


@pytest.fixture(scope="module")
def flat(data):
    return trifold.gamma_vae(trifold.Schema.of(data), latent=2, hidden=(32,), extrinsic=1000.0, parameter=1000.0).fit(
        data, epochs=150, lr=1e-2, **QUICK
    )


@pytest.fixture(scope="module")
def bent(data):
    return trifold.gamma_vae(trifold.Schema.of(data), latent=2, hidden=(32,), extrinsic=0, parameter=0).fit(
        data, epochs=150, lr=1e-2, **QUICK
    )


def test_the_penalty_makes_the_surface_flatter_and_the_grid_more_even(flat, bent, data):
    a, b = flat.curvature(data).median(), bent.curvature(data).median()
    assert a["extrinsic"] < 0.4 * b["extrinsic"]
    assert a["parameter"] < 0.4 * b["parameter"]


def test_without_weights_the_preset_is_the_plain_vae_bit_for_bit(data):
    schema = trifold.Schema.of(data)
    preset = trifold.gamma_vae(schema, latent=2, hidden=(8,), extrinsic=0, parameter=0, seed=4).fit(data, epochs=3, seed=1, **QUICK)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        encoder = MLP(20, (8,), norm="layer", activation="gelu", dropout=0.1)
        decoder = Decoder(MLP(2, (8,), norm="none", activation="softplus"), skip=True)
        noise = Gaussian(decoder.width, 20, variance="shared")
        vae = VAE(Posterior(encoder, 2, linear=True), StandardNormal(2), decoder, noise, refine=10)
    plan = Plan(batch=128, lr=2e-3, decay="cosine", plateau=None, patience=None, validation=0.0, steps=800)
    plain = trifold.Model(schema, vae, Objective({"nll": NLL(), "kl": KL()}), plan=plan).fit(data, epochs=3, seed=1, **QUICK)
    assert np.array_equal(preset.latent(data), plain.latent(data))


def test_curvature_comes_in_the_order_of_the_rows_whatever_their_company(flat, data):
    whole = flat.curvature(data)
    assert list(whole.index) == list(data.obs_names)
    assert list(whole.columns) == ["extrinsic", "parameter", "condition"]
    assert (whole["condition"] >= 1).all()
    some = np.array([7, 3, 200])
    np.testing.assert_allclose(flat.curvature(data[some].copy()), whole.iloc[some], rtol=1e-3)
    assert data.obs.columns.tolist() == ["kind"]


def test_curvature_of_a_model_is_that_of_its_surface(bent, data):
    z = torch.from_numpy(bent.latent(data))
    found = trifold.geometry.curvature(bent.surface(), z)
    np.testing.assert_allclose(bent.curvature(data)["extrinsic"], found.extrinsic.detach().numpy(), rtol=1e-3)


def test_distances_between_rectified_latents_of_a_flat_model_are_lengths_in_data_space(flat, data):
    decoded = pdist(flat.expression(data))
    np.testing.assert_allclose(np.median(pdist(flat.latent(data, rectified=True)) / decoded), 1, atol=0.05)
    raw, rectified = (np.corrcoef(pdist(flat.latent(data, rectified=r)), decoded)[0, 1] for r in (False, True))
    assert rectified > max(raw, 0.98)


def test_rectified_coordinates_are_of_the_training_cells_and_survive_saving(flat, data, tmp_path):
    again = trifold.load(flat.save(tmp_path / "run"))
    some = data[:10].copy()
    assert np.array_equal(again.latent(some, rectified=True), flat.latent(some, rectified=True))
    ratio = flat.latent(some, rectified=True) @ np.linalg.inv(np.array(flat.card["rectifier"]))
    np.testing.assert_allclose(ratio, flat.latent(some), atol=1e-4)


def test_a_run_from_before_there_were_rectified_coordinates_says_so(flat, data, tmp_path):
    old = trifold.load(flat.save(tmp_path / "run"))
    del old.card["rectifier"]
    assert old.latent(data).shape == (data.n_obs, 2)
    with pytest.raises(FormatError, match="Train it again"):
        old.latent(data, rectified=True)


def test_a_path_goes_from_mean_to_mean_and_tells_what_changes(flat, data):
    path = flat.path({"kind": "low"}, {"kind": "high"}, data=data, steps=11)
    z = flat.latent(data)
    ends = [z[(data.obs["kind"] == k).to_numpy()].mean(0) for k in ("low", "high")]
    np.testing.assert_allclose(path.obsm["latent"][[0, -1]], ends, atol=1e-5)
    np.testing.assert_allclose(path.var["change"], path.X[-1] - path.X[0], atol=1e-4)
    assert path.obs["position"].is_monotonic_increasing
    assert path.obs["position"].iloc[[0, -1]].tolist() == [0, 1]
    assert path.uns["trifold"]["length"]["straight"] >= path.uns["trifold"]["length"]["geodesic"] > 0
    assert list(path.var_names) == list(data.var_names)
    assert path.var["linearity"].median() > 0.99


def test_a_geodesic_is_no_longer_than_the_straight_line_and_bent_genes_are_less_linear(bent, flat, data):
    ends = {"kind": "low"}, {"kind": "high"}
    short = bent.path(*ends, data=data, kind="geodesic")
    assert short.uns["trifold"]["straightness"] >= 1
    assert short.obs["length"].iloc[-1] <= bent.path(*ends, data=data).obs["length"].iloc[-1] + 1e-4
    assert short.var["linearity"].median() < flat.path(*ends, data=data).var["linearity"].median()


def test_a_path_runs_between_points_too(flat):
    path = flat.path([0, 0], [1.0, 0.5], steps=5)
    np.testing.assert_allclose(path.obsm["latent"][2], [0.5, 0.25], atol=1e-6)


def test_what_a_path_cannot_do_is_said(flat, data):
    with pytest.raises(ShapeError, match="2 dimensions"):
        flat.path([0, 0, 0], [1, 1, 1])
    with pytest.raises(SpecError, match="data=adata"):
        flat.path({"kind": "low"}, {"kind": "high"})
    with pytest.raises(SpecError, match="Did you mean 'geodesic'"):
        flat.path([0, 0], [1, 1], kind="geodesics")
    with pytest.raises(SpecError, match="steps >= 3"):
        flat.path([0, 0], [1, 1], steps=2)
    with pytest.raises(SchemaError, match="kind"):
        flat.path({"kind": "upper"}, {"kind": "high"}, data=data)


def test_a_target_that_the_decoder_does_not_see_is_refused(study):
    schema = trifold.Schema.of(study.adata, condition="condition")
    model = trifold.gamma_vae(schema, latent=2, hidden=(8,)).fit(study.adata, epochs=1, **QUICK)
    with pytest.raises(SpecError, match="does not see 'condition'"):
        model.predict(study.adata, {"condition": "stimulated"})


def test_expression_on_a_linear_scale_is_warned_of_with_what_to_do(data):
    wide = ad.AnnData((1000 * (data.X - data.X.min())).astype(np.float32))
    with pytest.warns(TrifoldWarning, match=r"scanpy\.pp\.log1p"):
        trifold.gamma_vae(trifold.Schema.of(wide), latent=2, hidden=(8,)).fit(wide, epochs=1, lr=1e-6, **QUICK)


def test_an_untrained_model_has_no_shape(data):
    model = trifold.gamma_vae(trifold.Schema.of(data), latent=2, hidden=(8,))
    for ask in (lambda: model.curvature(data), lambda: model.surface(), lambda: model.path([0, 0], [1, 1])):
        with pytest.raises(NotFittedError):
            ask()


def test_a_class_left_out_of_training_is_embedded_where_the_full_model_has_it(flat, data):
    schema = trifold.Schema.of(data)
    left = trifold.gamma_vae(schema, latent=2, hidden=(32,), extrinsic=1000.0, parameter=1000.0)
    left.fit(data, hold_out={"kind": "high"}, epochs=150, lr=1e-2, **QUICK)
    scores = trifold.evaluate.unseen(*(m.latent(data, rectified=True) for m in (flat, left)), data.obs["kind"], "high")
    assert scores["displacement"] < 0.5


@pytest.mark.parametrize("latent", [2, 3, 10, 30])
def test_counts_with_technique_train_at_every_size(latent, study):
    schema = trifold.Schema.of(study.adata, spurious="condition")
    model = trifold.gamma_vae(schema, latent=latent, hidden=(16,)).fit(study.adata, epochs=2, **QUICK)
    assert np.isfinite(model.curvature(study.adata)).all().all()
    assert model.latent(study.adata, rectified=True).shape == (study.adata.n_obs, latent)
    control, drug = (model.surface({"condition": c})(torch.zeros(1, latent)) for c in ("control", "stimulated"))
    assert not torch.allclose(control, drug)
    path = model.path(np.zeros(latent), np.ones(latent), under={"condition": "control"})
    np.testing.assert_allclose(path.X.sum(1), 1e4, rtol=1e-4)  # counts at a library size of 10,000
    assert path.uns["trifold"]["x"] == "counts"


def test_the_published_preset_is_what_is_known_of_it(data):
    model = trifold.gamma_vae(trifold.Schema.of(data), published=True)
    assert model.vae.posterior.latent == 3
    assert model.vae.posterior.network.hidden == (200, 100, 50)
    assert model.vae.decoder.network.hidden == (50, 100, 200)
    assert model.vae.decoder.network.activation == "softplus"
    assert not model.vae.decoder.skip
    assert (model.objective.terms["curvature"].extrinsic, model.objective.terms["curvature"].parameter) == (0.5, 100.0)
    done = trifold.records.Progress.done()
    assert weight_now(model.objective.weights["isometry"], done) / weight_now(model.objective.weights["curvature"], done) == pytest.approx(
        100
    )
    model.fit(data, epochs=2, **QUICK)
    assert np.isfinite(model.latent(data)).all()


def test_isometry_rounds_the_metric(data, bent):
    schema = trifold.Schema.of(data)
    even = trifold.gamma_vae(schema, latent=2, hidden=(32,), extrinsic=0, parameter=0, isometry=3000.0).fit(
        data, epochs=150, lr=1e-2, **QUICK
    )
    assert even.curvature(data)["condition"].median() < 0.8 * bent.curvature(data)["condition"].median()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"latent": 0}, "latent >= 1"),
        ({"extrinsic": -1.0}, "extrinsic >= 0"),
        ({"parameter": float("nan")}, "parameter >= 0"),
        ({"isometry": -1.0}, "isometry >= 0"),
        ({"hidden": ()}, "at least one hidden layer"),
        ({"hidden": (8, 0)}, "hidden >= 1"),
        ({"likelihood": "poisson"}, "counts"),
        ({"likelihood": "gausian"}, "Did you mean 'gaussian'"),
        ({"refine": -1}, "refine >= 0"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(data, given, said):
    with pytest.raises(SpecError, match=said):
        trifold.gamma_vae(trifold.Schema.of(data), **given)


def test_gamma_vae_is_cited_with_what_it_stands_on(flat):
    text = flat.cite()
    for key in ("2403.01078", "Bates", "Tipping"):
        assert key in text
