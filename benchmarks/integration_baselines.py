"""What needs no training: PCA, Harmony and ComBat, and labels by nearest neighbours in any latent.

    python benchmarks/integration_baselines.py --data FILE.h5ad --method harmony --labels given --seed 1 --out OUT.npz
    python benchmarks/integration_baselines.py --data FILE.h5ad --latent OTHER.npz --labels given --out OUT.npz

Files are those of integration_data.py; output is that of the peers (peers/README.md). All methods start from log1p of counts scaled to
10,000 per cell.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc

UNKNOWN = "unknown"
COMPONENTS = 30
NEIGHBOURS = 15


def logged(data: ad.AnnData) -> ad.AnnData:
    """Log1p of counts scaled to 10,000 per cell."""
    logs = ad.AnnData(data.X.copy(), obs=data.obs[["batch"]].copy(), var=data.var[[]])
    sc.pp.normalize_total(logs, target_sum=1e4)
    sc.pp.log1p(logs)
    return logs


def pca(data: ad.AnnData, seed: int = 0) -> np.ndarray:
    """Scores on the first 30 components. Cells × 30."""
    return components(logged(data), seed)


def harmony(data: ad.AnnData, seed: int = 0) -> np.ndarray:
    """The same, moved by Harmony (Korsunsky et al. 2019) with its defaults. Cells × 30."""
    from harmonypy import run_harmony

    scores = pca(data, seed).astype(np.float64)
    moved = run_harmony(scores, data.obs[["batch"]], "batch", random_state=seed, verbose=False, ncores=1).Z_corr
    return np.asarray(moved if moved.shape[0] == data.n_obs else moved.T, dtype=np.float32)


def combat(data: ad.AnnData, seed: int = 0) -> np.ndarray:
    """Scores on the first 30 components after ComBat (Johnson et al. 2007) by batch, without covariates. Cells × 30."""
    logs = logged(data)
    logs.X = logs.X.toarray()
    sc.pp.combat(logs, key="batch")
    return components(logs, seed)


def components(logs: ad.AnnData, seed: int) -> np.ndarray:
    return np.asarray(sc.pp.pca(logs.X, n_comps=COMPONENTS, random_state=seed), dtype=np.float32)


METHODS = {"pca": pca, "harmony": harmony, "combat": combat}


def by_neighbours(latent: np.ndarray, given: np.ndarray, k: int = NEIGHBOURS) -> dict[str, np.ndarray]:
    """Labels of all cells from the k nearest labelled ones, one vote each; a labelled cell is among its own.

    Args:
        latent: Cells × dimensions.
        given: The label of each cell, "unknown" where there is none.
        k: How many vote; fewer if fewer are labelled.

    Returns:
        `predicted` (cells), `probability` (cells × classes, shares of votes) and `classes`.
    """
    from sklearn.neighbors import KNeighborsClassifier

    known = np.asarray(given, dtype=str) != UNKNOWN
    judge = KNeighborsClassifier(min(k, int(known.sum()))).fit(latent[known], np.asarray(given, dtype=str)[known])
    share = judge.predict_proba(latent)
    return {"predicted": judge.classes_[share.argmax(1)], "probability": share.astype(np.float32), "classes": judge.classes_}


def main() -> None:
    """Embed, or take a latent, and label."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--data", type=Path, required=True)
    ask.add_argument("--out", type=Path, required=True)
    ask.add_argument("--method", choices=METHODS)
    ask.add_argument("--latent", type=Path, help="an output whose latent is used instead of a method's")
    ask.add_argument("--labels", choices=("given", "none"), default="none")
    ask.add_argument("--seed", type=int, default=0)
    asked = ask.parse_args()
    if (asked.method is None) == (asked.latent is None):
        ask.error("needs either --method or --latent")
    data = ad.read_h5ad(asked.data)
    start, cpu_start = time.perf_counter(), time.process_time()
    if asked.latent:
        before = np.load(asked.latent)
        found, spent = {"latent": before["latent"]}, [float(before["seconds"]), float(before["cpu_seconds"])]
        versions = json.loads(str(before["versions"]))
    else:
        found, spent = {"latent": METHODS[asked.method](data, asked.seed)}, [0.0, 0.0]
        versions = {n: version(n) for n in ("scanpy", "harmonypy", "anndata", "numpy")} | {"python": platform.python_version()}
    if not np.isfinite(found["latent"]).all() or len(found["latent"]) != data.n_obs:
        raise ValueError(f"the latent has shape {found['latent'].shape} for {data.n_obs} cells, or holds values that are not finite")
    if asked.labels == "given":
        found |= by_neighbours(found["latent"], data.obs["given"].to_numpy(str))
    np.savez_compressed(
        asked.out,
        **found,
        seconds=time.perf_counter() - start + spent[0],
        cpu_seconds=time.process_time() - cpu_start + spent[1],
        versions=json.dumps(versions | {"scikit-learn": version("scikit-learn")}),
    )


if __name__ == "__main__":
    main()
