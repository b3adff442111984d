"""Small data sets that the fault tests damage, and the check that nothing of the user's was changed."""

from __future__ import annotations

from contextlib import contextmanager

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

CELLS, GENES = 60, 20


def counts(seed: int = 0) -> np.ndarray:
    """[60, 20] float32 counts, no empty cell or gene, three in ten not zero."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(2.0, (CELLS, GENES)) * (rng.random((CELLS, GENES)) < 0.3)
    x[:, 0] += 1
    x[0] += 1
    return x.astype(np.float32)


def obs() -> pd.DataFrame:
    """Condition, cell type, donor, dose; all crossed."""
    i = np.arange(CELLS)
    return pd.DataFrame(
        {
            "condition": pd.Categorical(np.array(["control", "stimulated"])[i % 2]),
            "cell_type": pd.Categorical(np.array(["B", "NK", "T"])[(i // 2) % 3]),
            "donor": np.array(["d1", "d2"])[(i // 6) % 2],
            "dose": i.astype(float),
        },
        index=[f"cell_{k}" for k in i],
    )


def study(x: object = None, layer: str = "counts") -> anndata.AnnData:
    """AnnData with the counts in a layer (and in X)."""
    x = sp.csr_matrix(counts()) if x is None else x
    var = pd.DataFrame(index=[f"GENE{j}" for j in range(GENES)])
    a = anndata.AnnData(sp.csr_matrix(counts()), obs=obs(), var=var)
    a.layers[layer] = x
    return a


def with_value(value: float, *, row: int = 17, gene: int = 3, dtype: type = np.float32, sparse: bool = True) -> anndata.AnnData:
    """The study with one value replaced."""
    x = counts().astype(dtype)
    x[row, gene] = value
    return study(sp.csr_matrix(x) if sparse else x)


def raw_bytes(a: anndata.AnnData) -> list[bytes]:
    """Everything of an AnnData that a careless reader might change, as bytes."""
    out = []
    for m in [a.X, *a.layers.values()]:
        out += [np.ascontiguousarray(p).tobytes() for p in ((m.data, m.indices, m.indptr) if sp.issparse(m) else (np.asarray(m),))]
    out += [a.obs.to_csv().encode(), a.var.to_csv().encode(), repr((list(a.obsm), list(a.uns), list(a.obs.dtypes))).encode()]
    return out


@contextmanager
def unchanged(a: anndata.AnnData):
    """Fails if the AnnData is changed within."""
    before = raw_bytes(a)
    yield
    assert raw_bytes(a) == before
