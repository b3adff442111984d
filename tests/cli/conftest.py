"""One study and one run for all tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_cases import fit, study


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = fit(data, out)
    assert result.exit_code == 0, result.output
    return out
