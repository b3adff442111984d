"""Loadings, differences between groups, and cells drawn from the model."""

from __future__ import annotations

import block_cases
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from block_cases import MARKERS, SHIFTED

import trifold
from trifold.core import ConditionalGaussian, Energy, Mixture
from trifold.data import Cells
from trifold.errors import SchemaError, SpecError
from trifold.generation import combinations_of, drawn, sizes_of
from trifold.records import Batch, Rows


def names(at: slice) -> set[str]:
    return {f"g{j}" for j in range(at.start, at.stop)}


def a_batch(code, *, role: str) -> Batch:
    code = torch.as_tensor(code)
    return Batch(
        Rows.of_dense(torch.zeros(len(code), 0)), torch.ones(len(code), 1), design={role: torch.zeros(len(code), 2)}, code={role: code}
    )


# -- loadings ---------------------------------------------------------------------------------------------------------------------------


def test_loadings_are_the_mean_of_finite_differences_of_the_surface(blocks, cells):
    some = cells[:60].copy()
    found = blocks.loadings(some, block=None)
    batch = Cells(trifold.open(some), blocks.schema).batch(np.arange(60))
    vae = blocks.vae
    with torch.no_grad():
        z = vae.posterior(batch).mean
        weight, bias = (part.double() for part in vae.likelihood.linear())
        vae.double()
        try:
            design = {role: value.double() for role, value in batch.design.items()}
            wide = Batch(batch.rows, batch.size.double(), design=design, code=batch.code)

            def log_rate(at):
                rate = vae.decode(at, wide) @ weight.T + bias
                return rate - rate.mean(1, keepdim=True)

            step = 1e-4 * torch.eye(6).double()
            by_hand = [(log_rate(z.double() + s) - log_rate(z.double() - s)).mean(0) / 2e-4 for s in step]
        finally:
            vae.float()
    np.testing.assert_allclose(found.to_numpy().T, torch.stack(by_hand).numpy(), rtol=1e-2, atol=1e-4)
    assert list(found.columns) == [f"latent_{j}" for j in range(6)]
    assert list(found.index) == list(cells.var_names)


def test_loadings_of_a_block_are_its_columns_and_markers_load_most_on_biology(blocks, cells):
    every = blocks.loadings(cells, block=None)
    biology = blocks.loadings(cells)
    assert list(biology.columns) == [f"invariant_{j}" for j in range(4)]
    np.testing.assert_array_equal(biology.to_numpy(), every.to_numpy()[:, :4])
    size = np.linalg.norm(biology, axis=1)
    assert size[:15].mean() > 3 * size[15:].mean()
    drawn_ = np.linalg.norm(blocks.loadings(), axis=1)
    assert np.corrcoef(drawn_, size)[0, 1] > 0.9
    with pytest.raises(SpecError, match="no block 'biology'"):
        blocks.loadings(cells, block="biology")


# -- differences --------------------------------------------------------------------------------------------------------------------------


def test_difference_finds_the_markers_and_not_the_genes_of_the_batch(cells):
    """Type x is mostly of batch b: the naive comparison sees the batch."""
    a = block_cases.study(450, seed=5, shares=(0.2, 0.8))
    model = block_cases.fitted(a)
    table = model.difference(a, {"kind": "x"}, {"kind": "y"}, samples=2_000)
    assert set(table.index[:10]) == names(MARKERS["x"]) | names(MARKERS["y"])
    assert (np.diff(table["probability"]) <= 0).all()
    assert (table["log_fold_change"][sorted(names(MARKERS["x"]))] > 0.6).all()
    assert (table["log_fold_change"][sorted(names(MARKERS["y"]))] < -0.6).all()
    shifted = table.loc[sorted(names(SHIFTED))]
    kind = a.obs["kind"].to_numpy()
    naive = np.log(a.X[kind == "x"].mean(0) / a.X[kind == "y"].mean(0))[SHIFTED]
    assert naive.mean() > 0.25
    assert abs(shifted["log_fold_change"].mean()) < 0.5 * naive.mean()
    assert (shifted["probability"] < 0.5).all()
    truth = np.log(table["mean_a"] / table["mean_b"])
    assert np.corrcoef(truth, table["log_fold_change"])[0, 1] > 0.98
    np.testing.assert_allclose(table[["mean_a", "mean_b"]].sum(), 1e4, rtol=1e-3)


