"""How far shifts of other types can go: the best non-negative combination of them, fitted to the held-out cells themselves.

    python benchmarks/span.py kang_scgen_valid

An oracle, not a method: it sees the answer. What it leaves cannot be had from any weighting of the other types' shifts.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.optimize import nnls

from trifold.evaluate import make_fold, score

DATA = Path(__file__).parents[2] / "shared" / "data"
SHOWN = ["pearson_delta", "pearson_delta_top100", "rmse_delta", "e_distance", "mmd2"]


def main() -> None:
    warnings.simplefilter("ignore")
    for name in sys.argv[1:] or ["kang_scgen_valid"]:
        adata = ad.read_h5ad(DATA / f"{name}.h5ad")
        mask = (adata.obs["label_source"] == "GEO").to_numpy() if "label_source" in adata.obs else None
        rows = {}
        for held in adata.obs["cell_type"].cat.categories:
            try:
                fold = make_fold(
                    adata, condition="condition", group="cell_type", source="control", target="stimulated", held=held, score_mask=mask
                )
            except ValueError as error:
                print(f"{held} is left out: {error}")
                continue
            x = fold.x.toarray() if hasattr(fold.x, "toarray") else np.asarray(fold.x)
            shifts = []
            for other in sorted(set(fold.groups) - {held}):
                means = [x[(fold.groups == other) & (fold.conditions == c)] for c in ("stimulated", "control")]
                if min(len(m) for m in means) >= 5:
                    shifts.append(means[0].mean(0) - means[1].mean(0))
            weights, _ = nnls(np.array(shifts).T, fold.real.mean(0) - fold.control.mean(0))
            rows[held] = score(fold.control + weights @ np.array(shifts), fold.real, fold.control, top=fold.top, pca=fold.pca, de=())
        table = pd.DataFrame(rows)[list(rows)].loc[SHOWN]
        table["mean"] = table.mean(axis=1)
        print(f"\n## {name}: best non-negative combination of the other types' shifts, fitted to the answer\n")
        print(table.round(3).to_string())


if __name__ == "__main__":
    main()
