"""The way from a file to scores, through the commands."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from cli_cases import HELD, fit, trifold_, words

import trifold


@pytest.fixture(scope="module")
def predicted(data, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("answers") / "predicted.h5ad"
    where = ("--where", "condition=control", "--where", "cell_type=type_1")
    result = trifold_("predict", run, data, "--to", "condition=drug", *where, "--out", out)
    assert result.exit_code == 0, result.output
    return anndata.read_h5ad(out)


def test_predict_writes_what_the_model_predicts(data, run, predicted):
    a = anndata.read_h5ad(data)
    where = {"condition": "control", "cell_type": "type_1"}
    expected = trifold.load(run).predict(a, {"condition": "drug"}, where=where, kind="residual")
    assert list(predicted.obs_names) == list(expected.obs_names)
    np.testing.assert_array_equal(predicted.X.toarray(), expected.X.toarray())
    assert not predicted.obs["seen"].any()


@pytest.mark.parametrize("name", ["z.h5ad", "z.csv", "z.npy"])
def test_latent_writes_the_same_coordinates_in_every_format(data, run, tmp_path, name: str):
    assert trifold_("latent", run, data, "--out", tmp_path / name).exit_code == 0
    read = {".h5ad": lambda p: anndata.read_h5ad(p).X, ".csv": lambda p: pd.read_csv(p, index_col=0).to_numpy(), ".npy": np.load}
    expected = trifold.load(run).latent(anndata.read_h5ad(data))
    np.testing.assert_allclose(read[name[1:]](tmp_path / name), expected, rtol=1e-5, atol=1e-6)


def test_evaluate_scores_what_was_held_out_beside_five_nulls_and_a_ceiling(data, run, tmp_path):
    result = trifold_("evaluate", run, data, "--out", tmp_path / "scores.csv", "--plots", tmp_path / "plots")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "scores.csv", keep_default_na=False, na_values=[""])  # pandas reads the word null as missing
    assert set(table["group"]) == {"type_1"}
    assert set(table["target"]) == {"drug"}
    assert dict(table.groupby("kind")["method"].nunique()) == {"ceiling": 1, "model": 1, "null model": 5}
    assert (tmp_path / "plots" / "type_1-drug.png").stat().st_size > 20_000
    shown = words(result.stdout)
    value = table.query("method == 'trvae residual' and metric == 'pearson_delta'")["value"].item()
    assert f"trvae residual {value:.3f}" in shown
    assert "type_1: drug predicted from control" in shown


def test_evaluate_scores_the_prediction_of_the_held_out_type(data, run, predicted, tmp_path):
    trifold_("evaluate", run, data, "--out", tmp_path / "scores.csv")
    table = pd.read_csv(tmp_path / "scores.csv")
    a = anndata.read_h5ad(data)
    groups = [(a.obs["cell_type"] == HELD["cell_type"]) & (a.obs["condition"] == c) for c in ("drug", "control")]
    real, control = (trifold.evaluate.lognorm(a[g.to_numpy()].X) for g in groups)
    expected = trifold.evaluate.pearson_delta(trifold.evaluate.lognorm(predicted.X), real, control)
    assert table.query("kind == 'model' and metric == 'pearson_delta'")["value"].item() == pytest.approx(expected, abs=1e-6)


def test_nulls_see_no_cell_that_the_run_held_out(data, tmp_path):
    from trifold.cli.files import cells_of
    from trifold.cli.scoring import held_combinations

    fit(data, tmp_path / "run", "--hold-out", "cell_type=type_2")
    found = held_combinations(trifold.load(tmp_path / "run"), cells_of(data))
    assert [held.group for held in found] == ["type_1", "type_2"]
    for held in found:
        drugged = set(held.adata.obs.loc[held.adata.obs["condition"] == "drug", "group"])
        assert drugged == {"type_0", held.group}


def test_evaluate_of_a_run_that_held_nothing_out_says_how_to(data, tmp_path):
    trifold_("fit", data, "--condition", "condition", "--out", tmp_path / "run", "--epochs", 1)
    result = trifold_("evaluate", tmp_path / "run", data)
    assert result.exit_code == 1
    assert "this one held out nothing" in result.stderr
    assert "--hold-out" in result.stderr


def test_show_tells_card_schema_objective_and_history(run):
    shown = words(trifold_("show", run).stdout)
    for part in ("condition = drug, cell_type = type_1", "2 categories: control, drug", "mmd", "History: 3 epochs", "train/loss"):
        assert part in shown


def test_cite_gives_the_paper_of_the_preset(run):
    assert "10.1093/bioinformatics/btaa800" in trifold_("cite", run).stdout


@pytest.mark.parametrize("name", ["latent", "predict", "evaluate"])
def test_an_output_that_exists_is_kept_unless_forced(data, run, tmp_path, name: str):
    out = tmp_path / {"latent": "out.npy", "predict": "out.h5ad", "evaluate": "out.csv"}[name]
    out.write_text("mine")
    more = ["--to", "condition=drug"] if name == "predict" else []
    result = trifold_(name, run, data, *more, "--out", out)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert out.read_text() == "mine"
    assert trifold_(name, run, data, *more, "--out", out, "--force").exit_code == 0
    assert out.read_bytes() != b"mine"
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_a_run_that_exists_is_kept_unless_forced(data, run):
    before = (run / "MANIFEST.json").read_bytes()
    result = fit(data, run)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert (run / "MANIFEST.json").read_bytes() == before


def test_a_failed_write_leaves_neither_the_file_nor_a_part_of_it(tmp_path):
    from trifold.cli.files import write
    from trifold.errors import CheckpointError

    def full(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        write(tmp_path / "out.csv", full)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "condition=drgu"], ["drgu", "Did you mean 'drug'?"]),
        (["--to", "conditon=drug"], ["conditon", "Did you mean 'condition'?"]),
        (["--to", "condition"], ["--to needs column=value", "'condition'"]),
        (["--to", "condition=drug", "--where", "cell_type=type_9"], ["type_9", "cell_type"]),
        (["--to", "condition=drug", "--kind", "residul"], ["Did you mean 'residual'?"]),
        (["--to", "condition=drug", "--to", "condition=control"], ["--to needs one value"]),
    ],
)
def test_a_wrong_target_is_named(data, run, tmp_path, arguments: list[str], said: list[str]):
    result = trifold_("predict", run, data, *arguments, "--out", tmp_path / "out.h5ad")
    assert result.exit_code == 1
    assert all(part in result.stderr for part in said), result.stderr


def test_a_name_with_another_suffix_is_refused(data, run, tmp_path):
    result = trifold_("latent", run, data, "--out", tmp_path / "z.cvs")
    assert result.exit_code == 1
    assert "Did you mean '.csv'?" in result.stderr


def test_check_counts_what_the_file_holds(data):
    shown = words(trifold_("check", data, "--condition", "condition", "--label", "cell_type").stdout)
    a = anndata.read_h5ad(data)
    for part in (
        "320 × 60",
        "2 categories: control, drug",
        "not whole none",
        f"{100 * a.X.nnz / a.X.shape[0] / a.X.shape[1]:.3g} % not zero",
    ):
        assert part in shown
    cells = pd.crosstab(a.obs["cell_type"], a.obs["condition"]).loc["type_0"]
    assert f"type_0 {cells['control']} {cells['drug']}" in shown


def test_values_of_numbers_are_found_by_their_text():
    from trifold.cli.pairs import pairs, selection

    obs = pd.DataFrame({"dose": [0.0, 3.0], "arm": [1, 2], "kind": ["1", "b"]})
    found = selection(pairs(["dose=3", "arm=2", "arm=1", "kind=1", "other=x"], option="--where"), obs)
    assert found == {"dose": 3.0, "arm": [2, 1], "kind": "1", "other": "x"}
