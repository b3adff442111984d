"""Models of every release load and say of the stored cells what they said then, to 1e-5 (made by ``tests/archives/make.py``)."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import trifold
from trifold.loading import verify

ARCHIVES = Path(__file__).parents[1] / "archives"
MODELS = sorted(path.parent for path in ARCHIVES.glob("v*/*/inputs.npz"))
UNDER = {"trvae": {"condition": "stimulated"}, "invae": {"donor": "d2"}}


def cells(stored) -> anndata.AnnData:
    columns = {name.removeprefix("obs/"): stored[name] for name in stored if name.startswith("obs/")}
    obs = pd.DataFrame(columns, index=stored["obs_names"])
    return anndata.AnnData(stored["x"], obs=obs, var=pd.DataFrame(index=stored["genes"]))


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_model_of_an_earlier_release_says_what_it_said_then(folder):
    assert verify(folder / "model") == []
    model = trifold.load(folder / "model")
    with np.load(folder / "inputs.npz", allow_pickle=False) as file:
        stored = dict(file)
    a = cells(stored)
    assert np.abs(model.latent(a, device="cpu") - stored["said/latent"]).max() < 1e-5
    if folder.name == "gamma_vae":
        found, expected = model.curvature(a, device="cpu")["extrinsic"].to_numpy(), stored["said/curvature"]
    else:
        found, expected = np.asarray(model.predict(a, UNDER[folder.name], device="cpu").X), stored["said/genes"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_every_preset_is_archived_in_under_150_kb_each():
    assert {path.name for path in MODELS if path.parent.name == "v0.1"} == {"trvae", "gamma_vae", "invae"}
    for folder in MODELS:
        assert sum(path.stat().st_size for path in folder.rglob("*")) < 150_000
