"""Geometry and classes never seen: Γ-VAE beside a plain VAE, an isometry-regularised one, PCA and UMAP, on real data.

    python benchmarks/geometry.py gtex_26tissues tcga_rnaseq_5types larry_subset --seeds 1 2 3
    python benchmarks/geometry.py gtex_26tissues --sweep
    python benchmarks/geometry.py --counts

For each data set and seed a tenth of the cells is kept out of every fit; their squared error, over that of the mean, is the held-out
reconstruction. Then each class is left out in turn, embedded by the model that never saw it, and compared with the model that saw it.
"rectified" rows measure the same fits in rectified coordinates. All methods see the same cells and genes. Choices in the preset were made
by looking at such scores with seed 0: of other tissues of GTEx, of the same classes of TCGA and LARRY, and never of the breast cancers.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

import trifold as tri
from trifold.core import VAE, Decoder, Gaussian, Posterior, StandardNormal
from trifold.evaluate import fate, geometry, unseen
from trifold.nets import MLP
from trifold.schedule import Ramp
from trifold.terms import KL, NLL, Isometry, Objective
from trifold.train import Plan

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data"
LATENT = 10
GENES = 2_000
COLUMNS = {"gtex_26tissues": "tissue", "tcga_rnaseq_5types": "tumor_type", "larry_subset": "cell_type", "tcga_brca_subtypes": "subtype"}
LEFT = {
    "gtex_26tissues": [  # those whose scores were never looked at while choices were made
        *("Adrenal Gland", "Breast", "Esophagus", "Ovary", "Pituitary", "Prostate", "Salivary Gland", "Spleen", "Stomach", "Thyroid"),
    ],
    "tcga_rnaseq_5types": ["ACC", "CHOL", "DLBC", "UCS", "UVM"],
    "tcga_brca_subtypes": ["LumA", "Basal", "Her2"],
    "larry_subset": ["Baso", "Mast", "Meg", "Monocyte", "Neutrophil"],  # mature types of more than ten cells
}
BETTER = {  # measure -> whether more is better
    "held_out_error": False,
    "error_left": False,
    "error_ratio": False,
    "displacement": False,
    "displacement_spread": False,
    "neighbours": True,
    "neighbours_data": True,
    "centroid_rank": True,
    "centroid_rank_data": True,
    "spearman": True,
    "trustworthiness": True,
    "continuity": True,
    "centroids": True,
    "fate_auroc": True,
    "fate_spearman": True,
}


def load(name: str) -> ad.AnnData:
    """Log values of the most variable genes, and the classes in obs["class"]."""
    data = ad.read_h5ad(DATA / f"{name}.h5ad")
    x = np.asarray(data.X.todense() if hasattr(data.X, "todense") else data.X, dtype=np.float32)
    x = np.log2(x + 1) if name == "tcga_rnaseq_5types" else np.log1p(x) if name.startswith("larry") else x
    chosen = np.sort(np.argsort(-x.var(0), kind="stable")[:GENES])
    obs = data.obs.assign(**{"class": data.obs[COLUMNS[name]].astype(str)})
    return ad.AnnData(x[:, chosen], obs=obs, var=data.var.iloc[chosen])


class Fitted:
    """A trained model of trifold."""

    def __init__(self, model: tri.Model):
        self.model = model

    def latent(self, adata: ad.AnnData) -> np.ndarray:
        return self.model.latent(adata)

    def rectified(self, adata: ad.AnnData) -> np.ndarray:
        return self.model.latent(adata, rectified=True)

    def reconstruct(self, adata: ad.AnnData) -> np.ndarray:
        return self.model.expression(adata)

    def decode(self, z: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.model.surface()(torch.as_tensor(z, dtype=torch.float32)).numpy()


class Linear:
    """PCA."""

    rectified = None

    def __init__(self, train: ad.AnnData):
        from sklearn.decomposition import PCA

        self.pca = PCA(LATENT, random_state=0).fit(train.X)

    def latent(self, adata: ad.AnnData) -> np.ndarray:
        return self.pca.transform(adata.X)

    def reconstruct(self, adata: ad.AnnData) -> np.ndarray:
        return self.pca.inverse_transform(self.latent(adata))

    def decode(self, z: np.ndarray) -> np.ndarray:
        return self.pca.inverse_transform(z)


class Neighbours:
    """UMAP, with its own transform of new cells; it has no decoder that is meant for this."""

    rectified = None
    reconstruct = None
    decode = None

    def __init__(self, train: ad.AnnData, seed: int):
        from umap import UMAP

        self.umap = UMAP(n_components=LATENT, random_state=seed, n_jobs=1).fit(train.X)

    def latent(self, adata: ad.AnnData) -> np.ndarray:
        return np.asarray(self.umap.transform(adata.X))


def gamma(train: ad.AnnData, seed: int, **given: Any) -> Fitted:
    model = tri.gamma_vae(tri.Schema.of(train), latent=LATENT, seed=seed, **given)
    return Fitted(model.fit(train, seed=seed, progress=False))


def plain(train: ad.AnnData, seed: int, isometry: float = 0.0) -> Fitted:
    """A VAE as one would write it: the same widths, noise model and training, no linear paths, no start, no refinement, no curvature."""
    schema = tri.Schema.of(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        genes = len(schema.genes)
        decoder = Decoder(MLP(LATENT, (128, 128), norm="none", activation="softplus"))
        posterior = Posterior(MLP(genes, (128, 128), norm="layer", activation="gelu", dropout=0.1), LATENT)
        vae = VAE(posterior, StandardNormal(LATENT), decoder, Gaussian(decoder.width, genes, variance="shared"))
    terms: dict[str, Any] = {"nll": NLL(), "kl": KL()}
    weights: dict[str, Any] = {"kl": Ramp(1.0, end=0.3)}
    if isometry:
        terms["isometry"], weights["isometry"] = Isometry(), Ramp(isometry, begin=0.1, end=0.4)
    plan = Plan(batch=128, lr=2e-3, decay="cosine", plateau=None, patience=None, validation=0.0, steps=1_500)
    return Fitted(tri.Model(schema, vae, Objective(terms, weights), plan=plan).fit(train, seed=seed, progress=False))


METHODS: dict[str, Callable[[ad.AnnData, int], Any]] = {
    "PCA": lambda train, seed: Linear(train),
    "UMAP": Neighbours,
    "trifold": gamma,
    "trifold, weights 0": lambda train, seed: gamma(train, seed, extrinsic=0.0, parameter=0.0),
    "plain VAE": plain,
    "IRVAE": lambda train, seed: plain(train, seed, isometry=10.0),
}


def measure(name: str, data: ad.AnnData, left: list[str], fit: Callable[[ad.AnnData, int], Any], seed: int) -> list[dict[str, Any]]:
    """Rows of one method and seed: one per coordinates (raw, rectified) and class left out, and one each for the whole."""
    label = data.obs["class"].to_numpy()
    rng = np.random.default_rng([seed, 7])
    kept_out = rng.permutation(data.n_obs) < data.n_obs // 10
    began = time.process_time()
    full = fit(data[~kept_out].copy(), seed)
    lefts = {c: fit(data[~kept_out & (label != c)].copy(), seed) for c in left}
    seconds = (time.process_time() - began) / (1 + len(left))
    x, centre = data.X, data.X[~kept_out].mean(0)
    rebuilt = None if full.reconstruct is None else full.reconstruct(data)
    rows = []
    for kind in ("raw",) if full.rectified is None else ("raw", "rectified"):
        see = [one.latent if kind == "raw" else one.rectified for one in (full, *lefts.values())]
        z = see[0](data)
        whole = geometry(z, x, labels=label, decode=full.decode if kind == "raw" else None, seed=seed) | {"seconds": seconds}
        if rebuilt is not None:
            whole["held_out_error"] = float(((x - rebuilt)[kept_out] ** 2).sum() / ((x - centre)[kept_out] ** 2).sum())
        whole |= fates(z, data, seed) if name.startswith("larry") else {}
        rows.append({"coordinates": kind, "class": "", **whole})
        for c, embed in zip(left, see[1:], strict=True):
            at = label == c
            error = None
            if rebuilt is not None:
                errors = [float(((x - r)[at] ** 2).mean()) for r in (lefts[c].reconstruct(data), rebuilt)]
                error = (errors[0], errors[1])
            scores = unseen(z, embed(data), label, c, data=x, error=error)
            if error:
                scores["error_left"] = error[0] / float(((x - centre)[at] ** 2).mean())
            rows.append({"coordinates": kind, "class": c, **scores})
    return rows


def fates(z: np.ndarray, data: ad.AnnData, seed: int) -> dict[str, float]:
    """Fate of early cells by their neighbours in other clones, over ten deals of the clones."""
    obs = data.obs
    early = obs["day"].astype(float).to_numpy() < 6
    two = obs["clone_fate_d6"].astype(object).where(obs["clone_fate_d6"].isin(["Neutrophil", "Monocyte"]))
    both = [
        (
            fate(z, two, obs["clone"], query=early & two.notna().to_numpy(), seed=10 * seed + i)["auroc"],
            fate(
                z,
                obs["neu_vs_mono_fate_d6"].astype(float),
                obs["clone"],
                query=early & obs["neu_vs_mono_fate_d6"].notna().to_numpy(),
                seed=10 * seed + i,
            )["spearman"],
        )
        for i in range(10)
    ]
    auroc, spearman = np.mean(both, 0)
    return {"fate_auroc": float(auroc), "fate_spearman": float(spearman)}


def run(name: str, method: str, seed: int, fit: Callable[[ad.AnnData, int], Any], left: list[str] | None = None) -> pd.DataFrame:
    """All rows of one method and seed."""
    began = time.time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of UMAP, of its own defaults
        rows = measure(name, load(name), LEFT[name] if left is None else left, fit, seed)
    print(f"{name}: {method}, seed {seed}: {time.time() - began:.0f} s", flush=True)
    return pd.DataFrame(rows).assign(data=name, method=method, seed=seed)


def kept(path: Path, new: pd.DataFrame) -> pd.DataFrame:
    """Rows of earlier runs and the new ones, which replace their own."""
    key = ["data", "method", "seed"]
    if path.exists():
        old = pd.read_csv(path, keep_default_na=False, na_values=[""]).fillna({"class": ""})
        same = old.set_index(key).index.isin(new.set_index(key).index)
        new = pd.concat([old[~same], new])
    path.parent.mkdir(exist_ok=True)
    new.round(5).to_csv(path, index=False)
    return new


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each measure (over classes first), with the standard deviation over seeds of the first ones."""
    shown = [m for m in BETTER if m in rows and rows[m].notna().any()]
    seeds = rows.groupby(["method", "coordinates", "seed"], sort=False)[shown].mean()
    return seeds.groupby(["method", "coordinates"], sort=False).mean()


