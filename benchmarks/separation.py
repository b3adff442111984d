"""Separation: what can be read from the invariant and the spurious latent, beside scVI, scANVI, PCA, Harmony and the published settings.

    python benchmarks/separation_data.py FOLDER                  # the sets, one file each
    python benchmarks/peers/integration_scvi.py --data ...       # each peer in an environment of its own, to LATENTS/SET_METHOD_SEED.npz
    python benchmarks/separation.py FOLDER LATENTS               # trains trifold, scores everything, writes results/ and prints the tables

Biology of 30 % of the cells, the test cells, is given to no method; their counts and batches are given to all. Probes learn from the other
cells' latents and are scored on the test cells. The strongest of three counts, chosen on the cells that it is scored on: that favours the
probe, not the latent. The encoder of the published settings reads biology and batch: its latents are scored with both hidden (zeros), and
with both shown. `unseen` is the same measure on the tenth of the cells that trifold watched and did not train on (`Model.separation`):
test cells were trained on with their batch, which an encoder can learn by heart.
"""

from __future__ import annotations

import argparse
import io
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

import trifold as tri
from integration_baselines import harmony, logged, pca
from separation_data import BIOLOGY, SEEDS, UNKNOWN
from trifold.evaluate import leakage, probes

HERE = Path(__file__).parent
PEERS = ("scvi", "scanvi", "finvae")
OWN = ("invae", "published", "random", "random_published")
NAMES = {
    "z_I": "**trifold z_I**",
    "z_S": "**trifold z_S**",
    "published z_I": "published settings z_I, hidden",
    "published z_S": "published settings z_S, hidden",
    "published z_I shown": "published settings z_I, shown",
    "published z_S shown": "published settings z_S, shown",
    "scvi": "scVI",
    "scanvi": "scANVI",
    "finvae": "inVAE, authors' code ¹",
    "pca": "PCA",
    "harmony": "Harmony",
    "genes": "all genes ²",
}
LEAK, TECHNIQUE = 0.10, 0.95  # targets: batch from z_I at most so far above chance, from z_S more than this
ABOVE = {"leakage": "above chance", "leakage_within": "above composition", "balanced_leakage_within": "balanced, above composition"}
STRONG = 2.0  # standard errors above chance from which a random label counts as leaked


def train(data: ad.AnnData, name: str, seed: int, method: str, out: Path, epochs: int | None = None) -> None:
    """One of trifold's models on one set, and its latents: with covariates hidden from the encoder, and, if it reads them, shown to it."""
    began = time.perf_counter()
    biology = ("random",) if method.startswith("random") else BIOLOGY[name]
    published = method.endswith("published")
    schema = tri.Schema.of(data, spurious="batch", invariant=[f"given_{c}" for c in biology], unlabelled=UNKNOWN)
    told = {} if epochs is None else {"epochs": epochs}
    model = tri.invae(schema, published=published, seed=seed).fit(data, seed=seed, progress=False, **told)
    blank, full = data.copy(), data.copy()
    for column in biology:
        blank.obs[f"given_{column}"], full.obs[f"given_{column}"] = UNKNOWN, data.obs[column]
    blank.obs["batch"] = "hidden"
    answers: dict[str, Any] = {"separation": model.separation.to_json()}
    for name_of, cells in {"": blank, "_shown": full}.items() if published else {"": blank}.items():
        for block in ("invariant", "spurious"):
            answers[block + name_of] = model.latent(cells, block=block, unknown={"spurious": "zero"})
    np.savez(out, **answers, seconds=time.perf_counter() - began, versions=f"trifold {tri.__version__}")


