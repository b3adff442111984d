"""Integration and label transfer: inVAE beside scVI, scANVI, scPoli, sysVI, the published inVAE, Harmony, ComBat and PCA, on real batches.

    python benchmarks/integration_data.py FOLDER                 # the sets and tasks, one file each
    python benchmarks/peers/integration_scvi.py --data ...       # each peer in an environment of its own (peers/README.md)
    python benchmarks/integration.py FOLDER LATENTS              # trains trifold, scores everything, writes results/ and prints the tables

LATENTS holds one SET_TASK_METHOD_SEED.npz of each method and task. Metrics are those of scib-metrics, raw (`min_max_scale=False`), total =
0.4 batch + 0.6 bio. Two tables for each set: methods that saw no label, scored on all cells; and methods that saw labels of one half of the
cells, scored on the other half. Then label transfer to a batch without labels, macro-F1. Choices in the preset were made on kang_merged and
kang_control_donors only (seed 0); their scores are in no table.
"""

from __future__ import annotations

import argparse
import platform
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
from integration_data import COLUMNS, DEVELOPMENT, SEEDS, UNKNOWN
from trifold.evaluate import calibration, integration

HERE = Path(__file__).parent
OWN = ("invae", "invae rectified")
WITHOUT = ("scvi", "sysvi", "finvae", "harmony", "combat", "pca")
WITH = ("scanvi", "scpoli", "finvae")
NAMES = {
    "invae": "**trifold invae**",
    "invae rectified": "**trifold invae**, rectified",
    "scvi": "scVI",
    "sysvi": "sysVI",
    "finvae": "inVAE, authors' code",
    "harmony": "Harmony",
    "combat": "ComBat",
    "pca": "PCA",
    "scanvi": "scANVI",
    "scpoli": "scPoli",
}
BATCH = ("bras", "ilisi", "kbet", "graph_connectivity", "pcr_comparison")
BIO = ("isolated_labels", "kmeans_nmi", "kmeans_ari", "silhouette_label", "clisi")


def train(data: ad.AnnData, task: str, seed: int, out: Path) -> None:
    """Trifold on one task; its latents and labels as the peers write theirs."""
    began = time.perf_counter()
    known: dict[str, Any] = {} if task == "unlabelled" else {"invariant": "given", "unlabelled": UNKNOWN}
    schema = tri.Schema.of(data, spurious="batch", **known)
    model = tri.invae(schema, seed=seed).fit(data, seed=seed, progress=False)
    seconds = time.perf_counter() - began
    answers: dict[str, Any] = {
        "latent": model.latent(data, block="invariant"),
        "rectified": model.latent(data, block="invariant", rectified=True),
        "technique": model.latent(data, block="spurious"),
    }
    if known:
        found = model.classify(data, probabilities=True)
        classes = [c.removeprefix("p_") for c in found if c.startswith("p_")]
        answers |= {"predicted": found["label"].to_numpy(str), "classes": np.array(classes)}
        answers["probability"] = found[[f"p_{c}" for c in classes]].to_numpy()
    np.savez(out, **answers, seconds=seconds, versions=f"trifold {tri.__version__}")


def embeddings(name: str, task: str, seed: int, latents: Path) -> dict[str, Any]:
    """method -> what its file holds, for the methods that have run."""
    found = {}
    for path in sorted(latents.glob(f"{name}_{task}_*_{seed}.npz")):
        method = path.stem.removeprefix(f"{name}_{task}_").removesuffix(f"_{seed}")
        with np.load(path, allow_pickle=False) as file:
            found[method] = dict(file)
    return found


def tables(data: ad.AnnData, name: str, task: str, seed: int, latents: Path, *, controls: bool) -> pd.DataFrame:
    """One row for each method (and control) of a set, task and seed: all metrics."""
    found = embeddings(name, task, seed, latents)
    wanted = WITHOUT if task == "unlabelled" else WITH
    latent = {m: found[m]["latent"] for m in ("invae", *wanted) if m in found}
    latent["invae rectified"] = found["invae"]["rectified"]
    hidden = (data.obs["given"] == UNKNOWN).to_numpy()
    where = None if task == "unlabelled" else hidden
    table = integration(
        latent, data.obs, batch="batch", label="label", before=pca(data), metrics="scib", controls=controls, where=where, seed=seed
    )
    return table.rename_axis("method").reset_index().assign(set=name, task=task, seed=seed, cells=int(hidden.sum()))


