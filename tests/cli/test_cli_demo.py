"""The demo does what it says it does."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from cli_cases import trifold_, words

FILES = ("data.h5ad", "predicted.h5ad", "scores.csv", "truth.csv", "response.png", "run/card.json")


def test_thickened_strokes_hold_more_ink_and_stay_in_place():
    from sklearn.datasets import load_digits

    from trifold.cli.handwriting import thicken

    images = load_digits().images[:200] / 16
    thick = thicken(images)
    assert thick.shape == images.shape
    assert (thick.sum((1, 2)) > images.sum((1, 2))).all()
    assert thick.min() >= 0
    assert thick.max() <= 1
    centre = [(x.sum(0) @ np.arange(8) / x.sum(), x.sum(1) @ np.arange(8) / x.sum()) for x in (images.mean(0), thick.mean(0))]
    np.testing.assert_allclose(centre[0], centre[1], atol=0.15)


def test_no_image_is_trained_on_both_ways():
    from trifold.cli.handwriting import _digits

    adata = _digits(0)
    assert len(set(adata.obs_names)) == adata.n_obs == 1797
    counts = pd.crosstab(adata.obs["digit"], adata.obs["strokes"])
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1


def test_a_folder_of_someone_else_is_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = trifold_("demo", "--quick", "--out", tmp_path)
    assert result.exit_code == 1
    assert "holds something other" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_demo_writes_everything_twice_the_same(tmp_path):
    out = tmp_path / "demo"
    seen = []
    for _ in range(2):
        result = trifold_("demo", "--quick", "--out", out)
        assert result.exit_code == 0, result.output
        assert all((out / study / name).stat().st_size for study in ("simulated", "handwriting") for name in FILES)
        seen.append([(out / study / "scores.csv").read_bytes() for study in ("simulated", "handwriting")])
    assert seen[0] == seen[1]
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]
    assert "trifold fit data.h5ad" in words(result.stdout)
    assert json.loads((out / "demo.json").read_text())["quick"] is True
    again = trifold_("evaluate", out / "simulated" / "run", out / "simulated" / "data.h5ad", "--out", tmp_path / "again.csv")
    assert again.exit_code == 0
    assert (tmp_path / "again.csv").read_bytes() == seen[0][0]


@pytest.mark.slow
def test_the_demo_shows_what_its_text_claims(tmp_path):
    trifold_("demo", "--out", tmp_path / "demo")
    facts = json.loads((tmp_path / "demo" / "demo.json").read_text())
    truth = facts["simulated"]["truth"]
    assert truth["trvae"]["rmse"] < truth["no change"]["rmse"]
    errors = facts["handwriting"]["truth"]
    assert errors["trvae"] < errors["null: similar shift"] < errors["null: as scanned"]