def loaded(folder: Path, name: str, method: str, seed: int) -> dict[str, Any]:
    """What a method's file holds; nothing if it has not run."""
    if not (path := folder / f"{name}_{method}_{seed}.npz").exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def latents(data: ad.AnnData, name: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Name -> latent of every method that has run, but those of the random label."""
    found = {}
    for method, prefix in (("invae", ""), ("published", "published ")):
        file = loaded(folder, name, method, seed)
        for block, short in (("invariant", "z_I"), ("spurious", "z_S")):
            for key, told in ((block, ""), (f"{block}_shown", " shown")):
                if key in file:
                    found[f"{prefix}{short}{told}"] = file[key]
    for method in PEERS:
        if file := loaded(folder, name, method, seed):
            found[method] = file["latent"]
    return found | {"pca": pca(data, seed), "harmony": harmony(data, seed)}


def read(found: dict[str, np.ndarray], data: ad.AnnData, columns: list[str], within: str) -> pd.DataFrame:
    """Strongest probe of each latent and column on the test cells: accuracies, chances, and what is above them.

    The authors' inVAE is told the labels of the training cells when it encodes them: its probes are cross-validated within the test cells.
    """
    test = (data.obs["part"] == "test").to_numpy()
    parts = []
    if others := {k: z for k, z in found.items() if k != "finvae"}:
        parts.append(probes(others, data.obs, columns, within=within, test=test))
    if "finvae" in found:
        parts.append(probes({"finvae": found["finvae"][test]}, data.obs[test], columns, within=within))
    table = pd.concat(parts)
    best = table.groupby(["latent", "column"], sort=False)[["accuracy", "balanced_accuracy", "chance", "chance_within", "cells"]].max()
    return best.join(leakage(table)).reset_index()


def factors(found: dict[str, np.ndarray], data: ad.AnnData) -> pd.DataFrame:
    """How much of the true factors is in each latent, on the test cells.

    `mcc` is the mean correlation coefficient: latent dimensions and factors are matched one to one by absolute Pearson correlation in the
    training cells. `canonical`: mean canonical correlation, of axes found in the training cells. `r2`: of the stronger probe, mean over
    the factors; `r2 within`: of what is left of the factors when the mean of their class (batch, if spurious) is taken away.
    """
    test = (data.obs["part"] == "test").to_numpy()
    obs, groups = data.obs[["batch", "label"]].copy(), {"invariant": "label", "spurious": "batch"}
    columns: dict[tuple[str, str], list[str]] = {}
    for kind, group in groups.items():
        true = pd.DataFrame(data.obsm[kind], index=obs.index).add_prefix(f"{kind}_")
        left = (true - true.groupby(obs[group], observed=True).transform("mean")).add_prefix("within_")
        obs = obs.join([true, left])
        columns |= {(kind, "r2"): list(true), (kind, "r2 within"): list(left)}
    table = probes(found, obs, [c for names in columns.values() for c in names], test=test)
    best = table.groupby(["latent", "column"])["accuracy"].max()
    rows = []
    for latent, z in found.items():
        for kind in groups:
            row: dict[str, Any] = {"latent": latent, "factors": kind}
            row |= {"mcc": matched(z, data.obsm[kind], test), "canonical": canonical(z, data.obsm[kind], test)}
            row |= {m: float(np.mean([best[latent, c] for c in columns[kind, m]])) for m in ("r2", "r2 within")}
            rows.append(row)
    return pd.DataFrame(rows)


def matched(z: np.ndarray, truth: np.ndarray, test: np.ndarray) -> float:
    """Mean correlation coefficient of factors with the latent dimensions that are matched to them. In [0, 1]."""
    k, alive = truth.shape[1], z.std(0) > 0

    def correlation(rows: np.ndarray) -> np.ndarray:
        return np.abs(np.corrcoef(truth[rows], z[rows][:, alive], rowvar=False)[:k, k:])

    return float(correlation(test)[linear_sum_assignment(-correlation(~test))].mean())


def canonical(z: np.ndarray, truth: np.ndarray, test: np.ndarray) -> float:
    """Mean canonical correlation, as many as there are factors or, if fewer, latent dimensions. At most 1; about 0 if unrelated."""
    sides = []
    for side in (np.asarray(z, dtype=np.float64), truth):
        centred = side - side[~test].mean(0)
        u, s, v = np.linalg.svd(centred[~test], full_matrices=False)
        keep = s > 1e-6 * s[0]
        sides.append((u[:, keep], centred[test] @ (v[keep].T / s[keep])))
    (fit_z, new_z), (fit_t, new_t) = sides
    left, _, right = np.linalg.svd(fit_z.T @ fit_t, full_matrices=False)
    a, b = new_z @ left, new_t @ right.T
    return float(np.mean([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(left.shape[1])]))


def random_label(data: ad.AnnData, name: str, seed: int, folder: Path) -> pd.DataFrame:
    """A random label that was given for the training cells, read from latents of the test cells; beside PCA, to which it was not given.

    `leakage` is what is above the larger of the two chances, that of the largest category and that of the batches' compositions.
    """
    found = {}
    for method, key, named in (
        ("random", "invariant", "z_I"),
        ("random_published", "invariant", "published z_I"),
        ("random_published", "invariant_shown", "published z_I shown"),
    ):
        if file := loaded(folder, name, method, seed):
            found[named] = file[key]
    if not found:
        return pd.DataFrame()
    table = read(found | {"pca": pca(data, seed)}, data, ["random"], "batch")
    return table.assign(leakage=table["accuracy"] - table[["chance", "chance_within"]].max(axis=1))


def unseen(folder: Path, name: str, seed: int) -> pd.DataFrame:
    """Batch from the plain model's blocks on the cells that were watched and not trained on."""
    if not (file := loaded(folder, name, "invae", seed)):
        return pd.DataFrame()
    table = pd.read_json(io.StringIO(str(file["separation"])))
    table = table[table["column"] == "batch"]
    best = table.groupby(["latent", "column"])[["accuracy", "balanced_accuracy", "chance", "chance_within", "cells"]].max()
    return best.join(leakage(table)).reset_index().replace({"latent": {"invariant": "z_I", "spurious": "z_S"}})


def score(data: ad.AnnData, name: str, seed: int, folder: Path) -> pd.DataFrame:
    """All numbers of a set and seed: one row for each measure, latent and column."""
    found = latents(data, name, seed, folder)
    columns = list(dict.fromkeys(["batch", *BIOLOGY[name]]))
    genes = {"genes": logged(data).X.toarray()}
    parts = {
        "probe": pd.concat([read(found, data, columns, "label"), read(genes, data, ["batch"], "label")]),
        "random": random_label(data, name, seed, folder),
        "unseen": unseen(folder, name, seed),
    }
    if "invariant" in data.obsm:
        parts["factors"] = factors(found, data)
    return pd.concat([part.assign(measure=what, set=name, seed=seed) for what, part in parts.items()])


def spread(values: pd.Series, digits: int = 3) -> str:
    """Mean over seeds, and the range if there are several."""
    values = values.dropna()
    if not len(values):
        return ""
    told = f"{values.mean():.{digits}f}"
    return told if len(values) == 1 else f"{told} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def by_latent(table: pd.DataFrame, columns: dict[tuple[str, str], str]) -> str:
    """Markdown, a row for each latent in the order of NAMES. (column, measure) -> heading."""
    lines = ["| latent | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for latent, told in NAMES.items():
        part = table[table["latent"] == latent]
        if len(part):
            cells = " | ".join(spread(part.loc[part["column"] == c, m]) for c, m in columns)
            lines.append(f"| {told} | {cells} |")
    return "\n".join(lines)


def shown(table: pd.DataFrame, name: str) -> str:
    """The tables of one set."""
    part = table[table["set"] == name]
    probe = part[part["measure"] == "probe"]
    asked = {("batch", "accuracy"): "batch"} | {("batch", what): told for what, told in ABOVE.items()}
    for column in BIOLOGY[name]:
        word = column.replace("_", " ")
        asked |= {(column, "accuracy"): word, (column, "balanced_accuracy"): f"{word}, balanced"}
    seeds, cells = sorted(int(s) for s in part["seed"].unique()), int(probe["cells"].max())
    chance = probe[probe["column"] == "batch"][["chance", "chance_within"]].mean()
    told = f"seeds {', '.join(map(str, seeds))}; {cells} test cells; batch by chance {chance['chance']:.3f}, by composition "
    told += f"{chance['chance_within']:.3f}"
    lines = [f"### {name}\n\n{told}\n", by_latent(probe, asked)]
    if len(true := part[part["measure"] == "factors"]):
        measures = ("mcc", "canonical", "r2", "r2 within")
        true = true.assign(column=true["factors"])
        lines.append("\n" + by_latent(true, {(kind, m): f"{kind}: {m}" for kind in ("invariant", "spurious") for m in measures}))
    return "\n".join(lines)


def value(table: pd.DataFrame, measure: str, latent: str, column: str, what: str) -> pd.Series:
    """One number of one latent, by seed."""
    keep = (table["measure"] == measure) & (table["latent"] == latent) & (table["column"] == column)
    return table[keep].set_index("seed")[what]


def targets(table: pd.DataFrame) -> pd.DataFrame:
    """Each target on each set: what was reached, what was asked, and whether it is met. Means over seeds."""
    rows = []

    def add(what: str, reached: pd.Series, asked: str, *, met: bool) -> None:
        rows.append({"set": name, "target": what, "reached": spread(reached), "asked": asked, "met": "met" if met else "**not met**"})

    for name, of_set in table.groupby("set", sort=False):
        ceiling = spread(value(of_set, "probe", "genes", "batch", "accuracy"))
        for measure, where in (("probe", ""), ("unseen", ", unseen cells")):
            if value(of_set, measure, "z_I", "batch", "accuracy").empty:
                continue
            for what, told in ABOVE.items():
                leak, chance, within = (value(of_set, measure, "z_I", "batch", m) for m in (what, "chance", "chance_within"))
                asked = f"at most {LEAK:.2f}" + (f"; composition alone {spread(within - chance)}" if what == "leakage" else "")
                add(f"batch from z_I, {told}{where}", leak, asked, met=leak.mean() <= LEAK)
            right = value(of_set, measure, "z_S", "batch", "accuracy")
            add(f"batch from z_S{where}", right, f"above {TECHNIQUE:.2f}; all genes {ceiling}", met=right.mean() > TECHNIQUE)
        for column in BIOLOGY[str(name)]:
            for what, told in (("accuracy", ""), ("balanced_accuracy", ", balanced")):
                own, peer = (value(of_set, "probe", latent, column, what) for latent in ("z_I", "scvi"))
                both = own.index.intersection(peer.index)
                if len(both):
                    one = 1 / value(of_set, "probe", "z_I", column, "cells").min()  # a cell more or less is no difference
                    met = bool(own[both].mean() >= peer[both].mean() - one)
                    add(f"{column.replace('_', ' ')} from z_I{told}", own[both], f"scVI's {spread(peer[both])}, less a cell", met=met)
        for latent, told in (("z_I", ""), ("published z_I shown", ", published settings, shown (not a target)")):
            above, chance, cells = (value(of_set, "random", latent, "random", m) for m in ("leakage", "chance", "cells"))
            if len(above):
                most = STRONG * np.sqrt(chance.mean() * (1 - chance.mean()) / cells.sum())
                add(f"a random label from z_I{told}, above chance", above, f"at most {most:.3f}", met=above.mean() <= most)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False))])


