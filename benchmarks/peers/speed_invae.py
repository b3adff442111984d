# SPDX-License-Identifier: BSD-3-Clause
"""Peer of ../speed.py: FinVAE (Aliee et al. 2023) as its authors publish it, package inVAE, timed over its training.

Reads a folder with counts.npz (scipy CSR) and obs.csv (columns cell, batch, cell_type). Biology is the cell type, technique the batch; Adam
with lr 1e-3 and weight decay 1e-4 as on the package's page, the rest are its defaults. Its data must be dense: they are made so before the
clock starts. Prints one line of JSON.

    python speed_invae.py --data FOLDER --epochs 1 --batch 128 --hidden 128 --latent 9 1 --threads 1
"""

import os
import sys

if "--threads" in sys.argv:
    for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
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
    p.add_argument("--hidden", type=int, nargs="+", default=[128], help="equal widths")
    p.add_argument("--latent", type=int, nargs="+", default=[9, 1], help="of the invariant block, and of the spurious one (1)")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--biology", default="cell_type")
    p.add_argument("--technique", default="batch")
    p.add_argument("--cells", type=int, help="only so many, drawn at random")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    if len(set(a.hidden)) > 1:
        p.error(f"the package has layers of one width; found {a.hidden}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(a.threads)
    with contextlib.redirect_stdout(io.StringIO()):
        from inVAE import FinVAE

    data = read(Path(a.data), a.cells, a.seed, [a.biology, a.technique])
    torch.manual_seed(a.seed)
    np.random.seed(a.seed)
    with contextlib.redirect_stdout(io.StringIO()):
        model = FinVAE(
            data,
            inv_covar_keys={"cont": [], "cat": [a.biology]},
            spur_covar_keys={"cont": [], "cat": [a.technique]},
            latent_dim_inv=a.latent[0],
            latent_dim_spur=a.latent[1] if len(a.latent) > 1 else 1,
            n_layers=len(a.hidden) + 1,  # it counts the last layer too
            hidden_dim=a.hidden[0],
            batch_size=a.batch,
        )
        start = now()
        model.train(n_epochs=a.epochs, lr_train=0.001, weight_decay=0.0001, print_every_n_epochs=a.epochs)
        wall, cpu = (now() - start).tolist()
    names = ("inVAE", "torch", "anndata", "numpy", "pandas")
    answer = {
        "cells": a.epochs * data.n_obs,  # seen in the time, over all epochs
        "genes": data.n_vars,
        "batches": data.obs[a.technique].nunique(),
        "epochs": a.epochs,
        "wall": wall,
        "cpu": cpu,
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
    }
    print(json.dumps(answer))


def read(folder, cells, seed, columns):
    """Dense float32 counts of all cells, or of some, with the columns that are named."""
    counts = sp.load_npz(folder / "counts.npz").astype(np.float32)
    obs = pd.read_csv(folder / "obs.csv", index_col=0, dtype=str)
    if cells is not None and cells < len(obs):
        chosen = np.sort(np.random.default_rng(seed).choice(len(obs), cells, replace=False))
        counts, obs = counts[chosen], obs.iloc[chosen]
    return ad.AnnData(counts.toarray(), obs=obs[columns].astype(object))


def now():
    """Seconds by the wall, and CPU seconds of this process."""
    return np.array([time.perf_counter(), time.process_time()])


if __name__ == "__main__":
    main()
