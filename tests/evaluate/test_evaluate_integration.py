import logging
import os
import random
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2, chisquare, ortho_group
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import silhouette_samples

from trifold.errors import EvaluationError
from trifold.evaluate import integration, mixing, scib

NAMES = {"batch": "batch", "label": "type"}


def study(n=600, *, shift=2.0, types=3, d=5, shares=(0.5, 0.3, 0.2), seed=0):
    """Types far apart; each batch moved by its own random vector of length ``shift``."""
    rng = np.random.default_rng(seed)
    label, batch = np.arange(n) % types, rng.choice(len(shares), n, p=shares)
    offset = rng.normal(size=(len(shares), d))
    offset *= shift / np.linalg.norm(offset, axis=1, keepdims=True)
    z = 8 * np.eye(d)[:types][label] + rng.normal(size=(n, d)) + offset[batch]
    return z, batch, label, pd.DataFrame({"batch": np.array(list("xyz"))[batch], "type": np.array(list("abcdef"))[label]})


def test_mixing_is_one_in_expectation_for_shuffled_groups_of_unequal_size_and_zero_for_pure_neighbourhoods():
    rng = np.random.default_rng(0)
    near = mixing.neighbours(rng.normal(size=(300, 3)), 20)
    groups = np.repeat([0, 1, 2], [200, 90, 10])
    values = [mixing.mixing(near, rng.permutation(groups)) for _ in range(200)]
    assert np.mean(values) == pytest.approx(1, abs=4 * np.std(values) / np.sqrt(200))
    assert 4 * np.std(values) / np.sqrt(200) < 0.01
    z = np.column_stack([100.0 * groups[groups < 2], rng.normal(size=290)])
    assert mixing.mixing(mixing.neighbours(z, 20), groups[groups < 2]) == 0


def test_mixing_counts_pairs_of_neighbours_that_differ():
    groups = np.array([0, 0, 0, 1, 1, 2, 0, 1])
    near = np.array([[(i + s) % 8 for s in (1, 2, 3, 5)] for i in range(8)])
    pairs = [groups[a] != groups[b] for row in near for i, a in enumerate(row) for b in row[i + 1 :]]
    every = [groups[a] != groups[b] for a in range(8) for b in range(a)]
    assert mixing.mixing(near, groups) == pytest.approx(np.mean(pairs) / np.mean(every))


def test_acceptance_is_the_share_of_cells_that_pass_a_chi_square_test_within_their_label():
    z, batch, label, _ = study(240, shift=1.0)
    rates = []
    for t in range(3):
        own, names = batch[label == t], range(3)
        k, n = 10, 80
        near = mixing.neighbours(z[label == t], k)
        share = np.bincount(own) / n
        p = [chi2.sf((n - 1) / (n - k) * chisquare([(own[row] == b).sum() for b in names], k * share).statistic, 2) for row in near]
        rates.append(min(1, np.mean(np.array(p) >= 0.2) / 0.8))
    got = mixing.acceptance(z, batch, label, alpha=0.2)
    assert got == pytest.approx(np.mean(rates))
    assert 0.05 < got < 0.95
    alone = np.where(label == 2, 0, batch)  # a label of one batch cannot be mixed, and is left out
    assert mixing.acceptance(z, alone, label, alpha=0.2) == pytest.approx(np.mean(rates[:2]))


def test_acceptance_is_one_for_mixed_batches_and_zero_for_batches_apart():
    rng = np.random.default_rng(1)
    z, batch, label = rng.normal(size=(3000, 4)), rng.choice(3, 3000, p=[0.6, 0.3, 0.1]), np.zeros(3000, dtype=int)
    error = np.sqrt(0.05 * 0.95 / (3000 / 70)) / 0.95  # neighbourhoods of 70 overlap: so many are independent
    assert mixing.acceptance(z, batch, label) > 1 - 4 * error
    assert mixing.acceptance(z + 50.0 * batch[:, None], batch, label) == 0