def test_a_difference_turned_round_changes_its_sign_and_the_threshold_what_counts(blocks, cells):
    forth, back = (blocks.difference(cells, {"kind": p}, {"kind": q}, samples=1_500).sort_index() for p, q in ("xy", "yx"))
    np.testing.assert_allclose(forth["log_fold_change"], -back["log_fold_change"], atol=6 * forth["sd"].max() / np.sqrt(1_500))
    assert (blocks.difference(cells, {"kind": "x"}, {"kind": "y"}, threshold=0, samples=50)["probability"] == 1).all()
    with pytest.raises(SchemaError, match="match both"):
        blocks.difference(cells, {"kind": ["x", "y"]}, {"kind": "y"})
    with pytest.raises(SchemaError, match="'w'"):
        blocks.difference(cells, {"kind": "w"}, {"kind": "y"})
    with pytest.raises(SpecError, match="samples"):
        blocks.difference(cells, {"kind": "x"}, {"kind": "y"}, samples=0)


def test_models_without_technique_compare_cells_as_they_are_and_real_values_in_their_units(study):
    a = study.adata.copy()
    a.X = np.log1p(a.X.toarray()).astype(np.float32)
    model = trifold.gamma_vae(trifold.Schema.of(a), latent=2).fit(a, epochs=1, **block_cases.QUICK)
    table = model.difference(a, {"cell_type": "type_0"}, {"cell_type": "type_1"}, samples=400)
    np.testing.assert_allclose(table["change"], table["mean_a"] - table["mean_b"], atol=1e-9)
    assert model.latent(a, rectified=True).shape == (a.n_obs, 2)


# -- samples ------------------------------------------------------------------------------------------------------------------------------


def test_samples_have_the_covariates_asked_for_and_the_others_as_in_training(blocks, cells):
    out = blocks.sample({"kind": "x"}, n=3_000, seed=1)
    assert (out.obs["kind"] == "x").all()
    assert out.obs["seen"].all()
    true = (cells.obs["batch"][cells.obs["kind"] == "x"] == "b").mean()
    assert (out.obs["batch"] == "b").mean() == pytest.approx(true, abs=0.08)
    assert sp.issparse(out.X)
    assert (out.X.data == np.round(out.X.data)).all()
    sizes = np.asarray(out.X.sum(1)).ravel()
    assert np.median(sizes) == pytest.approx(np.median(cells.X.sum(1)), rel=0.05)
    assert np.asarray(blocks.sample(n=500, size=2_000).X.sum(1)).mean() == pytest.approx(2_000, rel=0.02)


def test_the_mean_of_samples_is_that_of_the_cells_of_the_class_and_batch(blocks, cells):
    for kind, batch in (("x", "a"), ("y", "b")):
        mean = np.asarray(blocks.sample({"kind": kind, "batch": batch}, n=800).X.mean(0)).ravel()
        own = cells.X[((cells.obs["kind"] == kind) & (cells.obs["batch"] == batch)).to_numpy()].mean(0)
        assert np.corrcoef(np.log(mean), np.log(own))[0, 1] > 0.9
        assert np.log(mean / own)[MARKERS[kind]].mean() == pytest.approx(0, abs=0.35)


def test_the_seed_decides_samples_and_what_cannot_be_drawn_is_refused(blocks):
    first, again, other = (blocks.sample(n=40, seed=s) for s in (0, 0, 1))
    assert (first.X != again.X).nnz == 0
    assert first.obs.equals(again.obs)
    assert (first.X != other.X).nnz > 0
    with pytest.raises(SchemaError, match="'w'"):
        blocks.sample({"kind": "w"})
    for wrong in ({"n": 0}, {"size": -1.0}):
        with pytest.raises(SpecError, match=r"above 0|>= 1"):
            blocks.sample(**wrong)


