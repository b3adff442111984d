import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from trifold.errors import EvaluationError
from trifold.evaluate import fate, fates, fit_pca, lognorm


def lineages(clones=60, size=5, kinds=("neu", "mono"), signal=1.0, clone_sd=1.0, seed=0):
    """Coordinates = signal * fate + the clone's own place + noise of the cell; two of each clone's cells are early."""
    rng = np.random.default_rng(seed)
    code = rng.permutation(np.arange(clones) % len(kinds))
    place = rng.normal(size=(clones, 4)) * clone_sd
    place[:, : len(kinds)] += signal * np.eye(len(kinds))[code]
    z = place.repeat(size, axis=0) + rng.normal(size=(clones * size, 4)) * 0.01
    clone = np.arange(clones).repeat(size)
    return z, np.array(kinds, dtype=object)[code].repeat(size), clone, np.arange(len(z)) % size < 2


def test_a_fate_that_is_written_in_the_coordinates_is_told_in_full():
    for kinds in (("neu", "mono"), ("a", "b", "c"), (0, 1)):
        z, truth, clone, early = lineages(kinds=kinds, signal=30.0)
        out = fate(z, truth, clone, query=early)
        assert out["auroc"] == out["accuracy"] == out["balanced_accuracy"] == 1
        assert out["chance"] == pytest.approx(1 / len(kinds))
        assert (out["n"], out["clones"]) == (120, 60)


def test_a_cell_is_never_told_by_its_own_clone():
    found = []
    for seed in range(20):
        z, truth, clone, early = lineages(signal=0.0, seed=seed)  # the four cells nearest to each are of its clone: they know all
        found.append(fate(z, truth, clone, query=early, k=3, seed=seed))
        disguised = np.arange(len(z))  # each cell a clone of its own
        leak = fate(z, truth, disguised, query=early, k=1, folds=10)
        assert leak["accuracy"] > 0.95
    mean, error = (f([out["auroc"] for out in found]) for f in (np.mean, lambda v: np.std(v, ddof=1) / np.sqrt(20)))
    assert abs(mean - 0.5) < 3 * error
    assert error < 0.03
    assert np.mean([out["accuracy"] for out in found]) < 0.55


def test_moving_and_renaming_the_cells_of_a_clone_changes_no_vote_for_that_clone():
    z, truth, clone, early = lineages()
    known = np.ones(len(z), dtype=bool)
    fold = fates._deal(clone, truth, early, known, 5, 0)
    ballot = (truth == "neu")[:, None].astype(float)
    own = clone == 7
    assert len(set(fold[own])) == 1
    before = fates._vote(z, ballot, fold, early, known, 5)[0]
    moved, turned = z + 100 * (own & ~early)[:, None], np.where(own[:, None], 1 - ballot, ballot)
    after = fates._vote(moved, turned, fold, early, known, 5)[0]
    np.testing.assert_array_equal(after[own[early]], before[own[early]])
    assert (after != before).any()  # others did count on it


def test_fates_that_are_shuffled_between_clones_are_at_chance_though_clones_differ_in_size():
    rng = np.random.default_rng(0)
    areas, ranks = [], []
    for seed in range(40):
        size = rng.integers(1, 12, size=40)
        clone = np.arange(40).repeat(size)
        z = rng.normal(size=(40, 3))[clone] + 0.3 * rng.normal(size=(size.sum(), 3))
        kind = rng.permutation(np.repeat(["a", "b"], [14, 26]))[clone]
        share = rng.random(40)[clone]
        query = rng.random(len(z)) < 0.6
        areas.append(fate(z, kind, clone, query=query, seed=seed)["auroc"])
        ranks.append(fate(z, share, clone, query=query, seed=seed)["spearman"])
    for values, chance in ((areas, 0.5), (ranks, 0.0)):
        assert abs(np.mean(values) - chance) < 3 * np.std(values, ddof=1) / np.sqrt(40)


def test_folds_hold_whole_clones_and_as_many_of_each_fate():
    z, truth, clone, early = lineages(clones=50)
    used = np.ones(len(z), dtype=bool)
    used[:5] = False
    fold = fates._deal(clone, truth, early & used, used, 5, 3)
    assert (fold[:5] == -1).all()
    assert all(len(set(fold[clone == c])) == 1 for c in range(1, 50))
    table = pd.crosstab(fold[used], truth[used]) // 5
    assert table.to_numpy().max() - table.to_numpy().min() <= 1
    assert (fold != fates._deal(clone, truth, early & used, used, 5, 4)).any()


def test_shares_are_scored_by_rank_by_squared_error_and_by_side():
    rng = np.random.default_rng(1)
    share = rng.random(80).repeat(3)
    z = np.column_stack([share + 0.01 * rng.normal(size=240), 0.01 * rng.normal(size=240)])
    clone = np.arange(80).repeat(3)
    query = np.arange(240) % 3 == 0
    out = fate(z, share.astype(np.float32), clone, query=query, k=3)
    assert out["spearman"] > 0.97
    assert out["r2"] > 0.97
    assert out["auroc"] > 0.99
    assert "chance" not in out
    assert "auroc" not in fate(z, share / 3, clone, query=query, k=3)
    assert fate(z, 1 - share, clone, query=query, k=3)["spearman"] == pytest.approx(out["spearman"], abs=0.02)