def test_connectivity_is_the_share_of_the_largest_piece_of_each_label():
    rng = np.random.default_rng(2)
    sizes = [60, 40, 100]  # label 0 in two pieces, label 1 in one
    z = np.repeat([[0.0], [100.0], [200.0]], sizes, axis=0) + rng.normal(size=(200, 1))
    label = np.repeat([0, 0, 1], sizes)
    assert mixing.connectivity(mixing.neighbours(z, 15), label) == pytest.approx((0.6 + 1) / 2)


@pytest.mark.parametrize("block", [4_000_000, 1000])
def test_silhouettes_equal_those_of_scikit_learn_and_of_all_others_by_hand(block, monkeypatch):
    monkeypatch.setattr(mixing, "BLOCK", block)
    z, batch, label, _ = study(90)
    label = np.where(np.arange(90) == 0, 3, label)  # one cell alone
    assert mixing.silhouettes(z, label) == pytest.approx(silhouette_samples(z, label), abs=1e-9)
    d = np.linalg.norm(z[:, None] - z[None], axis=2)
    a = np.array([d[i, (batch == batch[i]) & (np.arange(90) != i)].mean() for i in range(90)])
    b = np.array([d[i, batch != batch[i]].mean() for i in range(90)])
    assert mixing.silhouettes(z, batch, other="mean") == pytest.approx((b - a) / np.maximum(a, b), abs=1e-9)


def test_the_batch_silhouette_is_near_one_where_batches_are_mixed_and_near_zero_where_they_are_apart():
    z, batch, label, _ = study(3000, shift=0.0)
    assert mixing.silhouette_batch(z, batch, label) > 0.97
    assert mixing.silhouette_batch(z + 500.0 * batch[:, None], batch, label) < 0.03
    assert np.isnan(mixing.silhouette_batch(z, label, label))


def test_the_share_of_variance_is_principal_component_regression_on_all_components():
    z, batch, _, _ = study(200)
    pca = PCA().fit(z)
    scores, each = pca.transform(z), np.eye(3)[batch]
    r2 = [LinearRegression().fit(each, s).score(each, s) for s in scores.T]
    assert mixing.variance_share(z, batch) == pytest.approx(np.average(r2, weights=pca.explained_variance_))
    centred = z - np.stack([z[batch == b].mean(0) for b in range(3)])[batch]
    half = centred + 0.5 * (z - centred)
    assert mixing.variance_removed(z, centred, batch) == pytest.approx(1)
    assert mixing.variance_removed(z, z, batch) == 0
    assert mixing.variance_removed(half, z, batch) == 0
    assert 0 < mixing.variance_removed(z, half, batch) < 1


def test_the_isolated_label_takes_its_best_cluster():
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    batch = np.array([0, 1, 0, 1, 0, 0, 0, 0])  # label 1 is in one batch only
    found = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    assert mixing.isolated_f1(found, batch, label) == pytest.approx(2 * 3 / (4 + 4))
    everywhere = np.tile([0, 1], 4)  # now both are isolated: 3 of cluster 0's three, of four
    assert mixing.isolated_f1(found, everywhere, label) == pytest.approx((2 * 3 / (3 + 4) + 3 / 4) / 2)


def test_light_scores_do_not_change_under_rotation_shift_scale_and_order_of_cells():
    z, batch, label, _ = study()
    want = mixing.measure(z, z, batch, label, 0)
    turned = 3 * z @ ortho_group.rvs(5, random_state=1) + 7
    assert mixing.measure(turned, z, batch, label, 0) == pytest.approx(want, abs=1e-9)
    order = np.random.default_rng(3).permutation(len(z))
    assert mixing.measure(z[order], z[order], batch[order], label[order], 0) == pytest.approx(want, abs=1e-9)
    assert want["kmeans_ari"] > 0.99
    assert 0 < want["ilisi"] < 0.9
    assert 0 < want["kbet"] < 0.9


