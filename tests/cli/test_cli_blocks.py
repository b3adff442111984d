"""inVAE through the commands: partial labels, the separation table, labels with probabilities, and new batches mapped onto a run."""

from __future__ import annotations

import json
import shlex

import anndata
import numpy as np
import pandas as pd
import pytest
from cli_cases import trifold_, words

import trifold

SMALL = ("--set", "model.invariant=4", "--set", "model.spurious=2", "--set", "model.hidden=[16]", "--epochs", 4, "--quiet")
ROLES = ("--spurious", "batch", "--invariant", "given", "--unlabelled", "unknown")


def atlas(path) -> anndata.AnnData:
    """The study in three batches, each with genes of its own that are counted twice; a third of the labels is not known."""
    a = anndata.read_h5ad(path)
    rng = np.random.default_rng(0)
    batch = np.array(["a", "b", "c"])[rng.integers(3, size=a.n_obs)]
    x = a.X.toarray()
    for j, name in enumerate("abc"):
        x[np.ix_(batch == name, np.arange(10 * j, 10 * j + 10))] *= 2
    kind = a.obs["cell_type"].astype(str).to_numpy()
    a.X, a.obs["batch"] = x, batch
    a.obs["given"] = np.where(rng.random(a.n_obs) < 1 / 3, "unknown", kind)
    a.obs["code"] = np.where(a.obs["given"] == "unknown", -1, np.unique(kind, return_inverse=True)[1])
    return a


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """Cells of the batches a and b, and those of c."""
    folder = tmp_path_factory.mktemp("atlas")
    a = atlas(data)
    for name, mask in (("known", a.obs["batch"] != "c"), ("new", a.obs["batch"] == "c")):
        a[mask.to_numpy()].copy().write_h5ad(folder / f"{name}.h5ad")
    return folder / "known.h5ad", folder / "new.h5ad"