def main() -> None:
    """Train, score, print."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("data", type=Path, help="folder of separation_data.py")
    ask.add_argument("latents", type=Path, help="folder of the methods' files")
    ask.add_argument("names", nargs="*", default=list(BIOLOGY))
    ask.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    ask.add_argument("--methods", nargs="*", choices=OWN, default=OWN, help="which of trifold's models to train if they are missing")
    ask.add_argument("--epochs", type=int, help="of trifold's models, to try the script")
    ask.add_argument("--only-train", action="store_true")
    ask.add_argument("--out", type=Path, default=HERE / "results")
    asked = ask.parse_args()
    warnings.simplefilter("ignore")
    scores = []
    for name in asked.names:
        for seed in asked.seeds:
            data = ad.read_h5ad(asked.data / f"{name}_{seed}.h5ad")
            for method in asked.methods:
                out = asked.latents / f"{name}_{method}_{seed}.npz"
                if not out.exists():
                    train(data, name, seed, method, out, asked.epochs)
                    print(f"{name} {method} {seed}: {np.load(out)['seconds']:.0f} s", flush=True)
            if not asked.only_train:
                scores.append(score(data, name, seed, asked.latents))
    if asked.only_train:
        return
    table = pd.concat(scores, ignore_index=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    first = ["set", "seed", "measure", "latent", "column", "factors"]
    table = table.reindex(columns=first + [c for c in table.columns if c not in first])
    table.to_csv(asked.out / "separation.csv", index=False, float_format="%.4f")
    for name in asked.names:
        print(f"\n{shown(table, name)}", flush=True)
    print("\n¹ probes cross-validated within the test cells; ² log1p of 10,000 per cell: what there is to be read\n")
    print(f"### Targets\n\n{markdown(targets(table))}\n")
    random = table[table["measure"] == "random"]
    if len(random):
        heads = {("random", "accuracy"): "accuracy", ("random", "chance_within"): "chance", ("random", "leakage"): "above chance"}
        for name in random["set"].unique():
            print(f"### {name}: a random label given for the training cells\n\n{by_latent(random[random['set'] == name], heads)}\n")
    parts = ", ".join(f"{p} {version(p)}" for p in ("torch", "scanpy", "harmonypy"))
    print(f"trifold {tri.__version__}, {parts}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
