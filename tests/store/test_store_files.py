"""Run folders: a failed write leaves the old run and no litter; what is in one. How damaged ones are refused is in tests/faults."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import trifold
from trifold import folders, store
from trifold.errors import CheckpointError, NotFittedError

EVERY = (*store.FILES, store.MANIFEST)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory) -> Path:
    return trained.save(tmp_path_factory.mktemp("saved") / "run")


# -- writing -------------------------------------------------------------------------------------------------------------------------


def names_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_writing_over_something_else_is_refused_and_leaves_it_alone(trained, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "note").write_text("x")
    for name in ("thesis", "note"):
        with pytest.raises(CheckpointError, match=name):
            trained.save(tmp_path / name)
    (tmp_path / "run.previous").mkdir()
    (tmp_path / "run.previous" / "chapter.txt").write_text("more work")
    with pytest.raises(CheckpointError, match=r"run\.previous"):
        trained.save(tmp_path / "run")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert (tmp_path / "run.previous" / "chapter.txt").read_text() == "more work"
    assert names_in(tmp_path) == {"thesis", "note", "run.previous"}


def test_fit_says_before_training_that_its_folder_cannot_be_written(trained, study, tmp_path):
    (tmp_path / "file").write_text("x")
    fresh = trifold.trvae(trained.schema, latent=2, hidden=(4,))
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match="file"):
            fresh.fit(study.adata, epochs=10_000, out=out, progress=False)
    assert fresh.card == {}


def test_an_earlier_run_is_kept_beside_the_new_one_and_read_when_a_kill_left_only_it(trained, schema, study, tmp_path):
    first = trained.save(tmp_path / "run")
    other = trifold.trvae(schema, latent=2, hidden=(4,), seed=1)
    other.save(first)
    assert names_in(tmp_path) == {"run", "run.previous"}
    assert trifold.load(first).vae.prior.latent == 2
    assert np.array_equal(trifold.load(tmp_path / "run.previous").latent(study.adata), trained.latent(study.adata))
    shutil.rmtree(first)
    assert np.array_equal(trifold.load(first).latent(study.adata), trained.latent(study.adata))
    other.save(first)
    other.save(first)
    assert names_in(tmp_path) == {"run", "run.previous"}
    assert trifold.load(tmp_path / "run.previous").vae.prior.latent == 2


def test_an_empty_folder_in_the_way_does_not_cost_the_previous_run(trained, tmp_path):
    path = trained.save(tmp_path / "run")
    path.rename(tmp_path / "run.previous")
    path.mkdir()
    trained.save(path)
    assert names_in(tmp_path) == {"run", "run.previous"}
    trifold.load(tmp_path / "run.previous")


@pytest.mark.parametrize("moment", [*EVERY, "rename", "fsync"])
def test_item_47_a_full_disk_leaves_the_old_run_loadable_and_no_litter(trained, schema, study, tmp_path, monkeypatch, moment):
    path = trained.save(tmp_path / "run")
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(file: Path, data: bytes, usual=folders._write_synced) -> None:
        if file.name == moment:
            file.write_bytes(data[: len(data) // 2])
            raise full
        usual(file, data)

    def fail(*args: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_write_synced", write)
        if moment == "rename":
            usual = os.rename
            patch.setattr(os, "rename", lambda a, b: fail() if str(a).endswith(".part") else usual(a, b))
        if moment == "fsync":
            patch.setattr(folders, "_sync_folder", fail)
        with pytest.raises(CheckpointError, match=r"disk is full.*needs [\d,]+ bytes, and [\d,]+ are free") as caught:
            trifold.trvae(schema, latent=2, hidden=(4,)).save(path)
    assert "'" + str(path) + "'" in str(caught.value)
    assert names_in(tmp_path) == {"run"}
    assert names_in(path) == set(EVERY)
    assert np.array_equal(trifold.load(path).latent(study.adata), trained.latent(study.adata))


def test_an_interrupted_write_leaves_no_litter(trained, tmp_path, monkeypatch):
    def interrupt(file: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    path = trained.save(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(folders, "_write_synced", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained.save(path)
    assert names_in(tmp_path) == {"run"}
    trifold.load(path)


def test_the_same_model_is_saved_to_the_same_bytes(trained, tmp_path):
    first, second = trained.save(tmp_path / "a"), trained.save(tmp_path / "b")
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in EVERY)
    assert names_in(first) == set(EVERY)


def test_the_card_holds_versions_seed_what_was_held_out_and_the_datas_fingerprint(saved, study):
    card = json.loads((saved / "card.json").read_text())
    assert {"python", "torch", "numpy"} <= set(card["versions"])
    assert card["seed"] == 5
    assert card["hold_out"] == {"condition": "stimulated", "cell_type": "type_1"}
    obs = study.adata.obs
    held = int(((obs["condition"] == "stimulated") & (obs["cell_type"] == "type_1")).sum())
    assert card["cells"]["held_out"] == held
    assert sum(card["cells"].values()) == study.adata.n_obs
    assert len(card["data"]) == 64
    assert card["plan"]["epochs"] == 2
    assert card["preset"] == "trvae"
    assert ["stimulated", "type_1"] not in card["seen"]["values"]
    assert ["stimulated", "type_0"] in card["seen"]["values"]


def test_a_model_saved_untrained_is_untrained_when_loaded_and_can_be_trained(schema, study, tmp_path):
    path = trifold.trvae(schema, latent=2, hidden=(4,)).save(tmp_path / "run")
    again, twin = trifold.load(path), trifold.trvae(schema, latent=2, hidden=(4,))
    with pytest.raises(NotFittedError, match="predict"):
        again.predict(study.adata, {"condition": "stimulated"})
    for model in (again, twin):
        model.fit(study.adata, epochs=1, batch=64, device="cpu", progress=False)
    assert np.array_equal(again.latent(study.adata), twin.latent(study.adata))
