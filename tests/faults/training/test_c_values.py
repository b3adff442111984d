"""Reliability items 43, 44, 51 and 52: values that are not finite, too little memory, a device that is not there."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from fault_cases import counts, study, unchanged, with_value
from training_cases import EVERY, QUICK, equal, finite, model, names, poisoned, quick

import trifold
from trifold import folders
from trifold.errors import DeviceError, TrainingError, TrifoldWarning
from trifold.train import launch


@pytest.mark.parametrize("what", ["nan", "inf", "nan in the gradient", "inf in the gradient"])
@pytest.mark.parametrize("at", [0, 7])
def test_item_43_what_is_not_finite_stops_the_run_by_step_and_term_and_the_checkpoint_and_the_earlier_run_stay(first, run, at, what):
    own, a = poisoned(first, at=at, what=what), study()
    with quick(), unchanged(a), pytest.raises(TrainingError) as caught:
        own.fit(a, epochs=9, out=run, checkpoint_every=3, **QUICK)
    term = "gradient" if "gradient" in what else "mine"
    assert (caught.value.step, caught.value.term) == (at, term)
    assert ("'mine'" if term == "mine" else "The gradient") in str(caught.value)
    assert f"at step {at}. The model was put back to step 0. Lower lr (now" in str(caught.value)
    assert finite(own)
    assert not any(part.training for whole in (own.vae, own.objective) for part in whole.modules())
    assert own.card == {}
    kept = run.with_name("run.checkpoint")
    assert names(kept) == {"step-0000000003", "step-0000000006"} if at > 6 else not kept.exists()
    for path in kept.glob("step-*"):
        parts, said = folders.read_folder(path, ("state.safetensors", "state.json"), what="The checkpoint")
        state = folders.tensors_in(parts["state.safetensors"], said, "state.safetensors")
        assert all(bool(torch.isfinite(t).all()) for t in state.values() if t.is_floating_point())
    assert names(run) == EVERY
    assert equal(trifold.load(run), first)


def test_item_43_the_cells_and_genes_of_that_step_that_fit_worst_are_named(first):
    """One cell has a count a thousand times any other; of the six steps of an epoch only the one whose minibatch holds it names it."""
    a, named = with_value(5_000.0, row=17, gene=3), []
    for step in range(6):
        noise = torch.get_rng_state()
        with pytest.raises(TrainingError, match=r"cells fit worst with the weights put back, in nats \(median ") as caught:
            poisoned(first, at=step, what="nan").fit(a, epochs=1, **{**QUICK, "batch": 10, "validation": 0.0})
        assert torch.equal(torch.get_rng_state(), noise)
        named.append(re.findall(r"'(cell_\d+)' [\d.e+]+ \([\d.e+]+ of gene '(GENE\d+)'\)", str(caught.value)))
    assert [len(found) for found in named] == [3] * 6
    assert len({cell for found in named for cell, _ in found}) == 18
    assert [found[0] for found in named].count(("cell_17", "GENE3")) == 1


def test_item_43_where_those_cells_cannot_be_read_again_the_error_is_the_first_one(first, monkeypatch):
    monkeypatch.setattr("trifold.fitting.worst", lambda *a: 1 / 0)
    with pytest.raises(TrainingError, match=r"with trifold\.check\.$") as caught:
        poisoned(first, at=2, what="nan").fit(study(), epochs=2, **QUICK)
    assert (caught.value.step, caught.value.term) == (2, "mine")


def presets():
    log, binary = study(), study()
    log.layers["counts"] = np.log1p(counts())
    binary.layers["counts"] = (counts() > 0).astype(np.float32)
    roles = {"trvae": {"condition": "condition"}, "invae": {"spurious": "donor", "invariant": "cell_type"}, "gamma_vae": {}}
    for name, role in roles.items():
        small = {"invariant": 3, "spurious": 2} if name == "invae" else {"latent": 3}
        for likelihood in ("negative_binomial", "zero_inflated", "poisson"):
            yield pytest.param(name, study(), role, None, {"likelihood": likelihood, "hidden": (8,), **small}, id=f"{name} {likelihood}")
        yield pytest.param(name, log, role, "real", {"hidden": (8,), **small}, id=f"{name} real")
        yield pytest.param(name, binary, role, "binary", {"hidden": (8,), **small}, id=f"{name} binary")
        paper = study() if name == "invae" else log
        yield pytest.param(name, paper, role, None, {"published": True}, id=f"{name} published")


@pytest.mark.parametrize(("name", "data", "roles", "kind", "options"), list(presets()))
def test_item_44_a_learning_rate_of_a_thousand_stops_every_preset_within_ten_steps_with_finite_weights(name, data, roles, kind, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrifoldWarning)
        own = getattr(trifold, name)(trifold.Schema.of(data, "counts", kind=kind, **roles), **options)
        with quick(), unchanged(data), pytest.raises(TrainingError, match=r"Lower lr \(now 1000\)") as caught:
            own.fit(data, epochs=30, lr=1e3, **QUICK)
    assert caught.value.step <= 10
    assert caught.value.term in {*own.objective.terms, "gradient"}
    assert f"at step {caught.value.step}" in str(caught.value)
    assert finite(own)


def test_item_44_no_checkpoint_is_written_of_weights_that_are_diverging(first, tmp_path):
    own = model(first.schema)
    with pytest.raises(TrainingError, match="ten thousand times"):
        own.fit(study(), epochs=30, lr=1e3, out=tmp_path / "run", checkpoint_every=1, **QUICK)
    assert names(tmp_path / "run.checkpoint") == {"step-0000000001"}  # of the one good step; the rate had not acted on its loss


MEMORY = """
import resource, sys, time, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import anndata, h5py, numpy as np, pandas as pd, scipy.sparse as sp, torch, trifold, zarr
torch.set_num_threads(1)
n, g, out = 30_000, 4_000, Path(sys.argv[1])
rng = np.random.default_rng(0)
x = sp.csr_matrix((np.ones(n * 4, dtype=np.float32), rng.integers(0, g, n * 4), np.arange(0, 4 * n + 1, 4)), shape=(n, g))
x.sum_duplicates()
obs = pd.DataFrame({"batch": np.where(np.arange(n) % 2, "a", "b")}, index=[str(i) for i in range(n)])
a = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(g)]))
schema = trifold.Schema.of(a, condition="batch")
model = trifold.trvae(schema, latent=2, hidden=(4,)).fit(a[:400], epochs=1, batch=100, device="cpu", progress=False)
model.latent(a[:64])
model.expression(a[:64], out=out / "small.h5ad")
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[2]) * 2**20,) * 2)
try:
    np.ones((n, g), dtype=np.float32)
    print("the limit does not bind")
