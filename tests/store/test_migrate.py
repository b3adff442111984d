"""``migrate``: a run of an earlier format is refused by ``load`` with what to type, and is the same model after."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import trifold
from trifold import folders, store
from trifold.errors import CheckpointError, CorruptModelError, FormatError
from trifold.loading import verify

OLD = Path(__file__).parents[1] / "archives" / "format_1" / "trvae"


@pytest.fixture
def old(tmp_path) -> Path:
    return Path(shutil.copytree(OLD / "model", tmp_path / "run"))


def test_an_earlier_format_is_refused_with_what_to_type(old):
    said = rf"has format 1, of an earlier trifold; this one reads {folders.FORMAT}\..*trifold migrate {old}"
    with pytest.raises(FormatError, match=said):
        trifold.load(old)
    assert len(verify(old)) == 1


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_migrated_run_is_sound_and_the_same_model(old, elsewhere):
    before = {name: (old / name).read_bytes() for name in store.FILES}
    written = trifold.migrate(old, old.with_name("new") if elsewhere else None)
    assert written == (old.with_name("new") if elsewhere else old)
    assert verify(written) == []
    assert {name: (written / name).read_bytes() for name in store.FILES} == before
    assert {p.name for p in old.parent.iterdir()} == {"run", "new" if elsewhere else "run.previous"}
    manifest = json.loads((written / store.MANIFEST).read_text())
    assert (manifest["format"], manifest["needs"]) == (folders.FORMAT, folders.NEEDS)
    with np.load(OLD / "inputs.npz", allow_pickle=False) as stored:
        import anndata
        import pandas as pd

        obs = pd.DataFrame({k.removeprefix("obs/"): stored[k] for k in stored if k.startswith("obs/")}, index=stored["obs_names"])
        a = anndata.AnnData(stored["x"], obs=obs, var=pd.DataFrame(index=stored["genes"]))
        assert np.abs(trifold.load(written).latent(a, device="cpu") - stored["said/latent"]).max() < 1e-5


def test_what_has_this_format_or_is_damaged_or_is_in_the_way_is_refused_and_nothing_changes(old, tmp_path):
    current = trifold.migrate(old, tmp_path / "current")
    with pytest.raises(FormatError, match=r"is read as it is: trifold\.load"):
        trifold.migrate(current)
    with pytest.raises(CheckpointError, match=r"current' exists\. Choose another name"):
        trifold.migrate(old, current)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(CorruptModelError, match="has no MANIFEST"):
        trifold.migrate(tmp_path / "mine", tmp_path / "new")
    (old / "history.csv").write_text("other")
    before = {p.name: p.read_bytes() for p in old.iterdir()}
    with pytest.raises(CorruptModelError, match=r"history\.csv"):
        trifold.migrate(old)
    assert {p.name: p.read_bytes() for p in old.iterdir()} == before
    assert {p.name for p in tmp_path.iterdir()} == {"run", "current", "mine"}


def test_the_command_says_where_it_wrote_and_refuses_as_the_function_does(old):
    from typer.testing import CliRunner

    from trifold.cli.app import app

    done = CliRunner().invoke(app, ["migrate", str(old), "--out", str(old.with_name("new"))])
    assert done.exit_code == 0
    assert f"Written to {old.with_name('new')}" in " ".join(done.output.split())
    again = CliRunner().invoke(app, ["migrate", str(old), "--out", str(old.with_name("new"))])
    assert again.exit_code == 1
    assert "exists. Choose another name" in " ".join(again.stderr.split())