def verdict(means: pd.DataFrame, ours: tuple[str, str], other: str) -> str:
    """On how many measures ours is better than, or equal to within half a percent of, the better of another method's coordinates."""
    better, equal, worse = [], [], []
    for measure_, more in BETTER.items():
        if measure_ not in means or pd.isna(means.loc[ours, measure_]):
            continue
        theirs = means.loc[other][measure_].dropna()
        if theirs.empty:
            continue
        a, b = means.loc[ours, measure_], theirs.max() if more else theirs.min()
        gain = (a - b if more else b - a) / max(abs(b), 1e-9)
        (better if gain > 0.005 else equal if gain > -0.005 else worse).append(measure_)
    named = [f"{what} on {len(which)} ({', '.join(which) or '-'})" for what, which in (("equal", equal), ("worse", worse))]
    return f"against {other}: better on {len(better)}, {', '.join(named)}"


def sweep(name: str, seeds: list[int]) -> None:
    """What the two weights cost and bring."""
    left, path = LEFT[name][::3], HERE / "results" / f"geometry_sweep_{name}.csv"
    for extrinsic, parameter in [(0, 0), (0.1, 0.3), (1, 0), (0, 3), (1, 3), (10, 0), (0, 30), (10, 30), (100, 300)]:
        fit = partial(gamma, extrinsic=extrinsic, parameter=parameter)
        for seed in seeds:
            rows = kept(path, run(name, f"extrinsic {extrinsic}, parameter {parameter}", seed, fit, left))
    print(table(rows).round(3).to_string())


