"""What all tests share: one thread, small simulated studies, one trained model, and the real data by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import trifold

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a file of ../shared/data; the test is skipped, by the file's name, where it is absent."""

    def path(name: str) -> Path:
        found = DATA / name
        if not found.exists():
            pytest.skip(f"{name} is not in {DATA}")
        return found

    return path


@pytest.fixture(scope="session")
def study():
    """A simulated study: 240 cells, 40 genes, 3 types, 2 conditions. Copy its adata before changing it."""
    return trifold.simulate(240, 40, types=3, conditions=("control", "stimulated"), depth=1.0, seed=3)


@pytest.fixture(scope="session")
def schema(study):
    return trifold.Schema.of(study.adata, condition="condition", label="cell_type")


@pytest.fixture(scope="session")
def trained(study, schema):
    """A small trVAE after two epochs, with (type_1, stimulated) held out. Do not train it further."""
    model = trifold.trvae(schema, latent=4, hidden=(16,))
    held_out = {"condition": "stimulated", "cell_type": "type_1"}
    return model.fit(study.adata, epochs=2, batch=32, validation=0.1, hold_out=held_out, seed=5, device="cpu", progress=False)


@pytest.fixture(autouse=True)
def _generators_are_left_as_found():
    """No test may depend on what another drew: torch's global generator starts from the same place."""
    torch.manual_seed(0)
