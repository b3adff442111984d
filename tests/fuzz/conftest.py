"""A run folder to damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from targets import QUICK, TINY, study

import trifold


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained trVAE on disk."""
    a = study()
    model = trifold.trvae(trifold.Schema.of(a, "counts", condition="condition"), **TINY).fit(a, **QUICK)
    return model.save(tmp_path_factory.mktemp("fuzz") / "run")
