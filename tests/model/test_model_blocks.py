"""Latents of a model of blocks, technique averaged out, predictions along either role, and unknown covariates."""

from __future__ import annotations

import block_cases
import numpy as np
import pandas as pd
import pytest
import torch
from block_cases import MARKERS, SHIFTED
from scipy.spatial.distance import pdist

import trifold
from trifold.core import locate
from trifold.data import Cells
from trifold.errors import FormatError, SchemaError, SpecError


def share(x) -> np.ndarray:
    return x / x.sum(1, keepdims=True)


def relabelled(a, column, value):
    out = a.copy()
    out.obs[column] = value
    return out


# -- blocks ----------------------------------------------------------------------------------------------------------------------------


def test_blocks_side_by_side_are_the_latent(blocks, cells):
    parts = [blocks.latent(cells, block=b) for b in ("invariant", "spurious")]
    assert [p.shape[1] for p in parts] == [4, 2]
    assert np.array_equal(np.concatenate(parts, 1), blocks.latent(cells))
    with pytest.raises(SpecError, match=r"'invarient'.*'invariant'.*invariant, spurious"):
        blocks.latent(cells, block="invarient")


def test_a_model_without_blocks_says_so(trained, study):
    with pytest.raises(SpecError, match="block=None"):
        trained.latent(study.adata, block="invariant")
    with pytest.raises(SpecError, match="spurious block"):
        trained.expression(study.adata, corrected=True)


# -- technique averaged out ---------------------------------------------------------------------------------------------------------------


def test_corrected_expression_is_the_same_whatever_batch_a_cell_is_said_to_be_of(blocks, cells):
    plain = [blocks.expression(relabelled(cells, "batch", b)) for b in "ab"]
    corrected = [blocks.expression(relabelled(cells, "batch", b), corrected=True) for b in "ab"]
    np.testing.assert_allclose(*corrected, rtol=1e-5)
    assert np.abs(plain[0] - plain[1]).max() > 1e-3
    np.testing.assert_allclose(corrected[0].sum(1), cells.X.sum(1), rtol=1e-4)  # at the cell's own library size


def test_correction_takes_the_shift_between_batches_out_and_leaves_the_markers(blocks, cells):
    b = (cells.obs["batch"] == "b").to_numpy()
    x = (cells.obs["kind"] == "x").to_numpy()
    raw, plain, corrected = (
        share(v)[:, SHIFTED].mean(1) for v in (cells.X, blocks.expression(cells), blocks.expression(cells, corrected=True))
    )
    ratios = [v[b & x].mean() / v[~b & x].mean() for v in (raw, plain, corrected)]
    assert ratios[0] > 1.5
    assert ratios[1] > 1.3
    assert abs(np.log(ratios[2])) < 0.35 * np.log(ratios[1])
    marker = share(blocks.expression(cells, corrected=True))[:, MARKERS["x"]].mean(1)
    assert marker[x].mean() > 1.5 * marker[~x].mean()


def test_corrected_expression_is_the_mean_over_batches_with_equal_weights_by_hand(blocks, cells):
    some = cells[:30].copy()
    at = Cells(trifold.open(some), blocks.schema).batch(np.arange(30))
    with torch.no_grad():
        z = locate(blocks.vae, at)
        parts = []
        for code in (0, 1):
            under = at.under(code={"spurious": torch.full((30,), code)}, spurious=torch.eye(2)[[code]].expand(30, 2))
            moved = torch.cat([z[:, :4], blocks.vae.prior.blocks["spurious"].mean[code].expand(30, 2)], 1)
            parts.append(blocks.vae.likelihood.mean(blocks.vae.decode(moved, under), under))
    np.testing.assert_allclose(blocks.expression(some, corrected=True), (parts[0] + parts[1]) / 2, rtol=1e-4)


def test_rectified_distances_are_those_between_square_roots_of_expected_counts(blocks, cells):
    z = blocks.latent(cells, block="invariant", rectified=True)
    assert z.shape == (cells.n_obs, 4)
    profile = np.sqrt(1e4 * share(blocks.expression(cells, corrected=True)))  # root of the mean is near the mean of roots
    np.testing.assert_allclose(np.median(pdist(z) / pdist(profile)), 1, atol=0.05)
    assert np.corrcoef(pdist(z), pdist(profile))[0, 1] > 0.98
    np.testing.assert_allclose(blocks.latent(relabelled(cells, "batch", "a"), block="invariant", rectified=True), z, atol=2e-2)
    axes = blocks.axes.axes
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-4)
    assert (np.diff(z.var(0)) < 0).all()


