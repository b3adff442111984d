"""Our side of speed.py: a worker that trains, encodes and scores models of trifold when asked. Started by speed.py, not by hand."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import trifold as tri
from speed_data import halves, read
from speed_workers import serve, spent
from trifold.core import VAE, Decoder, Posterior, StandardNormal
from trifold.data import Cells
from trifold.data.matrix import Array
from trifold.dist import NegativeBinomial, ZeroInflated
from trifold.inference import bound_of, chunks
from trifold.nets import MLP
from trifold.presets.choices import likelihood_for
from trifold.terms import KL, NLL, Objective
from trifold.train import Plan

NAMES = {"nb": "negative_binomial", "zinb": "zero_inflated"}


class Watch:
    """Notes when each epoch has ended, and keeps the weights after those asked for.

    Args:
        model: Which is trained.
        keep: Epochs, from 1, after which weights are kept.
    """

    def __init__(self, model: tri.Model, keep: Sequence[int] = ()):
        self.model, self.keep = model, keep
        self.ended: list[Array] = []  # wall and CPU seconds
        self.kept: list[dict[str, Tensor]] = []
        self.first = 0.0  # seconds of the first epoch
        self.away = np.zeros(2)  # seconds that keeping the weights took

    def __call__(self, row: dict[str, float]) -> None:
        """The ``on_epoch`` of ``fit``."""
        now = np.array(spent())
        self.first = self.first or row["seconds"]
        self.ended.append(now - self.away)
        if len(self.ended) in self.keep:
            self.kept.append({k: v.detach().cpu().clone() for k, v in self.model.vae.state_dict().items()})
            self.away += np.array(spent()) - now


class Side:
    """The model that is being asked, and its data."""

    def __init__(self) -> None:
        self.data: Any = None
        self.model: tri.Model
        self.folder = ""

    def setup(
        self, folder: str, likelihood: str, batch: int, hidden: int, latent: int, norm: str, warm: bool = False, seed: int = 0
    ) -> dict[str, Any]:
        """An untrained model of SCVI's shape; ``warm``: the divergence's weight rises over the first half of training."""
        self._read(folder)
        self.model = composed(tri.Schema.of(self.data, spurious="batch"), likelihood, batch, hidden, latent, norm, warm=warm, seed=seed)
        return {"cells": self.data.n_obs, "genes": self.data.n_vars, "trifold": tri.__version__, "torch": torch.__version__}

    def epochs(self, n: int) -> dict[str, Any]:
        """Wall and CPU seconds of n epochs, after one that is not timed."""
        watch = Watch(self.model)
        self.model.fit(self.data, epochs=n + 1, device="cpu", progress=False, on_epoch=watch)
        wall, cpu = watch.ended[n] - watch.ended[0]
        return {"wall": wall, "cpu": cpu, "epochs": n}

    def curve(self, epochs: int, share: float, draws: int, at: list[int]) -> dict[str, Any]:
        """Held-out evidence lower bound after some epochs of one training, and the seconds from its first step until then."""
        train, out = halves(self.data.n_obs, share)
        watch = Watch(self.model, at)
        began = time.perf_counter()
        self.model.fit(self.data[train].copy(), epochs=epochs, device="cpu", progress=False, on_epoch=watch)
        whole = time.perf_counter() - began
        cells = Cells(self.data[out].copy(), self.model.schema)
        points = []
        for epoch, weights in zip(at, watch.kept, strict=True):
            self.model.vae.load_state_dict(weights)
            wall = watch.first + float(watch.ended[epoch - 1][0] - watch.ended[0][0])
            points.append({"epoch": epoch, "wall": wall, **self.score(cells, draws)})
        return {"points": points, "whole": whole, "held_out": len(out)}

    @torch.no_grad()
    def score(self, cells: Cells, draws: int) -> dict[str, float]:
        """Nats per cell: the bound, log p(x | z) and the divergence; mean over cells and draws of z."""
        self.model.vae.eval()
        generator = torch.Generator().manual_seed(0)
        parts = [
            torch.cat([bound_of(self.model.vae, b, generator) for b in chunks(cells, np.arange(cells.n))]).double().mean(0)
            for _ in range(draws)
        ]
        elbo, fit, kl = torch.stack(parts).mean(0).tolist()
        return {"elbo": elbo, "reconstruction": fit, "kl": kl}

    def latent(self) -> dict[str, Any]:
        """Seconds of ``model.latent`` on all cells."""
        began = spent()
        z = self.model.latent(self.data, device="cpu")
        wall, cpu = np.array(spent()) - np.array(began)
        return {"wall": wall, "cpu": cpu, "cells": len(z)}

    def reference(self, path: str) -> dict[str, Any]:
        """Largest relative difference of our log-probabilities from a peer's, cell by cell, at the peer's own decoder outputs."""
        with np.load(path) as file:
            peer = {k: torch.from_numpy(np.asarray(file[k])).double() for k in file.files}
        p: Any = NegativeBinomial(peer["rate"], peer["theta"])
        if "logits" in peer:
            p = ZeroInflated(p, peer["logits"])
        ours = p.log_prob(peer["x"]).sum(1)
        kl = 0.5 * (peer["mean"].square() + peer["scale"].square() - 1 - 2 * peer["scale"].log()).sum(1)
        return {
            "log_prob": float(((ours - peer["log_prob"]) / peer["log_prob"]).abs().max()),
            "kl": float(((kl - peer["kl"]) / peer["kl"].clamp_min(1e-6)).abs().max()),
        }

    def preset(self, folder: str, name: str, batch: int, hidden: list[int], latent: list[int], column: str, mmd: bool) -> dict[str, Any]:
        """A preset in place of the composed model; ``epochs`` then times it. ``mmd``: with trvae's MMD, or without."""
        self._read(folder)
        if name == "trvae":
            off: dict[str, Any] = {} if mmd else {"mmd": 0.0}
            self.model = tri.trvae(tri.Schema.of(self.data, condition=column), hidden=hidden, latent=latent[0], **off)
        else:
            schema = tri.Schema.of(self.data, spurious=column, invariant="cell_type")
            self.model = tri.invae(schema, hidden=hidden, invariant=latent[0], spurious=latent[1])
        self.model.plan = replace(self.model.plan, batch=batch, validation=0.0, patience=None, plateau=None)
        return {"cells": self.data.n_obs, "genes": self.data.n_vars}

    def _read(self, folder: str) -> None:
        if folder != self.folder:
            self.data, self.folder = read(Path(folder)), folder


