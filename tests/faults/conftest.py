"""Run folders, folders of checkpoints and data files of every format, to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hostile_cases import write_formats

import trifold


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory) -> Path:
    return trained.save(tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def run(saved, tmp_path) -> Path:
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def stopped(schema, study, tmp_path_factory) -> Path:
    """Checkpoints of steps 2 and 4 of a training that ended by an error."""

    class StoppedError(Exception):
        pass

    def stop(row: object) -> None:
        raise StoppedError

    out = tmp_path_factory.mktemp("stopped") / "run"
    model = trifold.trvae(schema, latent=2, hidden=(4,))
    with pytest.raises(StoppedError):
        model.fit(study.adata, epochs=3, batch=48, seed=1, out=out, checkpoint_every=2, on_epoch=stop, device="cpu", progress=False)
    return out.with_name("run.checkpoint")


@pytest.fixture
def checkpoints(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run.checkpoint"))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_formats(tmp_path_factory.mktemp("written"))


@pytest.fixture
def files(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "files"))
