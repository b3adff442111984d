"""Sets and tasks of the integration benchmark: real batches, counts of variable genes, and which labels a method may see.

    python benchmarks/integration_data.py FOLDER
    python benchmarks/integration_data.py FOLDER mixology_5batch --seeds 1

One file per set, task and seed, `SET_TASK_SEED.h5ad`, so that peers in environments of their own read what trifold reads. X holds raw
counts of 2,000 genes (CSR float32); obs holds `batch`, `label` (for scoring) and `given` (what a method may see, else "unknown"):

- `unlabelled`: no label is given;
- `labelled`: a random half of each batch and label is given, the larger half where it is odd;
- `transfer`: one whole batch is without labels, the seed-th largest (the smallest for seed 0).

Genes are chosen batch by batch, without labels. Sets that come with fewer genes keep them all. The development sets are those on which
choices may be made; they have seed 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data"
GENES = 2_000
UNKNOWN = "unknown"
TASKS = ("unlabelled", "labelled", "transfer")
COLUMNS = {  # set -> columns of batch and label
    # Cell lines, by genotype. 387 cells are no singlets; a classifier of the others gives 92 % of these their label, 7 of 15 in Drop-seq.
    "mixology_5batch": ("batch", "cell_type"),
    "pbmc_3tech_counts": ("batch", "cell_type_predicted"),  # predicted by label transfer, not known
    "onek1k_subset": ("pool", "cell_type"),
    "kang_merged": ("condition", "cell_type"),  # only cells whose label is GEO's
    "kang_control_donors": ("donor", "cell_type"),
}
DEVELOPMENT = ("kang_merged", "kang_control_donors")
SEEDS = {name: (0,) if name in DEVELOPMENT else (1, 2, 3) for name in COLUMNS}


def load(name: str, folder: Path = DATA) -> ad.AnnData:
    """Raw counts of at most 2,000 variable genes, with obs columns `batch`, `label` and, where the set tells it, `singlet`.

    Args:
        name: The set.
        folder: Where the sets lie.

    Returns:
        Cells × genes: those with counts, in the order of the file. var has `highly_variable_nbatches` if genes were chosen.
    """
    data = ad.read_h5ad(folder / f"{name}.h5ad")
    if name == "kang_merged":
        data = data[data.obs["label_source"] == "GEO"]
    batch, label = COLUMNS[name]
    obs = pd.DataFrame({"batch": data.obs[batch].astype(str), "label": data.obs[label].astype(str)}, index=data.obs_names)
    if "singlet" in data.obs:
        obs["singlet"] = data.obs["singlet"].to_numpy(bool)
    data = with_counts(ad.AnnData(sp.csr_matrix(data.X, dtype=np.float32), obs=obs, var=pd.DataFrame(index=data.var_names)))
    if data.n_vars > GENES:
        chosen = variable_genes(data)
        data = data[:, chosen.index].copy()
        data.var["highly_variable_nbatches"] = chosen
        data = with_counts(data)
    for column in ("batch", "label"):
        data.obs[column] = data.obs[column].astype("category")
    return data


def with_counts(data: ad.AnnData) -> ad.AnnData:
    """Without cells and genes that are zero everywhere."""
    cells, genes = (np.asarray(data.X.sum(axis)).ravel() > 0 for axis in (1, 0))
    return data[cells][:, genes].copy()


def variable_genes(data: ad.AnnData) -> pd.Series:
    """The 2,000 genes that are variable in most batches, and in how many, in the order of the file."""
    logs = data.copy()
    sc.pp.normalize_total(logs, target_sum=1e4)
    sc.pp.log1p(logs)
    found = sc.pp.highly_variable_genes(logs, n_top_genes=GENES, batch_key="batch", inplace=False).set_axis(data.var_names)
    return found.loc[found["highly_variable"], "highly_variable_nbatches"].astype(int)


def hide(obs: pd.DataFrame, task: str, seed: int, name: str) -> pd.Series:
    """The labels that a method may see; "unknown" elsewhere.

    Args:
        obs: `batch` and `label` of each cell.
        task: One of `TASKS`.
        seed: Chooses the half of each stratum, or the batch: 1 the largest, 2 the next; 0 the smallest.
        name: The set. Part of the draw's seed, so that no two sets share one.

    Returns:
        One label per cell, categorical.
    """
    given = obs["label"].astype(str).to_numpy(object).copy()
    if task == "unlabelled":
        given[:] = UNKNOWN
    elif task == "transfer":
        given[(obs["batch"] == hidden_batch(obs, seed)).to_numpy()] = UNKNOWN
    else:
        rng = np.random.default_rng([seed, *name.encode()])
        for rows in obs.groupby(["batch", "label"], observed=True, sort=True).indices.values():
            given[rng.permutation(rows)[: len(rows) // 2]] = UNKNOWN
    return pd.Series(given, index=obs.index, dtype="category", name="given")


def hidden_batch(obs: pd.DataFrame, seed: int) -> str:
    """The seed-th largest batch, equal ones by name; the smallest for seed 0."""
    sizes = obs["batch"].astype(str).value_counts().sort_index()
    return str(sizes.sort_values(ascending=False, kind="stable").index[seed - 1])


def task(name: str, what: str, seed: int, folder: Path = DATA) -> ad.AnnData:
    """A set with the labels of a task in obs["given"], and what it is in uns["integration"]."""
    return posed(load(name, folder), name, what, seed)


def posed(data: ad.AnnData, name: str, what: str, seed: int) -> ad.AnnData:
    """The same of a set that is loaded already."""
    data = data.copy()
    data.obs["given"] = hide(data.obs, what, seed, name)
    data.uns["integration"] = {"set": name, "task": what, "seed": seed}
    if what == "transfer":
        data.uns["integration"]["hidden_batch"] = hidden_batch(data.obs, seed)
    return data


def main() -> None:
    """Write the files."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("out", type=Path)
    ask.add_argument("names", nargs="*", default=list(COLUMNS), help=f"of {', '.join(COLUMNS)}")
    ask.add_argument("--data", type=Path, default=DATA, help="the folder with the sets")
    ask.add_argument("--seeds", type=int, nargs="+", help="those of the set, if not given")
    asked = ask.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.names:
        data = load(name, asked.data)
        shape = f"{data.n_obs} cells × {data.n_vars} genes, {data.obs['batch'].nunique()} batches, {data.obs['label'].nunique()} labels"
        print(f"{name}: {shape}", flush=True)
        for what in TASKS:
            for seed in asked.seeds or SEEDS[name]:
                one = posed(data, name, what, seed)
                one.write_h5ad(asked.out / f"{name}_{what}_{seed}.h5ad", compression="gzip")
                share = (one.obs["given"] != UNKNOWN).mean()
                hidden = one.uns["integration"].get("hidden_batch", "")
                print(f"  {what}, seed {seed}: {share:.1%} of the labels given{hidden and f', none of {hidden}'}", flush=True)


if __name__ == "__main__":
    main()
