"""A training step asks nothing of the device: shapes are known beforehand, so a GPU never has to be waited for."""

from __future__ import annotations

import contextlib

import pytest
import torch

import trifold
from trifold.data import Cells
from trifold.data.resident import Resident
from trifold.records import Progress


@pytest.mark.parametrize("likelihood", ["negative_binomial", "zero_inflated", "poisson", "bernoulli"])
@pytest.mark.parametrize("preset", ["trvae", "invae", "gamma_vae"])
def test_a_step_runs_on_tensors_that_have_shapes_but_no_values(study, preset, likelihood, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which knows no meta device
    roles = {"trvae": {"condition": "condition"}, "invae": {"invariant": "cell_type", "spurious": "condition"}, "gamma_vae": {}}[preset]
    kind = {"kind": "binary"} if likelihood == "bernoulli" else {}
    adata = study.adata.copy()
    if kind:
        adata.X = (adata.X > 0).astype("float32")
    schema = trifold.Schema.of(adata, **roles, **kind)
    batch = Resident(Cells(adata, schema), "meta").batch(range(32))
    model = getattr(trifold, preset)(schema, hidden=(16,), likelihood=likelihood)
    model.vae.to("meta")
    model.objective.to("meta")
    model.objective(model.vae(batch, progress=Progress())).loss.backward()
    assert all(p.grad is not None for p in model.vae.likelihood.parameters())