def composed(
    schema: tri.Schema, likelihood: str, batch: int, hidden: int, latent: int, norm: str, *, warm: bool = False, seed: int = 0
) -> tri.Model:
    """The network that scvi-tools' SCVI is by default: one layer, ReLU, dropout 0.1 in the encoder, log1p of the counts."""
    genes, style = len(schema.genes), {"norm": norm, "activation": "relu"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        posterior = Posterior(MLP(genes, (hidden,), dropout=0.1, **style), latent, transform="log1p")
        decoder = Decoder(MLP(latent, (hidden,), covariates=schema.width("spurious"), **style), roles=("spurious",))
        vae = VAE(posterior, StandardNormal(latent), decoder, likelihood_for(schema, decoder.width, name=NAMES[likelihood]))
    plan = Plan(batch=batch, lr=1e-3, validation=0.0, patience=None, plateau=None)
    return tri.Model(schema, vae, Objective({"nll": NLL(), "kl": KL()}, {"kl": tri.Ramp(1.0, end=0.5) if warm else 1.0}), plan=plan)


def main() -> None:
    """Answer until stdin ends."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(ask.parse_args().threads)
    side = Side()
    names = ("setup", "epochs", "curve", "latent", "reference", "preset")
    serve({name: getattr(side, name) for name in names})


if __name__ == "__main__":
    main()
