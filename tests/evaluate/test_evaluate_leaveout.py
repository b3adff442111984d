import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation
from scipy.stats import ortho_group, spearmanr

from trifold.errors import EvaluationError, TrifoldWarning
from trifold.evaluate import fit_pca, leave_classes_out, lognorm, unseen


def cells(n=40, d=3, classes="ABCDE", seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(list(classes), n)
    return rng.normal(size=(len(classes), d)).repeat(n, axis=0) * 6 + rng.normal(size=(n * len(classes), d)), labels


def similar(z, seed=1):
    return 0.3 * z @ ortho_group.rvs(z.shape[1], random_state=seed) + np.arange(z.shape[1])


def test_a_rotated_scaled_and_shifted_embedding_is_the_same_embedding():
    seen, labels = cells()
    for mirror in (1, -1):
        out = unseen(seen, similar(seen) * [mirror, 1, 1], labels, "C", data=seen)
        assert out["displacement"] < 1e-12
        assert out["centroid_displacement"] < 1e-12
        assert out["neighbours"] == out["neighbours_data"] == pytest.approx(1)
        assert out["centroid_rank"] == out["centroid_rank_data"] == pytest.approx(1)
        assert "error_ratio" not in out


def test_a_class_moved_by_a_vector_is_displaced_by_its_length_over_the_class_diameter():
    seen, labels = cells()
    left, own = seen.copy(), labels == "B"
    left[own] += [3, 0, 4]
    out = unseen(seen, similar(left), labels, "B")
    assert out["displacement"] == pytest.approx(5 / pdist(seen[own]).mean())
    assert out["centroid_displacement"] == pytest.approx(5 / pdist(seen[own]).mean())
    assert out["displacement_spread"] == pytest.approx(5 / np.sqrt(seen.var(0).sum()))


def test_a_class_turned_about_its_centroid_keeps_the_centroid():
    seen, labels = cells()
    left, own = seen.copy(), labels == "B"
    left[own] = 2 * seen[own].mean(0) - seen[own]
    out = unseen(seen, left, labels, "B")
    assert out["centroid_displacement"] < 1e-12
    assert out["displacement"] == pytest.approx(2 * np.linalg.norm(seen[own] - seen[own].mean(0), axis=1).mean() / pdist(seen[own]).mean())


def test_the_alignment_is_fitted_on_the_other_classes_only():
    seen, labels = cells()
    left = similar(seen)
    left[labels == "A"] = left[labels == "A"] @ Rotation.random(rng=0).as_matrix() * 9 + 50
    assert unseen(seen, left, labels, "B")["displacement"] > 0.5  # A took part in the fit and spoilt it
    assert unseen(seen, np.where((labels == "A")[:, None], 1e3, similar(seen)), labels, "A")["displacement"] > 100
    ignored = labels.astype(object)
    ignored[labels == "A"] = None
    assert unseen(seen, left, ignored, "B")["displacement"] < 1e-12


def test_neighbours_are_the_overlap_of_label_histograms_of_other_classes():
    grid = np.arange(5.0)[:, None] * [[0.01, 0.02]]
    a, b, c, near_a, near_b = (grid + np.array(v) for v in ([0, 0], [10, 0], [5, 9], [0, 1], [10, 1]))
    labels = np.repeat(["A", "B", "C", "T"], 5)
    seen, left = np.concatenate([a, b, c, near_a]), np.concatenate([a, b, c, near_b])
    assert unseen(seen, left, labels, "T", k=5)["neighbours"] == 0
    assert unseen(seen, seen, labels, "T", k=5)["neighbours"] == 1
    one = left.copy()
    one[-1] = near_a[0]  # one of five cells is back in its place
    assert unseen(seen, one, labels, "T", k=5)["neighbours"] == pytest.approx(1 / 5)
    assert unseen(seen, left, labels, "T", k=15)["neighbours"] == pytest.approx(1)  # all other cells vote
    # seven nearest: five of the near side, and two of C, which is nearer than the far side: 2/7 in common
    out = unseen(seen, left, labels, "T", k=7, data=seen)
    assert out["neighbours"] == out["neighbours_data"] == pytest.approx(2 / 7)
    assert out["centroid_rank"] == pytest.approx(spearmanr([1, 10.05, 9.43], [10.05, 1, 9.43])[0])


def test_data_of_many_genes_are_compared_with_and_sparse_equals_dense():
    seen, labels = cells()
    rng = np.random.default_rng(0)
    x = np.maximum(seen @ rng.normal(size=(3, 60)), 0)
    left = similar(seen + rng.normal(size=seen.shape) * 3)
    dense, sparse = (unseen(seen, left, labels, "D", data=v) for v in (x, sp.csr_matrix(x)))
    assert dense == pytest.approx(sparse, abs=1e-9)
    centres = [np.stack([v[labels == c].mean(0) for c in "ABCE"]) - v[labels == "D"].mean(0) for v in (left, x)]
    assert dense["centroid_rank_data"] == pytest.approx(spearmanr(*(np.linalg.norm(c, axis=1) for c in centres))[0])


def test_few_other_classes_have_no_rank_and_errors_have_a_ratio():
    seen, labels = cells(classes="ABC")
    out = unseen(seen, seen, labels, "A", error=(3.0, 2.0))
    assert "centroid_rank" not in out
    assert out["error_ratio"] == 1.5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": "F"}, "target='F' needs two cells or more; found 0"),
        ({"left": np.zeros((200, 2))}, "the same number of coordinates; found 3 and 2"),
        ({"left": np.zeros((200, 3))}, "found all in one place"),
        ({"left": np.zeros((199, 3))}, "left needs one row for each of 200"),
        ({"labels": ["A", "B"]}, "labels needs one row"),
        ({"data": np.zeros((3, 3))}, "data needs one row"),
        ({"k": 161}, "161 cells of other classes"),
        ({"k": 0}, "k must be at least 1.* Pass k=15"),
        ({"error": (1.0, 0.0)}, "seen above zero"),
        ({"error": (np.nan, 1.0)}, "seen above zero"),
        ({"seen": np.where(np.repeat(list("ABCDE"), 40)[:, None] == "A", 0.0, cells()[0])}, "cells of 'A' that differ"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(changed, message):
    seen, labels = cells()
    given = {"seen": seen, "left": seen, "labels": labels, "target": "A", **changed}
    with pytest.raises(EvaluationError, match=message):
        unseen(**given)


class PCA:
    def __init__(self, train, seed, *, components=3):
        self.pca = fit_pca(train.X, components, seed=seed)

    def latent(self, adata):
        return self.pca.transform(adata.X)

    def reconstruct(self, adata):
        return self.pca.inverse_transform(self.latent(adata))


def study(sparse=False):
    z, labels = cells(n=12, d=8)
    x = np.abs(z).astype(np.float32)
    obs = pd.DataFrame({"type": pd.Categorical(labels)}, index=[f"c{i}" for i in range(len(x))])
    return anndata.AnnData(sp.csr_matrix(x) if sparse else x, obs=obs)


def test_the_runner_hides_one_class_at_a_time_and_changes_nothing():
    data = study(sparse=True)
    before, fits = data.copy(), []

    def method(train, seed):
        fits.append((seed, tuple(sorted(set(train.obs["type"])))))
        fitted = PCA(train, seed)
        train.X = train.X * 0
        return fitted

    table = leave_classes_out(method, data, "type", classes=["B", "D"], seeds=(0, 7), k=5)
    assert fits == [(s, c) for s in (0, 7) for c in (tuple("ABCDE"), tuple("ACDE"), tuple("ABCE"))]
    assert list(zip(table["seed"], table["class"], table["n"], strict=True)) == [(s, c, 12) for s in (0, 7) for c in "BD"]
    assert abs(data.X - before.X).max() == 0
    pd.testing.assert_frame_equal(data.obs, before.obs)
    whole, part = PCA(before, 0), PCA(before[before.obs["type"] != "B"], 0)
    own = before[before.obs["type"] == "B"]
    errors = [((m.reconstruct(own) - own.X.toarray()) ** 2).mean() for m in (part, whole)]
    row = table.iloc[0]
    assert [row["error_left"], row["error_seen"], row["error_ratio"]] == pytest.approx([*errors, errors[0] / errors[1]], rel=1e-4)
    want = unseen(whole.latent(before), part.latent(before), before.obs["type"], "B", data=before.X, k=5)
    assert row[list(want)].to_dict() == pytest.approx(want)


def test_an_embedding_that_does_not_learn_is_not_displaced_and_needs_no_reconstruction():
    class Fixed:
        def latent(self, adata):
            return adata.X[:, :3]

        def reconstruct(self, adata):
            return None

    table = leave_classes_out(lambda train, seed: Fixed(), study(), "type", k=5)
    assert list(table["class"]) == list("ABCDE")
    assert (table["displacement"] < 1e-6).all()
    assert (table["neighbours"] == 1).all()
    assert not {"error_left", "error_seen", "error_ratio"} & set(table)


def test_a_class_of_one_cell_is_left_alone_aloud_and_a_wrong_name_is_refused():
    data = study()
    data.obs["type"] = data.obs["type"].astype(object)
    data.obs.iloc[0, 0] = "alone"
    with pytest.warns(TrifoldWarning, match="one cell only: alone"):
        table = leave_classes_out(PCA, data, "type", k=5)
    assert "alone" not in set(table["class"])
    for changed, message in (
        ({"column": "tpye"}, "Did you mean 'type'"),
        ({"classes": ["Z"]}, "has no 'Z'"),
        ({"classes": ["alone"]}, "'alone' needs two cells or more"),
        ({"classes": []}, "one to leave out"),
        ({"seeds": ()}, "one seed or more"),
    ):
        given = {"column": "type", "k": 5, **changed}
        with pytest.raises(EvaluationError, match=message):
            leave_classes_out(PCA, data, given.pop("column"), **given)


@pytest.mark.parametrize(("name", "message"), [("latent", "latent needs one row for each of 60"), ("reconstruct", "must give shape")])
def test_an_embedding_of_the_wrong_shape_is_refused(name, message):
    wrong = type("Wrong", (PCA,), {name: lambda self, adata: adata.X[:5, :3]})
    with pytest.raises(EvaluationError, match=message):
        leave_classes_out(wrong, study(), "type", k=5)


def test_pca_reconstructs_a_left_out_type_of_real_cells_worse_than_one_that_it_saw(real_data):
    adata = anndata.read_h5ad(real_data("larry_subset.h5ad"))
    logs = anndata.AnnData(lognorm(adata), obs=adata.obs)
    table = leave_classes_out(lambda t, s: PCA(t, s, components=10), logs, "cell_type", classes=["Baso", "Monocyte", "Neutrophil"])
    assert (table["error_ratio"] > 1.1).all()
    assert (table["displacement"] > 0.1).all()
    assert table["neighbours"].between(0.5, 1).all()
    assert list(table["n"]) == [130, 201, 107]
