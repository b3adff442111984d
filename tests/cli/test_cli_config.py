"""The three tables: file, flags and --set; unknown keys and wrong types stop by name."""

from __future__ import annotations

import json

import pytest
from cli_cases import fit, trifold_

from trifold.cli.config import checked, override, read_config
from trifold.errors import SpecError


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("fit.epcohs=3", ["[fit] has no key 'epcohs'", "Did you mean 'epochs'?"]),
        ("model.latnet=3", ["[model] has no key 'latnet'", "Did you mean 'latent'?"]),
        ("data.conditon='x'", ["[data] has no key 'conditon'", "Did you mean 'condition'?"]),
        ("fit.latent=3", ["[fit] has no key 'latent'", "It belongs to [model]"]),
        ("modle.latent=3", ["'modle'", "Did you mean 'model'?"]),
        ("fit.epochs=many", ["[fit] epochs needs a whole number or none", "'many'"]),
        ("fit.epochs=2.5", ["[fit] epochs needs a whole number or none"]),
        ("model.hidden=[64, 'wide']", ["[model] hidden needs a list or none"]),
        ("model.published=1", ["[model] published needs true or false"]),
        ("model.preset=travae", ["No preset is named 'travae'", "Did you mean 'trvae'?"]),
        ("epochs=3", ["--set needs table.key=value", "'epochs=3'"]),
        ("fit.epochs", ["--set needs table.key=value"]),
    ],
)
def test_a_wrong_setting_stops_before_training_with_its_name(data, tmp_path, setting: str, said: list[str]):
    result = fit(data, tmp_path / "run", "--set", setting)
    assert result.exit_code == 1
    assert all(part in result.stderr for part in said), result.stderr
    assert not (tmp_path / "run").exists()


def test_a_file_with_another_table_stops(tmp_path):
    (tmp_path / "run.toml").write_text("[train]\nepochs = 3\n")
    with pytest.raises(SpecError, match="'train'"):
        read_config(tmp_path / "run.toml")


def test_a_file_that_is_no_toml_says_where(tmp_path):
    (tmp_path / "run.toml").write_text("[fit]\nepochs = = 3\n")
    with pytest.raises(SpecError, match="line 2"):
        read_config(tmp_path / "run.toml")


def test_settings_take_toml_values_bare_words_and_none():
    tables = read_config(None)
    override(tables, ["fit.epochs=20", "fit.patience=none", "model.hidden=[64, 32]", "fit.hold_out.cell_type=CD14+Mono", 'data.x="counts"'])
    found = checked(tables)
    assert found["fit"] == {"epochs": 20, "patience": None, "hold_out": {"cell_type": "CD14+Mono"}}
    assert found["model"] == {"hidden": (64, 32)}
    assert found["data"] == {"x": "counts"}


def test_flags_win_over_the_file_and_settings_over_both(data, tmp_path):
    (tmp_path / "run.toml").write_text(
        '[data]\ncondition = "condition"\n[model]\nlatent = 3\nhidden = [16]\n'
        '[fit]\nepochs = 5\nseed = 7\nbatch = 64\n[fit.hold_out]\ncondition = "drug"\ncell_type = ["type_1", "type_2"]\n'
    )
    out = tmp_path / "run"
    result = trifold_("fit", data, "--config", tmp_path / "run.toml", "--epochs", 4, "--seed", 9, "--set", "fit.epochs=2", "--out", out)
    assert result.exit_code == 0, result.output
    card = json.loads((out / "card.json").read_text())
    assert card["hold_out"] == {"condition": "drug", "cell_type": ["type_1", "type_2"]}
    assert card["seed"] == 9
    assert card["plan"]["batch"] == 64
    assert len((out / "history.csv").read_text().splitlines()) == 1 + 2
    assert json.loads((out / "spec.json").read_text())["vae"]["posterior"]["latent"] == 3


def test_chosen_genes_do_not_depend_on_the_held_out_cells(data, tmp_path):
    import anndata
    import numpy as np

    from trifold.cli.files import cells_of
    from trifold.cli.training import select_genes

    held = {"condition": "drug", "cell_type": "type_1"}
    a = anndata.read_h5ad(data)
    x = a.X.toarray()
    out = (a.obs["condition"] == "drug").to_numpy() & (a.obs["cell_type"] == "type_1").to_numpy()
    x[out] = np.random.default_rng(0).poisson(30, (int(out.sum()), a.n_vars))
    other = tmp_path / "other.h5ad"
    anndata.AnnData(x.astype(np.float32), obs=a.obs, var=a.var).write_h5ad(other)
    genes = select_genes(cells_of(data), 20, hold_out=held).genes
    assert len(genes) == 20
    assert select_genes(cells_of(other), 20, hold_out=held).genes == genes
    assert select_genes(cells_of(other), 20).genes != select_genes(cells_of(data), 20).genes
