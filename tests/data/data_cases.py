"""Small matrices and studies that the data tests share."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp


def sparse_counts(n: int = 40, g: int = 12, seed: int = 0, density: float = 0.25) -> sp.csr_matrix:
    """[n, g] float32 counts; every cell and gene has some."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(3.0, (n, g)) * (rng.random((n, g)) < density)
    x[np.arange(n), np.arange(n) % g] += 1
    return sp.csr_matrix(x.astype(np.float32))


def study(n: int = 40, g: int = 12, seed: int = 0, density: float = 0.25) -> anndata.AnnData:
    """Counts with drug (3), dose (number), cell_type (2), donor (2)."""
    i = np.arange(n)
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical(np.array(["none", "A", "B"])[i % 3], categories=["none", "A", "B"]),
            "dose": (i % 5).astype(float),
            "cell_type": np.array(["NK", "T"])[(i // 3) % 2],
            "donor": np.array(["d2", "d1"])[(i // 2) % 2],
        },
        index=[f"c{k}" for k in i],
    )
    return anndata.AnnData(sparse_counts(n, g, seed, density), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(g)]))