def test_rectified_coordinates_of_other_blocks_are_refused_with_what_to_type(blocks, cells):
    for block in (None, "spurious"):
        with pytest.raises(SpecError, match="block='invariant'"):
            blocks.latent(cells, block=block, rectified=True)


def test_sixteen_categories_with_most_cells_stand_for_technique(blocks):
    from trifold.technique import Technique

    many = block_cases.study(120)
    many.obs["batch"] = pd.Categorical([f"b{i % 20:02d}" if i < 60 else f"b{i % 10 + 10}" for i in range(120)])
    model = block_cases.fitted(many, epochs=1, validation=0.0)
    technique = Technique(model.vae, model.schema, model.card)
    assert technique.count == 16
    assert set(range(10, 20)) <= set(technique.filling.code.tolist())


def test_injected_technique_without_a_spurious_block_is_averaged_out_too(cells):
    model = block_cases.fitted(cells, epochs=8, inject="instead")
    np.testing.assert_allclose(*(model.expression(relabelled(cells, "batch", b), corrected=True) for b in "ab"), rtol=1e-5)
    assert model.latent(cells, block="invariant", rectified=True).shape == (cells.n_obs, 4)
    with pytest.raises(SpecError, match="invariant and a spurious"):
        model.separation  # noqa: B018


# -- predictions ------------------------------------------------------------------------------------------------------------------------


def test_predicting_the_other_batch_moves_its_genes_the_right_way_and_back(blocks, cells):
    a = cells[(cells.obs["batch"] == "a").to_numpy()].copy()
    own, moved = (share(blocks.predict(a, {"batch": b}).X).mean(0) for b in "ab")
    change = np.log(moved / own)
    assert change[SHIFTED].mean() > 0.35
    rest = np.delete(change, np.arange(20, 30))
    assert np.abs(rest - rest.mean()).max() < 0.6 * (change[SHIFTED].mean() - rest.mean())
    np.testing.assert_allclose(blocks.predict(a, {"batch": "a"}).X, blocks.expression(a), rtol=1e-3)


def test_predicting_another_type_moves_the_markers(blocks, cells):
    y = cells[(cells.obs["kind"] == "y").to_numpy()].copy()
    own, moved = share(blocks.expression(y)).mean(0), share(blocks.predict(y, {"kind": "x"}).X).mean(0)
    assert np.log(moved / own)[MARKERS["x"]].mean() > 0.4
    assert np.log(moved / own)[MARKERS["y"]].mean() < -0.4


def test_a_residual_prediction_keeps_each_cells_own_noise(blocks, cells):
    out = blocks.predict(cells, {"batch": "a"}, kind="residual", where={"batch": "a"})
    own = cells[(cells.obs["batch"] == "a").to_numpy()]
    assert np.mean(out.X.toarray() == own.X) > 0.97  # moved by rounding only


def test_columns_that_nothing_sees_are_refused(cells):
    labelled = cells.copy()
    labelled.obs["name"] = labelled.obs["kind"].astype(str) + "!"
    model = block_cases.fitted(labelled, epochs=1, given={"invariant": None, "label": "name"})
    for call in (lambda: model.predict(labelled, {"name": "x!"}), lambda: model.sample({"name": "x!"}, n=3)):
        with pytest.raises(SpecError, match="does not see 'name'"):
            call()


# -- unknown covariates -------------------------------------------------------------------------------------------------------------------


def test_marginalised_latents_and_expression_are_the_average_weighted_by_training_shares(told, cells):
    some = cells[:40].copy()
    gone = relabelled(some, "batch", "new")
    counts = np.array(told.card["counts"]["spurious"], dtype=float)
    weight = counts / counts.sum()
    assert abs(weight[0] - 0.5) > 0.02
    for answer in (told.latent, told.expression, lambda d, **k: told.predict(d, {"kind": "x"}, **k).X):
        known = [answer(relabelled(some, "batch", b)) for b in "ab"]
        found = answer(gone, unknown={"spurious": "marginalise"})
        np.testing.assert_allclose(found, weight[0] * known[0] + weight[1] * known[1], rtol=1e-4, atol=1e-5)
        assert np.abs(found - answer(gone, unknown="zero")).max() > 1e-4
    with pytest.raises(SchemaError, match="new"):
        told.expression(gone)


