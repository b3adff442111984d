# SPDX-License-Identifier: BSD-3-Clause
"""Peer of ../speed.py: trVAE (Lotfollahi et al. 2020) as scArches has it, timed over its training epochs.

Reads a folder with counts.npz (scipy CSR) and obs.csv (columns cell, condition). All cells are trained on, without validation or early
stopping; negative binomial on counts, MMD on the first decoder layer, as in the paper; the rest are the package's defaults. Its data must
be dense: they are made so before the clock starts. Prints one line of JSON.

    python speed_trvae_scarches.py --data FOLDER --epochs 1 --batch 128 --hidden 128 --latent 10 --threads 1
"""

import os
import sys

if "--threads" in sys.argv:
    for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(key, sys.argv[sys.argv.index("--threads") + 1])

import argparse
import contextlib
import io
import json
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch


def main():
    """Train for some epochs and print what they took."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", required=True, help="folder with counts.npz and obs.csv")
    p.add_argument("--epochs", type=int, default=1)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--hidden", type=int, nargs="+", default=[128])
    p.add_argument("--latent", type=int, default=10)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--column", default="condition")
    p.add_argument("--cells", type=int, help="only so many, drawn at random")
    p.add_argument("--loss", choices=("nb", "mse"), default="nb", help="mse: squared error of log-normalised values, as in the paper")
    p.add_argument("--no-mmd", action="store_true", help="what remains is the cost of all else")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(a.threads)
    with contextlib.redirect_stdout(io.StringIO()):
        from scarches.models import TRVAE
        from scarches.trainers.trvae.unsupervised import trVAETrainer

    data = read(Path(a.data), a.cells, a.seed)
    if a.loss == "mse":
        data.X = np.log1p(1e4 * data.X / data.X.sum(1, keepdims=True))
    clock = Clock(trVAETrainer)
    torch.manual_seed(a.seed)
    np.random.seed(a.seed)
    with contextlib.redirect_stdout(io.StringIO()):
        model = TRVAE(
            adata=data,
            condition_key=a.column,
            hidden_layer_sizes=list(a.hidden),
            latent_dim=a.latent,
            use_mmd=not a.no_mmd,
            mmd_on="y",
            recon_loss=a.loss,
        )
        model.train(
            n_epochs=a.epochs, batch_size=a.batch, train_frac=1, use_early_stopping=False, reload_best=False, seed=a.seed, monitor=False
        )
    wall, cpu = clock.seconds()
    names = ("scarches", "torch", "anndata", "numpy")
    answer = {
        "cells": a.epochs * data.n_obs,  # seen in the time, over all epochs
        "genes": data.n_vars,
        "conditions": data.obs[a.column].nunique(),
        "epochs": a.epochs,
        "wall": wall,
        "cpu": cpu,
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
    }
    print(json.dumps(answer))


def read(folder, cells, seed):
    """Dense float32 counts of all cells, or of some, with their columns."""
    counts = sp.load_npz(folder / "counts.npz").astype(np.float32)
    obs = pd.read_csv(folder / "obs.csv", index_col=0, dtype=str)
    if cells is not None and cells < len(obs):
        chosen = np.sort(np.random.default_rng(seed).choice(len(obs), cells, replace=False))
        counts, obs = counts[chosen], obs.iloc[chosen]
    return ad.AnnData(counts.toarray(), obs=obs)


class Clock:
    """Wall and CPU seconds between the beginning of the first epoch and the end of the last."""

    def __init__(self, trainer):
        self.began = self.ended = None
        begin, end = trainer.on_epoch_begin, trainer.on_epoch_end

        def on_epoch_begin(this, *args):
            if self.began is None:
                self.began = now()
            return begin(this, *args)

        def on_epoch_end(this, *args):
            out = end(this, *args)
            self.ended = now()
            return out

        trainer.on_epoch_begin, trainer.on_epoch_end = on_epoch_begin, on_epoch_end

    def seconds(self):
        """Two floats."""
        return tuple((self.ended - self.began).tolist())


def now():
    """Seconds by the wall, and CPU seconds of this process."""
    return np.array([time.perf_counter(), time.process_time()])


if __name__ == "__main__":
    main()