@pytest.fixture(scope="module")
def fitted(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("blocks") / "run"
    result = trifold_("fit", files[0], "--preset", "invae", *ROLES, *SMALL, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result.stdout


@pytest.fixture(scope="module")
def blocks(fitted):
    return fitted[0]


@pytest.fixture(scope="module")
def model(blocks):
    return trifold.load(blocks)


def test_fit_shows_how_well_technique_and_biology_are_read_from_each_block(fitted, model):
    shown = words(fitted[1])
    table = model.separation
    assert list(dict.fromkeys(table["column"])) == ["batch", "given"]
    for (role, column), part in table.groupby(["role", "column"], sort=False):
        best = [part.loc[part["latent"] == name, "accuracy"].max() for name in ("invariant", "spurious", "pca")]
        chance = part["chance"].iloc[0]
        assert f"{role} {column} {' '.join(f'{v:.3f}' for v in (*best, chance))}" in shown
    assert "not known 'unknown' in invariant and label" in shown
    assert "Confounded" not in shown


def test_show_repeats_the_separation_table(blocks, fitted):
    shown = words(fitted[1])
    at = shown.index("technique batch")
    assert shown[at : at + 40] in words(trifold_("show", blocks).stdout)


def test_fit_takes_values_that_mean_not_known_as_the_column_holds_them(files, tmp_path):
    a = anndata.read_h5ad(files[0])
    a.obs["code"] = a.obs["code"].astype("category")
    a.write_h5ad(tmp_path / "codes.h5ad")
    roles = ("--spurious", "batch", "--invariant", "code", "--unlabelled", "-1")
    result = trifold_("fit", tmp_path / "codes.h5ad", "--preset", "invae", *roles, *SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    schema = trifold.load(tmp_path / "run").schema
    assert schema.unlabelled == (-1,)
    assert [v for (v,) in schema.categories("invariant")] == [0, 1, 2]


def test_the_table_of_data_takes_the_same_roles(files, blocks, tmp_path):
    text = '[data]\nspurious = "batch"\ninvariant = "given"\nunlabelled = "unknown"\n[model]\npreset = "invae"\n'
    (tmp_path / "run.toml").write_text(text)
    result = trifold_("fit", files[0], "--config", tmp_path / "run.toml", *SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    weights = [(folder / "weights.safetensors").read_bytes() for folder in (blocks, tmp_path / "run")]
    assert weights[0] == weights[1]


def test_fit_says_again_at_its_end_what_is_confounded(files, tmp_path):
    a = anndata.read_h5ad(files[0])
    a.obs["batch"] = np.where(a.obs["cell_type"] == "type_0", "a", "b")
    a.write_h5ad(tmp_path / "nested.h5ad")
    result = trifold_(
        "fit", tmp_path / "nested.h5ad", "--preset", "invae", "--spurious", "batch", "--invariant", "cell_type", *SMALL,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "is confounded with 'batch'" in result.stderr
    assert "Confounded: no cells tell invariant and spurious apart" in words(result.stdout)


def test_what_fit_says_to_type_next_works(files, fitted, tmp_path, monkeypatch):
    commands = [shlex.split(line)[1:] for line in fitted[1].splitlines() if line.startswith("  trifold ")]
    assert [c[0] for c in commands] == ["latent", "classify", "predict", "map"]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        steps = ("--steps", 4, "--quiet", "--unknown", "zero") if command[0] == "map" else ()
        result = trifold_(*(str(files[1]) if part == "QUERY.h5ad" else part for part in command), *steps)
        assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.csv", "latent.h5ad", "mapped", "predicted.h5ad"]


@pytest.mark.parametrize("block", ["invariant", "spurious", None])
def test_latent_writes_the_block_that_is_asked_for(files, blocks, model, tmp_path, block):
    more = () if block is None else ("--block", block)
    result = trifold_("latent", blocks, files[0], *more, "--out", tmp_path / "z.h5ad")
    assert result.exit_code == 0, result.output
    found = anndata.read_h5ad(tmp_path / "z.h5ad")
    np.testing.assert_allclose(found.X, model.latent(anndata.read_h5ad(files[0]), block=block), rtol=1e-5, atol=1e-6)
    assert found.var_names[0] == f"{block or 'latent'}_0"
    assert found.uns["trifold"]["block"] == (block or "")


def test_rectified_latents_of_the_invariant_block_are_those_of_the_model(files, blocks, model, tmp_path):
    result = trifold_("latent", blocks, files[0], "--block", "invariant", "--rectified", "--out", tmp_path / "z.npy")
    assert result.exit_code == 0, result.output
    assert "technique averaged out" in words(result.stdout)
    expected = model.latent(anndata.read_h5ad(files[0]), block="invariant", rectified=True)
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), expected, rtol=1e-4, atol=1e-4)


def test_classify_writes_what_the_model_says_and_counts_it(files, blocks, model, tmp_path):
    out = tmp_path / "labels.csv"
    result = trifold_("classify", blocks, files[0], "--reject", 0.6, "--probabilities", "--out", out)
    assert result.exit_code == 0, result.output
    expected = model.classify(anndata.read_h5ad(files[0]), reject=0.6, probabilities=True)
    found = pd.read_csv(out, index_col="cell")
    assert list(map(str, found.index)) == list(expected.index)
    assert (found["label"] == expected["label"].astype(str).to_numpy()).all()
    assert (found["rejected"].to_numpy() == expected["rejected"].to_numpy()).all()
    np.testing.assert_allclose(found["p_type_0"], expected["p_type_0"], rtol=1e-5)
    shown = words(result.stdout)
    for name, part in expected.groupby("label", observed=True):
        assert f"{name} {len(part)} {part['rejected'].sum()} {part['probability'].median():.3f}" in shown
    assert f"{len(expected)} cells; {expected['rejected'].sum()} ({100 * expected['rejected'].mean():.1f} %) rejected, below 0.6" in shown
    about = model.card["calibration"]
    assert f"accuracy {about['accuracy']:.3f}, calibration error {about['ece_after']:.3f}" in shown


def test_cells_of_a_new_batch_are_classified_when_the_batch_may_be_unknown(files, blocks, tmp_path):
    refused = trifold_("classify", blocks, files[1], "--out", tmp_path / "labels.csv")
    assert refused.exit_code == 1
    assert "'c'" in refused.stderr
    result = trifold_("classify", blocks, files[1], "--unknown", "spurious=zero", "--out", tmp_path / "labels.csv")
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv(tmp_path / "labels.csv")) == anndata.read_h5ad(files[1]).n_obs


def test_predict_decodes_cells_as_of_another_batch(files, blocks, model, tmp_path):
    result = trifold_("predict", blocks, files[0], "--to", "batch=b", "--where", "batch=a", "--kind", "mean", "--out", tmp_path / "p.h5ad")
    assert result.exit_code == 0, result.output
    expected = model.predict(anndata.read_h5ad(files[0]), {"batch": "b"}, where={"batch": "a"})
    found = anndata.read_h5ad(tmp_path / "p.h5ad")
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-4)
    assert set(found.obs["target_batch"]) == {"b"}


def test_map_writes_a_run_that_knows_the_new_batch_and_says_the_same_of_the_old(files, blocks, model, tmp_path):
    out = tmp_path / "mapped"
    result = trifold_("map", blocks, files[1], "--reference", files[0], "--steps", 6, "--quiet", "--out", out)
    assert result.exit_code == 0, result.output
    mapped = trifold.load(out)
    known, new = (anndata.read_h5ad(f) for f in files)
    assert np.array_equal(mapped.latent(known), model.latent(known))
    assert [v for (v,) in mapped.schema.categories("spurious")] == ["a", "b", "c"]
    shown = words(result.stdout)
    about = json.loads((out / "card.json").read_text())["mapped"][0]
    assert f"new of spurious c replayed {known.n_obs} cells of the reference steps {about['steps']}" in shown
    table = mapped.novelty(new)
    far = table["score"] > 0.95
    assert f"{far.sum()} of {len(far)} cells ({100 * far.mean():.1f} %) have a novelty above 0.95" in shown
    assert f"{table['distance'].median():.2f}, misfit {table['misfit'].median():+.2f}" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["latent", "--block", "invarant"], ["invarant", "Did you mean 'invariant'?"]),
        (["latent", "--rectified"], ["block='invariant'"]),
        (["latent", "--unknown", "zreo"], ["zreo", "Did you mean 'zero'?"]),
        (["latent", "--unknown", "spurios=zero"], ["spurios", "Did you mean 'spurious'?"]),
        (["latent", "--unknown", "zero", "--unknown", "label=zero"], ["--unknown needs column=value", "spurious=zero"]),
        (["latent", "--unknown", "label=zero", "--unknown", "label=error"], ["one policy for each role", "label=zero and error"]),
        (["classify", "--reject", "1.5"], ["[0, 1]", "1.5"]),
        (["predict", "--to", "batch=d"], ["'d'", "batch"]),
    ],
)
def test_a_wrong_argument_is_named(files, blocks, tmp_path, arguments, said):
    out = tmp_path / {"latent": "z.npy", "classify": "labels.csv", "predict": "p.h5ad"}[arguments[0]]
    result = trifold_(arguments[0], blocks, files[0], *arguments[1:], "--out", out)
    assert result.exit_code == 1
    assert all(part in result.stderr for part in said), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_map_refuses_biology_that_is_new_and_data_without_the_column_of_technique(files, blocks, tmp_path):
    new = anndata.read_h5ad(files[1])
    new.obs["given"] = "type_9"
    new.write_h5ad(tmp_path / "other.h5ad")
    del new.obs["batch"]
    new.write_h5ad(tmp_path / "bare.h5ad")
    for name, said in (("other", "'type_9'"), ("bare", "'batch'")):
        result = trifold_("map", blocks, tmp_path / f"{name}.h5ad", "--out", tmp_path / "mapped")
        assert result.exit_code == 1
        assert said in result.stderr
    assert not (tmp_path / "mapped").exists()