def test_a_combination_that_never_was_can_be_drawn_when_it_is_named_in_full_only(cells):
    a = cells[~((cells.obs["kind"] == "x") & (cells.obs["batch"] == "b")).to_numpy()].copy()
    a.obs["site"] = a.obs["batch"].map({"a": "north", "b": "south"}).astype("category")
    model = block_cases.fitted(a, epochs=1, given={"spurious": ["batch", "site"]})
    with pytest.raises(SchemaError, match=r"No training cell has .*site"):
        model.sample({"kind": "x", "batch": "b"}, n=5)
    out = model.sample({"kind": "x", "batch": "b", "site": "south"}, n=5)
    assert not out.obs["seen"].any()


def test_what_is_kept_of_covariates_and_sizes_is_what_there_was():
    obs = pd.DataFrame({"a": pd.Categorical(["p", "q", "p", "p"]), "b": [1.0, 2.0, 1.0, 3.0]})
    kept = combinations_of(obs, ["a", "b", "absent"])
    assert kept["columns"] == ["a", "b"]
    assert sorted(zip(map(tuple, kept["values"]), kept["counts"], strict=True)) == [(("p", 1.0), 2), (("p", 3.0), 1), (("q", 2.0), 1)]
    assert sizes_of(np.array([[3.0], [1.0], [2.0]])) == [1.0, 2.0, 3.0]
    assert len(sizes_of(np.arange(5_000.0))) == 1_000


def test_latents_are_drawn_from_the_prior_that_each_cell_has():
    generator = torch.Generator().manual_seed(0)
    mixture = Mixture(1, 2)
    with torch.no_grad():
        mixture.mean.copy_(torch.tensor([[-4.0], [4.0]]))
        mixture.logit.copy_(torch.log(torch.tensor([0.2, 0.8])))
        z = drawn(mixture, a_batch([0] * 4_000, role="label"), generator)
        assert (z > 0).float().mean().item() == pytest.approx(0.8, abs=0.03)
        assert z[z > 0].std().item() == pytest.approx(1, abs=0.05)
        own = ConditionalGaussian(1, 2, role="label", unknown="mixture")
        own.mean.copy_(torch.tensor([[-5.0], [5.0], [0.0]]))
        known = drawn(own, a_batch([0] * 100 + [1] * 100, role="label"), generator)
        assert (known[:100] < 0).all()
        assert (known[100:] > 0).all()
        any_ = drawn(own, a_batch([-1] * 2_000, role="label"), generator)
        assert (any_ > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert any_.abs().mean().item() == pytest.approx(5, abs=0.1)


def test_the_walk_through_an_energy_has_its_mean_and_variance():
    torch.manual_seed(1)
    energy = Energy(1, 2, role="label", hidden=(8,))
    with torch.no_grad():
        energy.tilt[0, :] = 2.0
        energy.tilt[1, :] = -1.0
        energy.gaussian.mean.copy_(torch.tensor([[1.0], [-2.0], [0.0]]))
        grid = torch.linspace(-12, 12, 4_001)[:, None]
        for code in (0, 1):
            p = torch.softmax(energy.log_prob(grid, a_batch([code] * 4_001, role="label")), 0)
            mean = float((p * grid[:, 0]).sum())
            sd = float((p * (grid[:, 0] - mean) ** 2).sum().sqrt())
            z = drawn(energy, a_batch([code] * 4_000, role="label"), torch.Generator().manual_seed(2))[:, 0]
            assert abs(mean - float(energy.gaussian.mean[code, 0])) > 0.05  # the tilt matters
            assert z.mean().item() == pytest.approx(mean, abs=4 * sd / np.sqrt(4_000))
            assert z.std().item() == pytest.approx(sd, rel=0.05)
