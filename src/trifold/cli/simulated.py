"""The demo's first study: simulated counts, one type never seen under the drug, and the truth to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trifold import evaluate
from trifold.cli import show
from trifold.cli.files import write
from trifold.cli.scoring import held_combinations, page, score
from trifold.data import Schema, Study, simulate
from trifold.data import open as open_data
from trifold.model import Model
from trifold.outputs import write_h5ad
from trifold.presets import trvae

_TYPE, _FROM, _TO = "type_3", "control", "drug"
_PSEUDOCOUNT = 0.01  # counts, in the change of the log mean


def simulated(folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
    """Simulate, train without one combination, predict it, score it, and write it all.

    Args:
        folder: Where everything goes.
        quick: Smaller data and fewer steps.
        seed: Of data and training.

    Returns:
        Facts for the demo's card.
    """
    size = (800, 120) if quick else (2400, 300)
    study = simulate(*size, types=10, conditions=(_FROM, _TO), latent=3, programmes=2, depth=2.0, seed=seed)
    adata = study.adata
    show.say(f"1  A simulated study: {adata.n_obs:,} cells × {adata.n_vars} genes, 10 types, control and drug", style="bold")
    show.say(f"   {_TYPE} under the drug is never seen: it is predicted from its control cells.")
    hold_out = {"condition": _TO, "cell_type": _TYPE}
    model = trvae(Schema.of(adata, condition="condition", label="cell_type"), seed=seed)
    model.fit(adata, hold_out=hold_out, seed=seed, out=folder / "run", epochs=15 if quick else ...)
    write(folder / "data.h5ad", lambda p: write_h5ad(adata, p))
    predicted = model.predict(adata, {"condition": _TO}, where={"condition": _FROM, "cell_type": _TYPE}, kind="residual", seed=seed)
    write(folder / "predicted.h5ad", lambda p: write_h5ad(predicted, p))
    source = open_data(adata)
    held = held_combinations(model, source)[0]
    table = score(model, source, held, seed=seed)
    write(folder / "scores.csv", lambda p: table.to_csv(p, index=False))
    show.scores(evaluate.averages(table), title=f"{_TYPE} under the drug, predicted from its control cells")
    truth = against_truth(study, model)
    write(folder / "truth.csv", lambda p: truth.to_csv(p))
    heads = ["RMSE, nats ↓", "Pearson ↑"]
    rows = [(name, f"{row.rmse:.3f}", f"{row.pearson:.3f}") for name, row in truth.iterrows()]
    show.table("Against the true change of the log mean of each gene, which only a simulation knows", ["", *heads], rows, numbers=heads)
    figure = page(model, source, held, table, seed=seed)
    write(folder / "response.png", lambda p: figure.savefig(p, dpi=130))
    return {"hold_out": hold_out, "cells": int(adata.n_obs), "genes": int(adata.n_vars), "truth": truth.round(6).to_dict("index")}


def against_truth(study: Study, model: Model) -> pd.DataFrame:
    """Error of the change of each gene's log mean, in nats, over the held type's control cells at their own library sizes.

    Returns:
        One row per prediction with ``rmse`` and ``pearson``: the model, no change, the mean change of the other types, and the real
        held-out cells themselves (what an experiment of that size would have measured).
    """
    obs, x = study.adata.obs, study.adata.X
    of_type, of_condition = obs["cell_type"].to_numpy(), obs["condition"].to_numpy()
    cells = np.flatnonzero((of_type == _TYPE) & (of_condition == _FROM))
    library = np.asarray(x.sum(1)).ravel()
    scale = (library[cells] / study.truth.library[cells])[:, None]  # the truth at the library sizes that were measured
    base, true = ((study.mean(cells, c) * scale).mean(0) for c in (_FROM, _TO))
    answer = np.asarray(model.predict(study.adata[cells], {"condition": _TO}, kind="mean").X, dtype=np.float64).mean(0)
    learned = evaluate.log_change(answer, model.expression(study.adata[cells]).astype(np.float64).mean(0), pseudocount=_PSEUDOCOUNT)

    def mean_of(group: str, condition: str) -> Any:
        rows = np.flatnonzero((of_type == group) & (of_condition == condition))
        return np.asarray(x[rows].sum(0)).ravel() / library[rows].sum() * library[cells].mean()

    def change(group: str) -> Any:
        return evaluate.log_change(mean_of(group, _TO), mean_of(group, _FROM), pseudocount=_PSEUDOCOUNT)

    others = np.mean([change(str(g)) for g in np.unique(of_type) if g != _TYPE], axis=0)
    rivals = {
        model.preset or "model": learned,
        "no change": np.zeros_like(base),
        "mean change of other types": others,
        "real cells under the drug": change(_TYPE),
    }
    rows = {}
    for name, guess in rivals.items():
        mean = np.maximum((base + _PSEUDOCOUNT) * np.exp(guess) - _PSEUDOCOUNT, 0)
        found = evaluate.mean_error(mean, true, base, pseudocount=_PSEUDOCOUNT)
        rows[name] = {"rmse": found["rmse_change"], "pearson": found["pearson_change"]}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("prediction")