def test_cells_that_are_known_are_left_as_they_are_and_the_order_is_kept(told, cells):
    some = cells[:40].copy()
    mixed = some.copy()
    mixed.obs["batch"] = mixed.obs["batch"].astype(object)
    mixed.obs.loc[mixed.obs_names[::3], "batch"] = "new"
    found, known = told.latent(mixed, unknown="marginalise"), told.latent(some)
    rest = np.arange(40) % 3 > 0
    np.testing.assert_allclose(found[rest], known[rest], atol=1e-5)
    assert np.abs(found[~rest] - known[~rest]).max() > 1e-3
    moved = told.predict(mixed, {"kind": "x"}, kind="sample", unknown="marginalise")
    assert list(moved.obs_names) == list(mixed.obs_names)
    assert np.corrcoef(np.asarray(moved.X.sum(1)).ravel(), some.X.sum(1))[0, 1] > 0.5  # at their own library sizes


def test_a_target_that_names_the_unknown_role_needs_no_average_on_its_side(told, cells):
    some = cells[:20].copy()
    counts = np.array(told.card["counts"]["spurious"], dtype=float)
    parts = [told.predict(relabelled(some, "batch", b), {"batch": "b"}).X for b in "ab"]
    found = told.predict(relabelled(some, "batch", "new"), {"batch": "b"}, unknown="marginalise").X
    np.testing.assert_allclose(found, np.average(parts, axis=0, weights=counts), rtol=1e-4)


def test_two_unknown_roles_are_averaged_over_both(told, cells):
    some = relabelled(cells[:10].copy(), "batch", "new")
    found = told.latent(relabelled(some, "kind", "new"), unknown="marginalise")
    w = [np.array(told.card["counts"][r], dtype=float) for r in ("invariant", "spurious")]
    total = sum(
        w[0][i] * w[1][j] * told.latent(relabelled(relabelled(some, "kind", k), "batch", b))
        for i, k in enumerate("xyz")
        for j, b in enumerate("ab")
    )
    np.testing.assert_allclose(found, total / (w[0].sum() * w[1].sum()), rtol=1e-3, atol=1e-5)


def test_where_nothing_sees_the_role_there_is_nothing_to_average(blocks, cells):
    gone = relabelled(cells[:20].copy(), "kind", "new")
    assert np.array_equal(blocks.latent(gone, unknown="marginalise"), blocks.latent(cells[:20].copy()))


# -- runs -------------------------------------------------------------------------------------------------------------------------------


def test_every_answer_survives_saving(blocks, cells, tmp_path):
    again = trifold.load(blocks.save(tmp_path / "run"))
    some = cells[:50].copy()
    calls = (
        lambda m: m.latent(some, block="invariant", rectified=True),
        lambda m: m.expression(some, corrected=True),
        lambda m: m.classify(some, probabilities=True).drop(columns="label").to_numpy(dtype=float),
        lambda m: m.novelty(some).to_numpy(),
        lambda m: m.loadings(some).to_numpy(),
        lambda m: m.loadings().to_numpy(),
        lambda m: m.difference(some, {"kind": "x"}, {"kind": "y"}, samples=64).to_numpy(),
        lambda m: m.sample({"kind": "x"}, n=20, seed=2).X.toarray(),
        lambda m: m.separation.drop(columns=["latent", "column", "role", "probe", "measure"]).to_numpy(),
    )
    for call in calls:
        assert np.array_equal(call(again), call(blocks), equal_nan=True)
        assert np.array_equal(call(blocks), call(blocks), equal_nan=True)
    assert list(again.network.state_dict()) == list(blocks.network.state_dict())


def test_a_run_from_before_there_were_axes_loads_and_says_so(blocks, cells, tmp_path):
    blocks.save(tmp_path / "run")
    old = trifold.load(tmp_path / "run")
    old.axes = None
    for name in ("counts", "combinations", "sizes", "novelty", "calibration", "separation"):
        del old.card[name]
    again = trifold.load(old.save(tmp_path / "old"))
    assert again.axes is None
    assert np.array_equal(again.latent(cells), blocks.latent(cells))
    for call in (
        lambda: again.latent(cells, block="invariant", rectified=True),
        lambda: again.novelty(cells),
        lambda: again.sample(n=3),
        lambda: again.expression(cells, corrected=True),
    ):
        with pytest.raises(FormatError, match="Train it again"):
            call()