def counts(seeds: list[int]) -> None:
    """What the default weights do to counts: held-out log-likelihood, and curvature times R²."""
    rows = []
    for name in ("kang_control_donors", "mixology_5batch"):
        data = ad.read_h5ad(DATA / f"{name}.h5ad")
        data = data[:, tri.evaluate.variable_genes(data.X, GENES, kind="counts")].copy()
        for seed in seeds:
            order = np.random.default_rng([seed, 7]).permutation(data.n_obs)[:5_000]
            test, train = data[order[: len(order) // 10]].copy(), data[order[len(order) // 10 :]].copy()
            for weights, given in {"weights 0": {"extrinsic": 0, "parameter": 0}, "default": {}}.items():
                model = tri.gamma_vae(tri.Schema.of(train), seed=seed, **given).fit(train, seed=seed, progress=False)
                bend = model.curvature(test).median() * tri.report.squared_radius(model, model.latent(test))
                score = model.score(test)
                found = {"nll": -score["reconstruction"].mean(), "R²E": bend["extrinsic"], "R²P": bend["parameter"]}
                rows.append({"data": name, "weights": weights, "seed": seed, **found})
                print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    frame.round(4).to_csv(HERE / "results" / "geometry_counts.csv", index=False)
    print(frame.groupby(["data", "weights"], sort=False)[["nll", "R²E", "R²P"]].mean().round(3).to_string())


def main() -> None:
    """The tables."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("names", nargs="*", default=list(COLUMNS))
    ask.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    ask.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="0 is the seed with which choices were made")
    ask.add_argument("--sweep", action="store_true")
    ask.add_argument("--counts", action="store_true", help="only what the default weights do to counts")
    given = ask.parse_args()
    torch.set_num_threads(1)
    if given.counts:
        counts(given.seeds)
        return
    for name in given.names:
        if given.sweep:
            sweep(name, given.seeds)
            continue
        for method in given.methods:
            for seed in given.seeds:
                kept(HERE / "results" / f"geometry_{name}.csv", run(name, method, seed, METHODS[method]))
    if given.sweep:
        return
    print(f"torch {torch.__version__}, Python {platform.python_version()}, one thread, {LATENT} latent dimensions, {GENES} genes at most")
    for name in given.names:
        rows = pd.read_csv(HERE / "results" / f"geometry_{name}.csv", keep_default_na=False, na_values=[""])
        means = table(rows)
        print(f"\n{name}: {rows['seed'].nunique()} seeds, {len(LEFT[name])} classes left out in turn")
        print(means.round(3).T.to_string())
        for other in ("trifold, weights 0", "plain VAE", "IRVAE", "PCA", "UMAP"):
            if other in means.index and "trifold" in means.index:
                print(verdict(means, ("trifold", "rectified"), other))


if __name__ == "__main__":
    main()