except MemoryError:
    pass
began = time.monotonic()
print(model.latent(a).shape)
print(model.expression(a, out=out / "x.h5ad").name)
try:
    model.expression(a)
except MemoryError as error:
    print(error)
print((time.monotonic() - began) / 3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set with RLIMIT_AS and measured in /proc")
def test_item_51_what_does_not_fit_into_memory_is_embedded_and_decoded_in_pieces(tmp_path, record_property):
    """30,000 x 4,000 are 458 MiB as float32; 250 MiB may be used."""
    said = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path), "250"], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    latent, file, error, each = said.stdout.splitlines()
    assert latent == "(30000, 2)"
    assert file == "x.h5ad"
    assert "(30000, 4000)" in error
    record_property("fault_seconds", float(each))
    assert names(tmp_path) == {"small.h5ad", "x.h5ad"}


@pytest.mark.parametrize("device", ["cuda", "mps", "tpu", "CUDA", "cuda:0"])
def test_item_52_a_device_that_is_not_there_is_refused_by_name_and_never_replaced(first, run, device, tmp_path):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if there.get(device):
        pytest.skip(f"this machine has {device}")
    a, own = study(), model(first.schema)
    asked = [
        lambda: own.fit(a, epochs=2, out=run, **{**QUICK, "device": device}),
        lambda: first.latent(a, device=device),
        lambda: first.predict(a, {"condition": "stimulated"}, device=device),
        lambda: first.expression(a, out=tmp_path / "x.h5ad", device=device),
        lambda: first.curvature(a, device=device),
    ]
    for ask in asked:
        with quick(), unchanged(a), pytest.raises(DeviceError, match=f"device='{device}' was asked for and is not there.*has: auto, cpu"):
            ask()
    assert equal(own, model(first.schema))
    assert names(tmp_path) == {"run"}
    assert equal(trifold.load(run), first)


def test_item_52_more_devices_than_there_are_is_refused_by_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with quick(), pytest.raises(DeviceError, match="devices=2 were asked for; this machine has 1 CUDA device"):
        launch("cuda", devices=2)
