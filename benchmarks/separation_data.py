"""Sets of the separation benchmark: simulated studies whose invariant and spurious factors are known, and two sets of Kang et al. 2018.

    python benchmarks/separation_data.py FOLDER
    python benchmarks/separation_data.py FOLDER simulated_crossed --seeds 1

One file per set and seed, `SET_SEED.h5ad`, which the peers of integration_data.py read as they are. X holds raw counts (CSR float32). obs:

- `batch`; `label`: joint category of biology; `part`: `test` for 30 % of the cells of each batch and label, else `train`;
- `given`: the label of training cells, else "unknown"; `given_COLUMN` the same for each column of biology;
- `random`: the labels permuted within each batch, and `given_random`: of training cells.

Of the simulated sets, obsm holds the true `invariant` and `spurious` factors. There a seed is a study: its network, its means, its cells.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data"
UNKNOWN = "unknown"
SEEDS = (1, 2, 3)
TEST = 0.3  # share of the cells whose biology is given to nobody
CELLS, GENES = 2_000, 500
INVARIANT, SPURIOUS, UNITS = 6, 3, 32
DEPTH = 1.0  # mean counts per cell and gene
MIXED = 4_000  # cells of kang_control_donors
CORNERS = 1.2 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])  # means of the batches: none is like another
EVEN = np.full((4, 5), 1 / 5)  # batch × class -> share of the batch
UNEVEN = np.array([[0.60, 0.25, 0.15, 0, 0], [0, 0.55, 0.25, 0.20, 0], [0, 0, 0.50, 0.30, 0.20], [0.20, 0, 0, 0.25, 0.55]])
BIOLOGY = {  # set -> columns of biology
    "simulated_crossed": ("label",),
    "simulated_confounded": ("label",),
    "kang_donor_condition": ("cell_type", "condition"),
    "kang_control_donors": ("label",),
}


def simulated(shares: np.ndarray, seed: int) -> ad.AnnData:
    """Negative binomial counts of cells with a class and a batch, whose log rates are a smooth function of both kinds of factors.

    Factors are means and what varies within. Class means have a standard deviation of 1.2 in each of 6 dimensions, cells of a class 0.5;
    batch means are corners of a turned tetrahedron, sqrt(8) · 1.2 apart, cells of a batch have 0.4 in each of 3 dimensions.

    log rate = base + C tanh(A invariant + B spurious + b): every one of 32 units may mix both kinds. Library sizes are log-normal.

    Args:
        shares: [batches, classes], rows sum to 1. Batches are of equal size.
        seed: Of everything. Studies of one seed differ in the shares only by which cells are drawn.

    Returns:
        2,000 cells × 500 genes with obs `batch` and `label`, and the factors in obsm.
    """
    rng = np.random.default_rng([seed, 41])
    batches, classes = shares.shape
    of_class = rng.normal(0, 1.2, (classes, INVARIANT))
    of_batch = CORNERS[:batches] @ np.linalg.qr(rng.normal(size=(SPURIOUS, SPURIOUS)))[0]
    a = rng.normal(0, 1, (INVARIANT, UNITS)) / np.sqrt(INVARIANT)
    b = rng.normal(0, 1, (SPURIOUS, UNITS)) / np.sqrt(SPURIOUS)
    c = rng.normal(0, 0.6, (UNITS, GENES)) * (rng.random((UNITS, GENES)) < 0.3)
    offset, base = rng.normal(0, 0.5, UNITS), rng.normal(0, 1, GENES)
    theta = rng.lognormal(np.log(3.0), 0.7, GENES)
    batch = np.arange(CELLS) % batches
    label = np.array([rng.choice(classes, p=shares[k]) for k in batch])
    invariant = of_class[label] + rng.normal(0, 0.5, (CELLS, INVARIANT))
    spurious = of_batch[batch] + rng.normal(0, 0.4, (CELLS, SPURIOUS))
    log = base + np.tanh(invariant @ a + spurious @ b + offset) @ c
    rate = np.exp(log - log.max(1, keepdims=True))
    mean = rate / rate.sum(1, keepdims=True) * (DEPTH * GENES * rng.lognormal(0, 0.35, CELLS))[:, None]
    counts = rng.poisson(rng.standard_gamma(np.broadcast_to(theta, mean.shape)) * mean / theta)
    obs = pd.DataFrame({"batch": [f"batch_{k}" for k in batch], "label": [f"class_{k}" for k in label]}, index=_names("cell", CELLS))
    var = pd.DataFrame(index=_names("gene", GENES))
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var, obsm={"invariant": invariant, "spurious": spurious})


def load(name: str, seed: int, folder: Path = DATA) -> ad.AnnData:
    """A set with obs `batch`, `label` and its columns of biology; kang_control_donors is 4,000 cells drawn by the seed."""
    if name.startswith("simulated"):
        return with_counts(simulated(EVEN if name == "simulated_crossed" else UNEVEN, seed))
    data = ad.read_h5ad(folder / f"{name}.h5ad")
    if name == "kang_control_donors":
        data = data[np.sort(np.random.default_rng([seed, *name.encode()]).choice(data.n_obs, MIXED, replace=False))]
        columns = {"label": data.obs["cell_type"].astype(str)}
    else:
        columns = {c: data.obs[c].astype(str) for c in BIOLOGY[name]}
        columns["label"] = pd.Series(["/".join(row) for row in zip(*columns.values(), strict=True)], index=data.obs_names)
    obs = pd.DataFrame({"batch": data.obs["donor"].astype(str), **columns}, index=data.obs_names)
    return with_counts(ad.AnnData(sp.csr_matrix(data.X, dtype=np.float32), obs=obs, var=pd.DataFrame(index=data.var_names)))


def with_counts(data: ad.AnnData) -> ad.AnnData:
    """Without cells and genes that are zero everywhere."""
    cells, genes = (np.asarray(data.X.sum(axis)).ravel() > 0 for axis in (1, 0))
    return data[cells][:, genes].copy()


def posed(data: ad.AnnData, name: str, seed: int) -> ad.AnnData:
    """With what is given, and the random label."""
    rng = np.random.default_rng([seed, 7, *name.encode()])
    test = np.zeros(data.n_obs, dtype=bool)
    for rows in data.obs.groupby(["batch", "label"], observed=True, sort=True).indices.values():
        test[rng.permutation(rows)[: round(TEST * len(rows))]] = True
    data.obs["part"] = np.where(test, "test", "train")
    data.obs["random"] = data.obs["label"].to_numpy(object)
    for rows in data.obs.groupby("batch", observed=True, sort=True).indices.values():
        data.obs.iloc[rows, data.obs.columns.get_loc("random")] = rng.permutation(data.obs["label"].to_numpy(object)[rows])
    data.obs["given"] = np.where(test, UNKNOWN, data.obs["label"])
    for column in (*BIOLOGY[name], "random"):
        data.obs[f"given_{column}"] = np.where(test, UNKNOWN, data.obs[column])
    for column in data.obs:
        data.obs[column] = data.obs[column].astype("category")
    data.uns["separation"] = {"set": name, "seed": seed}
    return data


def _names(what: str, n: int) -> list[str]:
    return [f"{what}_{i}" for i in range(n)]


def main() -> None:
    """Write the files."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("out", type=Path)
    ask.add_argument("names", nargs="*", default=list(BIOLOGY), help=f"of {', '.join(BIOLOGY)}")
    ask.add_argument("--data", type=Path, default=DATA, help="the folder with the sets")
    ask.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    asked = ask.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.names:
        for seed in asked.seeds:
            data = posed(load(name, seed, asked.data), name, seed)
            data.write_h5ad(asked.out / f"{name}_{seed}.h5ad", compression="gzip")
            sizes = f"{data.n_obs} cells × {data.n_vars} genes, {data.obs['batch'].nunique()} batches, {data.obs['label'].nunique()} labels"
            print(f"{name}, seed {seed}: {sizes}, {(data.obs['part'] == 'test').sum()} test cells", flush=True)


if __name__ == "__main__":
    main()
