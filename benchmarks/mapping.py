"""Query mapping: a batch that the reference never saw, mapped onto it, against retraining on everything.

    python benchmarks/integration_data.py FOLDER mixology_5batch pbmc_3tech_counts
    python benchmarks/mapping.py FOLDER --seeds 1 2 3

One batch (mixology_5batch) or technology (pbmc_3tech_counts) is left out, the seed-th largest, and the rest, with its labels, is the
reference. "retrained" is trained on all cells, the left-out ones without labels. Labels are scored on the left-out batch, mixing on all
cells (the library's own light set: batch and bio scores). The embedding of the reference's own cells is compared bit for bit.
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

import trifold as tri
from integration_baselines import pca
from integration_data import UNKNOWN
from trifold.evaluate import integration

HERE = Path(__file__).parent
SETS = ("mixology_5batch", "pbmc_3tech_counts")
COLUMNS = ["macro_f1", "accuracy", "batch", "bio", "same", "seconds", "megabytes"]


def one(data: ad.AnnData, seed: int) -> pd.DataFrame:
    """The four ways, for one left-out batch."""
    hidden = (data.obs["given"] == UNKNOWN).to_numpy()
    reference, query = data[~hidden].copy(), data[hidden].copy()
    known = {"spurious": "batch", "invariant": "given", "unlabelled": UNKNOWN}
    began = time.perf_counter()
    model = tri.invae(tri.Schema.of(reference, **known), seed=seed).fit(reference, seed=seed, progress=False)
    learned = time.perf_counter() - began
    before = model.latent(reference, block="invariant")
    rows = [scored("reference as it is", model, data, hidden, before, learned, unknown={"spurious": "zero"})]
    for name, asked in {"mapped": {"reference": reference}, "mapped, without the reference's cells": {}}.items():
        began = time.perf_counter()
        placed = model.map(query, seed=seed, progress=False, **asked)
        rows.append(scored(name, placed, data, hidden, before, time.perf_counter() - began))
    began = time.perf_counter()
    whole = tri.invae(tri.Schema.of(data, **known), seed=seed).fit(data, seed=seed, progress=False)
    rows.append(scored("retrained on everything", whole, data, hidden, before, time.perf_counter() - began))
    return pd.DataFrame(rows)


def scored(
    name: str, model: tri.Model, data: ad.AnnData, hidden: np.ndarray, before: np.ndarray, seconds: float, **options: Any
) -> dict[str, Any]:
    """Labels of the left-out batch, mixing of all cells, and what it took."""
    truth = data.obs["label"].astype(str).to_numpy()[hidden]
    told = model.classify(data[hidden].copy(), **options)["label"].to_numpy(str)
    latent = model.latent(data, block="invariant", **options)
    mixing = integration({name: latent}, data.obs, batch="batch", label="label", before=pca(data), controls=False).loc[name]
    with tempfile.TemporaryDirectory() as folder:
        size = sum(f.stat().st_size for f in model.save(Path(folder) / "run").iterdir()) / 1e6
    return {
        "method": name,
        "macro_f1": f1_score(truth, told, average="macro", labels=np.unique(truth), zero_division=0),
        "accuracy": float((truth == told).mean()),
        "batch": mixing["batch"],
        "bio": mixing["bio"],
        "same": float(np.array_equal(model.latent(data[~hidden].copy(), block="invariant"), before)),
        "seconds": seconds,
        "megabytes": size,
    }


def main() -> None:
    """Train, map, print."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("data", type=Path, help="folder of integration_data.py")
    ask.add_argument("names", nargs="*", default=list(SETS))
    ask.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    ask.add_argument("--out", type=Path, default=HERE / "results")
    asked = ask.parse_args()
    warnings.simplefilter("ignore")
    parts = []
    for name in asked.names:
        for seed in asked.seeds:
            data = ad.read_h5ad(asked.data / f"{name}_transfer_{seed}.h5ad")
            parts.append(one(data, seed).assign(set=name, seed=seed))
        table = pd.concat(parts).query("set == @name").groupby("method", sort=False)[COLUMNS].mean()
        print(
            f"\n### {name}: {len(asked.seeds)} batches left out\n\n| method | " + " | ".join(COLUMNS) + " |\n" + "|---" * 8 + "|",
            flush=True,
        )
        for method, row in table.iterrows():
            print(
                f"| {method} | "
                + " | ".join(f"{v:.3f}" if c not in ("seconds", "megabytes") else f"{v:.1f}" for c, v in row.items())
                + " |"
            )
    asked.out.mkdir(parents=True, exist_ok=True)
    pd.concat(parts).to_csv(asked.out / "mapping.csv", index=False, float_format="%.4f")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak memory {peak:.0f} MB. trifold {tri.__version__}, torch {version('torch')}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
