"""Curvature, paths and rectified latents through the commands: the files hold what the model says, the screen what the files hold."""

from __future__ import annotations

import shlex

import anndata
import numpy as np
import pandas as pd
import pytest
from cli_cases import trifold_, words

import trifold

SMALL = ("--set", "model.latent=2", "--set", "model.hidden=[16]", "--epochs", 2, "--quiet")
ENDS = ("--from", "cell_type=type_0", "--to", "cell_type=type_1")


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("flat") / "run"
    result = trifold_("fit", data, "--preset", "gamma_vae", "--label", "cell_type", *SMALL, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result.stdout


@pytest.fixture(scope="module")
def flat(fitted):
    return fitted[0]


@pytest.fixture(scope="module")
def model(flat):
    return trifold.load(flat)


def test_gamma_vae_needs_no_condition_and_takes_the_weight_that_is_set(data, tmp_path):
    out = tmp_path / "run"
    more = ("--genes", 30, "--set", "model.extrinsic=0.3", *SMALL, "--out", out)
    assert trifold_("fit", data, "--preset", "gamma_vae", *more).exit_code == 0
    model = trifold.load(out)
    assert len(model.schema.genes) == 30
    same, other = (trifold.gamma_vae(model.schema, latent=2, hidden=(16,), **given) for given in ({"extrinsic": 0.3}, {}))
    assert str(model.objective) == str(same.objective) != str(other.objective)
    assert not model.schema.roles


def test_what_fit_says_to_type_next_works(data, fitted, tmp_path, monkeypatch):
    said = fitted[1]
    commands = [shlex.split(line)[1:] for line in said.splitlines() if line.startswith("  trifold ")]
    assert [c[0] for c in commands] == ["latent", "curvature", "path"]
    assert "--rectified" in commands[0]
    assert commands[1][commands[1].index("--group") + 1] == "cell_type"
    monkeypatch.chdir(tmp_path)
    for command in commands:
        result = trifold_(*command)
        assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curvature.csv", "genes.png", "latent.h5ad", "path.h5ad", "plane.png"]


def test_a_gamma_vae_that_held_a_type_out_is_not_told_to_evaluate_it(data, tmp_path):
    result = trifold_("fit", data, "--preset", "gamma_vae", "--hold-out", "cell_type=type_2", *SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "trifold evaluate" not in result.stdout
    assert "cell_type=" in result.stdout


@pytest.mark.parametrize("name", ["z.h5ad", "z.csv", "z.npy"])
def test_rectified_latents_are_those_of_the_model(data, flat, model, tmp_path, name):
    result = trifold_("latent", flat, data, "--rectified", "--out", tmp_path / name)
    assert result.exit_code == 0
    assert "lengths in data space" in words(result.stdout)
    read = {".h5ad": lambda p: anndata.read_h5ad(p).X, ".csv": lambda p: pd.read_csv(p, index_col=0).to_numpy(), ".npy": np.load}
    a = anndata.read_h5ad(data)
    found = read[name[1:]](tmp_path / name)
    np.testing.assert_allclose(found, model.latent(a, rectified=True), rtol=1e-5, atol=1e-6)
    assert not np.allclose(found, model.latent(a), atol=1e-3)


def test_curvature_of_each_cell_is_written_and_its_medians_are_shown_by_group(data, flat, model, tmp_path):
    result = trifold_("curvature", flat, data, "--group", "cell_type", "--out", tmp_path / "c.csv", "--plot", tmp_path / "plane.png")
    assert result.exit_code == 0, result.output
    a = anndata.read_h5ad(data)
    table = pd.read_csv(tmp_path / "c.csv", index_col="cell")
    expected = model.curvature(a)
    assert list(map(str, table.index)) == list(expected.index)
    pd.testing.assert_frame_equal(table.reset_index(drop=True), expected.astype(float).reset_index(drop=True), rtol=1e-5)
    assert (tmp_path / "plane.png").stat().st_size > 20_000
    from trifold.report.plane import squared_radius

    square = squared_radius(model, model.latent(a))
    shown = words(result.stdout)
    assert f"R² = {square:.4g}" in shown
    for name in ("type_0", "type_1", "type_2"):
        part = expected[(a.obs["cell_type"] == name).to_numpy()]
        values = [part["extrinsic"] * square, part["parameter"] * square, part["condition"]]
        assert f"{name} {len(part)} {' '.join(f'{np.median(v):.3g}' for v in values)}" in shown


def test_a_path_is_written_and_its_lengths_and_genes_are_shown(data, flat, model, tmp_path):
    out, plot = tmp_path / "p.h5ad", tmp_path / "g.png"
    result = trifold_("path", flat, data, *ENDS, "--kind", "geodesic", "--steps", 11, "--top", 3, "--out", out, "--plot", plot)
    assert result.exit_code == 0, result.output
    a = anndata.read_h5ad(data)
    expected = model.path({"cell_type": "type_0"}, {"cell_type": "type_1"}, data=a, kind="geodesic", steps=11)
    found = anndata.read_h5ad(out)
    assert found.n_obs == 11
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-5)
    np.testing.assert_allclose(found.obs["length"], expected.obs["length"], rtol=1e-5)
    assert found.uns["trifold"]["kind"] == "geodesic"
    shown = words(result.stdout)
    for name, value in expected.uns["trifold"]["length"].items():
        assert f"{name} {value:.4g}" in shown
    assert f"straightness {expected.uns['trifold']['straightness']:.4f}" in shown
    top = expected.var.reindex(expected.var["change"].abs().sort_values(ascending=False).index)[:3]
    assert " ".join(f"{gene} {row.change:+.3f} {row.linearity:.3f}" for gene, row in top.iterrows()) in shown
    assert plot.stat().st_size > 10_000


def test_a_path_may_begin_at_cells_that_match_several_columns(data, flat, model, tmp_path):
    ends = ("--from", "cell_type=type_0", "--from", "condition=drug", "--to", "cell_type=type_1", "--to", "cell_type=type_2")
    assert trifold_("path", flat, data, *ends, "--out", tmp_path / "p.h5ad").exit_code == 0
    a = anndata.read_h5ad(data)
    z, obs = model.latent(a), a.obs
    at = anndata.read_h5ad(tmp_path / "p.h5ad").obsm["latent"]
    first = ((obs["cell_type"] == "type_0") & (obs["condition"] == "drug")).to_numpy()
    np.testing.assert_allclose(at[0], z[first].mean(0), atol=1e-5)
    np.testing.assert_allclose(at[-1], z[obs["cell_type"].isin(["type_1", "type_2"]).to_numpy()].mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["path", "--from", "cell_type=type_9", "--to", "cell_type=type_1"], ["type_9", "cell_type"]),
        (["path", "--from", "celltype=type_0", "--to", "cell_type=type_1"], ["celltype", "Did you mean 'cell_type'?"]),
        (["path", "--from", "type_0", "--to", "cell_type=type_1"], ["--from needs column=value", "'type_0'"]),
        (["path", *ENDS, "--kind", "geodesics"], ["Did you mean 'geodesic'?"]),
        (["path", *ENDS, "--steps", "2"], ["steps >= 3; found 2"]),
        (["path", *ENDS, "--top", "0"], ["--top needs", "found 0"]),
        (["path", *ENDS, "--under", "condition=drug"], ["condition"]),
        (["path", *ENDS, "--plot", "genes.pgn"], ["--plot needs a name", "Did you mean '.png'?"]),
        (["curvature", "--group", "celltype"], ["celltype", "Did you mean 'cell_type'?"]),
        (["curvature", "--color", "extrinsc"], ["extrinsc"]),
        (["curvature", "--plot", "plane.gif"], ["--plot needs a name", "'plane.gif'"]),
    ],
)
def test_a_wrong_argument_is_named(data, flat, tmp_path, arguments, said):
    out = tmp_path / ("out.h5ad" if arguments[0] == "path" else "out.csv")
    result = trifold_(arguments[0], flat, data, *arguments[1:], "--out", out)
    assert result.exit_code == 1
    assert all(part in result.stderr for part in said), result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["curvature", "path"])