def test_controls_show_where_every_scale_begins_and_ends():
    z, _, _, obs = study(1500, shift=4.0)
    table = integration({"apart": z + 60.0 * np.array(obs["batch"] == "x")[:, None]}, obs, before=z, **NAMES)
    assert list(table.index[1:]) == ["no integration", "noise", "label oracle", "shuffled cells", "shuffled within label"]
    noise, apart = table.loc["noise"], table.loc["apart"]
    assert (noise[list(mixing.BATCH)] > 0.9).all()
    assert noise["clisi"] < 0.02
    assert noise["kmeans_ari"] == pytest.approx(0, abs=0.02)
    assert noise["silhouette_label"] == pytest.approx(0.5, abs=0.02)
    assert (table.loc["label oracle", list(mixing.BIO)] > 0.95).all()
    assert table.loc["no integration", "pcr_comparison"] == 0
    assert (apart["kbet"], apart["ilisi"] < table.loc["no integration", "ilisi"]) == (0, True)
    assert apart["pcr_comparison"] == 0
    within, before = table.loc["shuffled within label"], table.loc["no integration"]
    assert within[list(mixing.BIO)].to_numpy() == pytest.approx(before[list(mixing.BIO)].to_numpy(), abs=1e-9)  # same points per label
    assert (within[["silhouette_batch", "ilisi", "kbet"]] > 0.95).all()
    assert table["total"].to_numpy() == pytest.approx(
        0.4 * table[list(mixing.BATCH)].mean(axis=1) + 0.6 * table[list(mixing.BIO)].mean(axis=1)
    )


def test_a_row_does_not_depend_on_the_other_rows_nor_on_cells_that_are_not_scored():
    z, _, _, obs = study(300)
    alone = integration({"z": z}, obs, before=z, controls=False, **NAMES)
    pd.testing.assert_series_equal(alone.loc["z"], integration({"y": z[:, :1], "z": z}, obs, before=z, **NAMES).loc["z"])
    more = np.concatenate([z, 50 * z[:40]])
    known = np.arange(340) < 300
    wide = pd.concat([obs, obs[:40].assign(batch=None)])
    scored = integration({"z": more}, wide, before=more, where=known, controls=False, **NAMES)
    pd.testing.assert_frame_equal(scored, alone)
    assert scored.attrs["cells"] == 300
    assert set(scored.attrs["versions"]) == {"numpy", "scikit-learn"}


def test_many_cells_are_drawn_by_seed_and_the_global_generators_are_left_as_found(monkeypatch):
    monkeypatch.setitem(integration.__globals__, "LIGHT_CELLS", 200)
    z, _, _, obs = study(300)
    state, python = np.random.get_state()[1].copy(), random.getstate()
    one, two, other = (integration({"z": z}, obs, before=z, seed=s, **NAMES) for s in (1, 1, 2))
    assert (np.random.get_state()[1] == state).all()
    assert random.getstate() == python
    pd.testing.assert_frame_equal(one, two)
    assert one.attrs["cells"] == 200
    assert (one.loc["z"] != other.loc["z"]).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": "btach"}, "Did you mean 'batch'"),
        ({"label": "cell"}, "It has: batch, type"),
        ({"label": "batch"}, "in two of 'batch' or more; found each"),
        ({"metrics": "all"}, "Pass metrics='light'"),
        ({"where": np.arange(60)}, "boolean mask of 60 cells; found int64"),
        ({"where": np.zeros(60, dtype=bool)}, "'batch' has none in 0 scored cells"),
        ({"before": np.ones((59, 2))}, "before needs one row for each of 60 cells"),
        ({"latents": {"mine": np.ones((50, 2))}}, "mine needs one row"),
        ({"latents": {"mine": np.full((60, 2), np.nan)}}, "120 are NaN"),
        ({"latents": {"noise": np.ones((60, 2))}}, "Rename them, or pass controls=False"),
        ({"latents": {}, "controls": False}, "latents needs one latent or more"),
    ],
)
def test_what_cannot_be_scored_is_named(change, words):
    z, _, _, obs = study(60)
    with pytest.raises(EvaluationError, match=words.replace("(", r"\(")):
        integration(**({"latents": {"z": z}, "obs": obs, "before": z, **NAMES} | change))


def test_missing_labels_are_not_guessed():
    z, _, _, obs = study(60)
    obs.loc[3, "type"] = None
    with pytest.raises(EvaluationError, match=r"missing for 1 of 60. Pass where=obs\['type'\].notna\(\)"):
        integration({"z": z}, obs, before=z, **NAMES)
    integration({"z": z}, obs, before=z, where=obs["type"].notna(), controls=False, **NAMES)


