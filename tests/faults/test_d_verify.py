"""Checkpoints that are damaged are passed over or refused; ``verify`` names every fault of a run folder and of checkpoints."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from file_cases import edit, flip, put_weights, rewrite, spoil, state_of

import trifold
from trifold import store
from trifold.errors import CorruptModelError, FormatError, TrifoldWarning
from trifold.loading import verify
from trifold.train import Checkpoints


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", store.MANIFEST])
def test_item_53_a_truncated_checkpoint_is_passed_over_and_refused_if_it_is_the_only_one(checkpoints, name):
    older, newer = sorted(checkpoints.iterdir())
    whole = (newer / name).read_bytes()
    about = json.loads((older / "state.json").read_text())["about"]
    read = Checkpoints(checkpoints, every=None, minutes=None, about=about)
    seen = SimpleNamespace(restore=lambda tensors, facts: None)
    for share in range(0, 100, 5):
        (newer / name).write_bytes(whole[: len(whole) * share // 100])
        with pytest.warns(TrifoldWarning, match=rf"{name}.*goes on from {older.name}"):
            assert read.restore(seen)
    shutil.rmtree(older)
    with pytest.raises(CorruptModelError, match=rf"No checkpoint in .* is whole.*{name}"):
        read.restore(seen)
    assert any(name in fault and newer.name in fault for fault in verify(checkpoints))


def test_item_54_one_flipped_bit_anywhere_in_a_checkpoint_is_refused(checkpoints):
    _, newer = sorted(checkpoints.iterdir())
    names = ("state.json", "state.safetensors", store.MANIFEST)
    flip(newer, names, 200, lambda folder: refuse(verify(checkpoints)))


def refuse(faults: list[str]) -> None:
    if faults:
        raise FormatError(" ".join(faults))


def test_training_that_goes_on_past_a_damaged_checkpoint_ends_as_if_it_had_never_stopped(checkpoints, schema, study, tmp_path):
    how = {"epochs": 3, "batch": 48, "seed": 1, "device": "cpu", "progress": False}
    whole = trifold.trvae(schema, latent=2, hidden=(4,)).fit(study.adata, **how)
    newer = sorted(checkpoints.iterdir())[-1]
    (newer / "state.safetensors").write_bytes((newer / "state.safetensors").read_bytes()[:-1])
    resumed = trifold.trvae(schema, latent=2, hidden=(4,))
    with pytest.warns(TrifoldWarning, match="goes on from"):
        resumed.fit(study.adata, out=tmp_path / "run", resume=True, checkpoint_every=2, **how)
    assert np.array_equal(resumed.latent(study.adata), whole.latent(study.adata))


@pytest.mark.parametrize("facts", ["[]", "{}", '{"about": 1}', "1"])
def test_a_checkpoint_without_facts_is_refused(checkpoints, facts):
    for step in checkpoints.iterdir():
        rewrite(step, "state.json", facts.encode())
    with pytest.raises(CorruptModelError, match=r"state\.json"):
        Checkpoints(checkpoints, every=None, minutes=None, about={}).restore(SimpleNamespace())
    assert len(verify(checkpoints)) == 2


# -- verify --------------------------------------------------------------------------------------------------------------------------


def test_verify_finds_nothing_in_a_sound_run_and_sound_checkpoints(run, checkpoints):
    assert verify(run) == []
    assert verify(checkpoints) == []


def test_verify_names_every_fault_of_a_run(run):
    (run / "card.json").write_text("{}")
    (run / "history.csv").unlink()
    (run / "weights.pt").write_bytes(b"")
    run.with_name(f".{run.name}.0123abcd.part").mkdir()
    faults = verify(run)
    assert len(faults) == 4
    for name, fault in zip(["weights.pt", ".part", "card.json", "history.csv"], faults, strict=True):
        assert name in fault


def test_verify_names_every_way_in_which_weights_do_not_fit(run):
    weights = state_of(run)
    names = [spoil(kind, weights) for kind in ("missing", "extra", "shape", "nan")]
    put_weights(run, weights)
    said = " ".join(verify(run))
    assert all(name in said for name in names)
    assert len(verify(run)) == 4


def test_verify_says_what_the_model_cannot_be_built_from(run):
    edit(run, "spec.json", lambda s: s["plan"].update(epoch=3))
    assert len(verify(run)) == 1
    assert "'epoch'" in verify(run)[0]
    (run / store.MANIFEST).unlink()
    assert len(verify(run)) == 1
    assert store.MANIFEST in verify(run)[0]


def test_verify_says_that_a_folder_is_no_run(tmp_path):
    assert len(verify(tmp_path)) == 1
    assert "not a folder" in verify(tmp_path / "absent")[0]
    (tmp_path / "run.checkpoint").mkdir()
    assert "no checkpoint" in verify(tmp_path / "run.checkpoint")[0]


def test_the_command_verify_prints_a_line_for_each_fault_and_exits_with_1(run):
    from typer.testing import CliRunner

    from trifold.cli.app import app

    sound = CliRunner().invoke(app, ["verify", str(run)])
    assert sound.exit_code == 0
    assert "is sound" in sound.stdout
    (run / "card.json").write_text("{}")
    (run / "history.csv").write_text("")
    broken = CliRunner().invoke(app, ["verify", str(run)])
    assert broken.exit_code == 1
    assert [line.split()[0] for line in broken.stdout.splitlines()] == ["card.json", "history.csv"]