def test_scores_of_equal_clones_in_one_fold_are_the_plain_ones():
    rng = np.random.default_rng(2)
    predicted, truth, one = rng.integers(0, 6, 50) / 5, rng.integers(0, 4, 50) / 3, np.zeros(50, dtype=int)
    out = fates._shares(predicted, truth, one, np.ones(50))
    assert out["spearman"] == pytest.approx(spearmanr(predicted, truth)[0])
    assert out["r2"] == pytest.approx(1 - ((predicted - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())
    assert out["auroc"] == pytest.approx(roc_auc_score(truth > 0.5, predicted))
    out = fates._classes(
        np.column_stack([predicted, 1 - predicted]), np.full((50, 2), 0.5), np.column_stack([truth > 0.5, truth <= 0.5]), one, np.ones(50)
    )
    assert out["auroc"] == pytest.approx(roc_auc_score(truth > 0.5, predicted))
    assert out["accuracy"] == pytest.approx(((predicted > 0.5) == (truth > 0.5)).mean())
    assert out["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth > 0.5, predicted > 0.5))
    assert out["chance"] == max((truth > 0.5).mean(), (truth <= 0.5).mean())


def test_a_clone_counts_once_however_many_query_cells_it_has():
    z, truth, clone, early = lineages(signal=1.0)
    voters = ~early
    once = fate(z, truth, clone, query=early, reference=voters)
    more = np.flatnonzero(early & (clone < 20)).repeat(6)
    z, truth, clone = (np.concatenate([v, v[more]]) for v in (z, truth, clone))
    voters = np.concatenate([voters, np.zeros(len(more), dtype=bool)])
    again = fate(z, truth, clone, query=np.concatenate([early, np.ones(len(more), dtype=bool)]), reference=voters)
    assert again.pop("n") == once.pop("n") + 240
    assert again == pytest.approx(once)
    assert 0.6 < once["auroc"] < 1


def test_cells_of_unknown_fate_are_neither_scored_nor_vote_and_the_reference_is_kept_to():
    z, truth, clone, early = lineages(signal=30.0)
    hidden = truth.copy()
    hidden[:50] = None
    out = fate(z, hidden, clone, query=early)
    assert (out["n"], out["clones"]) == (100, 50)
    spoilt = np.where(early, truth, np.where(truth == "neu", "mono", "neu"))  # late cells lie
    assert fate(z, spoilt, clone, query=early, reference=early)["accuracy"] == 1
    assert fate(z, spoilt, clone, query=early, reference=~early)["accuracy"] == 0
    assert fate(z, spoilt, clone, query=early, reference=~early)["auroc"] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fates": ["neu"]}, "fates needs one row for each of 300"),
        ({"clones": [1, 2]}, "clones needs one row"),
        ({"query": np.ones(300)}, "query needs one boolean"),
        ({"reference": np.ones(3, dtype=bool)}, "reference needs one boolean"),
        ({"clones": [None] * 300}, "120 have none"),
        ({"fates": np.tile(["neu", "unknown"], 150)}, "found the label 'unknown'"),
        ({"fates": ["neu"] * 300}, "two known fates or more"),
        ({"fates": [None] * 300}, "found 0 cells with none"),
        ({"fates": np.arange(300.0)}, "shares from 0 to 1"),
        ({"folds": 61}, "number of clones"),
        ({"folds": 1}, "number of clones"),
        ({"k": 0}, "number of voters"),
        ({"k": 241}, "found 241"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(changed, message):
    z, truth, clone, early = lineages()
    given = {"fates": truth, "clones": clone, "query": early, **changed}
    with pytest.raises(EvaluationError, match=message):
        fate(z, given.pop("fates"), given.pop("clones"), **given)


def test_early_cells_of_larry_tell_their_clones_fate_better_than_shuffled_clones_do(real_data):
    adata = anndata.read_h5ad(real_data("larry_subset.h5ad"))
    obs, x = adata.obs, lognorm(adata)
    z = fit_pca(x, 20).transform(x)
    early = obs["day"] < 6
    out = fate(z, obs["neu_vs_mono_fate_d6"], obs["clone"], query=early)
    assert (out["n"], out["clones"]) == (111, 60)
    two = obs["clone_fate_d6"].where(obs["clone_fate_d6"].isin(["Neutrophil", "Monocyte"]))
    with pytest.raises(EvaluationError, match="'unknown'"):
        fate(z, obs["clone_fate_d6"], obs["clone"], query=early)
    names, code = np.unique(obs["clone"].astype(str), return_inverse=True)
    of = two.groupby(code).first().astype(object).to_numpy()
    assert len(of) == len(names)
    known = np.flatnonzero(pd.notna(of))
    true, shuffled = [], []
    for seed in range(12):
        mixed = of.copy()
        mixed[known] = of[np.random.default_rng(seed).permutation(known)]
        true.append(fate(z, of[code], obs["clone"], query=early, seed=seed)["auroc"])
        shuffled.append(fate(z, mixed[code], obs["clone"], query=early, seed=seed)["auroc"])
    assert np.mean(true) > 0.62
    assert abs(np.mean(shuffled) - 0.5) < 3 * np.std(shuffled, ddof=1) / np.sqrt(12)
