"""A trained model, and its run folder, which faults must not harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_cases import study
from training_cases import QUICK, model


@pytest.fixture(scope="module")
def first():
    return model().fit(study(), epochs=2, **QUICK)


@pytest.fixture
def run(first, tmp_path) -> Path:
    """A run folder that faults must not harm."""
    return first.save(tmp_path / "run")
