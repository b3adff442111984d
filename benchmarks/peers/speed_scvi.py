# SPDX-License-Identifier: BSD-3-Clause
"""Peer of ../speed.py: SCVI of scvi-tools (Lopez et al. 2018), as a worker that trains, encodes and scores when asked.

Reads a folder with counts.npz (scipy CSR) and obs.csv (columns cell, batch). Defaults of the package: one hidden layer, ReLU, BatchNorm,
dropout 0.1, log1p of the counts, dispersion by gene, the batch told to the decoder, Adam with lr 1e-3. Each line of stdin is a JSON object
that names a command (`do`) and its arguments; each answer is a line of JSON on stdout. See README.md.

    python speed_scvi.py --threads 1
"""

import os
import sys

if "--threads" in sys.argv:
    for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(key, sys.argv[sys.argv.index("--threads") + 1])

import argparse
import json
import logging
import time
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from lightning.pytorch.callbacks import Callback

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "logger": False}


class Watch(Callback):
    """Notes when each epoch begins and ends, and keeps the weights after those asked for."""

    def __init__(self, keep=()):
        self.began, self.ended, self.keep, self.kept, self.away = [], [], keep, {}, np.zeros(2)

    def on_train_epoch_start(self, trainer, module):
        self.began.append(now() - self.away)

    def on_train_epoch_end(self, trainer, module):
        start = now()
        self.ended.append(start - self.away)
        if len(self.ended) in self.keep:
            self.kept[len(self.ended)] = {k: v.detach().clone() for k, v in module.module.state_dict().items()}
            self.away += now() - start


class Side:
    """The model that is being asked, and its data."""

    def __init__(self):
        self.folder, self.data = "", None

    def setup(self, folder, likelihood, batch, hidden, latent, warm=False, seed=0):
        """An untrained SCVI on all cells; ``warm``: the divergence's weight rises over the first half of training."""
        if folder != self.folder:
            counts = sp.load_npz(Path(folder) / "counts.npz").astype(np.float32)
            obs = pd.read_csv(Path(folder) / "obs.csv", index_col="cell", dtype=str)
            self.data, self.folder = ad.AnnData(counts, obs=obs), folder
        self.given = {"n_hidden": hidden, "n_latent": latent, "n_layers": 1, "gene_likelihood": likelihood, "dispersion": "gene"}
        self.batch, self.warm, self.seed = batch, warm, seed
        self.model = self.made(self.data)
        names = ("scvi-tools", "torch", "lightning")
        return {"cells": self.data.n_obs, "genes": self.data.n_vars} | {n: version(n) for n in names}

    def made(self, data):
        from scvi.model import SCVI

        torch.manual_seed(self.seed)
        SCVI.setup_anndata(data, batch_key="batch")
        return SCVI(data, **self.given)

    def epochs(self, n):
        """Wall and CPU seconds of n epochs, after one that is not timed."""
        watch = Watch()
        self.train(self.model, n + 1, watch)
        wall, cpu = watch.ended[n] - watch.began[1]
        return {"wall": wall, "cpu": cpu, "epochs": n}

    def train(self, model, epochs, watch):
        # by default the weight rises over 400 epochs: after 20 it would be 0.05
        steps = epochs * -(-model.adata.n_obs // self.batch)
        plan = {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": steps // 2 if self.warm else None}
        model.train(max_epochs=epochs, batch_size=self.batch, train_size=1.0, plan_kwargs=plan, callbacks=[watch], **QUIET)

    def curve(self, epochs, share, draws, at):
        """Held-out evidence lower bound after some epochs of one training, and the seconds until then."""
        order = np.random.default_rng([0, 37]).permutation(self.data.n_obs)
        held = round(share * self.data.n_obs)
        train, out = self.data[np.sort(order[held:])].copy(), self.data[np.sort(order[:held])].copy()
        model, watch = self.made(train), Watch(at)
        start = now()
        self.train(model, epochs, watch)
        whole = (now() - start)[0]
        points = []
        for epoch in at:
            model.module.load_state_dict(watch.kept[epoch])
            wall = float((watch.ended[epoch - 1] - watch.began[0])[0])
            points.append({"epoch": epoch, "wall": wall, **self.score(model, out, draws)})
        self.model = model
        return {"points": points, "whole": whole, "held_out": held}

    @torch.no_grad()
    def score(self, model, data, draws, keep=None):
        """Nats per cell: the bound, log p(x | z) with its constants, and the divergence; mean over cells and draws of z."""
        adata = model._validate_anndata(data)
        model.module.eval()
        torch.manual_seed(0)
        fits, kls = [], []
        for _ in range(draws):
            for tensors in model._make_data_loader(adata=adata, batch_size=1024):
                seen, made = model.module(tensors, compute_loss=False)
                fit = made["px"].log_prob(tensors["X"]).sum(-1)
                kl = torch.distributions.kl_divergence(seen["qz"], made["pz"]).sum(-1)
                if keep is not None and not keep:
                    px = made["px"]
                    keep |= {"x": tensors["X"], "rate": px.mu, "theta": px.theta, "log_prob": fit, "kl": kl}
                    keep |= {"mean": seen["qz"].loc, "scale": seen["qz"].scale}
                    keep |= {"logits": px.zi_logits} if self.given["gene_likelihood"] == "zinb" else {}
                fits.append(fit.double())
                kls.append(kl.double())
        fit, kl = float(torch.cat(fits).mean()), float(torch.cat(kls).mean())
        return {"elbo": fit - kl, "reconstruction": fit, "kl": kl}

    def reference(self, path, cells=256):
        """The decoder's outputs and the bound's parts of some cells, for another implementation to check."""
        keep = {}
        self.score(self.model, self.model.adata[:cells].copy(), 1, keep)
        np.savez(path, **{k: v.numpy() for k, v in keep.items()})
        return {"cells": cells}

    def latent(self):
        """Seconds of get_latent_representation on all cells."""
        start = now()
        z = self.model.get_latent_representation(self.data)
        wall, cpu = now() - start
        return {"wall": wall, "cpu": cpu, "cells": len(z)}


def now():
    """Seconds by the wall, and CPU seconds of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    """Answer until stdin ends."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(p.parse_args().threads)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print goes elsewhere
    warnings.simplefilter("ignore")
    import scvi as package

    package.settings.verbosity = logging.ERROR
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    side = Side()
    commands = {name: getattr(side, name) for name in ("setup", "epochs", "curve", "latent", "reference")}
    for line in sys.stdin:
        given = json.loads(line)
        try:
            answer = commands[given.pop("do")](**given)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