def test_without_scib_metrics_the_error_says_what_to_install(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(scib, "import_module", absent)
    z, _, _, obs = study(120)
    with pytest.raises(EvaluationError, match=r"pip install 'trifold\[integration\]'"):
        integration({"z": z}, obs, before=z, metrics="scib", **NAMES)


@pytest.mark.slow
def test_scib_scores_are_those_of_the_benchmarker_and_rank_methods_as_the_light_ones_do():
    pytest.importorskip("scib_metrics")
    z, batch, _, obs = study(800, shift=4.0)
    centred = z - np.stack([z[batch == b].mean(0) for b in range(3)])[batch]
    latents = {"half": (z + centred) / 2, "centred": centred, "blurred": z + 6 * np.random.default_rng(0).normal(size=z.shape)}
    root = logging.getLogger()
    found = list(root.handlers), dict(os.environ), np.random.get_state()[1].copy(), random.getstate(), list(warnings.filters)
    table = integration(latents, obs, before=z, metrics="scib", **NAMES)
    assert (list(root.handlers), dict(os.environ)) == found[:2]
    assert (np.random.get_state()[1] == found[2]).all()
    assert (random.getstate(), list(warnings.filters)) == found[3:]
    assert table.attrs["versions"]["scib-metrics"].startswith("0.5.")

    light = integration(latents, obs, before=z, **NAMES)
    rows = [*latents, "no integration", "noise", "label oracle"]
    for name in ("pcr_comparison", "silhouette_label", "kmeans_nmi", "kmeans_ari"):  # the same formula, in single precision
        tolerance = 0.02 if name.startswith("kmeans") else 1e-3
        assert table.loc[rows, name].to_numpy() == pytest.approx(light.loc[rows, name].to_numpy(), abs=tolerance), name
    for name in ("ilisi", "kbet", "clisi", "batch", "bio", "total"):
        assert table.loc[rows, name].corr(light.loc[rows, name], method="spearman") > 0.8, name
    assert table.loc["no integration", "batch"] < table.loc["half", "batch"] < table.loc["centred", "batch"]
    assert light.loc["no integration", "batch"] < light.loc["half", "batch"] < light.loc["centred", "batch"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anndata
        from scib_metrics.benchmark import Benchmarker

        data = anndata.AnnData(np.zeros((800, 1), np.float32), obs=obs.set_axis(obs.index.astype(str)))
        data.obsm.update({"pre": z.astype(np.float32), "half": latents["half"].astype(np.float32)})
        known = Benchmarker(data, "batch", "type", ["half"], pre_integrated_embedding_obsm_key="pre", progress_bar=False)
        known.benchmark()
        want = known.get_results(min_max_scale=False, clean_names=True).loc["half"]
    theirs = ["BRAS", "iLISI", "KBET", "Graph connectivity", "PCR comparison"]
    theirs += ["Isolated labels", "KMeans NMI", "KMeans ARI", "Silhouette label", "cLISI", "Batch correction", "Bio conservation", "Total"]
    ours = [*scib.BATCH, *scib.BIO, "batch", "bio", "total"]
    assert table.loc["half", ours].to_numpy() == pytest.approx(want[theirs].to_numpy(dtype=float), abs=1e-5)


@pytest.mark.slow
def test_scib_scores_do_not_become_nan_for_a_coordinate_that_is_constant():
    pytest.importorskip("scib_metrics")
    z, _, _, obs = study(200)
    dead = np.column_stack([z, np.zeros(200)])
    table = integration({"z": z, "dead": dead}, obs, before=z, metrics="scib", controls=False, **NAMES)
    assert table.loc["dead"].to_numpy() == pytest.approx(table.loc["z"].to_numpy(), abs=1e-4)
    with pytest.raises(EvaluationError, match="more than 90 cells"):
        integration({"z": z}, obs, before=z, metrics="scib", where=np.arange(200) < 90, **NAMES)
