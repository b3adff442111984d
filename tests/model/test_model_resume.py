"""``fit(out=, resume=)`` on models: bit for bit, refused where it is another run, and nothing done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import trifold
from trifold.errors import CheckpointError, Interrupted, SpecError

OPTIONS = {"epochs": 3, "batch": 32, "progress": False, "device": "cpu", "validation": 0.2, "patience": 5}


def model(schema):
    return trifold.trvae(schema, latent=3, hidden=(8,))


class StopAt:
    """Asks the process to end, as a cluster does, at the end of an epoch."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def __call__(self, row: dict[str, float]) -> None:
        if row["epoch"] == self.epoch:
            os.kill(os.getpid(), signal.SIGTERM)


def weights(model) -> dict[str, torch.Tensor]:
    return model.network.state_dict()


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole(schema, study):
    return model(schema).fit(study.adata, **OPTIONS)


def test_a_fit_that_was_stopped_goes_on_to_the_bits_of_the_uninterrupted_one(whole, schema, study, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="resume=True"):
        model(schema).fit(study.adata, out=out, on_epoch=StopAt(0), **OPTIONS)
    assert {p.name for p in tmp_path.iterdir()} == {"run.checkpoint"}
    again = model(schema).fit(study.adata, out=out, resume=True, **OPTIONS)
    assert equal(weights(again), weights(whole))
    assert [r["train/loss"] for r in again.history.rows] == [r["train/loss"] for r in whole.history.rows]
    assert {p.name for p in tmp_path.iterdir()} == {"run"}  # the checkpoints of a finished run are gone
    assert (trifold.load(out).latent(study.adata) == whole.latent(study.adata)).all()


def test_resuming_a_finished_run_gives_it_back_and_trains_nothing(schema, study, tmp_path):
    first = model(schema).fit(study.adata, out=tmp_path / "run", **OPTIONS)
    began = (tmp_path / "run" / "MANIFEST.json").stat().st_mtime_ns
    rows = []
    second = model(schema).fit(study.adata, out=tmp_path / "run", resume=True, on_epoch=rows.append, **OPTIONS)
    assert rows == []
    assert equal(weights(first), weights(second))
    assert len(second.history) == 3
    assert (tmp_path / "run" / "MANIFEST.json").stat().st_mtime_ns == began
    third = model(schema).fit(study.adata, out=tmp_path / "run", resume=True, on_epoch=rows.append, **{**OPTIONS, "seed": 1})
    assert len(rows) == 3  # another seed is another run
    assert not equal(weights(first), weights(third))


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"seed": 1}, "seed"), ({"batch": 16}, "batch"), ({"lr": 0.1}, "lr"), ({"hold_out": {"cell_type": "type 1"}}, "hold_out")],
)
def test_a_checkpoint_of_other_arguments_is_refused_by_name(schema, study, tmp_path, changed, named):
    if named == "hold_out":
        changed = {"hold_out": {"cell_type": str(study.adata.obs["cell_type"].iloc[0])}}
    with pytest.raises(Interrupted):
        model(schema).fit(study.adata, out=tmp_path / "run", on_epoch=StopAt(0), **OPTIONS)
    with pytest.raises(CheckpointError, match=f"{named} = .*this one has"):
        model(schema).fit(study.adata, out=tmp_path / "run", resume=True, **{**OPTIONS, **changed})


def test_a_checkpoint_of_other_data_or_another_model_is_refused(schema, study, tmp_path):
    with pytest.raises(Interrupted):
        model(schema).fit(study.adata, out=tmp_path / "run", on_epoch=StopAt(0), **OPTIONS)
    with pytest.raises(CheckpointError, match="data = "):
        model(schema).fit(study.adata[::-1].copy(), out=tmp_path / "run", resume=True, **OPTIONS)
    with pytest.raises(CheckpointError, match="model = "):
        trifold.trvae(schema, latent=4, hidden=(8,)).fit(study.adata, out=tmp_path / "run", resume=True, **OPTIONS)


def test_resume_without_a_run_folder_is_refused(schema, study):
    with pytest.raises(SpecError, match="out="):
        model(schema).fit(study.adata, resume=True, **OPTIONS)


def test_without_checkpoints_asked_for_signals_are_left_alone_and_nothing_is_written(schema, study, tmp_path):
    handlers = []

    def look(row: dict[str, float]) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))

    model(schema).fit(study.adata, out=tmp_path / "run", checkpoint_minutes=None, on_epoch=look, **OPTIONS)
    assert set(handlers) == {signal.getsignal(signal.SIGTERM)}
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, trifold
torch.set_num_threads(1)
study = trifold.simulate(240, 40, types=3, conditions=("control", "stimulated"), depth=1.0, seed=3)
schema = trifold.Schema.of(study.adata, condition="condition")
model = trifold.trvae(schema, latent=3, hidden=(8,))
print("ready", flush=True)
model.fit(study.adata, epochs=40, batch=32, progress=False, device="cpu", out=sys.argv[1], checkpoint_every=3, resume=True)
"""


@pytest.mark.slow
def test_item_45_a_process_that_a_cluster_ends_has_exit_code_143_and_goes_on_and_one_that_is_killed_too(tmp_path, record_property):
    slowest = 0.0
    whole = tmp_path / "whole"
    subprocess.run([sys.executable, "-c", SCRIPT, str(whole)], check=True, capture_output=True)
    for how, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
        out = tmp_path / how.name
        with subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob(f"{how.name}.checkpoint/step-*")) and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(how)
            caused = time.monotonic()
            assert process.wait(60) == code
            slowest = max(slowest, time.monotonic() - caused)
        subprocess.run([sys.executable, "-c", SCRIPT, str(out)], check=True, capture_output=True)
        assert equal(weights(trifold.load(out)), weights(trifold.load(whole)))
    record_property("fault_seconds", slowest)