def transfers(data: ad.AnnData, name: str, task: str, seed: int, latents: Path) -> pd.DataFrame:
    """Labels of the cells whose labels were hidden; of methods that do not classify, the 15 nearest labelled cells in their latent say."""
    found = embeddings(name, task, seed, latents)
    hidden = (data.obs["given"] == UNKNOWN).to_numpy()
    truth = data.obs["label"].astype(str).to_numpy()
    rows = []
    for method, parts in found.items():
        labels, row = parts["predicted"].astype(str), {"calibration_error": np.nan}
        if "probability" in parts:
            told = calibration(parts["probability"][hidden], parts["classes"].astype(str), truth[hidden]).scores()
            row["calibration_error"] = told["calibration_error"]
        row["accuracy"] = float((truth[hidden] == labels[hidden]).mean())
        row["macro_f1"] = f1_score(truth[hidden], labels[hidden], average="macro", labels=np.unique(truth[hidden]), zero_division=0)
        rows.append({"set": name, "task": task, "seed": seed, "method": method, **row})
    return pd.DataFrame(rows)


def shown(table: pd.DataFrame, columns: list[str]) -> str:
    """Means over seeds as a Markdown table, best total first; the spread of the total over seeds."""
    spread = table.groupby("method")[columns[-1]].agg(lambda v: v.max() - v.min())
    means = table.groupby("method")[columns].mean().sort_values(columns[-1], ascending=False)
    lines = ["| method | " + " | ".join(columns) + " | range over seeds |", "|---" * (len(columns) + 2) + "|"]
    for method, row in means.iterrows():
        cells = " | ".join(f"{v:.3f}" for v in row)
        lines.append(f"| {NAMES.get(str(method), str(method))} | {cells} | {spread[method]:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Train, score, print."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("data", type=Path, help="folder of integration_data.py")
    ask.add_argument("latents", type=Path, help="folder of the methods' files")
    ask.add_argument("names", nargs="*", default=[n for n in COLUMNS if n not in DEVELOPMENT])
    ask.add_argument("--seeds", type=int, nargs="+")
    ask.add_argument("--train", choices=("missing", "all", "none"), default="missing", help="which of trifold's latents to make")
    ask.add_argument("--only-train", action="store_true")
    ask.add_argument("--out", type=Path, default=HERE / "results")
    asked = ask.parse_args()
    warnings.simplefilter("ignore")
    scores, labels = [], []
    for name in asked.names:
        for seed in asked.seeds or SEEDS[name]:
            for task in ("unlabelled", "labelled", "transfer"):
                data = ad.read_h5ad(asked.data / f"{name}_{task}_{seed}.h5ad")
                own = asked.latents / f"{name}_{task}_invae_{seed}.npz"
                if asked.train == "all" or (asked.train == "missing" and not own.exists()):
                    train(data, task, seed, own)
                    print(f"{name} {task} {seed}: {np.load(own)['seconds']:.0f} s", flush=True)
                if asked.only_train:
                    continue
                if task != "transfer":
                    scores.append(tables(data, name, task, seed, asked.latents, controls=seed == min(SEEDS[name])))
                if task != "unlabelled":
                    labels.append(transfers(data, name, task, seed, asked.latents))
        if asked.only_train:
            continue
        of_set, of_labels = pd.concat(scores), pd.concat(labels)
        for task, told in (("unlabelled", "no labels seen, all cells"), ("labelled", "half of the labels seen, scored on the other half")):
            part = of_set[(of_set["set"] == name) & (of_set["task"] == task)]
            print(f"\n### {name}: {told}\n\n{shown(part, [*BATCH, *BIO, 'batch', 'bio', 'total'])}", flush=True)
        for task, told in (("labelled", "the hidden half"), ("transfer", "a batch without labels")):
            part = of_labels[(of_labels["set"] == name) & (of_labels["task"] == task)]
            print(f"\n### {name}: labels of {told}\n\n{shown(part, ['calibration_error', 'accuracy', 'macro_f1'])}", flush=True)
    if asked.only_train:
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.names:
        for kind, parts in (("", scores), ("_labels", labels)):
            table = pd.concat(parts).query("set == @name")
            table.to_csv(asked.out / f"integration{kind}_{name}.csv", index=False, float_format="%.4f")
    packages = ("torch", "scib-metrics", "scanpy", "harmonypy")
    print(f"\ntrifold {tri.__version__}, " + ", ".join(f"{p} {version(p)}" for p in packages) + f", Python {platform.python_version()}")


if __name__ == "__main__":
    main()