@pytest.mark.parametrize("which", ["--out", "--plot"])
def test_a_file_that_exists_is_kept_unless_forced(data, flat, tmp_path, name, which):
    files = {"--out": tmp_path / ("out.csv" if name == "curvature" else "out.h5ad"), "--plot": tmp_path / "plot.png"}
    files[which].write_text("mine")
    arguments = [name, flat, data, *(ENDS if name == "path" else ()), *(part for pair in files.items() for part in pair)]
    result = trifold_(*arguments)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert files[which].read_text() == "mine"
    assert trifold_(*arguments, "--force").exit_code == 0
    assert files[which].read_bytes() != b"mine"
    assert sorted(tmp_path.iterdir()) == sorted(files.values())


def test_a_path_is_decoded_under_the_covariates_that_are_named(data, tmp_path):
    out = tmp_path / "run"
    fitted = trifold_("fit", data, "--preset", "gamma_vae", "--spurious", "condition", *SMALL, "--out", out)
    assert '--group "cell_type"' in fitted.stdout  # not the technique, which comes first in obs
    for value in ("drug", "control"):
        assert trifold_("path", out, data, *ENDS, "--under", f"condition={value}", "--out", tmp_path / f"{value}.h5ad").exit_code == 0
    a = anndata.read_h5ad(data)
    expected = trifold.load(out).path({"cell_type": "type_0"}, {"cell_type": "type_1"}, data=a, under={"condition": "drug"})
    drug, control = (anndata.read_h5ad(tmp_path / f"{value}.h5ad") for value in ("drug", "control"))
    np.testing.assert_allclose(drug.X, expected.X, rtol=1e-5)
    assert not np.allclose(drug.X, control.X, rtol=1e-3)


def test_show_tells_that_a_run_has_a_curvature_term(flat):
    shown = words(trifold_("show", flat).stdout)
    assert "preset gamma_vae" in shown
    assert "curvature" in shown
    assert "held out nothing" in shown
