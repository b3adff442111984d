"""Response to a condition, each cell type held out in turn: trifold beside nulls, peers and a ceiling, on the same cells and genes.

    python benchmarks/response.py kang_scgen_valid kang_merged --seeds 3
    python benchmarks/response.py kang_scgen_valid --methods scgen --peer scgen=<python of an environment that has it>

Rows of methods that are not asked for are kept from earlier runs, so that peers can be run one by one; the tables are printed at the
end from everything that is there. Peers run in environments of their own: see benchmarks/peers/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

import trifold as tri
from trifold.evaluate import InScoreSpace, averages, leave_combinations_out, summary

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data"
SHOWN = ("pearson_delta", "pearson_delta_top100", "rmse_delta", "e_distance", "mmd2", "variance_concordance", "zero_concordance", "r2_mean")
SHOWN += ("r2_var", "de_overlap_100")


def plain(train: ad.AnnData, controls: ad.AnnData, seed: int) -> ad.AnnData:
    """The plain preset: cells predicted by residual decoding."""
    model = tri.trvae(tri.Schema.of(train, condition="condition"), seed=seed).fit(train, seed=seed, progress=False)
    return model.predict(controls, to={"condition": "stimulated"}, kind="residual", seed=seed)


def published(train: ad.AnnData, controls: ad.AnnData, seed: int) -> InScoreSpace:
    """The published preset, on log-normalised values, as the paper's."""
    logged = lognormal(train)
    model = tri.trvae(tri.Schema.of(logged, condition="condition"), published=True, seed=seed).fit(logged, seed=seed, progress=False)
    return InScoreSpace(model.predict(lognormal(controls), to={"condition": "stimulated"}, seed=seed))


def lognormal(adata: ad.AnnData) -> ad.AnnData:
    return ad.AnnData(tri.evaluate.lognorm(adata.X), obs=adata.obs, var=adata.var)


def peer(name: str, python: str, epochs: str | None = None) -> Any:
    """A peer's script in the peer's environment, on the same training cells and genes."""

    def predict(train: ad.AnnData, controls: ad.AnnData, seed: int) -> Any:
        held = str(controls.obs["cell_type"].iloc[0])
        with tempfile.TemporaryDirectory() as folder:
            given, answer = Path(folder) / "train.h5ad", Path(folder) / "out.npz"
            train.write_h5ad(given)
            command = [
                python,
                str(HERE / "peers" / f"{name}.py"),
                str(given),
                str(answer),
                "--condition",
                "condition",
                "--cell-type",
                "cell_type",
            ]
            command += ["--control", "control", "--target", "stimulated", "--held", held, "--seed", str(seed)]
            command += ["--epochs", epochs] if epochs else []
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{name} failed on {held}, seed {seed}: {done.stderr.strip().splitlines()[-1]}")
            found = np.load(answer)
            return InScoreSpace(found["predicted"]) if str(found["space"]) == "log1p_1e4" else found["predicted"]

    return predict


def run(adata: ad.AnnData, methods: dict[str, Any], *, seeds: int, nulls: bool) -> pd.DataFrame:
    """Tidy table of some methods; nulls and ceiling only where asked for."""
    mask = (adata.obs["label_source"] == "GEO").to_numpy() if "label_source" in adata.obs else None
    extra: dict[str, Any] = {} if nulls else {"nulls": {}, "splits": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return leave_combinations_out(
            adata, methods, condition="condition", group="cell_type", source="control", target="stimulated",
            seeds=range(seeds), score_mask=mask, **extra,
        )  # fmt: skip


def show(name: str, table: pd.DataFrame) -> None:
    """Print averages over cell types and seeds, the share of the gap that each model closes, and each type's change."""
    columns = [c for c in SHOWN if c in set(table["metric"])]
    with pd.option_context("display.width", 220, "display.max_columns", 30, "display.float_format", "{:.3f}".format):
        print(f"\n## {name}: mean over {table['group'].nunique()} cell types and {table['seed'].nunique()} seeds\n")
        print(averages(table)[columns].to_string())
        closed = summary(table)["gap_closed"].unstack("method").loc[columns]
        print("\nShare of the distance between the best null and the ceiling that is closed\n")
        print(closed.to_string())
        print("\nStandard deviation over seeds\n")
        print(summary(table)["sd"].unstack("method").loc[columns].to_string())
        for metric in ("pearson_delta", "e_distance"):
            wide = table[table["metric"] == metric].pivot_table(index="method", columns="group", values="value", sort=False)
            print(f"\n{metric} of each cell type\n")
            print(wide.to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=["kang_scgen_valid", "kang_merged"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default="nulls,trifold,trifold_published", help="comma separated; 'nulls' adds the ceiling")
    parser.add_argument("--peer", action="append", default=[], help="NAME=PYTHON of the peer's environment")
    parser.add_argument("--epochs", action="append", default=[], help="NAME=N: cut a peer's training; the authors' own length otherwise")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pythons, epochs = (dict(item.split("=", 1) for item in items) for items in (given.peer, given.epochs))
    ours = {"trifold": plain, "trifold_published": published}
    given.results.mkdir(exist_ok=True)
    for name in given.sets:
        adata = ad.read_h5ad(DATA / f"{name}.h5ad")
        path, log = given.results / f"response_{name}.csv", given.results / f"response_{name}.json"
        table = pd.read_csv(path) if path.exists() else None
        notes = json.loads(log.read_text()) if log.exists() else {}
        for method in [m for m in given.methods.split(",") if m]:
            began = time.perf_counter()
            chosen = {} if method == "nulls" else {method: ours.get(method) or peer(method, pythons[method], epochs.get(method))}
            fresh = run(adata, chosen, seeds=given.seeds, nulls=method == "nulls")
            if table is not None:
                gone = table["kind"] != "model" if method == "nulls" else table["method"] == method
                table = table[~gone]
            table = fresh if table is None else pd.concat([table, fresh], ignore_index=True)
            notes[method] = {"seconds": round(time.perf_counter() - began, 1), "threads": torch.get_num_threads(), "seeds": given.seeds}
            notes[method] |= {"epochs": int(epochs[method])} if method in epochs else {}
            notes["versions"] = {"python": platform.python_version(), "torch": torch.__version__, "trifold": tri.__version__}
            table.to_csv(path, index=False, float_format="%.6g")
            log.write_text(json.dumps(notes, indent=1) + "\n")
            print(f"{name}: {method} took {notes[method]['seconds']} s", file=sys.stderr, flush=True)
        if table is not None and (table["kind"] == "model").any():
            show(name, table)


if __name__ == "__main__":
    main()
