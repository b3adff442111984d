"""Small crossed studies whose truth is known, for the tests of trifold.evaluate."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared(name: str) -> anndata.AnnData:
    path = SHARED / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return anndata.read_h5ad(path)


def crossed(*, conditions: tuple[str, ...] = ("control", "drug"), kind: str = "counts", cells: int = 30, genes: int = 40, seed: int = 0):
    """Three groups x conditions; each condition but the first multiplies its own genes by four in every group."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(2.0, 1.0, size=(3, genes))
    blocks, rows = [], []
    for g, name in enumerate(("A", "B", "C")):
        for c, condition in enumerate(conditions):
            mean = base[g].copy()
            if c:
                mean[3 * c : 3 * c + 3] *= 4
            x = rng.poisson(mean, size=(cells, genes)) if kind == "counts" else rng.normal(mean, 1.0, size=(cells, genes))
            blocks.append(x.astype(np.float32))
            rows += [(name, condition)] * cells
    x = np.concatenate(blocks)
    obs = pd.DataFrame(rows, columns=["type", "stim"], index=[f"cell{i}" for i in range(len(rows))]).astype("category")
    var = pd.DataFrame(index=[f"gene{i}" for i in range(genes)])
    return anndata.AnnData(sp.csr_matrix(x) if kind == "counts" else x, obs=obs, var=var)


NAMES = {"condition": "stim", "group": "type", "source": "control"}
