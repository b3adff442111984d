"""Responses whose truth is known: simulated studies in which the effect depends smoothly on each cell's latent state.

    python benchmarks/simulated.py --seeds 3

Two studies per seed: the simulator's defaults (5 types, 6 latent dimensions: few types to learn the dependence from), and 10 types in 3
latent dimensions. Types are held out in turn under the drug. Beside the response scores: the error of the predicted change of each gene's
log mean against the true one, over the held type's control cells at their own library sizes, and the E-distance to true draws.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

import trifold as tri
from trifold.data import Study, simulate
from trifold.evaluate import averages, draws_error, leave_combinations_out, log_change, mean_error, summary

HERE = Path(__file__).parent
STUDIES: dict[str, dict[str, Any]] = {
    "5 types, 6 dimensions": {"cells": 2000, "genes": 500},
    "10 types, 3 dimensions": {"cells": 2400, "genes": 300, "types": 10, "latent": 3, "programmes": 2, "depth": 2.0},
}
SHOWN = ["pearson_delta", "pearson_delta_top100", "rmse_delta", "e_distance", "mmd2", "variance_concordance", "zero_concordance"]
NAMES = ("control", "drug")


def means(adata: ad.AnnData, keep: np.ndarray, library: float) -> np.ndarray:
    """[g] mean counts of some cells at one library size."""
    total = np.asarray(adata.X[keep].sum(0)).ravel()
    return total / total.sum() * library


def truth_rows(study: Study, held: str, controls: ad.AnnData, answer: ad.AnnData, model: tri.Model) -> dict[str, dict[str, float]]:
    """Errors against the truth of the model, of no change, of the mean change of the other types, and of the real held-out cells."""
    adata = study.adata
    cells = adata.obs_names.get_indexer(controls.obs_names)
    library = np.asarray(controls.X.sum(1)).ravel()
    scale = (library / study.truth.library[cells])[:, None]
    base, true = ((study.mean(cells, name) * scale).mean(0) for name in NAMES)
    types, conditions = adata.obs["cell_type"].to_numpy(), adata.obs["condition"].to_numpy()

    def change(group: str) -> np.ndarray:
        source, target = (means(adata, (types == group) & (conditions == name), library.mean()) for name in NAMES)
        return log_change(target, source)

    learned = np.asarray(model.predict(controls, {"condition": "drug"}).X, dtype=np.float64).mean(0)
    guesses = {
        "trifold": log_change(learned, model.expression(controls).astype(np.float64).mean(0)),
        "no change": np.zeros_like(base),
        "mean change of other types": np.mean([change(t) for t in np.unique(types) if t != held], axis=0),
        "real held-out cells": change(held),
    }
    rows = {}
    for name, guess in guesses.items():
        found = mean_error(np.maximum((base + 0.01) * np.exp(guess) - 0.01, 0), true, base)
        rows[name] = {"rmse of the true change, nats": found["rmse_change"], "pearson of the true change": found["pearson_change"]}
    draws = study.sample(cells, "drug", seed=1)
    rows["trifold"]["e_distance to true draws"] = draws_error(answer.X, draws)["e_distance"]
    rows["no change"]["e_distance to true draws"] = draws_error(controls.X, draws)["e_distance"]
    rows["real held-out cells"]["e_distance to true draws"] = draws_error(adata.X[(types == held) & (conditions == "drug")], draws)[
        "e_distance"
    ]
    return rows


def run(options: dict[str, Any], seed: int, types: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score table and truth table of one study."""
    study = simulate(conditions=NAMES, seed=seed, **options)
    truth: list[dict[str, Any]] = []

    def predict(train: ad.AnnData, controls: ad.AnnData, seed: int) -> ad.AnnData:
        held = str(controls.obs["cell_type"].iloc[0])
        model = tri.trvae(tri.Schema.of(train, condition="condition"), seed=seed).fit(train, seed=seed, progress=False)
        answer = model.predict(controls, {"condition": "drug"}, kind="residual", seed=seed)
        for name, row in truth_rows(study, held, controls, answer, model).items():
            truth.append({"group": held, "seed": seed, "prediction": name, **row})
        return answer

    table = leave_combinations_out(
        study.adata, {"trifold": predict}, condition="condition", group="cell_type", source="control", target="drug",
        groups=[f"type_{i}" for i in range(types)], seeds=[seed], n_top_genes=study.adata.n_vars, de=(),
    )  # fmt: skip
    return table, pd.DataFrame(truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--types", type=int, default=5, help="how many types are held out in turn")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    given.results.mkdir(exist_ok=True)
    warnings.simplefilter("ignore")
    for name, options in STUDIES.items():
        parts = [run(options, seed, given.types) for seed in range(given.seeds)]
        table, truth = (pd.concat(list(p), ignore_index=True) for p in zip(*parts, strict=True))
        short = name.replace(",", "").replace(" ", "_")
        table.to_csv(given.results / f"simulated_{short}.csv", index=False, float_format="%.6g")
        truth.to_csv(given.results / f"simulated_{short}_truth.csv", index=False, float_format="%.6g")
        with pd.option_context("display.width", 220, "display.max_columns", 30, "display.float_format", "{:.3f}".format):
            print(f"\n## {name}: mean over {given.types} held-out types and {given.seeds} seeds\n")
            print(averages(table)[SHOWN].to_string())
            print("\nShare of the distance between the best null and the ceiling that is closed\n")
            print(summary(table)["gap_closed"].unstack("method").loc[SHOWN].T.to_string())
            print("\nAgainst the truth\n")
            print(truth.groupby("prediction", sort=False).mean(numeric_only=True).drop(columns="seed").to_string())


if __name__ == "__main__":
    main()
