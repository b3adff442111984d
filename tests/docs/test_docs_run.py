"""The code that the pages show is run as it stands."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest

import trifold
from trifold.data import simulate
from trifold.model import Model

ROOT = Path(__file__).parents[2]
GEOMETRY = "docs/tutorials/geometry/README.md"
ATLAS = "docs/tutorials/atlas/README.md"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def quick(monkeypatch):
    """fit as the pages call it, but for two epochs."""
    fit = Model.fit
    monkeypatch.setattr(Model, "fit", lambda self, data, **given: fit(self, data, **{"epochs": 2, "progress": False, **given}))


def study():
    adata = simulate(300, 80, types=3, conditions=("control", "stimulated"), seed=0).adata
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0, np.asarray(adata.X.sum(0)).ravel() > 0].copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(["NK", "B", "CD14+Mono"])
    adata.layers["counts"] = adata.X.copy()
    return adata


def test_the_readme_predicts_cells_of_a_type_never_seen_under_the_target(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"adata": study()}
    exec(blocks("README.md")[0], names)
    stim, adata = names["stim"], names["adata"]
    assert stim.n_obs == ((adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "control")).sum()
    assert (stim.obs["target_condition"] == "stimulated").all()
    assert not stim.obs["seen"].any()
    assert adata.obsm["X_trvae"].shape[0] == adata.n_obs
    assert np.array_equal(trifold.load(tmp_path / "run").latent(adata), adata.obsm["X_trvae"])


def test_the_readme_embeds_a_tissue_never_seen_and_walks_between_two_others(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bulk = study()
    bulk.X = np.log1p(bulk.X.toarray()).astype("float32")
    bulk.obs["tissue"] = bulk.obs["cell_type"].cat.rename_categories(["Lung", "Liver", "Heart"])
    names: dict = {"tri": trifold, "bulk": bulk}
    exec(blocks("README.md")[1], names)
    assert bulk.obsm["X_gamma"].shape == (bulk.n_obs, 3)
    assert (bulk.obs["bend"] >= 0).all()
    assert names["model"].card["hold_out"] == {"tissue": "Lung"}
    assert list(names["way"].var_names) == list(bulk.var_names)
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_the_readme_takes_technique_out_and_new_batches_in(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adata = study()
    adata.obs["batch"] = np.array(["a", "b", "c"])[np.arange(adata.n_obs) % 3]
    kind = adata.obs["cell_type"].astype(str)
    adata.obs["cell_type"] = np.where(np.arange(adata.n_obs) % 4 == 0, "unknown", kind)
    new = (adata.obs["batch"] == "c").to_numpy()
    adata = adata[:, np.all([np.asarray(adata.X[mask].sum(0)).ravel() > 0 for mask in (new, ~new)], axis=0)]
    names: dict = {"tri": trifold, "atlas": adata[~new].copy(), "query": adata[new].copy()}
    monkeypatch.setattr(Model, "map", lambda self, data, f=Model.map, **given: f(self, data, steps=4, progress=False, **given))
    exec(blocks("README.md")[2], names)
    atlas, model, mapped = names["atlas"], names["model"], names["mapped"]
    assert atlas.obsm["X_invae"].shape == (atlas.n_obs, 20)
    assert set(names["labels"]["label"]) <= {"NK", "B", "CD14+Mono"}
    assert (names["other"].obs["target_batch"] == "b").all()
    assert set(names["genes"].index) == set(atlas.var_names)
    assert np.array_equal(mapped.latent(atlas), model.latent(atlas))
    assert [v for (v,) in mapped.schema.categories("spurious")] == ["a", "b", "c"]
    assert names["query"].obs["unlike"].between(0, 1).all()


def test_the_model_composed_by_hand_on_one_page_trains_and_answers(quick):
    names: dict = {"adata": study()}
    exec(blocks("docs/one_page.md")[0], names)
    assert np.isfinite(names["model"].latent(names["adata"])).all()


def test_the_term_of_the_contributing_page_is_a_term(quick):
    names: dict = {}
    exec(blocks("CONTRIBUTING.md")[0], names)
    adata = study()
    schema = trifold.Schema.of(adata, condition="condition")
    vae = trifold.trvae(schema, latent=2, hidden=(4,)).vae
    objective = trifold.Objective({"nll": trifold.NLL(), "small": names["SmallLatent"](power=1.0)}, {"small": 0.1})
    model = trifold.Model(schema, vae, objective).fit(adata)
    assert model.history.rows[-1]["train/small"] > 0


def test_the_page_on_geometry_writes_the_figures_that_it_shows(quick, tmp_path, monkeypatch, real_data, capsys):
    path = real_data("larry_subset.h5ad")
    monkeypatch.chdir(tmp_path)
    names: dict = {"path": path}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", trifold.TrifoldWarning)
        for block in blocks(GEOMETRY):
            exec(block, names)
    shown = set(re.findall(r"\]\((\S+\.png)\)", (ROOT / GEOMETRY).read_text()))
    assert {p.name for p in tmp_path.iterdir()} == shown
    printed = capsys.readouterr().out
    assert all(f"{name}: median over cells" in printed for name in ("plain", "mild", "flat"))
    assert printed.count("% of the measured change") == 4
    assert "on the map: " in printed
    assert names["without"].card["hold_out"] == {"cell_type": "Mast"}
    assert names["without"].card["cells"]["held_out"] == (names["kind"] == "Mast").sum()


def test_the_commands_of_the_page_on_geometry_work(tmp_path, monkeypatch, real_data):
    import anndata
    from typer.testing import CliRunner

    from trifold.cli import app

    adata = anndata.read_h5ad(real_data("larry_subset.h5ad"))
    adata.X = np.log1p(adata.X.toarray()).astype("float32")
    adata.write_h5ad(tmp_path / "log.h5ad")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / GEOMETRY).read_text()
    commands = [shlex.split(line)[1:] for line in re.findall(r"^trifold .*$", text, re.MULTILINE)]
    assert [c[0] for c in commands] == ["fit", "latent", "curvature", "path"]
    for command in commands:
        result = CliRunner().invoke(app, [*command, *(["--epochs", "1", "--quiet"] if command[0] == "fit" else [])])
        assert result.exit_code == 0, result.output
        assert (tmp_path / command[command.index("--out") + 1]).exists()


def test_the_page_on_an_atlas_writes_the_figures_that_it_shows(quick, tmp_path, monkeypatch, real_data, capsys):
    path = real_data("pbmc_3tech_counts.h5ad")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Model, "map", lambda self, data, f=Model.map, **given: f(self, data, steps=4, progress=False, **given))
    names: dict = {"path": path}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", trifold.TrifoldWarning)
        for block in blocks(ATLAS):
            exec(block, names)
    shown = set(re.findall(r"\]\((\S+\.png)\)", (ROOT / ATLAS).read_text()))
    assert {p.name for p in tmp_path.iterdir()} == shown
    printed = capsys.readouterr().out
    assert "the same of the reference: True" in printed
    assert printed.count("% of the others agree") == 3
    assert printed.count("novelty above 0.95") == 2
    known = names["model"].schema.categories("invariant")
    assert "unknown" not in [v for (v,) in known]
    assert names["model"].card["separation"]


def test_the_commands_of_the_page_on_an_atlas_work(tmp_path, monkeypatch, real_data):
    import anndata
    from typer.testing import CliRunner

    from trifold.cli import app

    adata = anndata.read_h5ad(real_data("pbmc_3tech_counts.h5ad"))
    adata = adata[adata.obs["cell_type_predicted"].isin(["B", "NK", "Mono_CD14", "T_CD4"])][::5]  # types that every part has
    adata = adata[:, trifold.evaluate.variable_genes(adata.X, 600)].copy()
    adata.obs["given"] = adata.obs["cell_type_predicted"].astype(str)
    new = (adata.obs["batch"] == "10x_5p").to_numpy()
    for name, mask in (("two", ~new), ("five", new)):
        part = adata[mask].copy()
        part.obs.loc[part.obs_names[::2], "given"] = "unknown"
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line)[1:] for line in re.findall(r"^trifold .*$", (ROOT / ATLAS).read_text(), re.MULTILINE)]
    assert [c[0] for c in commands] == ["fit", "latent", "map", "classify", "predict"]
    for command in commands:
        quick = {"fit": ["--epochs", "2", "--quiet"], "map": ["--steps", "4", "--quiet"]}.get(command[0], [])
        result = CliRunner().invoke(app, [*command, *quick])
        assert result.exit_code == 0, result.output
        assert (tmp_path / command[command.index("--out") + 1]).exists()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
)
def test_links_of_a_page_lead_to_files_that_exist(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link
