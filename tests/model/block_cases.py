"""A study of three types in two batches whose truth is known, and small inVAE models of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

import trifold

GENES = 40
MARKERS = {"x": slice(0, 5), "y": slice(5, 10), "z": slice(10, 15)}  # three times as much in their type
SHIFTED = slice(20, 30)  # twice as much in batch b, of all types
QUICK = {"device": "cpu", "progress": False}


def study(cells: int = 420, *, seed: int = 0, shares: tuple[float, float] = (0.5, 0.7)) -> AnnData:
    """Counts; the share of type x is 1/3 in either batch; ``shares`` is that of batch b, in types y and z, and type x."""
    rng = np.random.default_rng(seed)
    kind = np.array(["x", "y", "z"])[rng.integers(3, size=cells)]
    batch = np.where(rng.random(cells) < np.where(kind == "x", shares[1], shares[0]), "b", "a")
    rate = rng.gamma(4.0, 2.0, GENES)[None].repeat(cells, 0)
    for name, at in MARKERS.items():
        rate[kind == name, at] *= 3
    rate[batch == "b", SHIFTED] *= 2
    rate *= rng.gamma(20.0, 1 / 20, (cells, 1))
    names = [f"c{i}" for i in range(cells)]
    obs = pd.DataFrame({"kind": pd.Categorical(kind), "batch": pd.Categorical(batch)}, index=names)
    return AnnData(rng.poisson(rate).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(GENES)]))


def schema_of(a: AnnData, **given) -> trifold.Schema:
    return trifold.Schema.of(a, **{"invariant": "kind", "spurious": "batch", **given})


def fitted(a: AnnData, *, epochs: int = 40, validation: float = 0.2, given=None, hold_out=None, **preset) -> trifold.Model:
    model = trifold.invae(schema_of(a, **(given or {})), **{"invariant": 4, "spurious": 2, "hidden": (24,), **preset})
    return model.fit(a, epochs=epochs, batch=32, lr=1e-2, validation=validation, hold_out=hold_out, **QUICK)