def test_a_run_without_labels_or_blocks_refuses_by_name(data, run, tmp_path):
    result = trifold_("classify", run, data, "--out", tmp_path / "labels.csv")
    assert result.exit_code == 1
    assert "trained to predict a label" in result.stderr
    result = trifold_("latent", run, data, "--block", "invariant", "--out", tmp_path / "z.npy")
    assert result.exit_code == 1
    assert "It has none" in result.stderr


def test_invae_without_technique_says_what_it_needs(files, tmp_path):
    result = trifold_("fit", files[0], "--preset", "invae", "--invariant", "given", *SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "spurious role" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["classify", "map"])
def test_an_output_that_exists_is_kept_unless_forced(files, blocks, tmp_path, name):
    out = tmp_path / ("labels.csv" if name == "classify" else "mapped")
    if name == "map":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        out.write_text("mine")
    result = trifold_(name, blocks, files[0 if name == "classify" else 1], "--out", out)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert (out if name == "classify" else out / "mine.txt").read_text() == "mine"


def test_check_counts_cells_whose_biology_is_not_known_as_such(files):
    shown = words(trifold_("check", files[0], *ROLES).stdout)
    assert "not known 'unknown'" in shown
    assert "invariant given 3 categories: type_0, type_1, type_2" in shown
